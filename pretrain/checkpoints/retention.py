"""Which checkpoints of a run are kept."""

import json
from collections.abc import Iterable
from pathlib import Path

from pretrain.config.settings import Checkpoint


def steps_to_keep(steps: Iterable[int], settings: Checkpoint, run_folder: Path, sound: int) -> set[int]:
    """Those of the steps with a checkpoint whose checkpoint is kept.

    Args:
        steps: with a whole checkpoint.
        run_folder: has the validations that the best checkpoint is chosen by.
        sound: the last step whose weights have proved sound. The newest checkpoint up to there stays until a newer one has
            proved sound as well: the run goes back to it if it diverges.
    """
    ordered = sorted(steps)
    kept = set(ordered[-settings.keep :])
    if settings.keep_every is not None:
        kept |= {step for step in ordered if step % settings.keep_every == 0}
    if settings.keep_best:
        losses = {step: loss for step in ordered if (loss := validation_loss(run_folder, step)) is not None}
        kept |= {min(losses, key=losses.__getitem__)} if losses else set()
    proved = [step for step in ordered if step <= sound]
    return kept | set(proved[-1:])


def validation_loss(run_folder: Path, step: int) -> float | None:
    """Nats per token at the largest S of the validation during training at a step, the mean over its sets; None without one."""
    losses = [
        json.loads(path.read_text(encoding="utf-8"))["loops"][-1]["nats_per_token"]
        for path in (run_folder / "eval").glob(f"train_step_{step}*.json")
        if path.stem == f"train_step_{step}" or path.stem.startswith(f"train_step_{step}_")
    ]
    return sum(losses) / len(losses) if losses and None not in losses else None
