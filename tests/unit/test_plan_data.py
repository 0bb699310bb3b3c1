"""The planner and `parallel: auto` with one prepared folder, a mixture, and no data at all."""

import json
import time

import pytest

from data_pipeline.dataset.blend import load_blend
from data_pipeline.errors import DataError
from pretrain.cli import main
from pretrain.config.load import load_run, load_settings
from pretrain.errors import ConfigError
from pretrain.planning.layouts import choose
from tests.launching import ROOT

TINY = str(ROOT / "tests" / "tiny.yaml")


@pytest.fixture
def planned(tmp_path, capsys):
    """The figures of `loopmdm plan` on two ranks, or its error message."""

    def call(*overrides):
        out = tmp_path / "plan.json"
        status = main(["plan", "--config", TINY, "--ranks", "2", "--json", str(out), *map(str, overrides)])
        return json.loads(out.read_text()) if status == 0 else capsys.readouterr().err

    return call


@pytest.fixture
def mixture(corpus, tmp_path):
    path = tmp_path / "blend.yaml"
    path.write_text(f"corpora: [{{path: {corpus}, weight: 1}}]")
    return path


def test_a_folder_a_mixture_and_bare_sizes_give_the_same_plan(planned, corpus, mixture, tmp_path):
    manifest = load_blend(corpus).manifest
    sizes = (f"model.vocab_size={manifest.vocab_size}", f"data.seq_len={manifest.seq_len}")
    expected = planned(f"data.path={corpus}")
    assert len(expected) > 10
    assert planned(f"data.path={mixture}") == expected == planned(f"data.path={tmp_path / 'none'}", *sizes)


def test_without_data_unknown_sizes_are_named(planned, tmp_path):
    message = planned(f"data.path={tmp_path / 'none'}", "data.seq_len=64")
    assert "model.vocab_size: is taken from the prepared data" in message and "data.seq_len:" not in message
    assert "or set the key, such as model.vocab_size=32768" in message


def test_sizes_that_differ_from_the_data_are_refused(planned, mixture):
    assert "holds rows of 32 tokens" in planned(f"data.path={mixture}", "data.seq_len=64")


def test_auto_takes_the_best_layout_of_a_mixture(planned, mixture):
    best = planned(f"data.path={mixture}")[0]["parallel"]
    settings = load_settings(TINY, [f"data.path={mixture}", "parallel=auto"])
    chosen = choose(settings, load_blend(mixture).manifest, 2).parallel
    assert {key: getattr(chosen, key) for key in best} == best and not chosen.auto


def test_a_budget_far_beyond_the_model_is_planned_at_once(planned, corpus):
    begin = time.perf_counter()
    assert len(planned(f"data.path={corpus}", "train.steps=null", "train.max_flops=1e20")) > 10
    assert time.perf_counter() - begin < 20


def test_a_problem_of_the_data_is_told_with_those_of_the_settings(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_run(TINY, [f"data.path={tmp_path / 'none'}", "optim.lr=fast", "train.loops=9"])
    keys = [problem.key for problem in caught.value.problems]
    assert keys == ["optim.lr", "train.loops", "data.path"] and "no prepared data" in str(caught.value)
    with pytest.raises(DataError, match="no prepared data"):
        load_run(TINY, [f"data.path={tmp_path / 'none'}"])
    with pytest.raises(ConfigError) as caught:
        load_run(TINY, ["data.path=$NOT_SET_HERE"])
    assert [problem.key for problem in caught.value.problems] == ["data.path"]
