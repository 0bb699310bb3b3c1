"""The folder of a run that is not finished: `OUTPUT.work`, where every task leaves its result.

    OUTPUT.work/tokenizer.*       the tokenizer, once there is one
    OUTPUT.work/samples/NUMBER/   a task's sample of text to train it on
    OUTPUT.work/signatures/NUMBER/, decisions/NUMBER   what duplicates are found by, and which were found
    OUTPUT.work/tokens/NUMBER/    a task's shards and its completion mark
    OUTPUT.work/joined/           the result while it is put together

Results appear by a rename of a folder that is on the disk already, so each is there whole or not at all, and whatever
ends the run, the next one goes on from them.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.atomic_files import FULL_DISK, locked, settle
from data_pipeline.errors import DataError

SAMPLES, SIGNATURES, DECISIONS, TOKENS, JOINED = "samples", "signatures", "decisions", "tokens", "joined"
KINDS = (SAMPLES, SIGNATURES, TOKENS)
PARTIAL = "partial"


def work_folder(output: Path) -> Path:
    """Where a run that is to write `output` works."""
    return output.with_name(f"{output.name}.work")


@contextmanager
def open_work(output: Path, share: str) -> Iterator[Path]:
    """The work folder, held for one share of the work ("0-of-1" for all of it) until the block ends.

    Raises:
        DataError: it cannot be created, another process holds the same share, or the disk is full.
    """
    work = work_folder(output)
    created = [parent for parent in output.parents if not parent.exists()]
    try:
        _make(work)
        with locked(work / f"lock-{share}", f"another process is preparing {output}; wait for it, or end it"):
            yield work
    except OSError as error:
        if error.errno in FULL_DISK:
            raise DataError(
                f"the disk of {output.parent} is full; finished tasks are kept. Free some space and run it again"
            ) from error
        raise
    finally:
        if finished_tasks(work) == 0:
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):
                for parent in created:
                    parent.rmdir()


def remove_work(output: Path) -> None:
    """Remove the work folder, once `output` is whole."""
    shutil.rmtree(work_folder(output), ignore_errors=True)


def finished_tasks(work: Path) -> int:
    """Results of tasks, of whatever kind, that a next run can use."""
    return sum(not is_partial(path) for kind in KINDS for path in (work / kind).glob("*"))


def is_partial(path: Path) -> bool:
    """Whether a task's folder is being written, or was when its run was killed."""
    return PARTIAL in path.suffix


def task_name(number: int) -> str:
    """Name of a task's folder and number in its shards' names."""
    return f"{number:05}"


@contextmanager
def task_folder(parent: Path, number: int) -> Iterator[Path]:
    """A folder to write a task's result into; it becomes `parent/NUMBER` when the block ends well."""
    final = parent / task_name(number)
    partial = final.with_suffix(f".{PARTIAL}-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(final, ignore_errors=True)  # of other inputs or options
        settle(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(work: Path, numbers: set[int]) -> None:
    """Remove what killed runs left of these tasks."""
    for kind in KINDS:
        for path in (work / kind).glob(f"*.{PARTIAL}-*"):
            if int(path.stem) in numbers:
                shutil.rmtree(path, ignore_errors=True)


def _make(work: Path) -> None:
    try:
        work.mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            (work / kind).mkdir(exist_ok=True)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise DataError(f"cannot write beside {work.parent}: {error.strerror}; choose another --output") from error
