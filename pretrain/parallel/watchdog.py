"""If a rank dies, hangs or fails, every other rank names it, its step and its call, and exits.

A collective whose peer has died or hangs waits in C++: under NCCL without an error, under gloo with an error that names at
best a neighbour. So every rank publishes a heartbeat in the store where the ranks met: its step, its call and a counter. Rank 0
summarizes them for the others, which watch rank 0 themselves. One thread exchanges heartbeats and another checks them, because
a call to a store whose host hangs cannot be interrupted.

Times are counted locally, and only while this process runs and the store answers. Clocks of different hosts are never
compared, and no rank is reported as dead because this process or the store was suspended for a while.

Limitation: a rank that holds Python's GIL in one call for the whole heartbeat timeout is taken for dead.
"""

import faulthandler
import itertools
import os
import re
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import torch.distributed as dist

from data_pipeline.errors import DataError
from pretrain.errors import RankError, UserError
from pretrain.parallel.heartbeats import (
    LONGEST_UPDATE_INTERVALS,
    SILENT_INTERVALS,
    START,
    Heartbeat,
    HeartbeatStore,
    Position,
    Summary,
)
from pretrain.parallel.peers import PeerStatus
from pretrain.parallel.store import store_address

RANKS_PER_SECOND = 512
"""The interval between heartbeats is world_size / RANKS_PER_SECOND seconds, at least 1. Rank 0 reads at most this many
heartbeats per second, for which its Python needs about 0.6% of the time."""

EXPLAIN_INTERVALS = 15
"""How long a rank whose collective failed looks for the cause."""

LINGER_INTERVALS = 3
"""How long the store's host stays after its last heartbeat, so that the others can read it."""

GRACE_SECONDS = 10.0
"""How long this rank may take to fail by itself after another one has exited: its own error may say more."""

EXIT_SECONDS = 20.0
"""Time from the last heartbeat of a failed rank to the end of its process, even if its clean-up is still waiting."""

COMMUNICATION = re.compile(r"gloo|nccl|closed by peer|reset by peer|broken pipe|timed out waiting", re.IGNORECASE)
"""Found in the error of a collective whose peer is gone; gloo raises a plain RuntimeError."""


class PeerError(RankError):
    """A collective failed on this rank because of another rank, which the message names."""


class Watchdog:
    """Watches the other ranks while used as a context manager.

    It ends this process with status 1 if a rank falls silent, if this rank spends too long in one call, or if another rank
    has exited and this one has not followed. An error that leaves the context is reported to the other ranks; the error of
    a failed collective becomes a PeerError that names the first cause.

    Attributes:
        log: file that also receives the watchdog's own messages, if there is one yet.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: HeartbeatStore | None,
        collective_timeout: float,
        heartbeat_timeout: float,
        log: Path | None,
    ) -> None:
        """See `watch`, which makes the store. Without a store, in a world of one rank, all methods do nothing."""
        self._rank, self._store, self.log = rank, store, log
        self._collective_timeout, self._heartbeat_timeout = collective_timeout, heartbeat_timeout
        self._interval = interval_of(size)
        self._peers = PeerStatus(rank, size, LONGEST_UPDATE_INTERVALS * self._interval)
        self._position = self._checked_position = START
        self._seconds_here = 0.0  # time spent at this position
        self._status = self._published = ("running", "")  # (state, cause): current, and as last written to the store
        self._received: SimpleQueue[Summary] = SimpleQueue()
        self._wake, self._closed = threading.Event(), threading.Event()
        self._exiting = threading.Lock()  # acquired for good by the thread that ends this rank; the other thread waits
        self._left = False  # set by the main thread
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._exchange_heartbeats, self._check_peers)
        ]

    def enter_phase(self, call: str, step: int | None = None) -> None:
        """Record that this rank enters `call` of `step` (None: the current step). All ranks enter the same in one order."""
        step = self._position.step if step is None else step
        index = self._position.call_index + 1 if step == self._position.step else 0
        self._position = Position(step, index, call)

    def report_failure(self, reason: str) -> None:
        """Report to the other ranks that this one exits because of its own error."""
        if self._store is not None and not self._left:
            self._exiting.acquire()
            own = self._own_heartbeat()
            self._leave("failed", f"{own} failed in {own.where}: {reason}")

    def explain(self, error: BaseException) -> str:
        """Find out why a collective failed on this rank, report it to the other ranks, and return it as a message.

        Takes up to EXPLAIN_INTERVALS: a killed rank is the one whose counter no longer increases, and ranks that exit
        because of it report so before they do.
        """
        if self._store is None or self._left:
            return str(error)
        self._exiting.acquire()
        deadline = time.monotonic() + EXPLAIN_INTERVALS * self._interval
        while not (cause := self._peers.reported_cause() or self._peers.silent(SILENT_INTERVALS * self._interval)):
            if time.monotonic() > deadline:
                cause = f"{self._peers.behind(self._own_heartbeat())}; the library reported: {_reason(error)}"
                break
            time.sleep(0.1)
        self._leave("stopped", cause)
        return self._message(cause)

    def __enter__(self) -> Self:
        for thread in self._threads if self._store is not None else ():
            thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._store is None or self._left:
            return
        if error is None:
            self._finish()
        elif isinstance(error, RuntimeError) and (
            isinstance(error, dist.DistError) or COMMUNICATION.search(str(error))
        ):
            message = self.explain(error)
            with suppress(OSError):
                self._write_error(f"error: {message}\n", False, self.log)
            raise PeerError(message) from error
        else:
            self.report_failure(_reason(error))

    def _finish(self) -> None:
        """Exit normally. Rank 0, which may host the store, waits for the other ranks; all limits still apply to it."""
        self.enter_phase("waiting for the other ranks to finish")
        self._publish("done", "", self._heartbeat_timeout)
        if self._rank == 0:
            while self._peers.others_running:
                time.sleep(0.1)
            time.sleep(self._interval)  # the last rank may still be reading the store's reply
        self._close()

    def _leave(self, state: str, cause: str) -> None:
        """Exit with an error that is already propagating."""
        self._left = True
        faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True, file=2)
        self._publish_exit(state, cause)
        self._close()

    def _publish_exit(self, state: str, cause: str) -> None:
        """Write the last heartbeat of a rank that failed; the store's host gives the others that run time to read it."""
        self._publish(state, cause, LINGER_INTERVALS * self._interval)
        deadline = time.monotonic() + LINGER_INTERVALS * self._interval
        while self._rank == 0 and self._peers.others_running and time.monotonic() < deadline:
            time.sleep(0.1)

    def _publish(self, state: str, cause: str, limit: float) -> None:
        """Set state and cause, and wait at most `limit` seconds until the store has them."""
        status = self._status = (state, cause)
        deadline = time.monotonic() + limit
        while self._published != status and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(0.05)

    def _close(self) -> None:
        """End the threads: one that returns from the store during interpreter shutdown would abort the process."""
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(LINGER_INTERVALS * self._interval)

    def _own_heartbeat(self, count: int = 0) -> Heartbeat:
        return Heartbeat(
            self._rank, socket.gethostname(), os.getpid(), self._position, self._seconds_here, count, *self._status
        )

    def _exchange_heartbeats(self) -> None:
        """Thread: write this rank's heartbeat and get a summary in every interval."""
        for count in itertools.count(1):
            own = self._own_heartbeat(count)
            with suppress(OSError, RuntimeError, ValueError):  # _check_peers measures the time until the next success
                self._received.put(self._store.exchange(own))
                self._published = (own.state, own.cause)
            self._wake.wait(self._interval)
            self._wake.clear()
            if self._closed.is_set():
                return

    def _check_peers(self) -> None:
        """Thread: check the summary in every interval, and end this process if its main thread does not."""
        before = time.monotonic()
        while not self._closed.wait(self._interval):
            now = time.monotonic()
            self._update_peers(min(now - before, LONGEST_UPDATE_INTERVALS * self._interval))
            before = now
            cause = self._peers.reported_cause(min_age=GRACE_SECONDS) or self._peers.silent(self._heartbeat_timeout)
            stuck = self._seconds_here > self._collective_timeout
            if (cause or stuck) and self._exiting.acquire(blocking=False):
                self._end_process(cause or self._peers.behind(self._own_heartbeat()), stuck)

    def _update_peers(self, seconds: float) -> None:
        """Take in the newest summary, and count how long this rank has been at its position."""
        position, summary = self._position, None
        self._seconds_here = self._seconds_here + seconds if position is self._checked_position else 0.0
        self._checked_position = position
        while not self._received.empty():
            summary = self._received.get()
        self._peers.update(seconds, summary)

    def _end_process(self, cause: str, stacks: bool) -> None:
        """End this process from a thread, because nothing interrupts a collective in the main thread."""
        try:
            with suppress(OSError):
                self._write_error(f"error: {self._message(cause)}\n", stacks, self.log, 2)  # the console may be gone
            self._publish_exit("stopped", cause)
        finally:
            os._exit(1)

    def _write_error(self, text: str, stacks: bool, *paths: int | Path | None) -> None:
        """Write to file descriptors and files, but not through sys.stderr, whose lock the main thread may hold."""
        for path in paths:
            if path is not None:
                with open(path, "a", encoding="utf-8", closefd=path != 2) as file:
                    file.write(text)
                    file.flush()
                    if stacks:
                        faulthandler.dump_traceback(file=file)

    def _message(self, cause: str) -> str:
        here = self._own_heartbeat().where
        return (
            f"rank {self._rank}: {cause}. This rank was in {here}. "
            "Run the same command again to resume from the last complete checkpoint"
        )


def interval_of(size: int) -> float:
    """Seconds between heartbeats in a world of `size` ranks."""
    return max(1.0, size / RANKS_PER_SECOND)


def watch(
    rank: int, size: int, collective_timeout: float, heartbeat_timeout: float = 45.0, log: Path | None = None
) -> Watchdog:
    """Make a watchdog over the ranks, which have met in the store. In a world of one rank it does nothing.

    Every rank makes its watchdogs in the same order as the others.

    Args:
        collective_timeout: how many seconds a rank may spend in one call; less than the process group's timeout.
        heartbeat_timeout: after how many seconds of silence a rank is taken for dead.
        log: file that also receives what the watchdog prints when it ends this process.
    """
    store = HeartbeatStore(*store_address(), rank, size, interval_of(size)) if size > 1 else None
    return Watchdog(rank, size, store, collective_timeout, heartbeat_timeout, log)


def _reason(error: BaseException) -> str:
    """The first line of an error, without the class name if the message was written for the user."""
    line = (str(error).strip().splitlines() or [""])[0]
    return line if isinstance(error, UserError | DataError) else f"{type(error).__name__}: {line}"
