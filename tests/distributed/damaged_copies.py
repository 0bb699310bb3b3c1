"""Flips a bit in one copy of what several ranks hold, and saves: torchrun ... damaged_copies.py JOBS.json

JOBS.json is a list of {"words": overrides of tests/tiny.yaml, "out": run folder, "faults": list of [ranks, weight, tensor, bit],
"hosts": names of the ranks' hosts, which are optional}.
After three steps every fault is tried: the bit of the first number of the tensor is flipped on that one of the ranks which holds
it, the run is saved, and the bit is flipped back. OUT/messages.json has the error of each save, or null, and then that of a save
without a fault; OUT/equal.json says whether all copies had the same bits then.
"""

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoints.copies import Copies
from pretrain.checkpoints.states import Held
from pretrain.errors import CopiesDifferError
from pretrain.machine.library_warnings import filter_library_warnings
from pretrain.parallel.world import leave_world
from pretrain.training.checkpoint import saver_of, start_save
from pretrain.training.state import TrainingRun
from tests.distributed.elastic import SAVED, built, take_steps
from tests.launching import shape_of


def flip(held: Held, weight: str, tensor: str, bit: int) -> None:
    """Change one bit of the first number, if this rank has it."""
    for piece, states in held.pieces():
        if piece.name == weight and piece.start == 0 and piece.length:
            states[tensor].view(dtype=torch.int32)[0] ^= 1 << bit


def error_of_save(run: TrainingRun) -> str | None:
    """What a save of the present step raises."""
    saver = saver_of(run)
    try:
        start_save(run, saver)
    except CopiesDifferError as error:
        return str(error)
    saver.wait()
    return None


def do(job: dict[str, Any]) -> None:
    """One job, in this process and the others."""
    run = built(job)
    world, out = run.world, run.folder
    take_steps(run, SAVED)
    if "hosts" in job:
        socket.gethostname = lambda: job["hosts"][world.rank]
    held, messages = Held(run.engine, run.plan.settings.model, world), []
    for ranks, *fault in job["faults"]:
        if world.rank in ranks:
            flip(held, *fault)
        messages.append(error_of_save(run))
        assert not (out / "checkpoints").exists(), "a step with a damaged copy was saved"
        if world.rank in ranks:
            flip(held, *fault)
    copies = Copies(held, world)
    copies._groups = [replace(group, exact=True) for group in copies._groups]
    equal = copies.difference() is None
    messages.append(error_of_save(run))
    if world.is_main:
        (out / "messages.json").write_text(json.dumps(messages))
        (out / "equal.json").write_text(json.dumps(equal))


if __name__ == "__main__":
    filter_library_warnings()
    for job in sorted(json.loads(Path(sys.argv[1]).read_text()), key=lambda job: shape_of(job["words"])):
        do(job)
    leave_world()
