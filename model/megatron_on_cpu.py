"""megatron-core where there is no GPU: the one place that reaches into it. Written against megatron-core 0.16.1.

megatron-core says "cuda" where it means "the device of this rank": `torch.cuda.current_device()` for receive buffers in
tensor_parallel and pipeline_parallel, `torch.zeros(..., device="cuda")` for a counter in the schedules. No argument
changes that, so the modules that do it get a `torch` of their own that answers with the CPU. Everybody else's torch stays
as it is.
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
        """A CPU is always in step with itself."""


class _Torch(ModuleType):
    """`torch` in whose eyes "cuda" is the CPU."""

    cuda = _Cuda("torch.cuda")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any, device: Any = None, **keywords: Any) -> torch.Tensor:
        return torch.zeros(*size, device="cpu" if device == "cuda" else device, **keywords)


def use_cpu_for_cuda() -> None:
    """Let megatron-core's tensor-parallel layers and schedules run on CPU tensors in this process."""
    stand_in = _Torch("torch")
    for module in MODULES:
        module.torch = stand_in
