"""Pickled files that are read without running what they contain: a run folder from somewhere else must be safe to open."""

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pretrain.errors import UserError

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's variable that overrides `weights_only=False` of a library that calls `torch.load`."""


@contextmanager
def only_data(*classes: type) -> Iterator[None]:
    """Inside the context `torch.load` makes tensors, plain values and objects of these classes, whatever its caller asks for.

    Raises:
        UserError: a file has something else.
    """
    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        with torch.serialization.safe_globals(list(classes)):
            yield
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds {found[1]}, which is not plain data and might run code" if found else "is no file of torch.save"
        raise UserError(f"a file with shards {what}; files of this project are not so: do not use the folder") from None
    finally:
        os.environ.pop(FORCED)
        if before is not None:
            os.environ[FORCED] = before
