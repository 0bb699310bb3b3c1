"""Read any part of the canonical tensors of a checkpoint, from the files that hold it."""

import zlib
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.checkpoints.damage import DamagedCheckpointError
from pretrain.checkpoints.index import Entry, Index, as_matrix
from pretrain.checkpoints.rectangles import Rectangle
from pretrain.checkpoints.tensor_file import bytes_of

OPEN_FILES = 64
"""Files that are kept open; a checkpoint has one for each rank that wrote it."""


class Reader:
    """The tensors of one checkpoint. Close it after use, or use it as a context manager.

    Args:
        checkpoint: its folder.
        index: of its files.
    """

    def __init__(self, checkpoint: Path, index: Index) -> None:
        self.checkpoint, self.index = checkpoint, index
        self._open: OrderedDict[str, tuple[Any, ExitStack]] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._close_oldest()

    def read(self, tensor: str, weight: str, rectangle: Rectangle) -> Tensor:
        """The values of a rectangle, fp32 [rows, columns]. Checksums are not compared: `verify` does it for whole files.

        Raises:
            DamagedCheckpointError: the files do not have all of it.
        """
        found, numbers = torch.empty(rectangle.rows, rectangle.columns), 0
        for entry in self.index.of(weight):
            part = entry.rectangle.overlap(rectangle)
            if part is not None:
                with self._errors(entry):
                    values = self._file(entry.file).get_slice(entry.key(tensor))[part.within(entry.rectangle)]
                    found[part.within(rectangle)] = values
                numbers += part.size
        if numbers != rectangle.size:
            raise DamagedCheckpointError(
                self.checkpoint, f"{rectangle.size - numbers} numbers of {weight} are missing ({tensor})"
            )
        return found

    def whole(self, tensor: str, weight: str) -> Tensor:
        """All values of a tensor in its shape, without padding of the vocabulary, compared with their checksums.

        Raises:
            DamagedCheckpointError: a file is damaged.
        """
        shape = self.index.shapes[weight]
        rows, columns = as_matrix(shape)
        found = torch.empty(rows, columns)
        for entry in self.index.of(weight):
            found[entry.rectangle.within(Rectangle(0, 0, rows, columns))] = self._checked(entry, tensor)
        return found.view(shape)

    def verify(self, files: Iterable[str]) -> None:
        """Compare everything in some of the files with its checksums.

        Raises:
            DamagedCheckpointError: a file is damaged or cannot be read.
        """
        chosen = set(files)
        for entry in self.index.entries:
            if entry.file in chosen:
                for tensor in entry.checksums:
                    self._checked(entry, tensor)

    def _checked(self, entry: Entry, tensor: str) -> Tensor:
        with self._errors(entry):
            values = self._file(entry.file).get_tensor(entry.key(tensor))
        if zlib.crc32(bytes_of(values)) != entry.checksums[tensor]:
            raise DamagedCheckpointError(self.checkpoint, f"{entry.file}: the checksum of {entry.key(tensor)} differs")
        if values.shape != (entry.rectangle.rows, entry.rectangle.columns) or values.dtype != torch.float32:
            raise DamagedCheckpointError(
                self.checkpoint, f"{entry.file}: {entry.key(tensor)} has another shape or dtype"
            )
        return values

    @contextmanager
    def _errors(self, entry: Entry) -> Any:
        try:
            yield
        except (SafetensorError, OSError) as error:
            raise DamagedCheckpointError(self.checkpoint, f"{entry.file}: cannot be read ({error})") from None

    def _file(self, name: str) -> Any:
        if name not in self._open:
            stack = ExitStack()
            self._open[name] = stack.enter_context(safe_open(self.checkpoint / name, "pt")), stack
            if len(self._open) > OPEN_FILES:
                self._close_oldest()
        self._open.move_to_end(name)
        return self._open[name][0]

    def _close_oldest(self) -> None:
        _, (_, stack) = self._open.popitem(last=False)
        stack.close()
