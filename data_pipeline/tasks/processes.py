"""Run tasks in worker processes that exchange small messages only."""

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

from data_pipeline.atomic_files import FULL_DISK
from data_pipeline.errors import DataError
from data_pipeline.stop_signals import defer_stop_signals
from data_pipeline.tasks.task import Task

Result = TypeVar("Result")
Report = Callable[[int, int, int], None]
"""Called now and then with the documents, bytes and tokens done since the last call."""
# How often to ask for a task while there is none.
POLL_SECONDS = 0.5
# How long a worker that closed its connection may take to end.
END_SECONDS = 10.0


class TaskSource(Protocol):
    """Where the tasks to do come from."""

    def take(self) -> Task | None:
        """The next task; None when there is none at the moment."""

    @property
    def is_empty(self) -> bool:
        """Whether `take` will return no task any more, unless one that it returned fails."""


@dataclass(frozen=True)
class Failure:
    """What happened to a task that was not finished.

    Attributes:
        why: for the user.
    """

    why: str


def run_tasks(
    function: Callable[[Task, Report], Result], source: TaskSource, workers: int, report: Report
) -> Iterator[tuple[Task, Result | Failure]]:
    """Call `function` with each task; yields the results as they finish. A single worker runs in this process, in order.

    A task whose worker process died, or that ended with an OSError or MemoryError, results in a `Failure`; what comes next runs
    on a new worker.

    Args:
        function: must be picklable.
        report: receives the reports of all workers.

    Raises:
        DataError: `function` raised it.
        OSError: the disk is full.
    """
    if workers <= 1:
        yield from _run_here(function, source, report)
        return
    with _workers(function) as pool:
        while True:
            while len(pool.busy) < workers and (task := source.take()) is not None:
                pool.begin(task)
            if not pool.busy and source.is_empty:
                return
            # Without a time limit when nothing but a worker's message can bring more work.
            is_waiting = len(pool.busy) < workers and not source.is_empty
            for worker in pool.wait(POLL_SECONDS if is_waiting else None):
                done, content = pool.receive(worker)
                if done:
                    yield worker.task, content
                else:
                    report(*content)


def _run_here(
    function: Callable[[Task, Report], Result], source: TaskSource, report: Report
) -> Iterator[tuple[Task, Result | Failure]]:
    while True:
        task = source.take()
        if task is None:
            if source.is_empty:
                return
            time.sleep(POLL_SECONDS)
            continue
        result: Result | Failure
        try:
            result = function(task, report)
        except (OSError, MemoryError) as error:
            result = _failure(error)
        yield task, result


def _failure(error: OSError | MemoryError) -> Failure:
    """Raise the error again if the disk is full: no other task would be any better."""
    if isinstance(error, MemoryError):
        return Failure("out of memory; use fewer --workers")
    if error.errno in FULL_DISK:
        raise error
    return Failure(str(error))


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    task: Task


class _Pool:
    """Worker processes, started when they are needed. They are spawned: forking with threads running can deadlock."""

    def __init__(self, function: Callable[[Task, Report], Any]) -> None:
        self._function = function
        self._context = get_context("spawn")
        self._idle: list[_Worker] = []
        self.busy: dict[Connection, _Worker] = {}

    def begin(self, task: Task) -> None:
        """Give a task to an idle worker, or to a new one."""
        while self._idle:
            worker = self._idle.pop()
            try:
                worker.connection.send(task)
            except OSError:  # it was killed while it was idle
                self._discard(worker)
                continue
            worker.task = task
            self.busy[worker.connection] = worker
            return
        worker = self._start(task)
        with suppress(OSError):  # it has ended already, as `receive` will find
            worker.connection.send(task)

    def wait(self, seconds: float | None) -> list[_Worker]:
        """Workers with a message, after at most some seconds."""
        if not self.busy:
            time.sleep(seconds or 0)
        return [self.busy[connection] for connection in wait(list(self.busy), seconds)] if self.busy else []

    def receive(self, worker: _Worker) -> tuple[bool, Any]:
        """A worker's next message: (False, counts), or (True, result) after which it is idle, or (True, failure) and gone."""
        try:
            kind, content = worker.connection.recv()
        except (EOFError, OSError):
            del self.busy[worker.connection]
            worker.process.join(END_SECONDS)
            code = worker.process.exitcode
            self._discard(worker)
            return True, Failure(_explain_end(code))
        if kind == "progress":
            return False, content
        del self.busy[worker.connection]
        if kind == "done":
            self._idle.append(worker)
            return True, content
        self._discard(worker)
        if isinstance(content, OSError | MemoryError):
            return True, _failure(content)
        raise content

    def close(self) -> None:
        """Kill all workers: they are idle, or their results are no longer needed."""
        workers = [*self._idle, *self.busy.values()]
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()

    def _start(self, task: Task) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._function), daemon=True)
        with defer_stop_signals():
            process.start()
            worker = self.busy[ours] = _Worker(process, ours, task)
        theirs.close()
        return worker

    def _discard(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()


def _explain_end(code: int | None) -> str:
    """How a worker process ended, for the user."""
    if code == -signal.SIGKILL:
        return "its worker process was killed by SIGKILL, most likely for lack of memory; use fewer --workers"
    if code is not None and code < 0:
        return f"its worker process was killed by {signal.Signals(-code).name}"
    return f"its worker process ended with exit code {code}"


@contextmanager
def _workers(function: Callable[[Task, Report], Any]) -> Iterator[_Pool]:
    """Worker processes, which are killed when the block ends."""
    pool = _Pool(function)
    try:
        yield pool
    finally:
        pool.close()


def _serve(connection: Connection, function: Callable[[Task, Report], Any]) -> None:
    """Do the tasks that arrive on the connection until the process is killed."""
    _start_worker()

    def report(documents: int, num_bytes: int, tokens: int) -> None:
        connection.send(("progress", (documents, num_bytes, tokens)))

    while True:
        task = connection.recv()
        try:
            connection.send(("done", function(task, report)))
        except (DataError, OSError) as error:
            connection.send(("failed", error))
        except MemoryError:
            connection.send(("failed", MemoryError()))
        except Exception:  # a bug: its traceback is sent as text
            connection.send(("failed", RuntimeError(traceback.format_exc())))


def _start_worker() -> None:
    """Ignore Ctrl-C, which the parent handles; use one thread; exit when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
