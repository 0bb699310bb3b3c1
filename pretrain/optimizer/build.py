"""The optimizer of a run: how each weight is updated, in the fastest implementation that this machine has."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.config.optimizer_groups import group_of
from pretrain.config.settings import Optim
from pretrain.machine.kernels import choose_adamw
from pretrain.optimizer.ema import average_weights
from pretrain.optimizer.muon import Muon
from pretrain.optimizer.orthogonal import muon_direction


def build_optimizer(
    model: nn.Module, settings: Optim, device: torch.device, offloaded: bool = False, zero_stage: int = 0
) -> Optimizer:
    """AdamW or Muon with weight decay on the matrices only, and the moving average of the weights if the settings ask for it.

    Args:
        model: for Muon, a `LoopedDenoiser`.
        device: of the model.
        offloaded: the optimizer steps shards in the CPU's memory, whatever the model's device.
        zero_stage: under which it runs.
    """
    adamw = partial(
        choose_adamw(device, offloaded, zero_stage).build,
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
    )
    decay = settings.weight_decay
    groups: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name, weight in model.named_parameters():
        groups[group_of(settings.name, name, _dimensions(weight))].append(weight)
    if settings.name == "muon":
        hidden, others = groups
        direction = partial(muon_direction, architecture=model.architecture)
        # Decay by Muon: one group, as DeepSpeed needs equally many on all stages, and most have no matrix among the others.
        aside = adamw([{"params": others, "weight_decay": 0.0, "matrix_decay": decay}])
        optimizer: Optimizer = Muon(hidden, decay, aside, direction, settings.momentum)
    else:
        matrices, vectors = groups
        optimizer = adamw([{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}])
    if settings.ema_decay:
        average_weights(optimizer, settings.ema_decay)
    return optimizer


def _dimensions(weight: Tensor) -> int:
    # ZeRO-3 leaves an empty vector in place of a weight and keeps the weight's shape in `ds_shape`.
    return len(getattr(weight, "ds_shape", weight.shape))
