"""Gradient norms and update-to-weight ratios of the model's parts: against plain PyTorch, and on every layout against one rank."""

import math

import pytest
import torch

from data_pipeline.dataset.blend import load_blend
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.optimizer.schedule import learning_rate
from pretrain.training.hooks.parts import Parts
from pretrain.training.start import build_run
from pretrain.training.state import Progress, TrainingRun
from pretrain.training.step import train_step
from tests.distributed.test_non_finite import poison_gradient, poison_loss
from tests.launching import ROOT
from tests.rows import loss_in_plain_pytorch

pytestmark = pytest.mark.slow
PARTS = {"embedding", "head", "mid", "tail", "final_norm", "lm_head"}
LAYOUTS = [
    *((f"parallel.zero_stage={stage}",) for stage in (0, 1, 2, 3)),
    ("parallel.zero_stage=2", "parallel.offload=optimizer"),
    ("parallel.zero_stage=3", "parallel.offload=parameters"),
]


def start(corpus, world, *overrides: str) -> TrainingRun:
    words = [f"data.path={corpus}", "train.steps=9", "optim.warmup_steps=0", "optim.lr=1e-2", *overrides]
    settings = load_settings(str(ROOT / "tests" / "tiny.yaml"), words)
    blend = load_blend(settings.data.path)
    return build_run(make_run_plan(settings, blend.manifest, 1), blend, world)


def take_steps(run: TrainingRun, hook: Parts, steps: int) -> list[dict[str, dict[str, float]] | None]:
    """What the hook has after each step."""
    hook.on_start(run)
    found = []
    for _ in range(steps):
        report = train_step(run, run.batches[run.progress.step])
        run.progress.step += 1
        hook.on_step(run, report)
        found.append(hook.figures)
    hook.on_end(run)
    return found


def plain_figures(run: TrainingRun, steps: int) -> list[dict[str, dict[str, float]]]:
    """The same by plain PyTorch in one process: torch's own AdamW over the weights by name, in the same two groups."""
    optim, architecture = run.plan.settings.optim, run.plan.settings.model
    weights = {name: torch.nn.Parameter(weight.clone()) for name, weight in run.engine.full_weights()}
    matrices, vectors = ([w for w in weights.values() if (w.dim() > 1) == many] for many in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=(optim.beta1, optim.beta2), eps=optim.eps,
    )  # fmt: skip
    found = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(optim, step, run.plan.total_steps)
        loops, minimum = run.plan.loops(step), run.plan.settings.train.min_timestep
        loss = loss_in_plain_pytorch(weights, architecture, run.batches[step], loops, minimum, run.plan.tokens_per_step)
        loss.backward()
        gradients = {name: weight.grad.clone() for name, weight in weights.items()}
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        torch.nn.utils.clip_grad_norm_(weights.values(), optim.clip_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        changes = {name: weight.detach() - before[name] for name, weight in weights.items()}
        found.append(
            {
                part: {
                    "grad_norm": norm_of(gradients, part),
                    "update_ratio": norm_of(changes, part) / norm_of(before, part),
                }
                for part in PARTS
            }
        )
    return found


def norm_of(tensors: dict[str, torch.Tensor], part: str) -> float:
    return torch.cat([t.double().flatten() for name, t in tensors.items() if name.split(".")[0] == part]).norm().item()


def assert_close(got: dict[str, dict[str, float]], expected: dict[str, dict[str, float]], relative: float) -> None:
    assert got.keys() == expected.keys()
    for part, figures in expected.items():
        assert got[part] == pytest.approx(figures, rel=relative), part


@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda overrides: "-".join(w.partition("=")[2] for w in overrides))
def test_figures_equal_those_of_plain_pytorch(corpus, world, layout, clip):
    """Of every update, with weight decay, and with gradients that are clipped: the figures are those before clipping."""
    words = (f"optim.clip_norm={clip}", "train.precision=fp32", "optim.weight_decay=0.5")
    expected = plain_figures(start(corpus, world, *words), 3)
    got = take_steps(start(corpus, world, *words, *layout), Parts(), 3)
    for figures, oracle in zip(got, expected, strict=True):
        assert_close(figures, oracle, 1e-4)
        assert sum(part["grad_norm"] ** 2 for part in oracle.values()) > 4 * 0.1**2, "nothing is clipped"


def test_only_steps_that_are_logged_are_measured(corpus, world):
    assert [f is not None for f in take_steps(start(corpus, world, "log.every=3"), Parts(), 7)] == [
        False, False, True, False, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS[:4], ids=lambda overrides: overrides[0].partition("=")[2])
@pytest.mark.parametrize("poison", [poison_loss, poison_gradient])
def test_a_skipped_update_has_no_figures_and_leaves_none(corpus, world, layout, poison):
    run, hook = start(corpus, world, *layout), Parts()
    take_steps(run, hook, 1)
    hook.on_start(run)
    for handle in poison(run):
        report = train_step(run, run.batches[1])
        handle.remove()
    assert report.skipped is not None
    run.progress.step = 2
    hook.on_step(run, report)
    assert hook.figures is None
    report = train_step(run, run.batches[2])
    hook.on_step(run, report)
    hook.on_end(run)
    assert math.hypot(*(part["grad_norm"] for part in hook.figures.values())) == pytest.approx(report.grad_norm)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_are_those_of_a_run_without(corpus, world, precision, optimizer):
    words = (f"train.precision={precision}", f"optim.name={optimizer}")
    run, other = (start(corpus, world, *words) for _ in range(2))
    take_steps(run, Parts(), 3)
    for step in range(3):
        other.progress = Progress(step=step)
        train_step(other, other.batches[step])
    expected = dict(other.engine.full_weights())
    assert all(torch.equal(weight, expected[name]) for name, weight in run.engine.full_weights())
