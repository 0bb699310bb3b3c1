"""The full weights of a checkpoint, or their moving average, for evaluation, sampling and export: of any format."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.architecture import Architecture
from model.weights import fill_weights
from pretrain.checkpoints.folder import has_index, read_index
from pretrain.checkpoints.index import MASTER, VOCABULARY
from pretrain.checkpoints.reader import Reader
from pretrain.errors import UserError
from pretrain.optimizer.ema import EMA_KEY

FILES = {"ema": "ema.safetensors", "raw": "weights.safetensors"}
"""Which weights -> their file in a checkpoint of the older format."""

TENSORS = {"ema": EMA_KEY, "raw": MASTER}
"""Which weights -> their tensor in an indexed checkpoint."""


@contextmanager
def open_weights(checkpoint: Path, which: str, architecture: Architecture) -> Iterator[Callable[[str], Tensor]]:
    """A function from the name of a weight to the whole weight, fp32 on the CPU, with the padding of the vocabulary.

    Args:
        which: "ema" or "raw".

    Raises:
        UserError: the checkpoint does not have these weights, or is damaged.
    """
    if has_index(checkpoint):
        index, tensor = read_index(checkpoint), TENSORS[which]
        if any(tensor not in index.tensors(weight) for weight in index.shapes):
            raise UserError(f"{checkpoint}: {_absent(which)}")
        with Reader(checkpoint, index) as reader:
            yield lambda name: _padded(name, reader.whole(tensor, name), architecture)
        return
    path = checkpoint / FILES[which]
    if not path.is_file():
        raise UserError(f"{path}: does not exist; {_absent(which)}")
    try:
        with safe_open(path, "pt") as file:
            yield file.get_tensor
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); remove {checkpoint} to use the previous checkpoint"
        ) from None


def load_into(
    model: nn.Module, checkpoint: Path, architecture: Architecture, rank: int, size: int, averaged: bool
) -> None:
    """Fill a model, or a rank's part of it, from the weights of a checkpoint. Reads only the weights it needs.

    Args:
        rank, size: in the tensor-parallel group.

    Raises:
        UserError: the weights are missing or damaged, or do not fit the model.
    """
    with open_weights(checkpoint, "ema" if averaged else "raw", architecture) as weights:

        def source(name: str, shape: torch.Size) -> Tensor:
            try:
                full = weights(name)
            except KeyError:
                raise UserError(f"{checkpoint}: has no weight {name}, which the run's config.yaml describes") from None
            if full.shape != shape:
                raise UserError(
                    f"{checkpoint}: {name} has the shape {list(full.shape)}, the run's config.yaml describes {list(shape)}"
                )
            return full

        fill_weights(model, source, rank, size)


def _padded(name: str, weight: Tensor, architecture: Architecture) -> Tensor:
    if name not in VOCABULARY:
        return weight
    rows = max(0, architecture.padded_vocab_size - len(weight))
    return torch.cat([weight, weight.new_zeros(rows, weight.shape[1])])


def _absent(which: str) -> str:
    other = "raw" if which == "ema" else "ema"
    return f"the run does not keep {which} weights; use --weights {other}"
