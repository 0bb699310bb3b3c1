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

from data_pipeline.errors import DataError
from data_pipeline.stop_signals import defer_stop_signals
from data_pipeline.tasks.task import Task

Result = TypeVar("Result")
Report = Callable[[int, int, int], None]
"""Called now and then with the documents, bytes and tokens done since the last call."""


def run_tasks(
    function: Callable[[Task, Report], Result], tasks: Sequence[Task], workers: int, report: Report
) -> Iterator[tuple[Task, Result]]:
    """Call `function` with each task; yields the results as they finish. A single worker runs in this process, in order.

    Args:
        function: must be picklable.
        report: receives the reports of all workers.

    Raises:
        DataError: a worker process died or raised this.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from ((task, function(task, report)) for task in tasks)
        return
    waiting = iter(tasks)
    with _workers(workers, function) as connections:
        busy = {}
        for connection in connections:
            busy[connection] = next(waiting)
            connection.send(busy[connection])
        while busy:
            for connection in wait(list(busy)):
                done, content = _receive(connection)
                if not done:
                    report(*content)
                    continue
                yield busy.pop(connection), content
                if (task := next(waiting, None)) is not None:
                    busy[connection] = task
                    connection.send(task)


def _receive(connection: Connection) -> tuple[bool, Any]:
    """A worker's next message: (False, counts) or (True, result)."""
    try:
        kind, content = connection.recv()
    except (EOFError, ConnectionError) as error:
        raise DataError("a worker process was killed, most likely for lack of memory; use fewer --workers") from error
    if kind == "failed":
        raise content
    return kind == "done", content


@contextmanager
def _workers(count: int, function: Callable[[Task, Report], Any]) -> Iterator[list[Connection]]:
    """Start processes, which are killed when the block ends. They are spawned: forking with threads running can deadlock."""
    context = get_context("spawn")
    processes: list[BaseProcess] = []
    connections: list[Connection] = []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, function), daemon=True)
            with defer_stop_signals():
                process.start()
                processes.append(process)
            theirs.close()
            connections.append(ours)
        yield connections
    finally:
        for process in processes:
            process.kill()  # idle, or its result is no longer needed
        for process in processes:
            process.join()


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
            os._exit(1)
        except Exception:  # a bug: its traceback is sent as text
            connection.send(("failed", RuntimeError(traceback.format_exc())))


def _start_worker() -> None:
    """Ignore Ctrl-C, which the parent handles; use one thread; exit when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
