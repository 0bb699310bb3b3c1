"""What the machine offers beyond plain torch, found by what it can do and never by a bare import."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from pretrain.parallel.engine import deepspeed_fused_adam


@dataclass(frozen=True)
class Found:
    """One capability: what is used for it, and why not the better thing.

    Attributes:
        capability: what it does, such as "AdamW step".
        used: the implementation in use.
        reason: why it and nothing faster.
    """

    capability: str
    used: str
    reason: str


@dataclass(frozen=True)
class AdamChoice:
    """An AdamW implementation: `build(groups, lr=, betas=, eps=)` makes the optimiser."""

    found: Found
    build: Callable[..., Optimizer]


def find_fused_adam(device: torch.device) -> AdamChoice:
    """apex's FusedAdam, else DeepSpeed's, else torch's AdamW. The fused ones need a CUDA device."""
    apex_class, apex_reason = _apex_fused_adam()
    if device.type != "cuda":
        reason = f"no CUDA device; {apex_reason}"
        return AdamChoice(Found("AdamW step", "torch.optim.AdamW", reason), AdamW)
    if apex_class is not None:
        found = Found("AdamW step", "apex.optimizers.FusedAdam", "offered by the installed apex")
        return AdamChoice(found, lambda groups, **kw: apex_class(groups, adam_w_mode=True, **kw))
    deepspeed_class, deepspeed_reason = deepspeed_fused_adam()
    if deepspeed_class is not None:
        found = Found("AdamW step", "deepspeed.ops.adam.FusedAdam", apex_reason)
        return AdamChoice(found, lambda groups, **kw: deepspeed_class(groups, adam_w_mode=True, **kw))
    found = Found("AdamW step", "torch.optim.AdamW (fused)", f"{apex_reason}; {deepspeed_reason}")
    return AdamChoice(found, lambda groups, **kw: AdamW(groups, fused=True, **kw))


def find_accelerations(device: torch.device) -> list[Found]:
    """Every optional acceleration and what stands in for it."""
    engine = _offers("transformer_engine.pytorch", "TransformerLayer")
    used = "torch RMSNorm and SDPA in megatron-core's local spec"
    reason = (
        "Transformer Engine is found but not used by this version" if engine else "Transformer Engine not installed"
    )
    return [find_fused_adam(device).found, Found("layer kernels", used, reason)]


def package_version(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _apex_fused_adam() -> tuple[type[Optimizer] | None, str]:
    if importlib.util.find_spec("apex") is None:
        return None, "apex not installed"
    fused = _offers("apex.optimizers", "FusedAdam")
    if fused is None:
        return (
            None,
            "the installed apex has no apex.optimizers.FusedAdam (the PyPI package of that name is another project)",
        )
    if _offers("amp_C", "multi_tensor_adam") is None:
        return None, "apex is installed without its CUDA extensions"
    return fused, "apex offers FusedAdam"


def _offers(module: str, attribute: str) -> Any:
    """`module.attribute`, or None when any part of it is missing or fails to import."""
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except Exception:
        return None
