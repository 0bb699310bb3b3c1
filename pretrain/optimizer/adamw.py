"""AdamW, its learning rate as a function of the step, and the moving average of the weights."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pretrain.config.settings import Optim
from pretrain.machine.kernels import choose_adamw


def build_optimizer(model: nn.Module, settings: Optim, device: torch.device, average_key: str) -> Optimizer:
    """AdamW over the model's weights: weight decay on matrices only, the fastest implementation that is really there."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    arguments: dict[str, Any] = {"lr": settings.lr, "betas": (settings.beta1, settings.beta2), "eps": settings.eps}
    optimizer = choose_adamw(device).build(groups, **arguments)
    if settings.ema_decay:
        average_weights(optimizer, settings.ema_decay, average_key)
    return optimizer


def average_weights(optimizer: Optimizer, decay: float, key: str) -> None:
    """Keep an exponential moving average of whatever tensors the optimiser steps, inside its state under `key`.

    Under ZeRO those are this rank's fp32 shards: the average costs one shard, is exact in fp32 and is saved, loaded and
    gathered like any other optimiser state. It starts at the weights after the first step; the decay warms up as
    min(decay, (1 + n) / (10 + n)) after n steps, as MDLM's does.
    """

    @torch.no_grad()
    def update(stepped: Optimizer, *_: Any) -> None:
        for group in stepped.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = stepped.state[weight]
                if key not in state:
                    state[key], state[f"{key}_updates"] = weight.detach().clone(), 0
                    continue
                state[f"{key}_updates"] += 1
                updates = state[f"{key}_updates"]
                state[key].lerp_(weight, 1.0 - min(decay, (1 + updates) / (10 + updates)))

    optimizer.register_step_post_hook(update)


def learning_rate(settings: Optim, step: int, total_steps: int) -> float:
    """Learning rate of `step` (from 0): linear warm-up, then constant, cosine or warm-up-stable-decay."""
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
