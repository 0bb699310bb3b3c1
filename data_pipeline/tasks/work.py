"""The work folder of a run that is not finished, `OUTPUT.work`, where every task leaves its result.

    OUTPUT.work/tokenizer.*          the tokenizer
    OUTPUT.work/samples/NUMBER/      a task's sample of text to train the tokenizer on
    OUTPUT.work/signatures/NUMBER/   what a task's documents are compared by to find duplicates
    OUTPUT.work/decisions/NUMBER     which of them are duplicates
    OUTPUT.work/tokens/NUMBER/       a task's shards and its record
    OUTPUT.work/joined/              the output while it is put together
    OUTPUT.work/replaced/            what was at OUTPUT, until the new folder is in its place

Every result is flushed to the disk and then renamed, so it is complete or absent, and the next run continues from the
results that exist, however this one ends.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.atomic_files import FULL_DISK, locked, move_into_place
from data_pipeline.errors import DataError

SAMPLES, SIGNATURES, DECISIONS, TOKENS = "samples", "signatures", "decisions", "tokens"
JOINED, REPLACED = "joined", "replaced"
KINDS = (SAMPLES, SIGNATURES, TOKENS)
PARTIAL = "partial"


def work_folder(output: Path) -> Path:
    """The work folder of a run that writes `output`."""
    return output.with_name(f"{output.name}.work")


@contextmanager
def open_work(output: Path, share: str) -> Iterator[Path]:
    """Create the work folder and hold it for one share of the work ("0-of-1" is all of it) until the block ends.

    Raises:
        DataError: it cannot be created, another process holds the same share, or the disk is full.
    """
    work = work_folder(output)
    created = [parent for parent in output.parents if not parent.exists()]
    try:
        _make(work)
        busy = DataError(f"another process is preparing {output}; wait until it has finished, or stop it")
        with locked(work / f"lock-{share}", busy):
            yield work
    except OSError as error:
        if error.errno in FULL_DISK:
            raise DataError(
                f"the disk of {output.parent} is full; finished tasks are kept. Free some space and run the same command again"
            ) from error
        raise
    finally:
        if finished_tasks(work) == 0:
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):
                for parent in created:
                    parent.rmdir()


def remove_work(output: Path) -> None:
    """Remove the work folder, once `output` is complete."""
    shutil.rmtree(work_folder(output), ignore_errors=True)


def finished_tasks(work: Path) -> int:
    """Number of task results, of all kinds, that the next run can use."""
    return sum(not is_partial(path) for kind in KINDS for path in (work / kind).glob("*"))


def is_partial(path: Path) -> bool:
    """Whether a task's folder is still being written, or was left by a run that was killed."""
    return PARTIAL in path.suffix


def task_name(number: int) -> str:
    """Name of a task's folder, and its number in the names of its shards."""
    return f"{number:05}"


@contextmanager
def task_folder(parent: Path, number: int) -> Iterator[Path]:
    """A folder to write a task's result into; it is renamed to `parent/NUMBER` when the block succeeds."""
    final = parent / task_name(number)
    partial = final.with_suffix(f".{PARTIAL}-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(final, ignore_errors=True)  # of other inputs or options
        move_into_place(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(work: Path, numbers: set[int]) -> None:
    """Remove what runs that were killed have left of these tasks."""
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


def require_space(folder: Path, needed: int) -> None:
    """Compare an estimate in bytes with the free space of the disk that holds a work folder.

    Raises:
        DataError: there is less.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"about {needed / 1e6:,.1f} MB are needed, the disk of {folder.parent} has {free / 1e6:,.1f} MB free; "
            "free some space or choose another --output"
        )
