"""Trains, and flips a bit of a moment of the final norm on one rank after step 3.

torchrun ... flipping.py RANK [arguments of pretrain/main.py]
"""

import sys
from typing import Any

from pretrain import main
from pretrain.machine.library_warnings import filter_library_warnings
from pretrain.parallel.launcher import read_launcher
from pretrain.training.stop_request import end_process

if __name__ == "__main__":
    filter_library_warnings()
    from pretrain.checkpoints.states import Held
    from pretrain.training import loop
    from pretrain.training.state import StepReport, TrainingRun
    from tests.distributed.damaged_copies import flip

    train_step = loop.train_step

    def flipping(run: TrainingRun, *arguments: Any) -> StepReport:
        report = train_step(run, *arguments)
        if report.step == 3:
            flip(Held(run.engine, run.plan.settings.model, run.world), "final_norm.weight", "exp_avg", 0)
        return report

    if read_launcher()[0] == int(sys.argv[1]):
        loop.train_step = flipping
    end_process(main.main(sys.argv[2:]))
