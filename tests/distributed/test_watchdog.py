"""If a rank dies, hangs or fails, every other rank names it and exits; a short interruption has no effect.

The tests start four plain processes, without a launcher that would end the other ranks or pass on any message.
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
import torch.distributed as dist

from pretrain.errors import UserError
from pretrain.parallel.heartbeats import Heartbeat, Position, Summarizer, Summary
from pretrain.parallel.peers import PeerStatus
from pretrain.parallel.watchdog import Watchdog, watch
from tests.launching import ROOT, environment, free_port

pytestmark = pytest.mark.distributed
SIZE = 4
PLAN = {"steps": 10_000, "collective_timeout": 60, "heartbeat_timeout": 45}


@dataclass
class Ranks:
    """Running ranks; rank N writes the files `step_N`, `stderr_N` and `log_N` in the folder."""

    folder: Path
    processes: list[subprocess.Popen]

    def reach(self, step: int) -> None:
        """Wait until all ranks have reached `step`."""
        files = [self.folder / f"step_{rank}" for rank in range(SIZE)]
        until = time.monotonic() + 90
        while not all(file.exists() and int(file.read_text() or -1) >= step for file in files):
            assert time.monotonic() < until, self.stderr()
            time.sleep(0.05)

    def end(self, limit: float) -> list[int]:
        """Exit statuses of all ranks; fails if one is still running after `limit` seconds."""
        until = time.monotonic() + limit
        return [process.wait(max(0.1, until - time.monotonic())) for process in self.processes]

    def stderr(self) -> list[str]:
        return [(self.folder / f"stderr_{rank}").read_text() for rank in range(SIZE)]

    def name(self, rank: int) -> str:
        """A regular expression for how messages name a rank."""
        return rf"rank {rank} \(\S+, pid {self.processes[rank].pid}\)"


@contextmanager
def started(folder: Path, agent: bool = False, **plan: object) -> Iterator[Ranks]:
    """Four ranks of watched.py, which are killed when the context ends. `agent`: this process hosts the store, like torchrun."""
    port = free_port()
    common = environment() | {"WORLD_SIZE": str(SIZE), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if agent:
        common["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False) if agent else None
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
        del store


def error_lines(text: str) -> list[str]:
    """The error messages, without what torch may print when it loses the store in the middle of a call."""
    return [line for line in text.splitlines() if line.startswith("error:")]


def test_killed_rank_is_named_by_all(tmp_path):
    """Two runs at once to save time: one loses rank 2, the other rank 0, which hosts the store."""
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
                says = rf"error: rank {rank}: {ranks.name(killed)} has not responded for \d+ s and was last seen in step \d+ \(\w+"
                assert re.match(says, line), line
                assert "This rank was in step" in line


def test_killed_rank_is_named_when_no_collective_fails(tmp_path):
    """As under NCCL, whose collectives may wait forever without an error.

    Two runs at once to save time: one loses rank 2, the other rank 0, which does not host the store there, but makes the
    summaries that the other ranks read.
    """
    for name in ("2", "0"):
        (tmp_path / name).mkdir()
    plan = {"act": "wait", "step": 20, "heartbeat_timeout": 8}
    with started(tmp_path / "2", **plan) as one, started(tmp_path / "0", agent=True, **plan) as other:
        runs = {2: one, 0: other}
        for ranks in runs.values():
            ranks.reach(20)
        time.sleep(2.5)  # two intervals, so that the other ranks know where the killed rank is
        for killed, ranks in runs.items():
            ranks.processes[killed].kill()
        for killed, ranks in runs.items():
            statuses = ranks.end(limit=25)
            assert statuses == [-signal.SIGKILL if rank == killed else 1 for rank in range(SIZE)]
            for rank in set(range(SIZE)) - {killed}:
                text = ranks.stderr()[rank]
                where = r"step 20 \(forward and backward\)\. This rank was in step 20"
                says = rf"error: rank {rank}: {ranks.name(killed)} has not responded for \d+ s and was last seen in {where}"
                assert re.match(says, text), text


def test_hanging_rank_is_named_with_its_step_and_call(tmp_path):
    with started(tmp_path, act="hang", rank=2, step=20, collective_timeout=5) as ranks:
        statuses = ranks.end(limit=90)
        for rank, text in enumerate(ranks.stderr()):
            assert statuses[rank] in (1, 2)
            waiting = rf"the other ranks are waiting for {ranks.name(2)}, in step 20 \(forward and backward\) for \d+ s"
            says = rf"error: rank {rank}: {waiting}"
            assert re.match(says, text), text
        assert any("all_reduce" in text for text in ranks.stderr()), "no rank that waited printed its stack"
        assert any("all_reduce" in file.read_text() for file in tmp_path.glob("log_*"))


def test_failed_rank_is_named_with_its_reason(tmp_path):
    """The rank that fails hosts the store, so it must not exit before the others have read its report."""
    with started(tmp_path, act="raise", rank=0, step=20) as ranks:
        assert ranks.end(limit=90) == [2] * SIZE
        texts = ranks.stderr()
        assert texts[0] == "error: the disk of this test is full\n"
        says = rf"{ranks.name(0)} failed in step 20 \(forward and backward\): the disk of this test is full"
        for rank in (1, 2, 3):
            assert re.match(rf"error: rank {rank}: {says}", texts[rank]), texts[rank]


def test_short_interruptions_have_no_effect(tmp_path):
    """Two trainings in the same processes; rank 3 finishes after the store's host, and both are suspended for half the limit."""
    with started(tmp_path, runs=2, steps=40, heartbeat_timeout=8, late=2) as ranks:
        ranks.reach(20)
        for number, pause in ((signal.SIGSTOP, 4), (signal.SIGCONT, 0)):
            for rank in (3, 0):
                ranks.processes[rank].send_signal(number)
            time.sleep(pause)
        assert ranks.end(limit=90) == [0] * SIZE
        assert ranks.stderr() == [""] * SIZE


def heartbeat(rank: int, count: int = 1, **fields: object) -> Heartbeat:
    return Heartbeat(rank, "node", 10 + rank, count=count, **fields)


def test_silence_counts_only_while_the_store_answers_and_this_process_runs():
    peers, summarizer = PeerStatus(rank=0, size=2, longest_update=5.0), Summarizer(2, interval=1.0)
    peers.update(1.0, summarizer.summarize(1.0, [heartbeat(0), heartbeat(1)]))
    for _ in range(40):
        peers.update(1.0, None)
    assert "rank 0" in peers.silent(40.0)
    peers.update(1.0, summarizer.summarize(41.0, [heartbeat(0), heartbeat(1)]))
    assert not peers.silent(6.0)
    peers.update(1.0, summarizer.summarize(1.0, [heartbeat(0, count=2), heartbeat(1)]))
    assert peers.silent(6.0).startswith(
        "rank 1 (node, pid 11) has not responded for 6 s and was last seen in step 0 (startup)"
    )


def test_a_rank_that_is_done_is_not_silent():
    peers, summarizer = PeerStatus(rank=0, size=2, longest_update=5.0), Summarizer(2, interval=1.0)
    for _ in range(9):
        peers.update(1.0, summarizer.summarize(1.0, [heartbeat(0), heartbeat(1, state="done")]))
    assert not peers.silent(5.0)


def test_first_cause_is_the_rank_that_failed_by_itself():
    peers = PeerStatus(rank=0, size=3, longest_update=5.0)
    heartbeats = [
        heartbeat(0),
        heartbeat(1, state="stopped", cause="its neighbour"),
        heartbeat(2, state="failed", cause="the cause"),
    ]
    peers.update(1.0, Summarizer(3, interval=1.0).summarize(1.0, heartbeats))
    assert peers.reported_cause() == "the cause"
    assert peers.reported_cause(min_age=1.0) == ""


def test_ranks_behind_are_those_that_entered_fewer_calls():
    """A rank that hangs in a call sees from the later calls of the others that they are waiting for it."""
    peers = PeerStatus(rank=2, size=3, longest_update=5.0)
    heartbeats = [heartbeat(rank, position=Position(7, 1, "sum of figures")) for rank in range(3)]
    peers.update(1.0, Summarizer(3, interval=1.0).summarize(1.0, heartbeats))
    assert peers.behind(heartbeat(2, position=Position(7, 0, "next batch"), seconds=9.0)) == (
        "the other ranks are waiting for rank 2 (node, pid 12), in step 7 (next batch) for 9 s"
    )
    assert peers.behind(heartbeat(2, position=Position(7, 1, "sum of figures"))).startswith(
        "no rank is behind the others: "
    )


class FinishedPeer:
    """A HeartbeatStore in which rank 1 has finished; keeps what rank 0 writes."""

    def __init__(self) -> None:
        self.written: list[Heartbeat] = []

    def exchange(self, own: Heartbeat) -> Summary:
        self.written.append(own)
        return Summarizer(2, interval=1.0).summarize(1.0, [own, heartbeat(1, state="done")])


def test_a_rank_that_has_finished_says_what_it_waits_for():
    store = FinishedPeer()
    with Watchdog(0, 2, store, collective_timeout=60.0, heartbeat_timeout=45.0, log=None) as watchdog:
        watchdog.enter_phase("sum of figures", 7)
    last = store.written[-1]
    assert (last.state, last.where) == ("done", "step 7 (waiting for the other ranks to finish)")
    assert Heartbeat.from_json(last.to_json().encode()) == last


def test_in_a_world_of_one_rank_it_does_nothing():
    with pytest.raises(UserError, match="unchanged"), watch(0, 1, collective_timeout=1.0) as watchdog:
        watchdog.enter_phase("next batch", 1)
        watchdog.report_failure("anything")
        assert watchdog.explain(RuntimeError("unchanged")) == "unchanged"
        raise UserError("unchanged")
