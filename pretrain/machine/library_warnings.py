"""What libraries print that tells a user nothing. Imports no torch."""

import logging
import os
import warnings


def filter_library_warnings() -> None:
    """Drop warnings about optional accelerations: the banner and `loopmdm doctor` say what was found and what is used.

    Call it before torch, megatron-core or DeepSpeed is imported. DeepSpeed's logger is read by name at its import.
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
