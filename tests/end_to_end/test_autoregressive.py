"""`model.causal`: an autoregressive model is trained and measured as plain PyTorch would, and refused where it makes no sense."""

import json

import numpy as np
import pytest
import torch

from data_pipeline.dataset.blend import load_blend
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.dataset.samples import Samples
from model.reference import reference_logits
from pretrain.cli import main as loopmdm
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.errors import UserError
from pretrain.training.start import run_training
from tests.checkpoints import weights_of
from tests.launching import ROOT, metrics, train

pytestmark = pytest.mark.end_to_end


COMMON = (
    "run.name=run", "model.causal=true", "train.steps=3", "optim.warmup_steps=1", "checkpoint.every=1", "checkpoint.keep=3",
    "log.every=1", "train.loops=2",
)  # fmt: skip


def plan_of(data, *words):
    settings = load_settings(str(ROOT / "tests" / "tiny.yaml"), [f"data.path={data}", *COMMON, *words])
    return make_run_plan(settings, load_blend(data).manifest, 1)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A run of three steps that has saved every one."""
    folder = tmp_path_factory.mktemp("autoregressive")
    plan = plan_of(corpus, f"run.dir={folder}")
    assert run_training(plan, load_blend(corpus), resume=True) == 0
    return folder / "run"


def nats_of(weights, model, clean, loops):
    """-log p of every token given those before it; [MASK] stands before the first, [b, s]."""
    first = torch.full_like(clean[:, :1], model.mask_id)
    logits = reference_logits(weights, model, torch.cat([first, clean[:, :-1]], dim=1), loops)
    return -logits.log_softmax(-1).gather(-1, clean[..., None]).squeeze(-1)


def test_the_loss_of_training_is_the_mean_over_all_tokens(trained, corpus):
    settings, source = load_settings(str(trained / "config.yaml")), Samples.of(load_blend(corpus), 0)
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["loss"] for record in logged if "loss" in record}
    size = settings.train.global_batch_size
    assert plan_of(corpus).flops.masked_fraction == 1
    for step in (1, 2):
        weights = weights_of(trained / "checkpoints" / f"step_{step}")
        clean = torch.from_numpy(source.rows(np.arange(size * step, size * (step + 1))))
        expected = nats_of(weights, settings.model, clean, 2).mean().item()
        assert losses[step + 1] == pytest.approx(expected, rel=1e-5)


def test_evaluate_is_the_exact_negative_log_likelihood(trained, corpus, tmp_path):
    output = tmp_path / "figures.json"
    words = ["--loops", "1,3", "--rows", "20", "--batch-size", "7", "--weights", "raw", "--output", str(output)]
    assert loopmdm(["evaluate", str(trained), *words]) == 0
    settings, dataset = load_settings(str(trained / "config.yaml")), PackedDataset(corpus, "validation")
    rows = np.arange(20) * dataset.num_rows // 20
    clean, weights = torch.from_numpy(dataset.rows(rows)), weights_of(trained / "checkpoints" / "step_3")
    for figures in json.loads(output.read_text())["loops"]:
        expected = nats_of(weights, settings.model, clean, figures["loops"]).mean().item()
        assert figures["nats_per_token"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "layout",
    [("parallel.tensor=2", "parallel.sequence=true"), ("parallel.pipeline=2", "parallel.mid_replicas=2")],
    ids=["TP2 + SP", "PP2"],
)
def test_two_ranks_train_as_one(trained, corpus, tmp_path, layout):
    words = [*COMMON, f"data.path={corpus}", f"run.dir={tmp_path}", "train.precision=fp32", *layout]
    train("--config", "tests/tiny.yaml", *words, ranks=2)
    found, expected = ([record["loss"] for record in metrics(run)] for run in (tmp_path / "run", trained))
    assert len(found) == 3
    assert found == pytest.approx(expected, rel=1e-5)


def test_what_makes_no_sense_is_refused(trained, corpus, tmp_path, capsys):
    for word in ("train.attention=document", "train.noise=document", "train.loss_weight=uniform", "log.texts_every=2"):
        with pytest.raises(UserError, match=rf"{word.partition('=')[0]}.*is for masked diffusion"):
            plan_of(corpus, word)
    assert loopmdm(["sample", str(trained), "--output", str(tmp_path / "texts.jsonl")]) == 2
    assert (
        "model.causal=true, an autoregressive model; only `loopmdm evaluate` without --tasks" in capsys.readouterr().err
    )
    assert loopmdm(["export", str(trained), str(tmp_path / "exported")]) == 2
    assert "model.causal=true: an autoregressive model cannot be exported" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()
