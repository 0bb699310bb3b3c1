"""The first contact of the ranks: each reports that it has come, or the error that ends it. None goes on before all have come.

It takes place in the store that the process group is made with afterwards. Launchers end all ranks when the first one exits: so
no rank exits before rank 0 has printed the errors.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType

import torch.distributed as dist

from data_pipeline.stop_signals import Stopped, signal_handler
from pretrain.errors import RankError, ReportedError, UserError
from pretrain.parallel.attendance import Attendance, describe, name_ranks, print_error, prints_its_own_error
from pretrain.parallel.store import ANOTHER_PORT, connect, is_closed, of_this_attempt, store_address

RANKS_PER_SECOND = 5_000
"""Each rank looks at the store every size / RANKS_PER_SECOND seconds, but not more often than every POLL seconds."""

POLL = 0.1

SIGNAL_SECONDS = 2.0
"""How long a rank that has been asked to stop still waits for the others."""


@dataclass(frozen=True)
class Limits:
    """How long a rank waits, in seconds.

    Attributes:
        come: for all ranks to come, if none has failed.
        connect: a rank that failed, for the store.
        report: a rank that failed, for rank 0 to print its error; then it prints the error itself.
        collect: rank 0, after the first failure, for the other ranks: they may have failed alike.
        linger: rank 0, after it has printed, for ranks that come late.
    """

    come: float = 600.0
    connect: float = 30.0
    report: float = 25.0
    collect: float = 10.0
    linger: float = 30.0


BEFORE_START = Limits()
AFTER_START = Limits(connect=4.0, report=7.0, collect=3.0, linger=3.0)
"""For ranks that have met: all are there, and the watchdog ends a rank that fails within 20 s."""


def report_failure(rank: int, size: int, message: str) -> None:
    """Tell the other ranks the error that ends this one, before or after they have met.

    Raises:
        ReportedError: the error has been printed, here or by rank 0.
        RankError, Stopped: the others could not be reached, and nothing has been printed.
    """
    meet(rank, size, message, AFTER_START if dist.is_initialized() else BEFORE_START)


def meet(rank: int, size: int, message: str = "", limits: Limits = BEFORE_START) -> dist.Store:
    """Report that this rank has come, or its error, and wait until all ranks have come; returns the store.

    Args:
        message: the error that ends this rank; empty if it can go on.

    Raises:
        ReportedError: a rank has failed, and its error has been printed.
        RankError: the other ranks cannot be reached.
        Stopped: a signal asked this process to stop.
    """
    own = Attendance(rank, size, message)
    phase = "end" if dist.is_initialized() else "start"
    with _remembered_signals() as stop:
        try:
            store, idle = connect(rank, size, limits.connect if message else limits.come, stop)
        except UserError as error:
            raise RankError(str(error)) from error
        store = of_this_attempt(store)
        try:
            Rendezvous(dist.PrefixStore(f"loopmdm/{phase}", store), own, limits, stop, idle).run()
        except dist.DistError as error:
            raise RankError(_lost(own)) from error
        finally:
            idle.close()
    return store


class Rendezvous:
    """One rank's part of the rendezvous, in a store that all ranks reach."""

    def __init__(
        self,
        store: dist.Store,
        own: Attendance,
        limits: Limits,
        stop: Callable[[], int | None] = lambda: None,
        idle: socket.socket | None = None,
    ) -> None:
        """`stop` gives the signal that has arrived, or None; `idle` is a connection that closes with the store's host."""
        self._store, self._own, self._limits, self._stop, self._idle = store, own, limits, stop, idle
        self._stopped_at: float | None = None

    def run(self) -> None:
        """See `meet`."""
        self._come()
        failures = self._decide() if self._own.rank == 0 else self._follow()
        if failures:
            raise ReportedError(describe(failures))

    def _come(self) -> None:
        own = self._own
        if self._store.add(f"process/{own.rank}", 1) > 1:
            raise RankError(
                f"{own}: another process has come as rank {own.rank} to {_address()}. Give every process a RANK of its own; if "
                f"another job uses that port, {ANOTHER_PORT}"
            )
        self._store.set(f"attendance/{own.rank}", json.dumps(asdict(own)))
        self._store.add("failed", int(bool(own.message)))
        self._store.add("come", 1)

    def _decide(self) -> list[Attendance]:
        """Rank 0: wait for all ranks, print their errors, and publish them; no errors: all go on."""
        size = self._own.size
        self._wait(lambda: self._count("come") >= size or self._count("failed") > 0, self._limits.come)
        if self._count("failed"):
            self._wait(lambda: self._count("come") >= size, self._limits.collect)
        present = self._present()
        failures = [one for one in present if one.message] or self._absence(present) or _different_sizes(present)
        if failures:
            print_error(describe(failures))
        self._store.set("result", json.dumps([asdict(one) for one in (self._own, *failures)]))
        if failures:  # the store's host stays until the others have read it
            self._wait(lambda: self._count("told") >= size - 1, self._limits.linger)
        return failures

    def _follow(self) -> list[Attendance]:
        """Other ranks: wait for what rank 0 has published; print the own error if the person would not see it otherwise."""
        limits = self._limits
        limit = limits.report if self._own.message else limits.come + limits.report
        if not self._wait(lambda: self._store.check(["result"]), limit):
            raise RankError(f"{self._own}: rank 0 has not answered at {_address()} for {limit:.0f} s")
        zero, *failures = (Attendance(**fields) for fields in json.loads(self._store.get("result")))
        if not failures and zero.size != self._own.size:
            raise RankError(f"{self._own}: {_different_sizes([zero, self._own])[0].message}")
        if prints_its_own_error(self._own, zero, failures):
            print_error(f"{self._own}: {self._own.message}")
        if failures:
            self._store.add("told", 1)
        return failures

    def _count(self, key: str) -> int:
        return self._store.add(key, 0)

    def _present(self) -> list[Attendance]:
        keys = [f"attendance/{rank}" for rank in range(self._own.size)]
        return [Attendance(**json.loads(self._store.get(key))) for key in keys if self._store.check([key])]

    def _absence(self, present: list[Attendance]) -> list[Attendance]:
        """The failure that not all ranks have come."""
        size = self._own.size
        missing = sorted(set(range(size)) - {one.rank for one in present})
        if not missing:
            return []
        text = (
            f"{len(present)} of {size} ranks came to {_address()} within {self._limits.come:.0f} s; {name_ranks(missing)} did "
            "not. Check that every rank was started with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE, that it is still "
            "running, and what it printed"
        )
        return [Attendance(self._own.rank, size, text)]

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until the condition holds; returns False after `seconds`, or SIGNAL_SECONDS after a signal.

        Raises:
            RankError: the store's host is gone.
            Stopped: a signal has arrived, and this rank has no error to report.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            now = time.monotonic()
            if self._stop() is not None and self._stopped_at is None:
                self._stopped_at = now
            if self._stopped_at is not None and now > self._stopped_at + SIGNAL_SECONDS:
                if not self._own.message:
                    raise Stopped(self._stop() or 0)
                return False
            if now > deadline:
                return False
            if self._idle is not None and is_closed(self._idle):
                raise RankError(_lost(self._own))
            time.sleep(max(POLL, self._own.size / RANKS_PER_SECOND))
        return True


@contextmanager
def _remembered_signals() -> Iterator[Callable[[], int | None]]:
    """Signals do not end the process in the block; yields a function that gives the first one that has arrived."""
    arrived: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        arrived.append(number)

    with signal_handler(remember):
        yield lambda: arrived[0] if arrived else None


def _different_sizes(present: list[Attendance]) -> list[Attendance]:
    size = present[0].size
    return [
        Attendance(
            one.rank, size, f"was started with WORLD_SIZE={one.size}, but rank 0 with WORLD_SIZE={size}", one.host
        )
        for one in present
        if one.size != size
    ]


def _lost(own: Attendance) -> str:
    return f"{own}: lost the connection to {_address()}: rank 0 ended before all ranks had come; see what it printed"


def _address() -> str:
    host, port = store_address()
    return f"MASTER_ADDR={host}, MASTER_PORT={port}"
