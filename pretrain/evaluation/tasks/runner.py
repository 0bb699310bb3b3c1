"""Puts the items of a task to a model in parts, so that a run that is stopped goes on where it was."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from model.sampling.tally import Cost
from pretrain.evaluation.item_files import ItemFile
from pretrain.evaluation.tasks.task import Record, Task, TaskModel

PROGRESS_SECONDS = 30.0


def chosen_items(count: int, limit: int | None) -> list[int]:
    """Numbers of the items to use, evenly spread; all of them without a limit or if there are fewer."""
    wanted = count if limit is None else min(limit, count)
    return (np.arange(wanted) * count // max(1, wanted)).tolist()


def run_task(
    task: Task, model: TaskModel, items: Sequence[int], kept: ItemFile | None, say: Callable[[str], None]
) -> list[Record]:
    """The records of these items, in their order. Collective: every rank gets them.

    Args:
        kept: records of earlier runs, to which new ones are added; used on the main rank only, None on the others.
        say: prints a line of progress.
    """
    world = model.world
    found: dict[int, Record] = world.from_main(kept.records if kept is not None else {})
    # Items with rows of equal length go through the network together. Their results do not depend on it.
    sizes = task.sizes
    waiting = sorted((item for item in items if item not in found), key=lambda item: (sizes[item], item))
    at_once = 2 * model.scorer.batch_size * world.data_parallel_size
    begin = shown = time.monotonic()
    for start in range(0, len(waiting), at_once):
        started, before = time.monotonic(), model.work.total(world)
        records = task.run(model, waiting[start : start + at_once])
        found |= {record["item"]: record for record in records}
        spent = [*(model.work.total(world) - before).tolist(), time.monotonic() - started]
        if kept is not None:
            kept.add(records, spent)
        now, done = time.monotonic(), min(start + at_once, len(waiting))
        if now - shown > PROGRESS_SECONDS:
            shown = now
            say(
                f"{task.name}, S={model.loops}: {done:,} of {len(waiting):,} items, {_left(now - begin, done, len(waiting))}"
            )
    return [found[item] for item in items]


def _left(seconds: float, done: int, count: int) -> str:
    return f"{seconds / done:.2f} s each, {seconds / done * (count - done):.0f} s left"


def cost_of(spent: Sequence[Sequence[float]]) -> Cost:
    """The cost of all items from that of the parts, as `run_task` keeps it."""
    *work, tokens, seconds = np.sum(spent, axis=0).tolist()
    return Cost.of(torch.tensor(work, dtype=torch.float64), int(tokens), seconds)
