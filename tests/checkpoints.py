"""What checkpoints hold, for comparisons."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from model.architecture import Architecture
from pretrain.checkpoints.folder import has_index, read_index
from pretrain.checkpoints.reader import Reader
from pretrain.checkpoints.weights import FILES, TENSORS, open_weights
from pretrain.training.checkpoint import saver_of, start_save
from pretrain.training.state import TrainingRun


def save(run: TrainingRun) -> Path:
    """Save the present step and wait for it."""
    saver = saver_of(run)
    start_save(run, saver)
    saver.wait()
    return run.folder / "checkpoints" / f"step_{run.progress.step}"


def weights_of(checkpoint: Path, which: str = "raw", architecture: Architecture | None = None) -> dict[str, Tensor]:
    """The whole weights of a checkpoint, "raw" or "ema"; with an architecture, with the padding of its vocabulary."""
    if not has_index(checkpoint):
        return load_file(checkpoint / FILES[which])
    if architecture is None:
        return {name: tensors[TENSORS[which]] for name, tensors in tensors_of(checkpoint).items()}
    with open_weights(checkpoint, which, architecture) as source:
        return {name: source(name) for name in read_index(checkpoint).shapes}


def tensors_of(checkpoint: Path) -> dict[str, dict[str, Tensor]]:
    """Weight -> all its canonical tensors: the fp32 weight itself and its optimizer states."""
    index = read_index(checkpoint)
    with Reader(checkpoint, index) as reader:
        return {
            weight: {tensor: reader.whole(tensor, weight) for tensor in index.tensors(weight)}
            for weight in index.shapes
        }
