"""Samples of text during training: those of `loopmdm sample`, everywhere that figures go, and without a trace in the run."""

import json
from pathlib import Path
from textwrap import indent

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_pipeline.dataset.blend import load_blend
from pretrain.cli import main as loopmdm
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.training.start import run_training
from tests.end_to_end.test_training import RECIPE, assert_same_bits
from tests.launching import records

pytestmark = pytest.mark.end_to_end
LAYOUTS = [
    ("parallel.zero_stage=0", "optim.name=muon"),
    ("parallel.zero_stage=1", "train.precision=bf16"),
    ("parallel.zero_stage=2", "parallel.offload=optimizer", "train.precision=bf16"),
    ("parallel.zero_stage=3", "optim.ema_decay=0"),
    ("parallel.zero_stage=3", "parallel.offload=parameters", "train.precision=bf16"),
]


@pytest.fixture
def start(world, corpus, tmp_path):
    """Train in this process; returns the run folder."""

    def started(name: str, *words: str) -> Path:
        common = [f"data.path={corpus}", f"run.dir={tmp_path}", f"run.name={name}"]
        settings = load_settings(str(RECIPE), [*common, *words])
        blend = load_blend(settings.data.path)
        run_training(make_run_plan(settings, blend.manifest, 1), blend, resume=True)
        return tmp_path / name

    return started


def texts_of(run_folder: Path) -> dict[int, dict]:
    found = [record for record in records(run_folder) if "texts" in record]
    assert len({record["step"] for record in found}) == len(found)
    return {record["step"]: record["texts"] for record in found}


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_texts_are_those_of_the_command_with_the_same_weights(start, tmp_path, capsys, weights):
    decay = 0.9 if weights == "ema" else 0
    folder = start("run", "log.texts_every=10", "log.tensorboard=true", f"optim.ema_decay={decay}")
    found, printed = texts_of(folder), capsys.readouterr().out
    assert list(found) == [10, 20]
    assert (found[20]["weights"], found[20]["loops"], found[20]["denoising_steps"]) == (weights, 4, 32)
    assert (
        f"text at step 20 ({weights} weights, S=4): {json.dumps(found[20]['drawn'][0][:120], ensure_ascii=False)}"
        in printed
    )
    words = ["--num-samples", "2", "--steps", "32", "--weights", weights, "--output", str(tmp_path / "texts.json")]
    assert loopmdm(["sample", str(folder), *words]) == 0
    assert json.loads((tmp_path / "texts.json").read_text())["texts"] == found[20]["drawn"] != found[10]["drawn"]
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    shown = {e.step: e.tensor_proto.string_val[0].decode() for e in events.Tensors("texts/2/text_summary")}
    assert shown == {step: indent(one["drawn"][1], "    ", lambda line: True) for step, one in found.items()}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda words: "-".join(word.partition("=")[2] for word in words))
def test_the_run_is_bit_for_bit_that_without(start, layout):
    """Also over a resume, with the parts of the model watched."""
    watched = ("log.texts_every=3", "log.parts=true", *layout)
    start("watched", "run.stop_after=9", *watched)
    folder = start("watched", *watched)
    assert list(texts_of(folder)) == [3, 6, 9, 12, 15, 18]
    assert_same_bits(start("plain", *layout), folder)


def test_the_next_start_makes_up_for_texts_that_a_request_to_stop_left_out(start):
    folder = start("run", "log.texts_every=5", "run.stop_after=5")
    expected, path = texts_of(folder), folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "texts" not in line))
    start("run", "log.texts_every=5", "run.stop_after=1")
    assert texts_of(folder) == expected
