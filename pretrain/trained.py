"""A trained run, opened on one process for evaluation and sampling."""

from dataclasses import dataclass
from pathlib import Path

from data_pipeline.manifest import Manifest, load_manifest
from model.denoiser import LoopedDenoiser
from pretrain.checkpoint import latest_checkpoint, load_weights
from pretrain.configuring import load_settings
from pretrain.errors import UserError
from pretrain.settings import Settings
from pretrain.world import World, start_world


@dataclass(frozen=True)
class TrainedRun:
    """A run's newest checkpoint, ready to compute.

    Attributes:
        model: in evaluation mode, fp32, on the world's device.
        manifest: of the data it was trained on, from the run folder; its tokenizer lies in `tokenizer_folder`.
        weights: "ema" or "raw".
    """

    folder: Path
    checkpoint: Path
    settings: Settings
    manifest: Manifest
    model: LoopedDenoiser
    world: World
    weights: str

    @property
    def tokenizer_folder(self) -> Path:
        """The run's own copy of the tokenizer."""
        return self.folder / "tokenizer"

    @property
    def step(self) -> int:
        """Optimiser steps behind the weights."""
        return int(self.checkpoint.name.removeprefix("step_"))


def open_run(folder: Path, weights: str | None) -> TrainedRun:
    """Load the newest complete checkpoint of a run folder.

    Args:
        folder: such as `runs/quickstart`.
        weights: "ema", "raw", or None for the average where the run keeps one.

    Raises:
        UserError: no run, no complete checkpoint, or weights that do not fit its settings.
    """
    if not (folder / "config.yaml").is_file():
        why = "not a run folder (no config.yaml)" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {why}; give the folder of a run, such as runs/quickstart")
    checkpoint = latest_checkpoint(folder)
    settings = load_settings(str(folder / "config.yaml"))
    chosen = weights or ("ema" if settings.optim.ema_decay else "raw")
    tensors = load_weights(checkpoint, averaged=chosen == "ema")
    world = start_world((0, 1, 0))
    model = LoopedDenoiser(settings.model)
    try:
        model.load_state_dict(tensors, strict=False)
        missing = {name for name, _ in model.named_parameters()} ^ tensors.keys()
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint}: weights of another shape than {folder / 'config.yaml'} describes: {error}"
        ) from None
    if missing:
        raise UserError(
            f"{checkpoint}: weights and {folder / 'config.yaml'} disagree about {', '.join(sorted(missing)[:3])}"
        )
    model = model.to(world.device).eval().requires_grad_(False)
    return TrainedRun(folder, checkpoint, settings, load_manifest(folder / "tokenizer"), model, world, chosen)
