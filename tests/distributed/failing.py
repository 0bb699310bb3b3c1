"""Trains with one rank that fails on purpose: python failing.py RANK HOW [arguments of pretrain/main.py].

HOW: after the ranks have met, `fails`: an exception that no one expected; `refuses`: a UserError on this rank only; `dies`: the
process ends without a word, before the process groups exist.
"""

import os
import sys
from functools import partial

from pretrain import main
from pretrain.errors import UserError
from pretrain.machine.library_warnings import filter_library_warnings
from pretrain.parallel.launcher import read_launcher
from pretrain.training.stop_request import end_process


def fail(*_: object, **__: object) -> None:
    how = sys.argv[2]
    if how == "dies":
        os._exit(9)
    raise UserError("this rank refuses") if how == "refuses" else KeyError("unexpected")


if __name__ == "__main__":
    filter_library_warnings()
    import torch

    from pretrain.training import start

    start.watch = partial(start.watch, heartbeat_timeout=15.0)
    if read_launcher()[0] == int(sys.argv[1]):
        if sys.argv[2] == "dies":
            torch.distributed.init_process_group = fail
        else:
            start.require_identical_on_all_ranks = fail
    end_process(main.main(sys.argv[3:]))
