"""Names the rank that stops a run, on every rank, and ends the run when nothing else would.

A collective whose peer died or hangs waits in C++: under NCCL without an error, under gloo with one that names a neighbour
at best. So every rank keeps a note in the store where the ranks met: its step, its call, and a counter. One thread
exchanges notes, another judges them; two, because a call to a store whose host hangs cannot be interrupted.

Durations are counted here while this process runs and the store answers: clocks of hosts are not compared, and a process
or a store that was stopped for a while accuses nobody when it goes on.

Limit: a rank that holds Python's global lock in one call for the whole heartbeat timeout is taken for dead.
"""

import faulthandler
import itertools
import os
import re
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import torch.distributed as dist

from data_pipeline.errors import DataError
from pretrain.errors import RankError, UserError
from pretrain.parallel.heartbeats import START, Board, Note, Place, View

RANKS_PER_SECOND = 256
"""A larger world beats slower than once a second: all read all notes, so the store's work grows with the square."""

SUSPECT, EXPLAIN, LINGER, LONGEST_LOOK = 5, 15, 3, 5
"""In beats: the silence that is blamed for a failed collective; the search for its cause; how long the store's host stays
after its last note; what counts at most between two looks, for when this process was stopped."""

GRACE = 10.0
"""Seconds that this rank has to fail by itself after another one left: its own error may say more."""

LAST_RESORT = 20.0
"""Seconds from the last note of a failed rank to its end, whatever its clean-up waits for."""

COMMUNICATION = re.compile(r"gloo|nccl|closed by peer|reset by peer|broken pipe|timed out waiting", re.IGNORECASE)
"""In the error of a collective whose peer is gone; gloo raises a plain RuntimeError."""


class PeerError(RankError):
    """A collective failed on this rank because of another one, which the message names."""


class Watchdog:
    """Watches the other ranks while used as a context manager.

    It ends this process with status 1 when a rank falls silent, when this rank is too long in one call, and when another
    rank has left but this one has not followed. An error that leaves the context is told to the other ranks; the error of
    a collective becomes a PeerError that names the first cause.
    """

    def __init__(
        self, rank: int, size: int, board: Board | None, collective_timeout: float, heartbeat_timeout: float, log: Path | None
    ) -> None:  # fmt: skip
        """As `watch`, which makes the board; without one, in a world of one, all methods do nothing."""
        self._rank, self._board, self._log = rank, board, log
        self._collective_timeout, self._heartbeat_timeout = collective_timeout, heartbeat_timeout
        self._beat = max(1.0, size / RANKS_PER_SECOND)  # seconds
        self._view = View(rank, size, LONGEST_LOOK * self._beat)
        self._place = self._seen_place = START
        self._waited = 0.0  # seconds at this place
        self._words = self._told = ("running", "")  # state and verdict: to be written, written
        self._notes: SimpleQueue[list[Note]] = SimpleQueue()
        self._wake, self._closed = threading.Event(), threading.Event()
        self._leaving = threading.Lock()  # taken for good by the thread that ends this rank; the other one waits for it
        self._left = False  # by the main thread
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._judge)]

    def enter_phase(self, call: str, step: int | None = None) -> None:
        """Note that `step` (None: the same as before) is now in `call`. All ranks say the same in the same order."""
        step = self._place.step if step is None else step
        turn = self._place.turn + 1 if step == self._place.step else 0
        self._place = Place(step, turn, call)

    def failed(self, reason: str) -> None:
        """Tell the other ranks that this one ends by an error of its own."""
        if self._board is not None and not self._left:
            self._leaving.acquire()
            own = self._own_note()
            self._leave("failed", f"{own} failed in {own.where}: {reason}")

    def explain(self, error: BaseException) -> str:
        """Find why a collective failed on this rank, tell the other ranks, and return it as a sentence.

        Takes up to EXPLAIN beats: the rank that was killed is the one whose counter stands still, and those that leave
        because of it say so before they go.
        """
        if self._board is None or self._left:
            return str(error)
        self._leaving.acquire()
        deadline = time.monotonic() + EXPLAIN * self._beat
        while not (verdict := self._view.left() or self._view.silent(SUSPECT * self._beat)):
            if time.monotonic() > deadline:
                verdict = f"{self._view.behind(self._own_note())}; the library said: {_reason(error)}"
                break
            time.sleep(0.1)
        self._leave("left", verdict)
        return self._message(verdict)

    def __enter__(self) -> Self:
        for thread in self._threads if self._board is not None else ():
            thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._board is None or self._left:
            return
        if error is None:
            self._finish()
        elif isinstance(error, RuntimeError) and (
            isinstance(error, dist.DistError) or COMMUNICATION.search(str(error))
        ):
            raise PeerError(self.explain(error)) from error
        else:
            self.failed(_reason(error))

    def _finish(self) -> None:
        """Leave in order. Rank 0, which may serve the store, waits for the others, under the same limits as ever."""
        self.enter_phase(self._place.step, "the end of the other ranks")
        self._tell("done", "", self._heartbeat_timeout)
        if self._rank == 0:
            while any(peer.state == "running" for peer in self._view.peers):
                time.sleep(0.1)
            time.sleep(self._beat)  # the last one is perhaps still reading the reply
        self._close()

    def _leave(self, state: str, verdict: str) -> None:
        """Leave with an error that is on its way up."""
        self._left = True
        faulthandler.dump_traceback_later(LAST_RESORT, exit=True, file=2)
        self._say_last(state, verdict)
        self._close()

    def _say_last(self, state: str, verdict: str) -> None:
        """Write the last note of a rank that failed; the store's host lets the others read it."""
        self._tell(state, verdict, LINGER * self._beat)
        if self._rank == 0:
            time.sleep(LINGER * self._beat)

    def _tell(self, state: str, verdict: str, limit: float) -> None:
        """Write state and verdict, and wait at most `limit` seconds until the store has them."""
        words = self._words = (state, verdict)
        deadline = time.monotonic() + limit
        while self._told != words and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(0.05)

    def _close(self) -> None:
        """End the threads: one that returns from the store while the interpreter is taken down would abort the process."""
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(LINGER * self._beat)

    def _own_note(self, beat: int = 0) -> Note:
        return Note(self._rank, socket.gethostname(), os.getpid(), self._place, self._waited, beat, *self._words)

    def _talk(self) -> None:
        """Thread: exchange notes every beat."""
        for beat in itertools.count(1):
            note = self._own_note(beat)
            with suppress(OSError, RuntimeError, ValueError):  # the judge counts the time to the next success
                self._notes.put(self._board.exchange(note))
                self._told = (note.state, note.verdict)
            self._wake.wait(self._beat)
            self._wake.clear()
            if self._closed.is_set():
                return

    def _judge(self) -> None:
        """Thread: judge the notes every beat, and end this process when its main thread will not."""
        before = time.monotonic()
        while not self._closed.wait(self._beat):
            now = time.monotonic()
            self._look(min(now - before, LONGEST_LOOK * self._beat))
            before = now
            verdict = self._view.left(since=GRACE) or self._view.silent(self._heartbeat_timeout)
            stuck = self._waited > self._collective_timeout
            if (verdict or stuck) and self._leaving.acquire(blocking=False):
                self._end(verdict or self._view.behind(self._own_note()), stuck)

    def _look(self, seconds: float) -> None:
        """Take in the newest notes, and count how long this rank has been at its place."""
        place, notes = self._place, None
        self._waited = self._waited + seconds if place is self._seen_place else 0.0
        self._seen_place = place
        while not self._notes.empty():
            notes = self._notes.get()
        self._view.look(seconds, notes)

    def _end(self, verdict: str, stacks: bool) -> None:
        """End this process from its thread: nothing interrupts a collective in the main one."""
        try:
            with suppress(OSError):
                self._print(f"error: {self._message(verdict)}\n", stacks)
            self._say_last("left", verdict)
        finally:
            os._exit(1)

    def _print(self, text: str, stacks: bool) -> None:
        """To stderr and the log; not by sys.stderr, whose lock the main thread may hold."""
        for path in (2, self._log):
            if path is not None:
                with open(path, "a", encoding="utf-8", closefd=path != 2) as file:
                    file.write(text)
                    file.flush()
                    if stacks:
                        faulthandler.dump_traceback(file=file)

    def _message(self, verdict: str) -> str:
        here = self._own_note().where
        return f"rank {self._rank}: {verdict}. This rank was in {here}. The run goes on from its last checkpoint"


def watch(
    rank: int, size: int, collective_timeout: float, heartbeat_timeout: float = 45.0, log: Path | None = None
) -> Watchdog:
    """A watchdog over the ranks of the default process group. Collective; in a world of one it does nothing.

    Args:
        collective_timeout: seconds that a rank may be in one call; less than the process group waits.
        heartbeat_timeout: seconds of silence after which a rank is gone.
        log: file that also gets what the watchdog prints when it ends this process.
    """
    board = None
    if size > 1:
        # Rank 0 or torchrun serves the store here, wherever the ranks are: the process group was made through it.
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        name = [uuid.uuid4().hex]  # of this watchdog: a process may train several times
        if rank == 0:
            Board(*address, name[0], size).exchange(*(Note(peer) for peer in range(size)))
        dist.broadcast_object_list(name)
        board = Board(*address, name[0], size)
    return Watchdog(rank, size, board, collective_timeout, heartbeat_timeout, log)


def _reason(error: BaseException) -> str:
    """One line of an error, without the class where the message was written for the user."""
    line = (str(error).strip().splitlines() or [""])[0]
    return line if isinstance(error, UserError | DataError) else f"{type(error).__name__}: {line}"
