"""Makes megatron-core run without a GPU. The only module that patches it; written for megatron-core 0.16.1 to 0.19.2.

megatron-core hard-codes "cuda" where it means the device of this rank: `torch.cuda.current_device()` for receive buffers in
tensor_parallel and pipeline_parallel, and `torch.zeros(..., device="cuda")` for a counter in the schedules. There is no
argument to change this, so the modules in `MODULES` get a replacement for the name `torch` that returns the CPU instead.
The real `torch` is not modified.
"""

from types import ModuleType
from typing import Any

import torch
from megatron.core import utils
from megatron.core.pipeline_parallel import p2p_communication, schedules
from megatron.core.tensor_parallel import layers, mappings

MODULES = (layers, mappings, p2p_communication, schedules, utils)


class _Cuda(ModuleType):
    """`torch.cuda` whose current device is the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    @staticmethod
    def current_device() -> torch.device:
        return torch.device("cpu")

    @staticmethod
    def synchronize(*_: Any) -> None:
        """Does nothing: CPU operations are synchronous."""


class _Torch(ModuleType):
    """`torch`, with "cuda" meaning the CPU."""

    cuda = _Cuda("torch.cuda")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any, device: Any = None, **keywords: Any) -> torch.Tensor:
        return torch.zeros(*size, device="cpu" if device == "cuda" else device, **keywords)


def use_cpu_for_cuda() -> None:
    """Let megatron-core's tensor-parallel layers and pipeline schedules run on CPU tensors in this process."""
    replacement = _Torch("torch")
    for module in MODULES:
        module.torch = replacement
