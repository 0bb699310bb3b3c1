"""A run of two ranks that is killed at random moments, during saves too, and started again each time.

`LOOPMDM_KILLS` is the number of kills.
"""

import itertools
import os
import random
import subprocess
import time
from contextlib import suppress

import psutil
import pytest
import torch

from pretrain.checkpoints.folder import list_checkpoints
from tests.checkpoints import tensors_of
from tests.launching import ROOT, environment, metrics, train, training_command

pytestmark = [pytest.mark.end_to_end, pytest.mark.distributed]
KILLS = int(os.environ.get("LOOPMDM_KILLS", "2"))
STEPS = 4 * KILLS + 4
RECIPE = ROOT / "tests" / "tiny.yaml"
LAYOUTS = [
    ["parallel.zero_stage=2"],
    ["parallel.tensor=2", "parallel.sequence=true"],
    ["parallel.zero_stage=3"],
    ["parallel.pipeline=2", "parallel.mid_replicas=2"],
    ["parallel.zero_stage=1"],
]


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
        with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
            one.kill()
    process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def words(corpus, folder):
    common = ["--config", RECIPE, f"data.path={corpus}", f"run.dir={folder}", f"train.steps={STEPS}"]
    return [*common, "checkpoint.every=1", "train.micro_batch_size=1"]


@pytest.fixture(scope="module")
def whole(words, folder):
    """The run without kills."""
    train(*words, "run.name=whole", ranks=2)
    return folder / "whole"


def kill_again_and_again(words, run, layouts):
    """KILLS starts that are killed, and one to the end, each on the next layout."""
    draws, reached, layouts = random.Random(0), [], itertools.cycle(layouts)
    for _ in range(KILLS):
        start_and_kill([*words, f"run.name={run.name}", *next(layouts)], run, draws.uniform(0.0, 0.4))
        found = list_checkpoints(run)
        reached.append(int(found[-1].name.removeprefix("step_")) if found else 0)
    assert reached == sorted(reached), "a checkpoint was lost"
    train(*words, f"run.name={run.name}", *next(layouts), ranks=2)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(words, folder, whole):
    """Every save is on its way beside the next steps. No sample is lost or seen twice."""
    run = folder / "killed"
    kill_again_and_again(words, run, [()])
    for key in ("step", "samples", "tokens", "loss", "grad_norm", "loops"):
        assert [m[key] for m in metrics(run)] == [m[key] for m in metrics(whole)], key
    expected, got = (tensors_of(one / "checkpoints" / f"step_{STEPS}") for one in (whole, run))
    assert expected.keys() == got.keys()
    for weight, tensors in expected.items():
        assert all(torch.equal(got[weight][name], values) for name, values in tensors.items()), weight


def test_a_run_that_is_killed_and_goes_on_with_another_layout_each_time(words, folder, whole):
    """Data-parallel with three ZeRO stages, tensor-parallel, pipelined: losses to 1e-6 of those of one layout throughout."""
    run = folder / "killed_on_other_layouts"
    kill_again_and_again(words, run, LAYOUTS)
    for key in ("step", "samples", "tokens", "loops"):
        assert [m[key] for m in metrics(run)] == [m[key] for m in metrics(whole)], key
    expected = [m["loss"] for m in metrics(whole)]
    assert [m["loss"] for m in metrics(run)] == pytest.approx(expected, rel=1e-6)
