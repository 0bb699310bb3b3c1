"""The folder of a run: created or reused, locked, and described so that it can be used on its own."""

import errno
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.atomic_files import locked, write_atomic
from data_pipeline.dataset.blend import Blend
from data_pipeline.json_text import json_text
from data_pipeline.manifest import MANIFEST_NAME
from pretrain.checkpoints.folder import list_checkpoints
from pretrain.config.load import dump_settings
from pretrain.config.run_folder import LOCK, STATUS, read_status
from pretrain.config.settings import Settings
from pretrain.errors import TrainingDivergedError, UserError
from pretrain.parallel.world import World

STARTS_WITHOUT_PROGRESS = 5
"""After so many starts in a row without a new checkpoint, SLURM's requeue does not start a run again."""

WAY_OUT = "wait for it or set another run.name"
"""Where another process trains in the run folder."""

FOLDERS = ("checkpoints", "eval", "logs", "tensorboard", "tokenizer")
WRITTEN = (".", "config.yaml", "metrics.jsonl", STATUS, *FOLDERS)
"""What a start writes or replaces in its run folder."""


def claim_folder(folder: Path, resume: bool, held: ExitStack, data: Iterable[Path] = ()) -> None:
    """Create the run folder or reuse the existing one, and lock it until the end of this start.

    Args:
        data: the folders and files that the run reads.

    Raises:
        UserError: another process trains there, the folder cannot be written, or it belongs to something else.
    """
    if not resume and _goes_on(folder):
        print(f"--no-resume was for the first start; this one, by the same launcher, goes on with {folder}", flush=True)
        resume = True
    try:
        _require_folder_of_run(folder, resume, data)
        if not resume and folder.exists():
            with _locked(folder, WAY_OUT):
                pass
            aside = folder.with_name(f"{folder.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
            folder.rename(aside)
            print(f"moved {folder} to {aside}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(owned_folder(folder))
        for path in (folder / name for name in WRITTEN):
            if path.exists() and not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        for path in (folder / name for name in FOLDERS):
            if os.path.lexists(path) and not path.is_dir():
                what = f"a link to {path.readlink()}, where no folder is" if path.is_symlink() else "not a folder"
                raise UserError(f"{path}: {what}; a run writes into a folder of this name: restore or remove it")
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); set run.dir or run.name to a folder that you can "
            "write to"
        ) from None


def _goes_on(folder: Path) -> bool:
    """Whether the launcher that began the run in this folder has started its ranks again.

    Every requeue of a job with `--no-resume` would otherwise begin anew, and the run would never end.
    """
    last = read_status(folder)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return last.get("launcher") == _launcher()
    return _is_requeued() and last.get("slurm_job") == os.environ.get("SLURM_JOB_ID")


def _is_requeued() -> bool:
    return os.environ.get("SLURM_RESTART_COUNT", "0").strip() not in ("", "0")


def _launcher() -> str:
    """What the starts of rank 0 by one torchrun have in common."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return name if name != "none" else f"{socket.gethostname()}, process {os.getppid()}"


def _require_folder_of_run(folder: Path, resume: bool, data: Iterable[Path]) -> None:
    """Refuse to write into prepared data, and to move aside what is no run or holds the data of this one."""
    way_out = "set another run.name or run.dir"
    if (folder / MANIFEST_NAME).is_file():
        raise UserError(f"{folder}: holds prepared data, and a run needs a folder of its own; {way_out}")
    if resume or not folder.is_dir():
        return
    for path in data:
        if folder.resolve() in path.resolve().parents:
            raise UserError(f"{folder}: --no-resume would move {path} along with it, the data of the run; {way_out}")
    names = sorted(path.name for path in folder.iterdir())
    if names and not {LOCK, "config.yaml", "checkpoints"} & set(names):
        raise UserError(
            f"{folder}: has {names[0]} and no config.yaml, so it is no run, which --no-resume would move away; {way_out}"
        )


@contextmanager
def owned_folder(folder: Path, way_out: str = WAY_OUT) -> Iterator[None]:
    """Lock a run folder until the end of the block or of the process; print a warning where there are no locks.

    Args:
        way_out: what to do if another process is training in it, for the message.

    Raises:
        UserError: another process holds the lock.
    """

    def warn(reason: str) -> None:
        print(
            f"warning: {folder}: its file system has no locks ({reason}), so nothing prevents a second process from training "
            "here; start only one",
            file=sys.stderr,
            flush=True,
        )

    with _locked(folder, way_out, warn) as descriptor:
        os.ftruncate(descriptor, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(descriptor, f"{socket.gethostname()}, process {os.getpid()}, since {since}\n".encode(), 0)
        yield


def _locked(folder: Path, way_out: str, warn: Callable[[str], None] = lambda _: None) -> AbstractContextManager[int]:
    try:
        holder = (folder / LOCK).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        holder = ""
    where = f" ({holder})" if holder else ""
    busy = UserError(f"{folder}: another process is training here{where}; {way_out}")
    return locked(folder / LOCK, busy, warn)


@contextmanager
def recorded_status(folder: Path, world: World) -> Iterator[Callable[..., None]]:
    """Keep `status.json` of the folder during a start; yields a function that changes its keys. Does nothing on other ranks.

    Its state is running, then finished, stopped or failed, with the reason and whether that is divergence. It stays running
    after a kill.
    """

    def change(**keys: Any) -> None:
        if world.is_main:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            # Worth no error: a full disk is reported by the next checkpoint.
            with suppress(OSError):
                write_atomic(folder / STATUS, json_text(read_status(folder) | {"since": now} | keys, indent=2) + "\n")

    starts, job = read_status(folder).get("starts", 0) + 1, os.environ.get("SLURM_JOB_ID")
    host, process, fruitless = socket.gethostname(), os.getpid(), _starts_without_progress(folder)
    change(state="running", why=None, diverged=False, starts=starts, host=host, process=process, ranks=world.size)
    change(
        slurm_job=job, launcher=_launcher(), checkpoint=_newest_checkpoint(folder), starts_without_progress=fruitless
    )
    try:
        yield change
    except BaseException as error:
        diverged = isinstance(error, TrainingDivergedError)
        change(state="failed", why=str(error) or type(error).__name__, diverged=diverged)
        raise


def require_progress(folder: Path) -> None:
    """Refuse a start by SLURM's requeue, if as many as `STARTS_WITHOUT_PROGRESS` in a row have left no new checkpoint.

    Raises:
        UserError: with the reason of the last one, if it could write it.
    """
    fruitless = _starts_without_progress(folder) - 1
    if fruitless >= STARTS_WITHOUT_PROGRESS:
        why = read_status(folder).get("why") or "it was killed"
        raise UserError(
            f"{folder}: the last {fruitless} starts of this job left no new checkpoint (the last one: {why}); see its logs folder, "
            "then submit the job again"
        )


def _starts_without_progress(folder: Path) -> int:
    """Starts in a row, with the one that begins now, that found the same newest checkpoint; 1 if a person starts it."""
    last, restarted = read_status(folder), _is_requeued()
    same = last.get("checkpoint") == _newest_checkpoint(folder)
    return last.get("starts_without_progress", 0) + 1 if restarted and same else 1


def _newest_checkpoint(folder: Path) -> str | None:
    found = list_checkpoints(folder)
    return found[-1].name if found else None


def describe_run(folder: Path, settings: Settings, blend: Blend) -> None:
    """Copy the settings and the tokenizer into the run folder."""
    # With absolute paths the run can be used from any working folder; `find_data` finds data that was moved along with it.
    data = replace(settings.data, path=settings.data.path.absolute())
    run = replace(settings.run, dir=settings.run.dir.absolute())
    write_atomic(folder / "config.yaml", dump_settings(replace(settings, data=data, run=run)))
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    for name in (blend.manifest.tokenizer.file, MANIFEST_NAME):
        shutil.copyfile(blend.corpora[0].path / name, tokenizer / name)


def require_shared_folder(folder: Path, world: World, patience: float = 60.0) -> None:
    """Check that all ranks see the run folder that the main rank uses. Collective.

    Without this check, a folder on one node's own disk would be noticed at the first checkpoint, perhaps hours later.

    Args:
        patience: seconds to wait for the file to appear; network file systems cache what a folder contains.

    Raises:
        UserError: a rank does not see it.
    """
    name = f".shared-{uuid.uuid4().hex}"
    if world.is_main:
        (folder / name).touch()
    probe = folder / world.from_main(name)
    deadline, error = time.monotonic() + patience, None
    while not _is_listed(probe):
        if time.monotonic() > deadline:
            error = UserError(
                f"{folder} on {socket.gethostname()} is not the folder that rank 0 uses; set run.dir to one that all nodes share"
            )
            break
        time.sleep(0.2)
    world.raise_on_all_ranks(error)
    if world.is_main:
        probe.unlink()


def _is_listed(path: Path) -> bool:
    """Whether the folder's listing has the file; asking for the file itself could repeat a cached answer."""
    return path.parent.is_dir() and path in path.parent.iterdir()
