"""What ranks tell each other about where they are: notes on a board in the store where they met. See `peer_watch`."""

import json
import os
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import NamedTuple, Self

import torch.distributed as dist

STORE_TIMEOUT = timedelta(hours=1)
"""Longer than any heartbeat timeout, which ends the process of a call that hangs; torch's own comes with a backtrace."""


class Place(NamedTuple):
    """Where a rank is; `turn` counts its calls within the step, so that places have an order."""

    step: int
    turn: int
    call: str


START = Place(0, 0, "the start")


@dataclass(frozen=True)
class Note:
    """What a rank tells the others.

    Attributes:
        beat: moves with every note.
        seconds: how long the rank has been at its place.
        state: running, done (left in order), failed (by its own error), left (because of another rank).
        verdict: of a rank that failed or left: the first cause, in words that name the rank.
    """

    rank: int
    host: str = "host unknown"
    pid: int = 0
    place: Place = START
    seconds: float = 0.0
    beat: int = 0
    state: str = "running"
    verdict: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"

    @property
    def where(self) -> str:
        """The place in words."""
        return f"step {self.place.step}, {self.place.call}"

    @classmethod
    def read(cls, text: bytes) -> Self:
        """Back from `json.dumps(asdict(note))`."""
        fields = json.loads(text)
        return cls(**fields | {"place": Place(*fields["place"])})


class Board:
    """The notes of all ranks, in a store that is reached over a connection of its own. For one thread.

    Beside the store's connection it keeps an idle one to the same port, whose end shows that the host is gone: a call to
    a TCPStore that has lost its host prints a C++ backtrace.
    """

    def __init__(self, host: str, port: int, name: str, size: int) -> None:
        self._address = (host, port)
        self._keys = [f"watchdog/{name}/{rank}" for rank in range(size)]
        self._idle: socket.socket | None = None
        self._store: dist.Store | None = None

    def exchange(self, *notes: Note) -> list[Note]:
        """Write these notes and read those of all ranks. Raises OSError or RuntimeError: the store is out of reach."""
        if self._idle is None or _is_closed(self._idle):
            self._idle = socket.create_connection(self._address, timeout=5)
            self._store = dist.TCPStore(*self._address, is_master=False, timeout=STORE_TIMEOUT, wait_for_workers=False)
        try:
            for note in notes:
                self._store.set(self._keys[note.rank], json.dumps(asdict(note)))
            return [Note.read(text) for text in self._store.multi_get(self._keys)]
        except RuntimeError:
            self._idle = None  # connect anew: a late reply would be taken for that to the next call
            raise


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class View:
    """What one rank knows of the others: their last notes, and how long each has been silent, in seconds."""

    def __init__(self, rank: int, size: int, longest_look: float) -> None:
        self._rank, self._longest_look = rank, longest_look
        self._notes = [Note(peer) for peer in range(size)]
        self._silence = [0.0] * size
        self._store_silence = self._leaving = 0.0

    @property
    def peers(self) -> list[Note]:
        """Notes of the other ranks."""
        return [note for note in self._notes if note.rank != self._rank]

    def look(self, seconds: float, notes: list[Note] | None) -> None:
        """Take in the notes read since the last look, which was `seconds` ago; None when the store gave none."""
        self._store_silence += seconds
        self._leaving += seconds if self.left() else 0.0
        if notes is None:
            return
        heard = min(self._store_silence, self._longest_look)  # a rank could not be heard while the store was silent
        for old, new in zip(self._notes, notes, strict=True):
            self._silence[new.rank] = self._silence[new.rank] + heard if new.beat == old.beat else 0.0
        self._notes, self._store_silence = notes, 0.0

    def left(self, since: float = 0.0) -> str:
        """The first cause as told by a rank that left; empty when none has, or less than `since` seconds ago."""
        told = [note for note in self.peers if note.state in ("failed", "left")]
        if not told or self._leaving < since:
            return ""
        return min(told, key=lambda note: (note.state != "failed", note.rank)).verdict

    def silent(self, limit: float) -> str:
        """The ranks that have been silent for `limit` seconds, the longest first; empty when there are none."""
        if self._store_silence >= limit:
            host = self._notes[0]
            agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            name = f"torchrun on the machine of {host}" if agent else str(host)
            return f"{name} has not answered for {self._store_silence:.0f} s; rank 0 was last heard of in {host.where}"
        silent = [note for note in self.peers if note.state == "running" and self._silence[note.rank] >= limit]
        silent.sort(key=lambda note: -self._silence[note.rank])
        return _listed(
            f"{note} has not answered for {self._silence[note.rank]:.0f} s; it was last heard of in {note.where}"
            for note in silent
        )

    def behind(self, own: Note) -> str:
        """The ranks that the others wait for, where all are alive: those less far in the order of calls."""
        running = sorted([own, *(note for note in self.peers if note.state == "running")], key=lambda note: note.place)
        late = [note for note in running if note.place[:2] < running[-1].place[:2]]
        said = _listed(f"{note} is in {note.where}, for {note.seconds:.0f} s" for note in late or running)
        return f"the others wait: {said}" if late else f"no rank is behind the others: {said}"


def _listed(sentences: Iterable[str], most: int = 8) -> str:
    every = list(sentences)
    more = [f"and {len(every) - most} more ranks"] if len(every) > most else []
    return "; ".join(every[:most] + more)
