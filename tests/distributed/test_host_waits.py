"""How often the host would wait for a GPU within a training step.

On a CPU nothing waits, so the operations are counted that read a result on the host: values of tensors, and selections whose size
depends on the data.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipeline.dataset.blend import load_blend
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.training.start import build_run
from pretrain.training.state import TrainingRun
from pretrain.training.step import train_step
from tests.launching import ROOT

WAITS = re.compile(r"aten\.(_local_scalar_dense|nonzero|masked_select|bincount|equal|_unique2|unique_\w+|is_nonzero)\b")


# Reads of the norm, and checks for a gradient that is not finite, in DeepSpeed 0.19.8; without ZeRO, ours.
WAITS_OF_UPDATE = {0: 1, 1: 3, 2: 5, 3: 2}


class HostWaits(TorchDispatchMode):
    """Counts operations after which the host needs a result of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.is_counting = True

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = str(function)
        # Assigning one value where a mask is true runs without a wait; selecting does not.
        by_mask = name.startswith("aten.index.") and any(i is not None and i.dtype == torch.bool for i in arguments[1])
        if self.is_counting and (by_mask or WAITS.match(name)):
            self.seen[name] += 1
        return function(*arguments, **(keywords or {}))


@contextmanager
def not_counting_the_optimizer(run: TrainingRun, waits: HostWaits) -> Iterator[None]:
    """On CPUs AdamW reads its own step counters, which the fused kernel of GPUs does not."""
    optimizer = run.engine.optimizer
    before = optimizer.register_step_pre_hook(lambda *_: setattr(waits, "is_counting", False))
    after = optimizer.register_step_post_hook(lambda *_: setattr(waits, "is_counting", True))
    yield
    before.remove()
    after.remove()


@pytest.fixture
def run(corpus, world, tmp_path, request):
    overrides = [f"data.path={corpus}", f"run.dir={tmp_path}", *request.param]
    settings = load_settings(str(ROOT / "tests" / "tiny.yaml"), overrides)
    blend = load_blend(Path(settings.data.path))
    return build_run(make_run_plan(settings, blend.manifest, 1), blend, world)


@pytest.mark.parametrize(
    "run",
    [
        (f"parallel.zero_stage={z}", f"train.precision={p}")
        for z, p in ((0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16"))
    ],
    indirect=True,
    ids=["zero0", "zero1-bf16", "zero2-bf16", "zero3-bf16"],
)
def test_the_host_waits_for_the_loss_and_for_the_update_only(run):
    """Forward and backward wait for nothing; the update for the gradient's norm, which DeepSpeed reads more than once."""
    train_step(run, run.batches[0])
    run.progress.step, batches = 1, run.batches[1]
    waits, in_update = HostWaits(), []
    step = run.engine.step
    run.engine.step = lambda lr: (in_update.append(dict(waits.seen)), step(lr))[1]
    with waits, not_counting_the_optimizer(run, waits):
        train_step(run, batches)
    assert in_update == [{}]
    assert sum(waits.seen.values()) == WAITS_OF_UPDATE[run.engine.zero_stage], waits.seen
