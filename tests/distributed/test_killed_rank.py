"""A rank of a real run is killed: the other ranks name it and exit, with and without a launcher."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.launching import BIN, ROOT, environment, free_port, records

pytestmark = pytest.mark.distributed
RANKS, KILLED = 4, 2


def wait_for_step(log, step, processes):
    until = time.monotonic() + 120
    while not (log.exists() and re.search(rf"step +{step}/", log.read_text())):
        assert time.monotonic() < until
        assert all(process.poll() is None for process in processes)
        time.sleep(0.2)


def command_line(corpus, tmp_path):
    return [
        "pretrain/main.py", "--config", str(ROOT / "tests/tiny.yaml"), f"data.path={corpus}", f"run.dir={tmp_path}", "run.name=run",
        "train.steps=100000", "parallel.pipeline=2", "parallel.tensor=2",
    ]  # fmt: skip


def test_without_a_launcher(tmp_path, corpus):
    """Four plain processes, TP2 x PP2: the three survivors exit within 60 s, and each names the killed rank."""
    port, processes = str(free_port()), []
    for rank in range(RANKS):
        place = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(RANKS),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        with (tmp_path / f"stderr_{rank}").open("w") as stderr:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command_line(corpus, tmp_path)], cwd=ROOT, env=environment() | place,
                    stdout=subprocess.DEVNULL, stderr=stderr,
                )
            )  # fmt: skip
    try:
        wait_for_step(tmp_path / "run" / "logs" / "rank_0.log", 3, processes)
        processes[KILLED].kill()
        killed = time.monotonic()
        for rank, process in enumerate(processes):
            if rank != KILLED:
                assert process.wait(timeout=60 - (time.monotonic() - killed)) not in (0, None)
                stderr = (tmp_path / f"stderr_{rank}").read_text()
                assert f"rank {KILLED} (" in stderr, stderr[-2000:]
                assert f"pid {processes[KILLED].pid}" in stderr
                assert "Run the same command again to resume from the last complete checkpoint" in stderr
                assert "was last seen in step" in stderr
    finally:
        for process in processes:
            process.kill()


def test_under_torchrun(tmp_path, corpus):
    """torchrun ends the other ranks itself; it exits within 60 s."""
    command = [
        str(BIN / "torchrun"),
        f"--nproc-per-node={RANKS}",
        f"--master-port={free_port()}",
        *command_line(corpus, tmp_path),
    ]
    with (tmp_path / "stderr").open("w") as stderr:
        launcher = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
    try:
        wait_for_step(tmp_path / "run" / "logs" / "rank_0.log", 3, [launcher])
        children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True).stdout
        os.kill(int(children.split()[KILLED]), signal.SIGKILL)
        assert launcher.wait(timeout=60) != 0
        assert f"rank      : {KILLED}" in (tmp_path / "stderr").read_text()
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)


def test_torchrun_starts_the_ranks_again_and_they_go_on(tmp_path, corpus):
    """In the store that the killed ranks have left; `--no-resume` counts for the first start alone."""
    command = [
        str(BIN / "torchrun"), "--nproc-per-node=2", "--max-restarts=1", f"--master-port={free_port()}",
        "pretrain/main.py", "--config", str(ROOT / "tests/tiny.yaml"), f"data.path={corpus}", f"run.dir={tmp_path}", "run.name=run",
        "train.steps=60", "checkpoint.every=5", "checkpoint.asynchronous=false", "--no-resume",
    ]  # fmt: skip
    with (tmp_path / "output").open("w") as output:
        launcher = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_for_step(tmp_path / "run" / "logs" / "rank_0.log", 9, [launcher])
        children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True).stdout
        os.kill(int(children.split()[1]), signal.SIGKILL)
        assert launcher.wait(timeout=200) == 0, (tmp_path / "output").read_text()[-3000:]
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    output = (tmp_path / "output").read_text()
    assert "goes on with" in output and "resumed from" in output and "done: 60 steps" in output
    assert [record["step"] for record in records(tmp_path / "run")] == list(range(1, 61))
    assert not list(tmp_path.glob("run.old-*"))
