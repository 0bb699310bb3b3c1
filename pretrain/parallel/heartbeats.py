"""Heartbeats: what every rank publishes about itself, and what a rank concludes from those of its peers.

Ranks exchange heartbeats through the TCPStore that the process group was made with. Every rank reads the heartbeats of all
ranks, so one exchange costs O(world_size^2) reads, all served by the one process that hosts the store (rank 0, or torchrun's
agent). `watchdog.RANKS_PER_SECOND` stretches the interval of a large world to bound the rate; the cost remains quadratic.
"""

import json
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import NamedTuple, Self

import torch.distributed as dist

from pretrain.parallel.store import agent_hosts_store, is_closed

STORE_TIMEOUT = timedelta(hours=1)
"""Longer than any heartbeat timeout: the watchdog ends a process whose store call hangs, before torch raises its own error,
which prints a backtrace."""


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
        fields = json.loads(text)
        return cls(**fields | {"position": Position(*fields["position"])})


class HeartbeatStore:
    """The latest heartbeat of every rank, in a TCPStore reached over a connection of its own. Not thread-safe.

    A second, idle connection to the same port shows when the host is gone: a call to a TCPStore that has lost its host
    prints a C++ backtrace, so the idle connection is checked before each call.
    """

    def __init__(self, host: str, port: int, rank: int, size: int) -> None:
        """Every rank makes one for the same purpose, as often as the others: the n-th of all ranks belong together.

        Rank 0 writes a first heartbeat of every rank.

        Raises:
            OSError, RuntimeError: the store cannot be reached.
        """
        self._address = (host, port)
        self._idle: socket.socket | None = None
        self._store = self._connect()
        name = self._store.add(f"watchdog/made by rank {rank}", 1)
        self._keys = [f"watchdog/{name}/{peer}" for peer in range(size)]
        if rank == 0:
            self.exchange(*(Heartbeat(peer) for peer in range(size)))

    def exchange(self, *heartbeats: Heartbeat) -> list[Heartbeat]:
        """Write these heartbeats and read the latest one of every rank: O(world_size) per rank and call.

        Raises:
            OSError, RuntimeError: the store cannot be reached.
        """
        if self._idle is None or is_closed(self._idle):
            self._store = self._connect()
        try:
            for heartbeat in heartbeats:
                self._store.set(self._keys[heartbeat.rank], heartbeat.to_json())
            return [Heartbeat.from_json(text) for text in self._store.multi_get(self._keys)]
        except RuntimeError:
            self._idle = None  # reconnect: a late reply would be read as the reply to the next call
            raise

    def _connect(self) -> dist.Store:
        self._idle = socket.create_connection(self._address, timeout=5)
        return dist.TCPStore(*self._address, is_master=False, timeout=STORE_TIMEOUT, wait_for_workers=False)


class PeerStatus:
    """What one rank knows of the others: their latest heartbeats, and for how many seconds each has been silent."""

    def __init__(self, rank: int, size: int, longest_update: float) -> None:
        """`longest_update`: upper limit, in seconds, of the silence that one update adds to a peer."""
        self._rank, self._longest_update = rank, longest_update
        self._heartbeats = [Heartbeat(peer) for peer in range(size)]
        self._silence = [0.0] * size
        self._store_silence = self._since_report = 0.0

    @property
    def peers(self) -> list[Heartbeat]:
        """The latest heartbeats of the other ranks."""
        return [heartbeat for heartbeat in self._heartbeats if heartbeat.rank != self._rank]

    def update(self, seconds: float, heartbeats: list[Heartbeat] | None) -> None:
        """Take in the heartbeats of all ranks, `seconds` after the last update; None if the store did not answer."""
        self._store_silence += seconds
        self._since_report += seconds if self.reported_cause() else 0.0
        if heartbeats is None:
            return
        # While the store did not answer, no peer could be heard: that time does not count as a peer's silence.
        elapsed = min(self._store_silence, self._longest_update)
        for old, new in zip(self._heartbeats, heartbeats, strict=True):
            self._silence[new.rank] = self._silence[new.rank] + elapsed if new.count == old.count else 0.0
        self._heartbeats, self._store_silence = heartbeats, 0.0

    def reported_cause(self, min_age: float = 0.0) -> str:
        """The first cause that a peer reported before it exited; empty if none did, or less than `min_age` seconds ago."""
        reports = [heartbeat for heartbeat in self.peers if heartbeat.state in ("failed", "stopped")]
        if not reports or self._since_report < min_age:
            return ""
        return min(reports, key=lambda heartbeat: (heartbeat.state != "failed", heartbeat.rank)).cause

    def silent(self, limit: float) -> str:
        """The ranks that have been silent for `limit` seconds, the longest first; empty if there are none."""
        if self._store_silence >= limit:
            host, seconds = self._heartbeats[0], self._store_silence
            if not agent_hosts_store():
                return _describe_silence(host, seconds)
            agent = f"torchrun on the node of {host}"
            return f"{agent} has not responded for {seconds:.0f} s; rank 0 was last seen in {host.where}"
        silent = [peer for peer in self.peers if peer.state == "running" and self._silence[peer.rank] >= limit]
        silent.sort(key=lambda peer: -self._silence[peer.rank])
        return _join(_describe_silence(peer, self._silence[peer.rank]) for peer in silent)

    def behind(self, own: Heartbeat) -> str:
        """The ranks that the others are waiting for, if all are alive: those that have entered fewer calls."""
        running = sorted([own, *(peer for peer in self.peers if peer.state == "running")], key=lambda one: one.position)
        late = [one for one in running if one.position[:2] < running[-1].position[:2]]
        listed = _join(f"{one}, in {one.where} for {one.seconds:.0f} s" for one in late or running)
        return f"the other ranks are waiting for {listed}" if late else f"no rank is behind the others: {listed}"


def _describe_silence(peer: Heartbeat, seconds: float) -> str:
    return f"{peer} has not responded for {seconds:.0f} s and was last seen in {peer.where}"


def _join(texts: Iterable[str], most: int = 8) -> str:
    every = list(texts)
    more = [f"and {len(every) - most} more ranks"] if len(every) > most else []
    return "; ".join(every[:most] + more)
