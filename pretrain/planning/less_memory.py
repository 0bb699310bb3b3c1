"""Changes of the settings that need less memory on a device, with the planner's estimates."""

from collections.abc import Iterator
from dataclasses import replace

from pretrain.config.rules import problems_of
from pretrain.config.run_plan import RunPlan, layout_problems
from pretrain.config.settings import Settings
from pretrain.planning.memory import memory_of

GIB = 2**30


def less_memory(plan: RunPlan) -> list[tuple[str, float]]:
    """(`key=value`, GiB on the fullest rank) of the settings as they are, then of single changes, the largest first.

    None of the changes alters what is computed. Changes that do not fit the layout or would not help are left out.
    """
    now = _needed(plan)
    changes = [(words, _needed(other)) for words, other in _changes(plan)]
    return [("now", now), *sorted((one for one in changes if one[1] < now), key=lambda one: -one[1])]


def advice(plan: RunPlan) -> str:
    """The same in words."""
    (_, now), *changes = less_memory(plan)
    listed = ", ".join(f"{words} ({gib:.1f} GiB)" for words, gib in changes)
    return (
        f"The planner estimates {now:.1f} GiB for these settings. One change that leaves the results as they are: "
        f"{listed or 'none is left; use more ranks or a smaller model'}"
    )


def _changes(plan: RunPlan) -> Iterator[tuple[str, RunPlan]]:
    settings = plan.settings
    train, parallel = settings.train, settings.parallel
    wanted = {f"train.micro_batch_size={n}": {"micro_batch_size": n} for n in (train.micro_batch_size // 2, 1) if n}
    for words, change in wanted.items():
        yield from _if_possible(plan, words, replace(settings, train=replace(train, **change)))
    for key, values in (
        ("recompute", ("loop", "full")),
        ("zero_stage", range(parallel.zero_stage + 1, 4)),
        ("offload", ("optimizer", "parameters")),
    ):
        for value in values:
            yield from _if_possible(
                plan, f"parallel.{key}={value}", replace(settings, parallel=replace(parallel, **{key: value}))
            )


def _if_possible(plan: RunPlan, words: str, settings: Settings) -> Iterator[tuple[str, RunPlan]]:
    changed = RunPlan(settings, plan.world_size)
    if not (layout_problems(changed) or problems_of(changed.settings)):
        yield words, changed


def _needed(plan: RunPlan) -> float:
    return max(memory_of(plan, stage).total for stage in plan.placement) / GIB
