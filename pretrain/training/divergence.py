"""After a divergence: back to a checkpoint whose weights have proved sound, and past the samples since then."""

import math
from dataclasses import replace
from pathlib import Path

import torch

from model.architecture import LOGITS_PER_CHUNK
from model.objective import masked_cross_entropy
from pretrain.checkpoints.folder import list_checkpoints, step_of
from pretrain.errors import TrainingDivergedError
from pretrain.training.checkpoint import restore, set_aside
from pretrain.training.state import TrainingRun


class DivergedError(Exception):
    """More updates in a row were skipped than `train.max_skipped`."""


def go_back(run: TrainingRun, problem: str) -> Path:
    """After a divergence, load the newest checkpoint that has proved sound, and pass over the samples since then.

    Newer checkpoints are renamed. As after a crash, the steps since then do not count. Collective.

    Raises:
        TrainingDivergedError: there is none, or the run has already come back from here once.
        DataError: the samples that are left are too few.
    """
    failed = run.progress
    sound = set_unsound_aside(run)
    if sound is None:
        raise TrainingDivergedError(
            f"{problem}, the last of {failed.skipped_in_a_row} skipped updates in a row. {run.folder / 'checkpoints'} has no "
            "checkpoint to go back to: start anew with a lower optim.lr or optim.clip_norm, and --no-resume"
        )
    if failed.step <= failed.diverged_at:
        raise TrainingDivergedError(
            f"{problem}, the last of {failed.skipped_in_a_row} skipped updates in a row, again after going back to a checkpoint. "
            f"Run the same command with a lower optim.lr or optim.clip_norm: it resumes from {sound}, the newest checkpoint that "
            "proved sound"
        )
    run.world.enter_phase("restoring")
    restored = restore(run)
    assert restored is not None
    run.progress = replace(
        run.progress, skipped=failed.skipped, passed_over=failed.data_step - run.progress.step, diverged_at=failed.step,
        sound_step=run.progress.step,
    )  # fmt: skip
    require_samples(run)
    return restored


def require_samples(run: TrainingRun) -> None:
    """After samples were passed over: check that corpora with caps have enough. Raises DataError, on all ranks alike."""
    if run.progress.passed_over:
        run.blend.check((run.plan.total_steps + run.progress.passed_over) * run.plan.samples_per_step)


def set_unsound_aside(run: TrainingRun) -> Path | None:
    """Rename the checkpoints after the newest one that has proved sound, and return that one. Collective.

    If none has, all stay as they are.
    """
    sound = run.world.from_main(_newest_sound(run) if run.world.is_main else None)
    if sound is not None and run.world.is_main:
        for path in list_checkpoints(run.folder):
            if step_of(path) > step_of(sound):
                set_aside(path, "diverged")
    return sound


def _newest_sound(run: TrainingRun) -> Path | None:
    sound = run.progress.sound_step
    return next((path for path in reversed(list_checkpoints(run.folder)) if step_of(path) <= sound), None)


def loss_of_weights(run: TrainingRun) -> float:
    """Mean -log p that the weights give on the first micro-batch of the last step, in nats; NaN if their norm is not finite.

    Of its masked tokens only as many count as training has logits of at a time: all of them may not fit. Collective.
    """
    most = max(1, LOGITS_PER_CHUNK * run.world.shape.tensor // run.plan.settings.model.padded_vocab_size)
    batch = run.batches[run.progress.data_step - 1][0].to(run.world.device)
    positions, targets = batch.inputs.logit_positions[:most], batch.inputs.targets[:most]
    inputs = batch.inputs._replace(logit_positions=positions, targets=None, loss_weights=None)
    run.engine.set_training(False)
    logits = run.engine.logits([inputs], run.plan.loops(run.progress.step - 1))[0]
    run.engine.set_training(True)
    nats = torch.zeros(0) if logits is None else masked_cross_entropy(logits, targets)
    own = [float(nats.sum()), len(nats)] if run.world.holds_loss else [0.0, 0.0]
    # Without the padding of the flat tensors, which has any value.
    held = [piece.of(flat.detach()) for flat, pieces in run.engine.pieces().items() for piece in pieces]
    norm = sum(float(torch.linalg.vector_norm(values)) for values in held)
    total, tokens, norm = run.world.sum([*own, norm]).tolist()
    return total / max(tokens, 1) if math.isfinite(norm) else math.nan
