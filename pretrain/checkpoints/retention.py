"""Which checkpoints of a run are kept."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from pretrain.config.settings import Checkpoint


def steps_to_keep(steps: Iterable[int], settings: Checkpoint, run_folder: Path, sound: int) -> set[int]:
    """The steps whose checkpoints are kept.

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
    """Nats per token at the largest S of the validation during training at a step, of a mixture as a whole; None without one.

    After a change of `eval.*` a step may have several files: the newest counts.
    """
    for stem in (f"train_step_{step}_mixture", f"train_step_{step}"):
        files = [
            path for path in (run_folder / "eval").glob(f"{stem}*.json") if re.fullmatch(rf"{stem}(_\d+)?", path.stem)
        ]
        try:
            newest = max(files, key=lambda path: path.stat().st_mtime)
            rows = json.loads(newest.read_text(encoding="utf-8"))["loops"]
            return max(rows, key=lambda row: row["loops"])["nats_per_token"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # there is none, or a crash has cut it short
    return None
