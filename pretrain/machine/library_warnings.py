"""Library warnings that do not concern the user. Imports no torch."""

import logging
import os
import warnings


def filter_library_warnings() -> None:
    """Drop warnings about optional kernels and deprecations inside libraries.

    The banner and `loopmdm doctor` report which kernels are used. Call this before torch, megatron-core or DeepSpeed is
    imported: DeepSpeed reads DS_LOG_LEVEL at import.
    """
    messages = (
        ".*Transformer Engine and Apex.*",
        "Apex is not installed.*",
        "full scope is deprecated.*",
        ".*is deprecated. Please use `torch.distributed.*",  # DeepSpeed 0.19.8 on torch 2.13
    )
    for message in messages:
        warnings.filterwarnings("ignore", message=message)
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
