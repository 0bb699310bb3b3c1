"""A run of two ranks that is killed at random moments, during saves too, and started again each time.

`LOOPMDM_KILLS` is the number of kills.
"""

import os
import random
import subprocess
import time

import psutil
import pytest
import torch

from pretrain.checkpoints.folder import list_checkpoints
from tests.checkpoints import tensors_of
from tests.launching import ROOT, environment, metrics, train, training_command

pytestmark = [pytest.mark.end_to_end, pytest.mark.distributed]
KILLS = int(os.environ.get("LOOPMDM_KILLS", "3"))
STEPS = 4 * KILLS + 4
RECIPE = ROOT / "tests" / "tiny.yaml"


def start_and_kill(words, run, delay):
    """Start the run, wait until it has taken a step of its own, and kill all its processes after the delay."""
    before = len(metrics(run)) if (run / "metrics.jsonl").exists() else 0
    process = psutil.Popen(
        [str(w) for w in training_command(*words, ranks=2)],
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and len(metrics(run)) != before:
            break
        time.sleep(0.01)
    time.sleep(delay)
    for one in [*process.children(recursive=True), process]:
        one.kill()
    process.wait()


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(corpus, tmp_path):
    """Every save is on its way beside the next steps. No sample is lost or seen twice."""
    common = ["--config", RECIPE, f"data.path={corpus}", f"run.dir={tmp_path}", f"train.steps={STEPS}"]
    common += ["checkpoint.every=1", "train.micro_batch_size=1"]
    train(*common, "run.name=whole", ranks=2)
    draws = random.Random(0)
    run, reached = tmp_path / "killed", []
    for _ in range(KILLS):
        start_and_kill([*common, "run.name=killed"], run, draws.uniform(0.0, 0.4))
        found = list_checkpoints(run)
        reached.append(int(found[-1].name.removeprefix("step_")) if found else 0)
    assert reached == sorted(reached), "a checkpoint was lost"
    train(*common, "run.name=killed", ranks=2)
    for key in ("step", "samples", "tokens", "loss", "grad_norm", "loops"):
        assert [m[key] for m in metrics(run)] == [m[key] for m in metrics(tmp_path / "whole")], key
    expected, got = (tensors_of(tmp_path / name / "checkpoints" / f"step_{STEPS}") for name in ("whole", "killed"))
    assert expected.keys() == got.keys()
    for weight, tensors in expected.items():
        assert all(torch.equal(got[weight][name], values) for name, values in tensors.items()), weight
