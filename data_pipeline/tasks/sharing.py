"""Do the tasks of a job together with all other processes that use the work folder.

Each process claims the next task that is neither done nor claimed. At the end it waits for the tasks of the others, and takes over
those whose process is gone, so that all tasks are done when it returns. A task that fails is tried again on another worker, and
then set aside while the rest is done.
"""

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from data_pipeline.errors import DataError
from data_pipeline.readers.file_ranges import WITHOUT_BYTES
from data_pipeline.readers.kinds import is_compressed
from data_pipeline.tasks.claims import Owner, process_name
from data_pipeline.tasks.processes import Failure, Report, run_tasks
from data_pipeline.tasks.report import Progress
from data_pipeline.tasks.task import Task
from data_pipeline.tasks.work import ATTEMPTS, Work, remove_partial, results_with_partial

# After the first time.
RETRIES = 2
# Stop when tasks failed this often before one was finished: it is not the tasks then.
HOPELESS_FAILURES = 10
# How often to look whether other processes have finished.
LOOK_SECONDS = 2.0


class Job(Protocol):
    """A kind of work that is done for each task."""

    def __call__(self, task: Task, report: Report) -> object:
        """Write the task's result."""

    def is_done(self, task: Task) -> bool:
        """Whether the result is there and is of the files as they are now."""

    def path(self, task: Task) -> Path:
        """Where the result is."""


class _Queue:
    """The tasks of a job that are not done; a `TaskSource`.

    Attributes:
        set_aside: what happened to the tasks that failed too often, by number.
    """

    def __init__(self, work: Work, job: Job, tasks: Sequence[Task], progress: Progress) -> None:
        self._work, self._job, self._progress = work, job, progress
        self._open = deque(tasks)
        self._again: deque[Task] = deque()
        self._of_others: dict[int, tuple[Task, Owner]] = {}
        self._look_at = 0.0
        self._is_waiting = self._has_finished = False
        self._failures = 0
        # Listed once: with many results, listing their folder for each task takes longer than the tasks.
        folders = {job.path(task).parent for task in tasks}
        self._left = {folder / name for folder in folders for name in results_with_partial(folder)}
        self.set_aside: dict[int, tuple[Task, list[str]]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether all tasks are done, set aside, or being done by this process."""
        return not (self._open or self._again or self._of_others)

    def take(self) -> Task | None:
        """Claim the next task that nobody does; None when there is none at the moment."""
        self._work.require_present()
        if not self._open and self._of_others and time.monotonic() >= self._look_at:
            self._open.extend(task for task, _ in self._of_others.values())
            self._of_others.clear()
            self._look_at = time.monotonic() + LOOK_SECONDS
        while self._open:
            task = self._open.popleft()
            if self._claim(task):
                return task
        while self._again:  # last, because what went wrong may pass
            task = self._again.popleft()
            if not self._job.is_done(task):
                return task
            self._work.claims.release(self._name(task))
            self._progress.task_done()
        self._say_waiting()
        return None

    def finish(self, task: Task) -> None:
        """Note that this process has done a task."""
        if not self._job.is_done(task):
            self.fail(task, "its result does not belong to the inputs and options as they are now")
            return
        self._has_finished = True
        self._work.claims.release(self._name(task))
        self._progress.task_done()

    def fail(self, task: Task, why: str) -> None:
        """Note that a task failed: try it again later, or set it aside."""
        self._work.require_present()
        if self._job.is_done(task):  # by another process, which had taken it over
            self._work.claims.release(self._name(task))
            self._progress.task_done()
            return
        attempt = self._work.folder / ATTEMPTS / f"{self._name(task)}.{process_name()}-{time.time_ns()}"
        attempt.write_text(why, encoding="utf-8", errors="backslashreplace")
        failed = self._attempts(task)
        remove_partial(self._job.path(task))
        self._failures += 1
        is_hopeless = self._failures >= HOPELESS_FAILURES and not self._has_finished
        place = f"task {task.number} ({task.shown})"
        if len(failed) <= RETRIES and not is_hopeless:
            self._progress.note(f"{place}: {why}; trying again ({len(failed)} of {RETRIES})")
            self._again.append(task)
            return
        self._progress.note(f"{place}: {why}; set aside")
        self._set_aside(task, failed)
        if is_hopeless:
            for each in self._again:
                self._set_aside(each, self._attempts(each))
            self.require_none_set_aside()

    def _claim(self, task: Task) -> bool:
        if self._job.is_done(task):
            self._progress.task_done()
            return False
        if owner := self._work.claims.take(self._name(task)):
            self._of_others[task.number] = task, owner
            return False
        if self._job.is_done(task):  # while it was being claimed
            self._work.claims.release(self._name(task))
            self._progress.task_done()
            return False
        if len(failed := self._attempts(task)) > RETRIES:
            self._set_aside(task, failed)
            return False
        path = self._job.path(task)
        if path in self._left or self._name(task) in self._work.claims.taken_over:
            remove_partial(path)
        return True

    def _set_aside(self, task: Task, failed: list[str]) -> None:
        self._work.claims.release(self._name(task))
        self.set_aside[task.number] = task, failed

    def require_none_set_aside(self) -> None:
        """Raise DataError with the tasks that were set aside, if there are any."""
        if self.set_aside:
            lines = (
                f"    task {task.number} ({task.shown}), {len(failed)} times: {failed[-1]}"
                for _, (task, failed) in sorted(self.set_aside.items())
            )
            raise DataError(
                f"{len(self.set_aside):,} tasks could not be done; all that are finished are kept. Run the same command again to "
                "try these again:\n" + "\n".join(lines)
            )

    def _attempts(self, task: Task) -> list[str]:
        """What went wrong with a task since this process started, in any process."""
        found = (self._work.folder / ATTEMPTS).glob(f"{self._name(task)}.*")
        timed = sorted((path.stat().st_mtime_ns, path) for path in found)
        return [path.read_text(encoding="utf-8") for at, path in timed if at >= self._work.started]

    def _name(self, task: Task) -> str:
        path = self._job.path(task)
        return f"{path.parent.name}-{path.name}"

    def _say_waiting(self) -> None:
        if self._of_others and not self._is_waiting:
            self._is_waiting = True
            number, (_, owner) = next(iter(self._of_others.items()))
            self._progress.note(
                f"waiting for other processes to finish {len(self._of_others):,} of the tasks: {owner} does task {number}"
            )


def do_tasks(work: Work, job: Job, missing: Sequence[Task], num_tasks: int, workers: int, verb: str) -> None:
    """Do tasks that are not done; returns when all are, by this process or others.

    Args:
        missing: the tasks, in the order in which this process looks at them.
        num_tasks: how many tasks there are in all, for the progress line; the others were done before.
        verb: for the progress line.

    Raises:
        DataError: a task raised it, or tasks were set aside.
        WorkRemovedError: another process has joined the shards.
    """
    first = {job.path(task): task for task in reversed(missing)}  # the same file given twice has one result
    distinct = [task for task in missing if first[job.path(task)] is task]
    progress = Progress(verb, _expected_text_bytes(distinct), len(distinct), num_tasks)
    queue = _Queue(work, job, distinct, progress)
    for task, result in run_tasks(job, queue, min(workers, len(distinct)), progress.update):
        if isinstance(result, Failure):
            queue.fail(task, result.why)
        else:
            queue.finish(task)
    progress.close()
    queue.require_none_set_aside()


def _expected_text_bytes(tasks: Sequence[Task]) -> int | None:
    """Bytes on disk as an estimate of the bytes of text; None where files are compressed."""
    kinds = {each.kind for task in tasks for each in task.ranges}
    compressed = any(is_compressed(Path(each.source)) for task in tasks for each in task.ranges)
    return None if compressed or kinds & {"parquet", *WITHOUT_BYTES} else sum(task.num_bytes for task in tasks)
