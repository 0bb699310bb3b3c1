"""Steps beyond 2^31, samples and tokens beyond 2^32."""

import json
import time

import pytest

from data_pipeline.manifest import load_manifest
from pretrain.checkpoints.folder import write_mark
from tests.launching import ROOT, metrics, run, training_command

pytestmark = pytest.mark.end_to_end
TINY = ROOT / "tests" / "tiny.yaml"
STEPS = 3 * 10**9


def test_a_run_of_billions_of_steps_starts_at_once_and_counts_on(corpus, tmp_path):
    words = [f"data.path={corpus}", "--config", TINY, f"run.dir={tmp_path}", "train.steps=5e9"]
    command = training_command(*words, "run.stop_after=1", "log.tensorboard=on", "optim.schedule=wsd")
    assert run(command).returncode == 0
    folder = tmp_path / "tiny"
    state = folder / "checkpoints" / "step_1" / "state.json"
    content = json.loads(state.read_text())
    content["progress"]["step"] = STEPS
    state.write_text(json.dumps(content))
    (state.parent / "COMPLETE").unlink()
    write_mark(state.parent)
    state.parent.rename(state.parent.with_name(f"step_{STEPS}"))
    begin = time.monotonic()
    resumed = run(command)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert time.monotonic() - begin < 90
    last = metrics(folder)[-1]
    tokens = 8 * load_manifest(corpus).seq_len
    assert (last["step"], last["samples"], last["tokens"]) == (STEPS + 1, 8 * (STEPS + 1), tokens * (STEPS + 1))
    assert (folder / "checkpoints" / f"step_{STEPS + 1}" / "COMPLETE").is_file()
    assert STEPS + 1 in tensorboard_steps(folder)


def tensorboard_steps(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]
