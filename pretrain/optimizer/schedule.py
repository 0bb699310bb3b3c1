"""The learning rate as a function of the step. Imports no torch."""

import math

from pretrain.config.settings import Optim


def learning_rate(settings: Optim, step: int, total_steps: int) -> float:
    """Learning rate of `step` (from 0): linear warm-up, then constant, cosine or warm-up-stable-decay (wsd)."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    floor = settings.lr * settings.min_lr_ratio
    if settings.schedule == "cosine":
        progress = (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps)
        return floor + (settings.lr - floor) * (1 + math.cos(math.pi * progress)) / 2
    if settings.schedule == "wsd":
        decay_steps = math.ceil(settings.decay_fraction * total_steps)
        remaining = (total_steps - step) / decay_steps
        return floor + (settings.lr - floor) * min(1.0, remaining)
    return settings.lr
