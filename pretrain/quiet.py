"""What libraries print that tells a user nothing. Imports no torch."""

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Drop warnings about optional accelerations: the banner and `loopmdm doctor` say what was found and what is used.

    Call it before torch, megatron-core or DeepSpeed is imported. DeepSpeed's logger is read by name at its import.
    """
    for message in (".*Transformer Engine and Apex.*", "Apex is not installed.*", "full scope is deprecated.*"):
        warnings.filterwarnings("ignore", message=message)
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
