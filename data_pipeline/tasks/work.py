"""The work folder of a run that is not finished, `OUTPUT.work`, where every task leaves its result.

    OUTPUT.work/tokenizers/ADDRESS/   a tokenizer, given or trained
    OUTPUT.work/samples/ADDRESS/      the first documents of a task, to train the tokenizer on
    OUTPUT.work/signatures/ADDRESS/   what a task's documents are compared by to find duplicates
    OUTPUT.work/decisions/ADDRESS/    which documents of each task are duplicates
    OUTPUT.work/tokens/ADDRESS/       a task's shards and its record
    OUTPUT.work/shards/ADDRESS/       a shard of the output, of the tokens of several tasks
    OUTPUT.work/documents/ADDRESS     digest of the documents that a task reads from files of these modification times
    OUTPUT.work/claims/               lock files: which process does which task
    OUTPUT.work/processes/            a file for each process that uses the folder
    OUTPUT.work/attempts/             what went wrong in tasks that failed
    OUTPUT.work/joined.partial-*/     the output while it is put together
    OUTPUT.work/replaced/             what was at OUTPUT, until the new folder is in its place

ADDRESS is the content address of a result. Every result is flushed to the disk and then renamed, so it is complete or absent, and
the next run continues from the results that exist, however this one ends. Any number of processes may use the folder at once.
Each removes only what it wrote; the process that has joined the shards removes the folder.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from glob import escape
from pathlib import Path
from secrets import token_hex

from data_pipeline.atomic_files import FULL_DISK, move_into_place
from data_pipeline.errors import DataError
from data_pipeline.manifest import MANIFEST_NAME, sha256_of
from data_pipeline.tasks.claims import Claims, Owner, process_name, this_machine

TOKENIZERS, SAMPLES, SIGNATURES, DECISIONS, TOKENS = "tokenizers", "samples", "signatures", "decisions", "tokens"
DOCUMENTS, CLAIMS, PROCESSES, ATTEMPTS = "documents", "claims", "processes", "attempts"
SHARDS, JOINED, REPLACED = "shards", "joined", "replaced"
KINDS = (SAMPLES, SIGNATURES, TOKENS)
FOLDERS = (*KINDS, TOKENIZERS, DECISIONS, SHARDS, DOCUMENTS, CLAIMS, ATTEMPTS)
# The claim of a process that makes the tokenizer or joins the shards: there is one at a time.
WHOLE_FOLDER = "folder"
# Holds the hash of the manifest of an output that was joined: what is left of its work folder is not needed any more.
JOINED_MANIFEST = "joined.sha256"
PARTIAL = ".partial-"
# Of creating a folder that another process may remove at the same time.
TRIES = 10


class WorkRemovedError(DataError):
    """The work folder was removed while this process was using it, because another process joined the shards."""


@dataclass(frozen=True)
class Work:
    """A work folder that this process uses.

    Attributes:
        claims: on tasks.
        presence: a file in the folder that exists as long as this process uses it.
        started: modification time of that file; others in the folder with an earlier time are of before.
    """

    folder: Path
    claims: Claims
    presence: Path
    started: int

    def require_present(self) -> None:
        """Raise FileNotFoundError when another process has removed the folder, which `open_work` explains."""
        self.presence.stat()


def work_folder(output: Path) -> Path:
    """The work folder of a run that writes `output`."""
    return output.with_name(f"{output.name}.work")


@contextmanager
def open_work(output: Path, stage: str) -> Iterator[Work]:
    """Create the work folder, if it is missing, and use it until the block ends.

    Any number of processes of the stage "tokens" may use it at once, and one of another stage.

    Raises:
        DataError: it cannot be created, another process holds it, or the disk is full.
        WorkRemovedError: another process has removed it.
    """
    folder = work_folder(output)
    created = [parent for parent in output.parents if not parent.exists()]
    is_new = presence = None
    try:
        is_new, presence = _enter(folder, stage)
        with Claims(folder / CLAIMS) as claims:
            if stage != "tokens" and (owner := claims.take(WHOLE_FOLDER)):
                raise DataError(_explain_busy(output, owner))
            yield Work(folder, claims, presence, presence.stat().st_mtime_ns)
    except (OSError, DataError) as error:
        if presence and not presence.exists():
            raise WorkRemovedError(
                f"{folder} was removed while this process was using it; run the same command again"
            ) from error
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise DataError(
                f"the disk of {output.parent} is full; finished tasks are kept. Free some space and run the same command again"
            ) from error
        raise
    finally:
        if presence:
            presence.unlink(missing_ok=True)
        if is_new and _remove_unused(folder):
            with suppress(OSError):
                for parent in created:
                    parent.rmdir()


def remove_work(output: Path) -> None:
    """Remove the work folder, once `output` is complete. For the process that holds `WHOLE_FOLDER`.

    It is renamed first, so that other processes that use it notice at once and write nothing more into it.
    """
    folder = work_folder(output)
    removed = folder.with_name(f"{folder.name}.removed-{process_name()}")
    try:
        folder.rename(removed)
    except OSError:  # a mount point, for example
        shutil.rmtree(folder, ignore_errors=True)
    for path in folder.parent.glob(f"{escape(folder.name)}.removed-*"):  # also of a process that was killed here
        shutil.rmtree(path, ignore_errors=True)


def remove_joined_work(output: Path) -> None:
    """Remove what a process left that was killed after it had joined `output` and before it had removed the work folder."""
    folder = work_folder(output)
    joined = folder / JOINED_MANIFEST
    if joined.is_file() and joined.read_text() == sha256_of(output / MANIFEST_NAME):
        with Claims(folder / CLAIMS) as claims:
            if claims.take(WHOLE_FOLDER) is None:
                remove_work(output)


def finished_tasks(folder: Path) -> int:
    """Number of task results, of all kinds, that the next run can use."""
    return sum(PARTIAL not in path.name for kind in KINDS for path in (folder / kind).glob("*"))


@contextmanager
def partial_folder(final: Path) -> Iterator[Path]:
    """A new folder beside `final` that no other process writes to; removed if the block fails."""
    partial = final.with_name(f"{final.name}{PARTIAL}{process_name()}-{token_hex(4)}")
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def result_folder(final: Path, is_whole: Callable[[], bool]) -> Iterator[Path]:
    """A folder to write a result into; it is renamed to `final` when the block succeeds.

    Args:
        is_whole: whether `final`, if it exists by then, holds this result: then another process was faster, and its folder
            stays. Otherwise it is replaced.
    """
    final.parent.mkdir(exist_ok=True)
    with partial_folder(final) as partial:
        yield partial
        if final.exists() and not is_whole():  # damaged, or of files that have changed
            old = final.with_name(f"{partial.name}-old")
            with suppress(FileNotFoundError):
                final.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        try:
            move_into_place(partial, final)
        except OSError:
            if not (final.exists() and is_whole()):
                raise
            shutil.rmtree(partial, ignore_errors=True)


def remove_partial(final: Path) -> None:
    """Remove what processes that were killed have left of a result. For the process that has claimed it.

    Each is renamed first: if its process is alive after all, it either has renamed it to `final` already or cannot any more.
    """
    for path in final.parent.glob(f"{final.name}{PARTIAL}*"):
        removed = path.with_name(f"{path.name}-{token_hex(4)}")
        with suppress(OSError):
            path.rename(removed)
            shutil.rmtree(removed)


def results_with_partial(folder: Path) -> set[str]:
    """Names of the results in a folder of which there are partial ones: of killed processes, or of those at work."""
    return {path.name.partition(PARTIAL)[0] for path in folder.glob(f"*{PARTIAL}*")}


def _enter(folder: Path, stage: str) -> tuple[bool, Path]:
    """Create the folder, if it is missing, and this process's file in it; returns whether it was missing, and the file."""
    presence = folder / PROCESSES / f"{process_name()}-{token_hex(4)}"
    is_new = False
    for tries_left in reversed(range(TRIES)):
        try:
            with suppress(FileExistsError):
                folder.mkdir(parents=True)
                is_new = True
            for kind in (PROCESSES, *FOLDERS):
                (folder / kind).mkdir(exist_ok=True)
            presence.write_text(stage)
            break
        except FileNotFoundError:  # another process has just removed the folder
            if not tries_left:
                raise
        except OSError as error:
            if error.errno in FULL_DISK:
                raise
            raise DataError(
                f"cannot write beside {folder.parent}: {error.strerror}; choose another --output"
            ) from error
    return is_new, presence


def _remove_unused(folder: Path) -> bool:
    """Remove a work folder that this process has created, that has no result, and that no other process uses."""
    if finished_tasks(folder):
        return False
    try:
        (folder / PROCESSES).rmdir()  # fails while another process uses the folder
        for name in (TOKENIZERS, DECISIONS, SHARDS):
            for path in (folder / name).iterdir():
                shutil.rmtree(path)
        for name in (DOCUMENTS, ATTEMPTS):
            for path in (folder / name).iterdir():
                path.unlink()
        for name in FOLDERS:
            (folder / name).rmdir()
        folder.rmdir()
    except OSError:
        return False
    return True


def _explain_busy(output: Path, owner: Owner) -> str:
    try:
        found = (work_folder(output) / PROCESSES).glob(f"{owner.machine}-{owner.pid}-*")
        seconds, presence = min((path.stat().st_mtime, path) for path in found)
        since = datetime.fromtimestamp(seconds).astimezone()
        doing = f" (--stage {presence.read_text()}, since {since:%Y-%m-%d %H:%M:%S %Z})"
    except (ValueError, OSError):
        doing = ""
    elsewhere = owner.machine != this_machine()  # here, a process that has ended is noticed at once
    later = f". If that machine has crashed, run the command again in {max(1, round(owner.seconds_left))} s"
    return f"another process is preparing {output}: {owner}{doing}; wait until it has finished, or stop it{later * elsewhere}"


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
