"""What checkpoints hold, for comparisons."""

from pathlib import Path

from torch import Tensor

from pretrain.checkpoints.folder import read_index
from pretrain.checkpoints.reader import Reader
from pretrain.checkpoints.weights import TENSORS


def weights_of(checkpoint: Path, which: str = "raw") -> dict[str, Tensor]:
    """The whole weights of a checkpoint, "raw" or "ema", without padding of the vocabulary."""
    return {name: tensors[TENSORS[which]] for name, tensors in tensors_of(checkpoint).items()}


def tensors_of(checkpoint: Path) -> dict[str, dict[str, Tensor]]:
    """Weight -> all its canonical tensors: the fp32 weight itself and its optimizer states."""
    index = read_index(checkpoint)
    with Reader(checkpoint, index) as reader:
        return {
            weight: {tensor: reader.whole(tensor, weight) for tensor in index.tensors(weight)}
            for weight in index.shapes
        }
