"""A resume takes the optimizer's states from the checkpoint and every `optim.*` setting from this start."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_pipeline.dataset.blend import load_blend
from pretrain.checkpoints.states import Held
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.config.settings import Optim
from pretrain.optimizer.ema import averaged_weights
from pretrain.training.checkpoint import restore
from pretrain.training.start import build_run
from pretrain.training.state import TrainingRun
from pretrain.training.step import train_step
from tests.checkpoints import save
from tests.launching import ROOT

pytestmark = pytest.mark.slow
LAYOUTS = [
    ("parallel.zero_stage=0", "train.precision=fp32"),
    *((f"parallel.zero_stage={z}", f"train.precision={p}") for z in (1, 2, 3) for p in ("fp32", "bf16")),
    ("parallel.zero_stage=2", "train.precision=bf16", "parallel.offload=optimizer"),
    *(
        (f"parallel.zero_stage={z}", f"train.precision={p}", "optim.name=muon")
        for z, p in ((0, "fp32"), (1, "bf16"), (3, "fp32"))
    ),
]
# Small norms are clipped by the new limit and not by the old one; eps is large enough to matter at once.
CHANGES = {
    "optim.lr": "3e-2", "optim.schedule": "wsd", "optim.warmup_steps": "1", "optim.decay_fraction": "0.9",
    "optim.min_lr_ratio": "0.7", "optim.beta1": "0.5", "optim.beta2": "0.7", "optim.eps": "1e-3", "optim.weight_decay": "0.4",
    "optim.clip_norm": "1e-2", "optim.ema_decay": "0.05", "optim.momentum": "0.6",
}  # fmt: skip
BASE = {"optim.schedule": "cosine", "optim.clip_norm": "100", "optim.warmup_steps": "0"}


@pytest.fixture
def build(corpus, world, tmp_path) -> Callable[..., TrainingRun]:
    def built(*overrides: str) -> TrainingRun:
        common = [f"data.path={corpus}", f"run.dir={tmp_path}", "run.name=run", "train.steps=9"]
        settings = load_settings(str(ROOT / "tests" / "tiny.yaml"), [*common, *overrides])
        blend = load_blend(Path(settings.data.path))
        return build_run(make_run_plan(settings, blend.manifest, 1), blend, world)

    return built


def tensors_of(run: TrainingRun) -> dict[str, torch.Tensor]:
    """The weights and every tensor of the optimizer's state, as a checkpoint has them."""
    return Held(run.engine, run.plan.settings.model, run.world).snapshot("file").file.tensors


def words(settings: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


def give_hyperparameters(run: TrainingRun, optim: Optim) -> None:
    """Set by hand what `load_checkpoint` must not bring back."""
    for group in run.engine.optimizer.param_groups:
        new = {"betas": (optim.beta1, optim.beta2), "eps": optim.eps, "momentum": optim.momentum}
        new |= {
            "matrix_decay": optim.weight_decay,
            "weight_decay": optim.weight_decay if group["weight_decay"] else 0.0,
        }
        group.update((key, value) for key, value in new.items() if key in group)
    if run.engine.zero_stage:
        run.engine._engine.optimizer.clip_grad = optim.clip_norm


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(w.partition("=")[2] for w in layout))
def test_a_resume_takes_every_changed_setting(build, layout):
    """The oracle loads nothing: the old run itself takes the third step, with the new hyperparameters set by hand."""
    old = build(*layout, *words(BASE))
    for step in range(2):
        train_step(old, old.batches[step])
        old.progress.step = step + 1
    (old.folder / "checkpoints").mkdir(parents=True)
    save(old)
    new = build(*layout, *words(BASE | CHANGES))
    assert restore(new) is not None
    before = tensors_of(new)

    old.plan = old.engine._plan = new.plan
    give_hyperparameters(old, new.plan.settings.optim)
    for run in (old, new):
        train_step(run, run.batches[2])
    got, expected = tensors_of(new), tensors_of(old)
    assert got.keys() == expected.keys()
    for name in expected:
        if not name.startswith("ema"):
            assert torch.equal(got[name], expected[name]), name
    with averaged_weights(new.engine.optimizer):
        for name, average in tensors_of(new).items():
            assert not name.startswith("weight:") or not torch.equal(average, got[name]), name
    for name in (name for name in before if name.startswith("ema:")):  # one update, of decay 0.05 instead of 2 / 11
        weight = got[name.replace("ema:", "weight:")]
        torch.testing.assert_close(got[name], 0.05 * before[name] + 0.95 * weight, rtol=1e-6, atol=1e-8)
