"""A rank that dies, hangs or fails is named by all others, which end soon; anything less ends nothing.

Four plain processes: no launcher that would end the others, or tell them anything.
"""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pretrain.errors import UserError
from pretrain.parallel.heartbeats import Note, Place, View
from pretrain.parallel.watchdog import watch
from tests.launching import ROOT, environment, free_port

pytestmark = pytest.mark.distributed
SIZE = 4
PLAN = {"steps": 10_000, "collective_timeout": 60, "heartbeat_timeout": 45}


@dataclass
class Ranks:
    """Running ranks: files `step_N`, `stderr_N` and `log_N` in the folder tell how they fare."""

    folder: Path
    processes: list[subprocess.Popen]

    def reach(self, step: int) -> None:
        """Wait until all ranks are at `step`."""
        files = [self.folder / f"step_{rank}" for rank in range(SIZE)]
        until = time.monotonic() + 90
        while not all(file.exists() and int(file.read_text() or -1) >= step for file in files):
            assert time.monotonic() < until, self.stderr()
            time.sleep(0.05)

    def end(self, limit: float) -> list[int]:
        """Exit statuses of all ranks, which have `limit` seconds to end."""
        until = time.monotonic() + limit
        return [process.wait(max(0.1, until - time.monotonic())) for process in self.processes]

    def stderr(self) -> list[str]:
        return [(self.folder / f"stderr_{rank}").read_text() for rank in range(SIZE)]

    def name(self, rank: int) -> str:
        """How messages name a rank, as a regular expression."""
        return rf"rank {rank} \(\S+, pid {self.processes[rank].pid}\)"


@contextmanager
def started(folder: Path, **plan: object) -> Iterator[Ranks]:
    """Four ranks of watched.py, killed at the end of the context."""
    common = environment() | {"WORLD_SIZE": str(SIZE), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "tests/distributed/watched.py", str(folder), json.dumps(PLAN | plan)]
    processes = []
    for rank in range(SIZE):
        with (folder / f"stderr_{rank}").open("w") as stderr:
            env = common | {"RANK": str(rank), "PYTHONPATH": str(ROOT)}
            processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stderr=stderr))
    try:
        yield Ranks(folder, processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def error_lines(text: str) -> list[str]:
    """Without what torch may print of a store that it lost in the middle of a call."""
    return [line for line in text.splitlines() if line.startswith("error:")]


def test_killed_rank_is_named_by_all(tmp_path):
    """Two runs at once, to save time: one loses rank 2, the other rank 0 with the store."""
    for name in ("2", "0"):
        (tmp_path / name).mkdir()
    with started(tmp_path / "2") as one, started(tmp_path / "0") as other:
        runs = {2: one, 0: other}
        for ranks in runs.values():
            ranks.reach(20)
        for killed, ranks in runs.items():
            ranks.processes[killed].kill()
        for killed, ranks in runs.items():
            statuses = ranks.end(limit=25)
            assert statuses == [-signal.SIGKILL if rank == killed else 2 for rank in range(SIZE)]
            for rank in set(range(SIZE)) - {killed}:
                (line,) = error_lines(ranks.stderr()[rank])
                says = rf"error: rank {rank}: {ranks.name(killed)} has not answered for \d+ s; .*last heard of in step \d+, \w+"
                assert re.match(says, line), line
                assert "This rank was in step" in line


def test_killed_rank_is_named_where_no_error_comes(tmp_path):
    """As under NCCL, whose collectives may wait on without one."""
    with started(tmp_path, act="silent", step=20, heartbeat_timeout=8) as ranks:
        ranks.reach(20)
        time.sleep(1.5)  # a beat, so that the others know
        ranks.processes[2].kill()
        statuses = ranks.end(limit=25)
        assert statuses == [1, 1, -signal.SIGKILL, 1]
        for rank in (0, 1, 3):
            text = ranks.stderr()[rank]
            says = rf"error: rank {rank}: {ranks.name(2)} has not answered for \d+ s; .* in step 20, forward and backward\. "
            assert re.match(says, text), text


def test_hanging_rank_is_named_with_its_step_and_call(tmp_path):
    with started(tmp_path, act="hang", rank=2, step=20, collective_timeout=5) as ranks:
        statuses = ranks.end(limit=90)
        for rank, text in enumerate(ranks.stderr()):
            assert statuses[rank] in (1, 2)
            says = (
                rf"error: rank {rank}: the others wait: {ranks.name(2)} is in step 20, forward and backward, for \d+ s"
            )
            assert re.match(says, text), text
        assert any("all_reduce" in text for text in ranks.stderr()), "no stack of a rank that waited"
        assert any("all_reduce" in file.read_text() for file in tmp_path.glob("log_*"))


def test_failed_rank_is_named_with_its_reason(tmp_path):
    """The host of the store, which has to leave later than the news."""
    with started(tmp_path, act="raise", rank=0, step=20) as ranks:
        assert ranks.end(limit=90) == [2] * SIZE
        texts = ranks.stderr()
        assert texts[0] == "error: the disk of this test is full\n"
        says = rf"{ranks.name(0)} failed in step 20, forward and backward: the disk of this test is full"
        for rank in (1, 2, 3):
            assert re.match(rf"error: rank {rank}: {says}", texts[rank]), texts[rank]


def test_short_stops_end_nothing(tmp_path):
    """Two trainings in the same processes, one rank ends later than the store's host; both stand still for half the limit."""
    with started(tmp_path, runs=2, steps=40, heartbeat_timeout=8, late=2) as ranks:
        ranks.reach(20)
        for number, pause in ((signal.SIGSTOP, 4), (signal.SIGCONT, 0)):
            for rank in (3, 0):
                ranks.processes[rank].send_signal(number)
            time.sleep(pause)
        assert ranks.end(limit=90) == [0] * SIZE
        assert ranks.stderr() == [""] * SIZE


def note(rank: int, beat: int = 1, **fields: object) -> Note:
    return Note(rank, "node", 10 + rank, beat=beat, **fields)


def test_silence_counts_only_while_the_store_answers_and_this_process_runs():
    view = View(rank=0, size=2, longest_look=5.0)
    view.look(1.0, [note(0), note(1)])
    for _ in range(40):
        view.look(1.0, None)
    assert "rank 0" in view.silent(40.0)
    view.look(1.0, [note(0), note(1)])
    assert not view.silent(6.0)
    view.look(1.0, [note(0, beat=2), note(1)])
    assert view.silent(6.0).startswith("rank 1 (node, pid 11) has not answered for 6 s")


def test_a_rank_that_is_done_is_not_silent():
    view = View(rank=0, size=2, longest_look=5.0)
    for _ in range(9):
        view.look(1.0, [note(0), note(1, state="done")])
    assert not view.silent(5.0)


def test_first_cause_is_the_rank_that_failed_by_itself():
    view = View(rank=0, size=3, longest_look=5.0)
    view.look(
        1.0, [note(0), note(1, state="left", verdict="its neighbour"), note(2, state="failed", verdict="the cause")]
    )
    assert view.left() == "the cause"
    assert view.left(since=1.0) == ""


def test_behind_is_an_order_of_calls():
    """The rank that hangs in a call knows by the others' later calls that they wait for it."""
    view = View(rank=2, size=3, longest_look=5.0)
    view.look(1.0, [note(rank, place=Place(7, 1, "sum of figures")) for rank in range(3)])
    assert view.behind(note(2, place=Place(7, 0, "next batch"), seconds=9.0)) == (
        "the others wait: rank 2 (node, pid 12) is in step 7, next batch, for 9 s"
    )
    assert view.behind(note(2, place=Place(7, 1, "sum of figures"))).startswith("no rank is behind the others: ")


def test_alone_it_does_nothing():
    with pytest.raises(UserError, match="as it was"), watch(0, 1, collective_timeout=1.0) as watchdog:
        watchdog.enter_phase("next batch", 1)
        watchdog.failed("anything")
        assert watchdog.explain(RuntimeError("as it was")) == "as it was"
        raise UserError("as it was")
