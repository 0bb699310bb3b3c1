"""A step whose loss or gradient is not finite, or whose loss is a spike, updates nothing and leaves no gradient behind."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.hooks import RemovableHandle

from data_pipeline.dataset.blend import load_blend
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.optimizer.ema import averaged_weights
from pretrain.parallel import parallelize
from pretrain.training.start import build_run
from pretrain.training.state import Progress, TrainingRun
from pretrain.training.step import SPIKE_WINDOW, train_step
from tests.launching import BIN, ROOT, free_port, run

pytestmark = pytest.mark.slow
LAYOUTS = [
    ("parallel.zero_stage=0", "train.precision=fp32"),
    *((f"parallel.zero_stage={z}", f"train.precision={p}") for z in (1, 2, 3) for p in ("fp32", "bf16")),
    ("parallel.zero_stage=2", "train.precision=bf16", "parallel.offload=optimizer"),
    ("parallel.zero_stage=3", "train.precision=bf16", "parallel.offload=parameters"),
]


@pytest.fixture
def start(corpus, world) -> Callable[..., TrainingRun]:
    """Builds a run of one rank that has taken one step."""

    def started(*overrides: str) -> TrainingRun:
        settings = load_settings(
            str(ROOT / "tests" / "tiny.yaml"), [f"data.path={corpus}", "train.steps=9", *overrides]
        )
        blend = load_blend(Path(settings.data.path))
        run = build_run(make_run_plan(settings, blend.manifest, 1), blend, world)
        train_step(run, run.batches[0])
        run.progress.step = 1
        return run

    return started


def state_of(run: TrainingRun) -> dict[str, torch.Tensor]:
    """Weights, their average and AdamW's moments."""
    weights = {name: weight.clone() for name, weight in run.engine.full_weights()}
    with averaged_weights(run.engine.optimizer):
        averages = {f"ema of {name}": weight.clone() for name, weight in run.engine.full_weights()}
    moments = {
        f"{key} of {i}": state[key].clone()
        for i, state in enumerate(run.engine.optimizer.state.values())
        for key in ("exp_avg", "exp_avg_sq")
    }
    return weights | averages | moments


def poison_loss(run: TrainingRun) -> Iterator[RemovableHandle]:
    """The loss of the last micro-batch is NaN."""
    calls = iter(range(run.plan.micro_batches))

    def poison(head: torch.nn.Module, inputs: object, output: tuple[torch.Tensor, torch.Tensor]) -> object:
        return output[0] * (float("nan") if next(calls) == run.plan.micro_batches - 1 else 1.0), output[1]

    yield run.engine.model.lm_head.register_forward_hook(poison)


def poison_gradient(run: TrainingRun) -> Iterator[RemovableHandle]:
    """The loss is finite, but the gradient overflows on its way back."""

    def overflow(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: gradient * float("inf"))

    yield run.engine.model.tail.register_forward_hook(overflow)


def raise_loss(run: TrainingRun) -> Iterator[RemovableHandle]:
    """Loss and gradient are finite, but far above the losses before."""
    run.progress.recent_losses = [1.0, 1.1] * (SPIKE_WINDOW // 2)
    yield run.engine.model.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda overrides: "-".join(w.partition("=")[2] for w in overrides))
@pytest.mark.parametrize(
    ("poison", "message"),
    [
        (poison_loss, r"the loss is nan"),
        (poison_gradient, r"the gradient norm is (inf|nan)"),
        (raise_loss, r"the loss is \d\.\d{4}, \d+\.\d standard deviations above the median 1\.0500"),
    ],
)
def test_nothing_is_updated_and_the_next_step_is_that_of_a_run_without_it(start, layout, poison, message):
    run = start("train.spike_threshold=6", *layout)
    before = state_of(run)
    for handle in poison(run):
        report = train_step(run, run.batches[1])
        handle.remove()
    assert report.skipped is not None and re.fullmatch(message, report.skipped)
    assert_equal(before, state_of(run))
    run.progress = Progress(step=2)
    assert train_step(run, run.batches[2]).skipped is None
    other = start(*layout)
    other.progress.step = 2
    train_step(other, other.batches[2])
    assert_equal(state_of(other), state_of(run))


@pytest.mark.parametrize("layout", LAYOUTS[:3], ids=lambda overrides: "-".join(w.partition("=")[2] for w in overrides))
def test_a_rank_whose_weights_are_all_copies_of_others_steps_with_the_norm_of_the_rest(start, monkeypatch, layout):
    """As on a pipeline stage of copied mid layers alone; here nobody holds the first copy. Also after a step that is dropped."""

    def mark(model: torch.nn.Module) -> None:
        for weight in model.parameters():
            weight.tensor_model_parallel, weight.ds_pipe_replicated = False, True

    monkeypatch.setattr(parallelize, "mark_copied_weights", mark)
    run = start(*layout)
    for handle in poison_loss(run):
        assert train_step(run, run.batches[1]).skipped
        handle.remove()
    before = [weight.clone() for weight in run.engine.model.parameters()]
    report = train_step(run, run.batches[2])
    assert report.skipped is None and report.grad_norm == 0.0
    assert any(not torch.equal(*pair) for pair in zip(before, run.engine.model.parameters(), strict=True))


def assert_equal(expected: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    assert expected.keys() == state.keys()
    for name, value in expected.items():
        assert torch.equal(value, state[name]), name


def test_the_comparison_sees_an_update(start):
    run = start("parallel.zero_stage=1", "train.precision=bf16")
    before = state_of(run)
    train_step(run, run.batches[1])
    after = state_of(run)
    assert all(not torch.equal(value, after[name]) for name, value in before.items())


TWO_RANKS = {
    **{f"DP2, ZeRO-{z}, {p}": (f"parallel.zero_stage={z}", f"train.precision={p}")
       for z in (0, 1, 2, 3) for p in ("fp32", "bf16") if z or p == "fp32"},
    "DP2, ZeRO-2, optimizer on CPU": LAYOUTS[-2],
    "DP2, ZeRO-3, weights on CPU": LAYOUTS[-1],
    "TP2, ZeRO-0": ("parallel.tensor=2", "parallel.zero_stage=0"),
    "TP2 + SP, bf16": ("parallel.tensor=2", "parallel.sequence=true", "train.precision=bf16"),
    "PP2, ZeRO-0": ("parallel.pipeline=2", "parallel.zero_stage=0", "parallel.mid_replicas=1"),
    "PP2, bf16": ("parallel.pipeline=2", "train.precision=bf16", "parallel.mid_replicas=1"),
    "PP2, 2 copies of mid": ("parallel.pipeline=2", "parallel.mid_replicas=2"),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(corpus, tmp_path_factory) -> dict[str, list[dict]]:
    """What each rank of each layout saw, from one start of two ranks."""
    folder = tmp_path_factory.mktemp("one_bad_rank")
    common = [f"data.path={corpus}", "train.steps=9"]
    (folder / "layouts.json").write_text(json.dumps({name: [*common, *words] for name, words in TWO_RANKS.items()}))
    torchrun = [BIN / "torchrun", "--nproc-per-node=2", f"--master-port={free_port()}"]
    script = [ROOT / "tests/distributed/one_bad_rank.py", folder / "out.json", folder / "layouts.json"]
    done = run([*torchrun, *script], timeout=400, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return json.loads((folder / "out.json").read_text())


@pytest.mark.distributed
@pytest.mark.parametrize("layout", TWO_RANKS)
def test_if_one_rank_of_two_is_bad_neither_updates(outcomes, layout):
    """A gradient of rank 0 alone, one of rank 1 alone, a loss of rank 1 alone; the step after them is a normal one."""
    one, other = outcomes[layout]
    assert one["skipped"] == other["skipped"]
    for reason in one["skipped"]:
        assert reason is not None and re.fullmatch("the gradient norm is (inf|nan)|the loss is nan", reason)
    assert one["changed"] == other["changed"] == []
    assert one["afterwards"] == other["afterwards"] == [None, None]
