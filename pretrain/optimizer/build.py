"""The optimizer of a run: how each weight is updated, in the fastest implementation that this machine has."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from model.weights import shards_of
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
    weights, decay = dict(model.named_parameters()), settings.weight_decay
    if settings.name == "muon":
        hidden = [weight for name, weight in weights.items() if is_hidden_matrix(name)]
        others = [weight for name, weight in weights.items() if not is_hidden_matrix(name)]
        direction = partial(muon_direction, architecture=model.architecture)
        # Decay by Muon: one group, as DeepSpeed needs equally many on all stages, and most have no matrix among the others.
        aside = adamw([{"params": others, "weight_decay": 0.0, "matrix_decay": decay}])
        optimizer: Optimizer = Muon(hidden, decay, aside, direction, settings.momentum)
    else:
        matrices = [weight for weight in weights.values() if _is_matrix(weight)]
        vectors = [weight for weight in weights.values() if not _is_matrix(weight)]
        optimizer = adamw([{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}])
    if settings.ema_decay:
        average_weights(optimizer, settings.ema_decay)
    return optimizer


def is_hidden_matrix(name: str) -> bool:
    """Whether a weight is a matrix of a layer: neither embedding nor LM head nor norm."""
    return ".layers." in name and shards_of(name) is not None


def _is_matrix(weight: Tensor) -> bool:
    # ZeRO-3 leaves an empty vector in place of a weight and keeps the weight's shape in `ds_shape`.
    return len(getattr(weight, "ds_shape", weight.shape)) >= 2
