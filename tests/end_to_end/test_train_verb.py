"""`loopmdm train` and `python pretrain/main.py` are one command: numbers, exit statuses and error messages are equal."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pretrain.training.stop_request import STOPPED
from tests.launching import BIN, ROOT, environment, free_port, metrics, run

pytestmark = pytest.mark.end_to_end
TINY = ROOT / "tests" / "tiny.yaml"
MODULE = [sys.executable, "-m", "pretrain.cli"]
COMMANDS = {"verb": [*MODULE, "train"], "script": [sys.executable, "pretrain/main.py"]}
EQUAL = ("step", "samples", "tokens", "flops", "loss", "loops", "lr", "grad_norm")


def start(command, corpus, folder, *overrides, **extra):
    words = ["--config", TINY, f"data.path={corpus}", f"run.dir={folder}", "train.steps=6", *overrides]
    return run([*command, *words], PYTHONPATH=str(ROOT), **extra)


def figures(folder):
    return [{key: line[key] for key in EQUAL} for line in metrics(folder / "tiny")]


def test_each_resumes_what_the_other_has_begun(corpus, tmp_path):
    begun = start(COMMANDS["verb"], corpus, tmp_path / "shared", "run.stop_after=3")
    resumed = start(COMMANDS["script"], corpus, tmp_path / "shared")
    alone = start(COMMANDS["verb"], corpus, tmp_path / "alone")
    assert [done.returncode for done in (begun, resumed, alone)] == [0, 0, 0], (
        begun.stderr + resumed.stderr + alone.stderr
    )
    assert "resumed from" in resumed.stdout
    assert len(figures(tmp_path / "alone")) == 6
    assert figures(tmp_path / "shared") == figures(tmp_path / "alone")


@pytest.mark.fast
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_wrong_configuration_is_one_error(command, corpus, tmp_path):
    done = start(command, corpus, tmp_path, "optm.lr=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: 1 problem in the configuration:\n  - optm.lr: unknown key; did you mean optim.lr?\n"


@pytest.mark.fast
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_half_set_launcher_variables_are_an_error_of_the_user(command, corpus, tmp_path):
    done = start(command, corpus, tmp_path, RANK="0")
    assert done.returncode == 2 and done.stderr.startswith("error: WORLD_SIZE is not set, although RANK=0 is set")


def test_two_ranks_under_torchrun(corpus, tmp_path):
    launcher = [BIN / "torchrun", "--nproc-per-node=2", f"--master-port={free_port()}"]
    done = start([*launcher, "-m", "pretrain.cli", "train"], corpus, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line["step"] for line in metrics(tmp_path / "tiny")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.fast
def test_sigterm_saves_and_ends_with_its_status(corpus, tmp_path):
    words = ["--config", TINY, f"data.path={corpus}", f"run.dir={tmp_path}", "train.steps=100000"]
    process = subprocess.Popen(
        [*COMMANDS["verb"], *map(str, words)], cwd=ROOT, env=environment() | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "tiny" / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == STOPPED, printed[-3000:]
    assert "saved " in printed
