"""`train.compile`: torch.compile of the transformer layer. Written against torch 2.11 to 2.13.

All layers and all passes run the same code on tensors of the same shapes, so one graph serves them, whatever S is. The loop, the
embedding and the LM head, whose sizes change, stay outside.
"""

import importlib.util
import logging
import os
import shutil
import warnings

import torch
from torch import nn


def missing_compiler(device: torch.device) -> str | None:
    """Why the layers cannot be compiled on this machine; None if they can."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"there is no C++ compiler {compiler!r}"


def compile_layers(layers: nn.ModuleDict) -> None:
    """Compile the layers of a phase in place, at their first call. Names of weights stay as they are."""
    # megatron-core's RowParallelLinear calls warnings.warn at every call, which would cut the graph of a layer in three.
    torch._dynamo.config.ignore_logging_functions.add(warnings.warn)
    # torch 2.11 cannot write this setting into its metrics and logs a TypeError at every compilation, which changes nothing.
    logging.getLogger("torch._dynamo.metrics_context").setLevel(logging.CRITICAL)
    for layer in layers.values():
        layer.compile(dynamic=False)
