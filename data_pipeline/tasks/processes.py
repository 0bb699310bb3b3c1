"""Run tasks in worker processes that exchange small messages only."""

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from data_pipeline.atomic_files import stop_signals_wait
from data_pipeline.errors import DataError
from data_pipeline.tasks.tasks import Task

Result = TypeVar("Result")
Report = Callable[[int, int, int], None]
"""Told now and then of more documents, bytes and tokens done."""


def run_tasks(
    function: Callable[[Task, Report], Result], tasks: Sequence[Task], workers: int, report: Report
) -> Iterator[tuple[Task, Result]]:
    """`function` of each task, as they finish; one worker works in this process and in order.

    Args:
        function: something that can be pickled.
        report: takes what all workers report.

    Raises:
        DataError: a worker process died, or raised this.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from ((task, function(task, report)) for task in tasks)
        return
    waiting = iter(tasks)
    with _workers(workers, function) as connections:
        at_work = {}
        for connection in connections:
            at_work[connection] = next(waiting)
            connection.send(at_work[connection])
        while at_work:
            for connection in wait(list(at_work)):
                done, content = _receive(connection)
                if not done:
                    report(*content)
                    continue
                yield at_work.pop(connection), content
                if (task := next(waiting, None)) is not None:
                    at_work[connection] = task
                    connection.send(task)


def _receive(connection: Connection) -> tuple[bool, Any]:
    """A worker's next message: (False, counts) or (True, result)."""
    try:
        kind, content = connection.recv()
    except (EOFError, ConnectionError) as error:
        raise DataError(
            "a tokenising process was killed, most likely for lack of memory; use fewer --workers"
        ) from error
    if kind == "failed":
        raise content
    return kind == "done", content


@contextmanager
def _workers(count: int, function: Callable[[Task, Report], Any]) -> Iterator[list[Connection]]:
    """Fresh processes, since forking one whose libraries run threads can deadlock; however the block ends, they end."""
    context = get_context("spawn")
    processes: list[BaseProcess] = []
    connections: list[Connection] = []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, function), daemon=True)
            with stop_signals_wait():
                process.start()
                processes.append(process)
            theirs.close()
            connections.append(ours)
        yield connections
    finally:
        for process in processes:
            process.kill()  # idle, or its work is not wanted
        for process in processes:
            process.join()


def _serve(connection: Connection, function: Callable[[Task, Report], Any]) -> None:
    """Work off the tasks that come down the connection, until the process is killed."""
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
            os._exit(1)
        except Exception:  # an error of this program: its traceback crosses as text
            connection.send(("failed", RuntimeError(traceback.format_exc())))


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, one thread per process to the scheduler, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
