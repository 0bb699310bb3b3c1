"""The exponential moving average of the weights: its key, its update, and the swap that makes it the weights for a while.

The average lives in the optimizer's state, beside AdamW's `exp_avg`. Under ZeRO that is one fp32 shard per rank: the average
is exact in fp32 and is sharded, saved and loaded like any other optimizer state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

EMA_KEY = "ema"
"""Name of the averaged weights in the state of a parameter."""


def average_weights(optimizer: Optimizer, decay: float) -> None:
    """Average whatever tensors the optimizer steps, after every step.

    The average starts at the weights after the first step. The decay warms up as min(decay, (1 + n) / (10 + n)) after n
    further steps, as in MDLM's code.
    """

    @torch.no_grad()
    def update(stepped: Optimizer, *_: Any) -> None:
        for group in stepped.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = stepped.state[weight]
                if EMA_KEY not in state:
                    state[EMA_KEY], state[f"{EMA_KEY}_updates"] = weight.detach().clone(), 0
                    continue
                state[f"{EMA_KEY}_updates"] += 1
                updates = state[f"{EMA_KEY}_updates"]
                state[EMA_KEY].lerp_(weight, 1.0 - min(decay, (1 + updates) / (10 + updates)))

    optimizer.register_step_post_hook(update)


@contextmanager
@torch.no_grad()
def averaged_weights(optimizer: Optimizer) -> Iterator[None]:
    """Inside the context the optimizer's master weights hold the average; afterwards they have their own bits again.

    DeepSpeed offers `safe_get_full_optimizer_state` to read the average, but in 0.19.8 ZeRO-1/2 link the states of the first
    parameter group only.
    """
    own = {master: master.detach().clone() for master, state in optimizer.state.items() if EMA_KEY in state}
    for master in own:
        master.copy_(optimizer.state[master][EMA_KEY])
    try:
        yield
    finally:
        for master, weights in own.items():
            master.copy_(weights)
