"""A safetensors file that is filled in memory and written by a process of its own.

A thread of the rank would hold Python's lock between its calls, and where no core is free the training step would wait for it.
The library's `save_file` copies all tensors first and also holds the lock. Reading is the library's. The format: the size of the
header as a little-endian 64-bit number, the header as JSON, the data.
"""

import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoints import writer_process

ALIGNMENT = 8
FP32_BYTES = 4
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class TensorFile:
    """The content of a file of fp32 tensors, in memory that `writer_process.py` can read without a copy.

    Linux only: the memory is an anonymous file (`memfd_create`), which is in no folder and ends with the process.

    Attributes:
        tensors: by name, views of the content; zero until they are filled.
        num_bytes: size of the file.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        header, self._ranges, end = {}, [], 0
        for name, shape in shapes.items():
            begin, end = end, end + FP32_BYTES * prod(shape)
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
            self._ranges.append((begin, end))
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % ALIGNMENT)
        head = struct.pack("<Q", len(encoded)) + encoded
        self.num_bytes, self._begin = len(head) + end, len(head)
        self._memory = os.memfd_create("checkpoint")
        weakref.finalize(self, os.close, self._memory)
        os.ftruncate(self._memory, self.num_bytes)
        content = mmap.mmap(self._memory, self.num_bytes)
        content[: len(head)] = head
        data = torch.frombuffer(content, dtype=torch.uint8)[len(head) :]
        self.tensors: dict[str, Tensor] = {
            name: data[begin:end].view(torch.float32).view(*shape)
            for (name, shape), (begin, end) in zip(shapes.items(), self._ranges, strict=True)
        }

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the tensors, by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def write(self, path: Path) -> dict[str, int]:
        """Write the file and force it to the disk; returns the CRC-32 of each tensor's bytes.

        Raises:
            OSError: the file cannot be written.
        """
        ranges = [(self._begin + begin, self._begin + end) for begin, end in self._ranges]
        with path.open("wb") as file, _inherited_block(STOP_SIGNALS):
            descriptors = (self._memory, file.fileno())
            done = subprocess.run(
                [sys.executable, "-I", "-S", writer_process.__file__, *map(str, descriptors)],
                input=json.dumps(ranges),
                pass_fds=descriptors,
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise OSError(done.stderr.strip() or f"the process that writes it {_how_it_ended(done.returncode)}")
        return dict(zip(self.tensors, json.loads(done.stdout), strict=True))


def _how_it_ended(status: int) -> str:
    if status == -signal.SIGKILL:
        return "was killed, perhaps because memory ran out"
    return f"ended with status {status}"


@contextmanager
def _inherited_block(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Processes that this thread starts do not get these signals, which a terminal and SLURM send to all processes of a job."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
