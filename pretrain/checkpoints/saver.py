"""Saves beside training: a copy of what this rank owns, then a process that writes it. At most one save is on its way."""

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from pretrain.checkpoints.copies import Copies
from pretrain.checkpoints.folder import MARK
from pretrain.checkpoints.index import Index
from pretrain.checkpoints.save import Save, complete, file_of, not_written, prepare_folder, write_part
from pretrain.checkpoints.states import Held, Snapshot
from pretrain.errors import CopiesDifferError, UserError
from pretrain.parallel.world import World

OnSaved = Callable[[Path], None]
"""Called on all ranks with the folder of a checkpoint that has become complete."""


class Saver:
    """The checkpoints of one start. Its methods are collective, and all ranks call them after the same steps.

    A thread waits for the process that writes this rank's file. Everything that needs other ranks happens in these methods.

    Args:
        held: what this rank saves.
        on_saved: see `OnSaved`.
    """

    def __init__(self, held: Held, world: World, on_saved: OnSaved) -> None:
        self._held, self._world, self._on_saved = held, world, on_saved
        self._writing: _Writing | None = None
        self._copies = Copies(held, world)

    @property
    def is_writing(self) -> bool:
        """Whether a save is on its way."""
        return self._writing is not None

    def start(self, final: Path, state: str) -> None:
        """Copy the present states and begin to write them. Waits for the previous save first.

        Args:
            final: folder of the checkpoint.
            state: the content of its `state.json`.

        Raises:
            CopiesDifferError: ranks that must hold the same numbers do not.
            UserError: the disk is full, the folder cannot be written, or there is no memory for the copy.
        """
        self.wait()
        if self._world.from_main((final / MARK).is_file()):
            return  # this start has nothing that the folder does not have
        difference = self._copies.difference()
        if difference is not None:
            raise CopiesDifferError(f"{final}: not saved: {difference}")
        save = Save(final, self._snapshot(), state)
        needed = self._world.sum([save.snapshot.file.num_bytes])
        prepare_folder(save.partial, int(needed.item()), self._world)
        self._writing = _Writing(save, self._world.rank)

    def _snapshot(self) -> Snapshot:
        """The present states of this rank. Collective."""
        snapshot, error = None, None
        try:
            snapshot = self._held.snapshot(file_of(self._world.rank))
        except OSError as caught:
            lack = "files may not become large enough (ulimit -f)" if caught.errno == errno.EFBIG else "no memory"
            error = UserError(f"{lack} for the copy that a save needs: {caught}. Older checkpoints are complete")
        self._world.raise_on_all_ranks(error)
        assert snapshot is not None
        return snapshot

    def poll(self) -> None:
        """Complete the save on its way if all ranks have written their files. Costs nothing if there is none.

        Raises:
            UserError: a rank could not write. Older checkpoints are unchanged, and a next save may be started.
        """
        if self._writing is not None and not self._world.any(self._writing.thread.is_alive()):
            self.wait()

    def wait(self) -> None:
        """Complete the save on its way, if there is one.

        Raises:
            UserError: as for `poll`.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        writing.thread.join()
        try:
            self._world.raise_on_all_ranks(writing.error)
            assert writing.part is not None
            complete(writing.save, writing.part, self._world)
        except UserError:
            if self._world.is_main:
                shutil.rmtree(writing.save.partial, ignore_errors=True)
            raise
        self._on_saved(writing.save.final)


class _Writing:
    """A save whose file is written while a thread waits for it. `part` or `error` is set when the thread has ended."""

    def __init__(self, save: Save, rank: int) -> None:
        self.save, self._rank = save, rank
        self.part: Index | None = None
        self.error: UserError | None = None
        self.thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
        self.thread.start()

    def _write(self) -> None:
        try:
            self.part = write_part(self.save, self._rank)
        except Exception as error:  # it would be lost with the thread
            self.error = not_written(self.save.partial, error)
