"""Read the weights of a checkpoint or of an exported folder as the other has them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.architecture import Architecture
from pretrain.checkpoints.weights import open_weights
from pretrain.errors import UserError
from pretrain.export.weights import Source, exported_shapes, exported_weights, imported_weights

EXPORTED = "model.safetensors"


def read_checkpoint(checkpoint: Path, weights: str, architecture: Architecture) -> dict[str, Tensor]:
    """The weights of a checkpoint as an exported folder has them.

    Args:
        weights: "ema" or "raw".

    Raises:
        UserError: they are missing or damaged.
    """
    with open_weights(checkpoint, weights, architecture) as source:
        return exported_weights(architecture, source)


def read_exported(folder: Path, architecture: Architecture) -> dict[str, Tensor]:
    """The weights of an exported folder as a checkpoint has them, in fp32.

    Raises:
        UserError: the file is missing or damaged, or does not have the weights of this architecture.
    """
    path, shapes = folder / EXPORTED, exported_shapes(architecture)
    if not path.is_file():
        raise UserError(f"{path}: is missing; the weights must be in this one file")

    def convert(source: Source) -> dict[str, Tensor]:
        return imported_weights(architecture, lambda name: _checked(path, name, source(name), shapes[name]))

    return _read(path, "copy it again from the export", convert, shapes)


def _read(
    path: Path, fix: str, convert: Callable[[Source], dict[str, Tensor]], shapes: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            if shapes is not None:
                _compare_names(path, set(file.keys()), set(shapes))
            return convert(file.get_tensor)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {fix}") from None


def _compare_names(path: Path, found: set[str], wanted: set[str]) -> None:
    for names, problem in ((wanted - found, "lacks"), (found - wanted, "has unknown")):
        if names:
            first, count = min(names), len(names)
            more = f" and {count - 1} others" if count > 1 else ""
            raise UserError(f"{path}: {problem} weights: {first}{more}; only exports of loopmdm can be imported")


def _checked(path: Path, name: str, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(weight.shape) != shape or not weight.is_floating_point():
        raise UserError(
            f"{path}: {name} has the shape {list(weight.shape)} ({weight.dtype}), config.json describes {list(shape)}"
        )
    if not weight.isfinite().all():
        raise UserError(f"{path}: {name} has values that are not finite numbers; copy it again from the export")
    return weight.to(torch.float32)
