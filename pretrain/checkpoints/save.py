"""Save a checkpoint: every rank writes what it owns, then the main rank lists the files and sets the mark."""

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch.distributed as dist

from data_pipeline.atomic_files import sync, write_atomic
from pretrain.checkpoints.folder import INDEX, STATE, write_mark
from pretrain.checkpoints.index import Index, merged
from pretrain.checkpoints.states import Snapshot
from pretrain.errors import UserError
from pretrain.parallel.world import World


def file_of(rank: int) -> str:
    """Name of a rank's file."""
    return f"rank_{rank:05}.safetensors"


@dataclass(frozen=True)
class Save:
    """A checkpoint on its way to the disk.

    Attributes:
        final: its folder.
        snapshot: what this rank writes.
        state: the content of `state.json`.
    """

    final: Path
    snapshot: Snapshot
    state: str

    @property
    def partial(self) -> Path:
        """The folder until it is complete."""
        return self.final.with_name(self.final.name + ".partial")


def prepare_folder(save_folder: Path, needed: int, world: World) -> None:
    """Create an empty folder for a save and check that it fits on the disk. Collective.

    Args:
        save_folder: the checkpoint's folder while it is written.
        needed: bytes that all ranks write.

    Raises:
        UserError: the disk is full, or the folder cannot be written. Older checkpoints are unchanged.
    """
    error: Exception | None = None
    if world.is_main:
        try:
            shutil.rmtree(save_folder, ignore_errors=True)
            save_folder.mkdir(parents=True)
            free, mib = shutil.disk_usage(save_folder).free, 2**20
            if free < needed:
                save_folder.rmdir()
                error = UserError(
                    f"{save_folder.parent}: {free / mib:,.1f} MiB free, a checkpoint needs about {needed / mib:,.1f} MiB; free "
                    "some space and run the same command again. Older checkpoints are complete"
                )
        except OSError as caught:
            error = not_written(save_folder, caught)
    world.raise_on_all_ranks(error)


def not_written(save_folder: Path, error: Exception) -> UserError:
    """The error of a save that an error of the system has ended."""
    return UserError(f"{save_folder} could not be written: {error}. Older checkpoints are complete")


def write_part(save: Save, rank: int) -> Index:
    """Write this rank's file and force it to the disk; returns the index of the file. Not collective.

    Raises:
        OSError: it cannot be written.
    """
    if not save.snapshot.index.entries:
        return save.snapshot.index
    checksums = save.snapshot.file.write(save.partial / file_of(rank))
    sync(save.partial)
    entries = tuple(
        replace(entry, checksums={tensor: checksums[entry.key(tensor)] for tensor in entry.checksums})
        for entry in save.snapshot.index.entries
    )
    return Index(save.snapshot.index.shapes, save.snapshot.index.scalars, entries)


def complete(save: Save, part: Index, world: World) -> None:
    """List what all ranks have written and turn the folder into a checkpoint. Collective, after `write_part` on all ranks.

    Raises:
        UserError: the main rank cannot write.
    """
    parts: list[tuple[Index, int] | None] | None = [None] * world.size if world.is_main else None
    dist.gather_object((part, save.snapshot.file.num_bytes), parts)
    error: Exception | None = None
    if world.is_main:
        try:
            written = [one for one in parts or () if one is not None]
            for index, size in written:
                _require_written(save.partial, index, size)
            _finish(save, merged(index for index, _ in written))
        except OSError as caught:
            error = not_written(save.partial, caught)
    world.raise_on_all_ranks(error)


def _require_written(partial: Path, index: Index, size: int) -> None:
    """Raise OSError if a rank's file is not where it was written: somebody has removed the folder in between."""
    for name in {entry.file for entry in index.entries}:
        found = (partial / name).stat().st_size
        if found != size:
            raise OSError(f"{name} has {found:,} bytes, not {size:,}")


def _finish(save: Save, index: Index) -> None:
    write_atomic(save.partial / INDEX, index.to_json())
    write_atomic(save.partial / STATE, save.state)
    write_mark(save.partial)
    _make_way(save.final)
    save.partial.rename(save.final)
    sync(save.final.parent)


def _make_way(final: Path) -> None:
    """Remove the remains of a save. A file or a link in the place of a checkpoint is not ours: it is renamed."""
    if final.is_symlink() or final.is_file():
        aside = final.with_name(f"{final.name}.found-{time.strftime('%Y%m%d-%H%M%S')}")
        final.rename(aside)
        print(f"warning: {final} was not a checkpoint; renamed to {aside.name}", flush=True)
    shutil.rmtree(final, ignore_errors=True)
