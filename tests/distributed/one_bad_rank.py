"""Steps in which one rank of two has a gradient or a loss that is not finite: torchrun ... one_bad_rank.py OUT.json LAYOUTS.json

LAYOUTS.json: {name: overrides of tests/tiny.yaml}. OUT.json: {name: [what each rank saw]}, see `outcome`.
"""

import json
import math
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.dataset.blend import load_blend
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.machine.library_warnings import filter_library_warnings
from pretrain.parallel.launcher import read_launcher
from pretrain.parallel.world import leave_world, start_world
from pretrain.training.start import build_run
from pretrain.training.state import TrainingRun
from pretrain.training.step import train_step

Poison = Callable[[TrainingRun], Any]


def poison_gradient(run: TrainingRun) -> Any:
    """A matrix of the mid block, of which this rank holds a shard or a layer or a copy, has an infinite gradient."""
    names = (name for name, _ in run.engine.model.named_parameters() if name.startswith("mid."))
    weight = run.engine.model.get_parameter(next(name for name in names if name.endswith("linear_fc1.weight")))
    return weight.register_hook(lambda gradient: gradient * math.inf)


def poison_loss(run: TrainingRun) -> Any:
    """The loss that this rank computes is NaN."""
    head = run.engine.model.lm_head
    return head.register_forward_hook(lambda _, inputs, output: (output[0] * math.nan, output[1]))


BAD_STEPS: list[tuple[int, Poison]] = [(0, poison_gradient), (1, poison_gradient), (1, poison_loss)]
"""(rank, what is wrong there) of steps 1, 2 and 3."""


@contextmanager
def poisoned(run: TrainingRun, rank: int, poison: Poison):
    """Inside the context this rank's step goes wrong, if it is that one."""
    handle = poison(run) if run.world.rank == rank else None
    yield
    if handle is not None:
        handle.remove()


def held(run: TrainingRun) -> dict[str, Tensor]:
    """Copies of what this rank holds: the model's weights, and the optimizer's with their moments and average."""
    found = {name: getattr(w, "ds_tensor", w).detach().clone() for name, w in run.engine.model.named_parameters()}
    for number, flat in enumerate(run.engine.pieces()):
        found[f"{number}.master"] = flat.detach().clone()
        states = run.engine.optimizer.state[flat].items()
        found |= {f"{number}.{name}": torch.as_tensor(value).clone() for name, value in states}
    return found


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one.keys() | other.keys() if not torch.equal(one[name], other[name])]


def take_step(run: TrainingRun, step: int) -> str | None:
    """Why the update was skipped."""
    run.progress.step = step
    return train_step(run, run.batches[step]).skipped


def outcome(words: list[str]) -> dict[str, Any]:
    """What this rank sees.

    Returns:
        skipped: the reasons of steps 1 to 3.
        changed: tensors that one of them has changed.
        afterwards: the reason of step 4, which is sound, and tensors that differ from those of a run without steps 1 to 3.
    """
    settings = load_settings(str(Path(__file__).parents[1] / "tiny.yaml"), words)
    blend, ranks = load_blend(settings.data.path), read_launcher()
    plan = make_run_plan(settings, blend.manifest, ranks[1])
    world = start_world(ranks, plan.shape)
    run, other = build_run(plan, blend, world), build_run(plan, blend, world)
    for one in (run, other):
        assert take_step(one, 0) is None
    before, skipped, changed = held(run), [], []
    for step, (rank, poison) in enumerate(BAD_STEPS, 1):
        with poisoned(run, rank, poison):
            skipped.append(take_step(run, step))
        changed += differences(before, held(run))
    last = len(BAD_STEPS) + 1
    reasons = [take_step(run, last), take_step(other, last)]
    assert differences(before, held(run)), "the comparison sees no update"
    return {"skipped": skipped, "changed": changed, "afterwards": [*reasons, *differences(held(run), held(other))]}


if __name__ == "__main__":
    filter_library_warnings()
    found = {}
    for name, words in json.loads(Path(sys.argv[2]).read_text()).items():
        of_ranks: list[Any] = [None, None]
        own = outcome(words)
        dist.all_gather_object(of_ranks, own)
        found[name] = of_ranks
    if read_launcher()[0] == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    leave_world()
