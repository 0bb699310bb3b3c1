"""Reasons to stop: signals, the time limit, the end of the launcher. All save first, and the next start goes on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pretrain.training.stop_request import STOPPED
from tests.launching import BIN, ROOT, environment, free_port, metrics, records, run, training_command

pytestmark = pytest.mark.end_to_end
RECIPE = ROOT / "tests" / "tiny.yaml"


@pytest.fixture
def words(corpus, tmp_path):
    """Those of a run that would take very long."""
    return ["--config", RECIPE, f"data.path={corpus}", f"run.dir={tmp_path}", "run.name=run", "train.steps=100000"]


def start_long_run(command, run_folder: Path) -> subprocess.Popen:
    """Start a run that would take very long, and return when it has taken a few steps."""
    process = subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, env=environment(), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (run_folder / "metrics.jsonl").exists() or len(metrics(run_folder)) < 3:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return process


def saved_step(folder: Path) -> int:
    """The last step that was taken; it must have been saved."""
    step = metrics(folder)[-1]["step"]
    assert (folder / "checkpoints" / f"step_{step}" / "COMPLETE").is_file()
    return step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_first(words, tmp_path, number):
    process = start_long_run(training_command(*words), tmp_path / "run")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == STOPPED, output
    step = saved_step(tmp_path / "run")
    assert f"stopped at step {step} of 100000 by {number.name}; run the same command again to resume" in output


def test_a_signal_to_one_rank_stops_all_with_its_status(words, tmp_path):
    """The rank without a console, twice in a row; srun would report the status of every rank."""
    commands = [
        ["env", f"RANK={rank}", f"LOCAL_RANK={rank}", "WORLD_SIZE=2", *training_command(*words)] for rank in (0, 1)
    ]
    port = free_port()
    commands = [["env", "MASTER_ADDR=127.0.0.1", f"MASTER_PORT={port}", *command[1:]] for command in commands]
    other = subprocess.Popen([str(w) for w in commands[1]], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    main = start_long_run(commands[0], tmp_path / "run")
    for _ in range(2):
        other.send_signal(signal.SIGUSR1)
    output, _ = main.communicate(timeout=60)
    assert main.returncode == other.wait(timeout=60) == STOPPED, output
    assert f"stopped at step {saved_step(tmp_path / 'run')} of 100000 by SIGUSR1" in output


def test_under_nohup_a_closed_terminal_does_not_stop_the_run(words, tmp_path):
    process = start_long_run(["nohup", *training_command(*words)], tmp_path / "run")
    before = metrics(tmp_path / "run")[-1]["step"]
    process.send_signal(signal.SIGHUP)
    while metrics(tmp_path / "run")[-1]["step"] < before + 20:
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()


def test_the_time_limit_saves_first(words, tmp_path):
    done = run(training_command(*words, "run.time_limit=0.1"))
    assert done.returncode == STOPPED, done.stderr
    assert f"stopped at step {saved_step(tmp_path / 'run')} of 100000 by run.time_limit" in done.stdout


def test_ranks_whose_launcher_was_killed_save_and_leave_the_folder(words, tmp_path):
    torchrun = training_command(*words, "checkpoint.every=null", ranks=2)
    process = start_long_run(torchrun, tmp_path / "run")
    ranks = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    output, _ = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive
    assert f"stopped at step {saved_step(tmp_path / 'run')} of 100000 by the end of its launcher" in output


@pytest.mark.parametrize("every", [2, 6], ids=["in between", "after the last step"])
def test_a_signal_ends_a_long_validation_which_the_next_start_makes_up_for(words, corpus, tmp_path, every):
    """The figures are those of an undisturbed run."""
    words = [*words, "train.steps=6", f"eval.every={every}", "eval.loops=3", "eval.rows=64", "eval.batch_size=8"]
    whole = run(training_command(*words, "run.name=whole"))
    assert whole.returncode == 0, whole.stderr
    slow = "import pretrain.evaluation.nelbo as n, time, sys; f = n._mean_nats; "
    slow += "n._mean_nats = lambda *a: (print('one batch', flush=True), time.sleep(3), f(*a))[2]; "
    slow += "from pretrain.main import main; sys.exit(main(sys.argv[1:]))"
    command = [training_command()[0], "-c", slow, *words]
    process = subprocess.Popen(
        [str(w) for w in command],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed = iter(process.stdout.readline, "")
    assert any(line.startswith("one batch") for line in printed)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == STOPPED and output.count("one batch") < 3, output
    assert saved_step(tmp_path / "run") == every
    assert not any("validation" in record for record in records(tmp_path / "run"))
    assert run(training_command(*words)).returncode == 0
    expected, got = (
        [(r["step"], r["validation"]["loops"]) for r in records(tmp_path / name) if "validation" in r]
        for name in ("whole", "run")
    )
    assert got == expected


def test_ctrl_c_under_the_deepspeed_launcher_saves_first(words, tmp_path):
    """Ctrl-C reaches the launcher and both ranks; the launcher then sends SIGTERM as well."""
    launcher = [BIN / "deepspeed", "--num_gpus", "2", "--master_port", free_port(), "pretrain/main.py"]
    process = start_long_run([*launcher, *words], tmp_path / "run")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert saved_step(tmp_path / "run"), output
