"""TensorBoard shows each step once, with the value of the newest start, whatever the clocks of the starts said."""

import resource
import time
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginEventAccumulator

from pretrain.training.hooks.sinks import TensorBoard

NOW = 1_800_000_000.0


def start(folder, first, last, value, clock=None, monkeypatch=None):
    """One start of a run: it takes the steps first + 1 to last, at the time `clock`."""
    if clock is not None:
        monkeypatch.setattr(time, "time", lambda: clock)
    sink = TensorBoard()
    sink.open(SimpleNamespace(folder=folder, progress=SimpleNamespace(step=first)))
    for step in range(first + 1, last + 1):
        sink.write_training(
            {
                "step": step,
                "loss": value + step,
                "mfu": None,
                "loss_by_timestep": [1.0, None],
                "loss_by_loops": {2: 3.0},
                "parts": {"mid": {"grad_norm": value, "update_ratio": 0.01}},
            }
        )
        figures = {"name": "", "loops": [{"loops": 1, "nats_per_token": value}]}
        sink.write_validation({"step": step, "validation": figures})
        sink.write_texts({"step": step, "texts": {"drawn": [f"{value}\n  {step}"]}})
    sink.close()


def shown(folder, tag):
    """(step, value) as TensorBoard reads them."""
    reader = EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    plugin = PluginEventAccumulator(str(folder / "tensorboard"))
    plugin.Reload()
    points = [(each.step, each.value) for each in reader.Scalars(tag)]
    assert [step for step, _ in points] == [each.step for each in plugin.Tensors(tag)]
    return points


@pytest.mark.parametrize(
    "later", [5, 0, -1, -86_400], ids=["later", "in the same second", "a second back", "a day back"]
)
def test_repeated_steps_are_shown_once(tmp_path, monkeypatch, later):
    start(tmp_path, 0, 10, 100, NOW, monkeypatch)
    start(tmp_path, 5, 8, 200, NOW + later, monkeypatch)
    start(tmp_path, 7, 10, 300, NOW - 3 * 86_400, monkeypatch)
    expected = [*(100 + s for s in range(1, 6)), 206, 207, *(300 + s for s in range(8, 11))]
    assert shown(tmp_path, "train/loss") == list(enumerate(expected, 1))
    assert len(shown(tmp_path, "validation_nats_per_token/loops_1")) == 10
    assert [value for _, value in shown(tmp_path, "grad_norm_by_part/mid")] == [100] * 5 + [200] * 2 + [300] * 3
    assert len(shown(tmp_path, "update_ratio_by_part/mid")) == 10
    texts = PluginEventAccumulator(str(tmp_path / "tensorboard"))
    texts.Reload()
    lines = [each.tensor_proto.string_val[0].decode().splitlines() for each in texts.Tensors("texts/1/text_summary")]
    assert lines == [[f"    {value - step}", f"      {step}"] for step, value in enumerate(expected, 1)]
    assert len(shown(tmp_path, "loss_by_loops/2")) == len(shown(tmp_path, "loss_by_timestep/0.0")) == 10


def test_a_start_that_was_killed_while_writing_hides_nothing(tmp_path):
    start(tmp_path, 0, 4, 100)
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    start(tmp_path, 3, 6, 200)
    assert [step for step, _ in shown(tmp_path, "train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_record_that_a_full_disk_cuts_short_hides_nothing(tmp_path):
    sink, (soft, hard) = TensorBoard(), resource.getrlimit(resource.RLIMIT_FSIZE)
    sink.open(SimpleNamespace(folder=tmp_path, progress=SimpleNamespace(step=0)))
    (file,) = (tmp_path / "tensorboard").iterdir()
    for step in range(1, 6):
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 9 if step in (2, 3) else soft, hard))
        sink.write_texts({"step": step, "texts": {"drawn": ["x" * 20_000]}})
        sink.write_training({"step": step, "loss": 1.0 * step, "loss_by_timestep": [], "loss_by_loops": {}})
    sink.close()
    assert shown(tmp_path, "train/loss") == [(step, step) for step in range(1, 6)]
