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
        found = {step: figures for step in ordered if (figures := validation_figures(run_folder, step))}
        losses = {step: figures[max(figures)] for step, figures in found.items()}
        kept |= {min(losses, key=losses.__getitem__)} if losses else set()
    proved = [step for step in ordered if step <= sound]
    return kept | set(proved[-1:])


def validation_figures(run_folder: Path, step: int) -> dict[int, float]:
    """S -> nats per token of the validation during training at a step, of a mixture as a whole; empty without one.

    After a change of `eval.*` a step may have several files: the newest counts.
    """
    for stem in (f"train_step_{step}_mixture", f"train_step_{step}"):
        files = (run_folder / "eval").glob(f"{stem}*.json")
        try:
            named = [path for path in files if re.fullmatch(rf"{stem}(_\d+)?", path.stem)]
            newest = max(named, key=lambda path: path.stat().st_mtime)
            return {
                row["loops"]: row["nats_per_token"]
                for row in json.loads(newest.read_text(encoding="utf-8"))["loops"]
                if row["nats_per_token"] is not None
            }
        except (OSError, ValueError, KeyError, TypeError):
            continue  # there is none, or a crash has cut it short
    return {}
