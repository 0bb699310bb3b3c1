"""`train.deterministic`: results that do not vary between runs on the same machine and layout."""

import os

import torch


def use_deterministic_algorithms(wanted: bool) -> None:
    """Choose kernels for this process; before the GPU is first used, because cuBLAS reads its variable then.

    torch raises an error where an operation has no deterministic kernel, instead of varying silently. cuBLAS needs a fixed
    workspace for results that do not depend on how its streams interleave (CUDA's documentation of CUBLAS_WORKSPACE_CONFIG).
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
