"""Trains with one rank that fails on purpose: python failing.py RANK HOW [arguments of pretrain/main.py].

HOW: `before` or `after` the ranks have met, an exception is raised that no one expected; `refuses`: after they have met, a
UserError on this rank only; `dies`: it ends without a word before they have met, after it has reported that it came.
"""

import os
import sys

from pretrain import main
from pretrain.errors import UserError
from pretrain.parallel.launcher import read_launcher
from pretrain.training.stop_request import end_process


def fail(*_: object, **__: object) -> None:
    how = sys.argv[2]
    if how == "dies":
        os._exit(9)
    raise UserError("this rank refuses") if how == "refuses" else KeyError("unexpected")


if __name__ == "__main__":
    if read_launcher()[0] == int(sys.argv[1]):
        if sys.argv[2] == "before":
            main.load_blend = fail
        elif sys.argv[2] == "dies":
            from pretrain.parallel.rendezvous import Rendezvous

            Rendezvous._follow = fail
        else:
            from pretrain.training import start

            start.require_identical_on_all_ranks = fail
    end_process(main.main(sys.argv[3:]))
