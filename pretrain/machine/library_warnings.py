"""Library warnings that do not concern the user. Imports no torch."""

import logging
import warnings


def filter_library_warnings() -> None:
    """Drop warnings about optional kernels, about deprecations inside libraries and about our own Muon.

    The banner and `loopmdm doctor` report which kernels are used. Call this before torch, megatron-core or DeepSpeed is
    imported.
    """
    messages = (
        ".*Transformer Engine and Apex.*",
        "Apex is not installed.*",
        "full scope is deprecated.*",
        ".*is deprecated. Please use `torch.distributed.*",  # DeepSpeed 0.19.8 on torch 2.13
    )
    for message in messages:
        warnings.filterwarnings("ignore", message=message)
    # DeepSpeed has a list of the optimizers that it was tested with. The layouts of ours are compared in the tests.
    logging.getLogger("DeepSpeed").addFilter(_is_no_warning_of_untested_optimizers)


def _is_no_warning_of_untested_optimizers(record: logging.LogRecord) -> bool:
    return "untested optimizer" not in record.getMessage()
