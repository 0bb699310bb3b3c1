"""What DeepSpeed's optimizers make the gradient norm of. The methods replaced here are those of DeepSpeed 0.19.8."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def infinite_norm(optimizer: Any, device: torch.device) -> Iterator[None]:
    """Inside the context the norm is infinite: DeepSpeed then drops the gradients and updates nothing."""
    infinite = torch.tensor(math.inf, device=device)
    # What the norm is made of in bf16_optimizer.py, zero/stage_1_and_2.py and zero/stage3.py.
    norms = {"get_grads_for_norm": ([infinite], {}), "scaled_global_norm": infinite, "_get_norm_groups": [infinite]}
    name = next(name for name in norms if hasattr(optimizer, name))
    original = getattr(optimizer, name)
    setattr(optimizer, name, lambda *_, **__: norms[name])
    try:
        yield
    finally:
        setattr(optimizer, name, original)


def count_no_weights_as_zero(optimizer: Any, device: torch.device) -> None:
    """Let a stage whose weights are all copies take part in the norm: bf16_optimizer.py fails without a gradient to count."""
    if not hasattr(optimizer, "get_grads_for_norm"):
        return
    original = optimizer.get_grads_for_norm

    def counted(for_clipping: bool = False) -> Any:
        if for_clipping:
            return original(for_clipping=True)
        gradients, experts = original()
        return gradients or [torch.zeros((), device=device)], experts

    optimizer.get_grads_for_norm = counted
