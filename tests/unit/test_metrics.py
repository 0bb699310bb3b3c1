"""Figures of a start that goes on from another one."""

from types import SimpleNamespace

from pretrain.training.hooks.metrics import Metrics
from pretrain.training.hooks.recorder import Recorder
from pretrain.training.state import Progress


def test_the_time_left_is_that_at_the_speed_of_this_start():
    """Earlier starts may have had another number of ranks."""
    plan = SimpleNamespace(total_steps=60, expected_flops=lambda first, last: 2.0 * (last - first))
    run = SimpleNamespace(progress=Progress(step=25, elapsed=1000.0, flops=50.0), plan=plan)
    metrics = Metrics(Recorder([]), None)
    metrics.on_start(run)
    run.progress = Progress(step=35, elapsed=1005.0, flops=70.0)
    assert metrics._eta(run) == 50.0 / (20.0 / 5.0)
