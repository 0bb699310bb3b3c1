"""AdamW over the model's weights, in the fastest implementation that this machine has."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pretrain.config.settings import Optim
from pretrain.machine.kernels import choose_adamw
from pretrain.optimizer.ema import average_weights


def build_optimizer(
    model: nn.Module, settings: Optim, device: torch.device, offloaded: bool = False, zero_stage: int = 0
) -> Optimizer:
    """AdamW with weight decay on the matrices only, and the moving average of the weights if the settings ask for it.

    Args:
        device: of the model.
        offloaded: the optimizer steps shards in the CPU's memory, whatever the model's device.
        zero_stage: under which it runs.
    """
    # ZeRO-3 leaves an empty vector in place of a weight and keeps the weight's shape in `ds_shape`.
    dimensions = {p: len(getattr(p, "ds_shape", p.shape)) for p in model.parameters()}
    matrices = [p for p, count in dimensions.items() if count >= 2]
    vectors = [p for p, count in dimensions.items() if count < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    arguments: dict[str, Any] = {"lr": settings.lr, "betas": (settings.beta1, settings.beta2), "eps": settings.eps}
    optimizer = choose_adamw(device, offloaded, zero_stage).build(groups, **arguments)
    if settings.ema_decay:
        average_weights(optimizer, settings.ema_decay)
    return optimizer
