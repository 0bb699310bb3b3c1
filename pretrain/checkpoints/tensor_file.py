"""Write a safetensors file tensor by tensor.

The library's `save_file` copies all tensors first and holds Python's lock while it writes, so a training step beside it would
wait. Reading is the library's. The format: the size of the header as a little-endian 64-bit number, the header as JSON, the data.
"""

import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

ALIGNMENT = 8
NAMES = {torch.float32: "F32"}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Write fp32 tensors that are on the CPU and force them to the disk; returns the CRC-32 of each tensor's bytes.

    Raises:
        OSError: the file cannot be written.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    checksums = {}
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, tensor in tensors.items():
            data = bytes_of(tensor)
            file.write(data)
            checksums[name] = zlib.crc32(data)
        file.flush()
        os.fsync(file.fileno())
    return checksums


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
