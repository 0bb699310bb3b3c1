"""Heartbeats: what every rank publishes about itself, and the summary that rank 0 makes of them.

Ranks exchange heartbeats through the TCPStore that the process group was made with. One process hosts it (rank 0, or
torchrun's agent), so not every rank reads every heartbeat: rank 0 reads them and writes a summary, whose size does not depend
on the number of ranks, and the others read that. At the store an interval costs three values per rank.
"""

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, NamedTuple, Self

import torch.distributed as dist

from pretrain.parallel.store import is_closed, of_this_attempt

STORE_TIMEOUT = timedelta(hours=1)
"""Longer than any heartbeat timeout: the watchdog ends a process whose store call hangs, before torch raises its own error,
which prints a backtrace."""

LONGEST_UPDATE_INTERVALS = 5
"""The longest time that counts between two checks: this process may have been suspended for longer."""

SILENT_INTERVALS = 5
"""A rank that has been silent for this many intervals is reported as the cause of a collective that failed."""

MOST_NAMED = 8
"""How many ranks a message names."""


class Position(NamedTuple):
    """Where a rank is in the run; comparing (step, call_index) tells which of two ranks is further."""

    step: int
    call_index: int  # number of calls entered within the step
    call: str


START = Position(0, 0, "startup")


@dataclass(frozen=True)
class Heartbeat:
    """What a rank publishes about itself.

    Attributes:
        position: the step and the call that the rank is in.
        seconds: how long it has been there.
        count: increases with every heartbeat.
        state: "running", "done" (finished normally), "failed" (by its own error) or "stopped" (because of another rank).
        cause: of a rank that failed or stopped: the first cause, as a sentence that names the rank.
    """

    rank: int
    host: str = "unknown host"
    pid: int = 0
    position: Position = START
    seconds: float = 0.0
    count: int = 0
    state: str = "running"
    cause: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"

    @property
    def where(self) -> str:
        """The position as text."""
        return f"step {self.position.step} ({self.position.call})"

    def to_json(self) -> str:
        """The value that the store holds."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """The inverse of `to_json`."""
        return cls.from_fields(json.loads(text))

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """From the fields as JSON has them."""
        return cls(**fields | {"position": Position(*fields["position"])})


@dataclass(frozen=True)
class Summary:
    """What rank 0 tells the others about all ranks. It names a few of them, however many there are.

    Attributes:
        writer: the heartbeat of rank 0, with a new count in every summary.
        report: the heartbeat that has the first cause: of the lowest rank that failed by its own error, or else stopped.
        silent: (heartbeat, seconds) of running ranks that were silent for SILENT_INTERVALS, the longest first; a few.
        slowest: running ranks, those that entered the fewest calls first; a few.
        furthest: position of the running rank that entered the most calls.
        silent_ranks, late_ranks: how many running ranks are silent; how many have entered fewer calls than the furthest.
        others_running: how many ranks beside rank 0 are running.
    """

    writer: Heartbeat
    report: Heartbeat | None
    silent: Sequence[tuple[Heartbeat, float]]
    slowest: Sequence[Heartbeat]
    furthest: Position
    silent_ranks: int
    late_ranks: int
    others_running: int

    def to_json(self) -> str:
        """The value that the store holds."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """The inverse of `to_json`."""
        fields = json.loads(text)
        named = {
            "writer": Heartbeat.from_fields(fields["writer"]),
            "report": fields["report"] and Heartbeat.from_fields(fields["report"]),
            "silent": [(Heartbeat.from_fields(one), seconds) for one, seconds in fields["silent"]],
            "slowest": [Heartbeat.from_fields(one) for one in fields["slowest"]],
            "furthest": Position(*fields["furthest"]),
        }
        return cls(**fields | named)


class Summarizer:
    """Makes summaries of the heartbeats of all ranks, and knows for how many seconds each has been silent."""

    def __init__(self, size: int, interval: float) -> None:
        """`interval`: seconds between heartbeats."""
        self._interval = interval
        self._heartbeats = [Heartbeat(peer) for peer in range(size)]
        self._silence = [0.0] * size

    def summarize(self, seconds: float, heartbeats: Sequence[Heartbeat]) -> Summary:
        """Take in the heartbeats of all ranks, in their order, `seconds` after the last time."""
        # While the store did not answer, no rank could be heard: that time does not count as a rank's silence.
        elapsed = min(seconds, LONGEST_UPDATE_INTERVALS * self._interval)
        for old, new in zip(self._heartbeats, heartbeats, strict=True):
            self._silence[new.rank] = self._silence[new.rank] + elapsed if new.count == old.count else 0.0
        self._heartbeats = list(heartbeats)
        running = sorted((one for one in heartbeats if one.state == "running"), key=lambda one: one.position)
        limit = SILENT_INTERVALS * self._interval
        silent = [(one, self._silence[one.rank]) for one in running if self._silence[one.rank] >= limit]
        silent.sort(key=lambda entry: -entry[1])
        reports = [one for one in heartbeats if one.state in ("failed", "stopped")]
        furthest = running[-1].position if running else START
        return Summary(
            writer=heartbeats[0],
            report=min(reports, key=lambda one: (one.state != "failed", one.rank), default=None),
            silent=silent[: MOST_NAMED + 1],  # one more, because a rank does not name itself
            slowest=running[: MOST_NAMED + 1],
            furthest=furthest,
            silent_ranks=len(silent),
            late_ranks=sum(one.position[:2] < furthest[:2] for one in running),
            others_running=sum(one.rank != 0 for one in running),
        )


class HeartbeatStore:
    """The latest heartbeat of every rank and rank 0's summary, in a TCPStore over a connection of its own. Not thread-safe.

    A second, idle connection to the same port shows when the host is gone: a call to a TCPStore that has lost its host
    prints a C++ backtrace, so the idle connection is checked before each call.
    """

    def __init__(self, host: str, port: int, rank: int, size: int, interval: float) -> None:
        """Every rank makes one for the same purpose, as often as the others: the n-th of all ranks belong together.

        Rank 0 writes a first heartbeat of every rank, and a first summary.

        Args:
            interval: seconds between heartbeats.

        Raises:
            OSError, RuntimeError: the store cannot be reached.
        """
        self._address = (host, port)
        self._idle: socket.socket | None = None
        self._store = self._connect()
        name = self._store.add(f"watchdog/made by rank {rank}", 1)
        self._own_key, self._summary_key = f"watchdog/{name}/{rank}", f"watchdog/{name}/summary"
        self._keys = [f"watchdog/{name}/{peer}" for peer in range(size)] if rank == 0 else []
        self._summarizer = Summarizer(size, interval) if rank == 0 else None
        self._summarized = time.monotonic()
        for peer, key in enumerate(self._keys):
            self._store.set(key, Heartbeat(peer).to_json())
        if rank == 0:
            self.exchange(Heartbeat(0))

    def exchange(self, own: Heartbeat) -> Summary:
        """Write this rank's heartbeat and read the latest summary; rank 0 reads the heartbeats of all ranks and writes it.

        Raises:
            OSError, RuntimeError: the store cannot be reached.
        """
        if self._idle is None or is_closed(self._idle):
            self._store = self._connect()
        try:
            self._store.set(self._own_key, own.to_json())
            if self._summarizer is not None:
                return self._write_summary(self._summarizer)
            (text,) = self._store.multi_get([self._summary_key])
            return Summary.from_json(text)
        except RuntimeError:
            self._idle = None  # reconnect: a late reply would be read as the reply to the next call
            raise

    def _write_summary(self, summarizer: Summarizer) -> Summary:
        heartbeats = [Heartbeat.from_json(text) for text in self._store.multi_get(self._keys)]
        before, self._summarized = self._summarized, time.monotonic()
        summary = summarizer.summarize(self._summarized - before, heartbeats)
        self._store.set(self._summary_key, summary.to_json())
        return summary

    def _connect(self) -> dist.Store:
        self._idle = socket.create_connection(self._address, timeout=5)
        store = dist.TCPStore(*self._address, is_master=False, timeout=STORE_TIMEOUT, wait_for_workers=False)
        return of_this_attempt(store)
