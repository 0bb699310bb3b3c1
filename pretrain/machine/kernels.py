"""Optional kernels: which implementation is used for what, and why.

A package counts as installed when it offers the classes that are needed, not when its name can be imported: the package
named `apex` on PyPI is not NVIDIA's.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from model.attention import missing_varlen
from pretrain.machine.compilation import missing_compiler


@dataclass(frozen=True)
class KernelChoice:
    """The implementation that is used for one operation.

    Attributes:
        operation: such as "AdamW step".
        implementation: such as "torch.optim.AdamW".
        reason: why this one is used and not a faster one.
    """

    operation: str
    implementation: str
    reason: str


@dataclass(frozen=True)
class AdamWChoice(KernelChoice):
    """An implementation of AdamW.

    Attributes:
        build: makes the optimizer: `build(parameter_groups, lr=, betas=, eps=)`.
    """

    build: Callable[..., Optimizer]


def choose_adamw(device: torch.device, offloaded: bool = False, zero_stage: int = 0) -> AdamWChoice:
    """On CUDA devices NVIDIA apex's FusedAdam if it is installed, else torch's fused AdamW; elsewhere torch's AdamW.

    Args:
        device: of the model.
        offloaded: the states are in the CPU's memory (`parallel.offload`), where CUDA kernels cannot step them.
        zero_stage: apex counts the steps of a group, and ZeRO-3 steps a group in several parts: its bias corrections would be
            those of later steps.
    """
    fused_adam, apex_state = _apex_fused_adam()
    if offloaded:
        return AdamWChoice("AdamW step", "torch.optim.AdamW", "parallel.offload: the states are on the CPU", AdamW)
    if device.type != "cuda":
        return AdamWChoice("AdamW step", "torch.optim.AdamW", f"no CUDA device; {apex_state}", AdamW)
    if fused_adam is not None and zero_stage == 3:
        fused_adam, apex_state = None, "apex is not used with ZeRO-3, whose partial steps it would miscount"
    if fused_adam is None:
        return AdamWChoice(
            "AdamW step",
            "torch.optim.AdamW(fused=True)",
            apex_state,
            lambda groups, **kw: AdamW(groups, fused=True, **kw),
        )
    return AdamWChoice(
        "AdamW step",
        "apex.optimizers.FusedAdam",
        apex_state,
        lambda groups, **kw: fused_adam(groups, adam_w_mode=True, **kw),
    )


def choose_kernels(
    device: torch.device, offloaded: bool = False, zero_stage: int = 0, compiled: bool = False, muon: bool = False
) -> list[KernelChoice]:
    """The choice for every operation that has an optional faster implementation.

    Args:
        device, offloaded, zero_stage: see `choose_adamw`.
        compiled: `train.compile`.
        muon: `optim.name=muon`.
    """
    found = _attribute("transformer_engine.pytorch", "TransformerLayer") is not None
    reason = "Transformer Engine is installed but not supported" if found else "Transformer Engine is not installed"
    layers = KernelChoice("layer kernels", "torch RMSNorm and SDPA in megatron-core's local spec", reason)
    if compiled:
        missing = missing_compiler(device)
        name = layers.implementation if missing else f"torch.compile of {layers.implementation}"
        layers = KernelChoice(layers.operation, name, f"train.compile: {missing or 'a compiler was found'}")
    hidden = KernelChoice("Muon step", "torch, in fp32", "for the matrices of the layers; AdamW for all other weights")
    return [*([hidden] if muon else []), choose_adamw(device, offloaded, zero_stage), layers]


def choose_document_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> KernelChoice:
    """The kernel of `train.attention=document`, as the model chooses it.

    Args:
        dtype: of the weights in the forward pass.
        head_dim: width of a head.
    """
    missing = missing_varlen(device, dtype, head_dim)
    if missing is None:
        name, reason = "torch's varlen flash attention", "it skips other documents; fp32 uses SDPA with a mask"
    else:
        name, reason = "torch SDPA with a mask, which computes whole rows", f"no varlen flash attention: {missing}"
    return KernelChoice("attention within documents", name, reason)


def _apex_fused_adam() -> tuple[Callable[..., Optimizer] | None, str]:
    """apex's FusedAdam or None, and what was found."""
    if importlib.util.find_spec("apex") is None:
        return None, "apex is not installed"
    fused_adam = _attribute("apex.optimizers", "FusedAdam")
    if fused_adam is None:
        return None, "the installed apex is not NVIDIA's (PyPI has another package of that name)"
    if _attribute("amp_C", "multi_tensor_adam") is None:
        return None, "apex is installed without its CUDA extensions"
    return fused_adam, "apex is installed with its CUDA extensions"


def _attribute(module: str, name: str) -> Any:
    """`module.name`, or None if the module cannot be imported or lacks the name."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except Exception:  # a broken optional package must not stop a run
        return None
