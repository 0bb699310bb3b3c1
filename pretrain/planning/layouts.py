"""Every layout that training would accept, and the one that `parallel: auto` selects. Imports no torch."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import get_args

from data_pipeline.manifest import Manifest
from model.architecture import Recompute
from pretrain.config.rules import problems_of
from pretrain.config.run_plan import RunPlan, fill_from_manifest, layout_problems
from pretrain.config.settings import Parallel, Settings
from pretrain.errors import ConfigError, Problem, UserError
from pretrain.planning.estimate import Estimate, estimate_all

GIB = 2**30

EXAMPLES = {"model.vocab_size": 32768, "data.seq_len": 1024}
"""Of what data have, for a message."""


def plan_of(settings: Settings, manifest: Manifest | None, ranks: int) -> RunPlan:
    """Join settings and ranks without checking the layout.

    Args:
        manifest: of the prepared data; None when there is none yet and the settings give row length and vocabulary.

    Raises:
        ConfigError: the row length or the vocabulary is unknown, or differs from that of the data.
    """
    if manifest is not None:
        return RunPlan(fill_from_manifest(settings, manifest), ranks)
    unknown = {"model.vocab_size": settings.model.vocab_size, "data.seq_len": settings.data.seq_len}
    problems = [
        Problem(
            key,
            None,
            f"is taken from the prepared data, but {settings.data.path} has none; prepare the data or set the key, such as "
            f"{key}={EXAMPLES[key]}",
        )
        for key, value in unknown.items()
        if value is None
    ]
    if problems:
        raise ConfigError(problems)
    return RunPlan(settings, ranks)


def legal_layouts(base: RunPlan) -> list[RunPlan]:
    """All layouts of the plan's ranks that violate no rule. Batch, precision, offload and timeout stay as they are."""
    kept = base.settings.parallel
    found = []
    for tensor, pipeline in product(_divisors(base.world_size), repeat=2):
        for sequence, stage, recompute in product((False, True), (0, 1, 2, 3), get_args(Recompute)):
            parallel = Parallel(
                tensor=tensor, pipeline=pipeline, sequence=sequence, zero_stage=stage, recompute=recompute,
                offload=kept.offload, timeout_minutes=kept.timeout_minutes,
            )  # fmt: skip
            plan = replace(base, settings=replace(base.settings, parallel=parallel))
            if not (layout_problems(plan) or problems_of(plan.settings)):
                found.append(plan)
    return found


def ranked(plans: Sequence[RunPlan]) -> list[Estimate]:
    """Layouts that fit come first, the fastest first; ties go to fewer model-parallel ranks, a lower ZeRO stage, less memory."""
    return sorted(estimate_all(plans), key=_rank)


def choose(settings: Settings, manifest: Manifest | None, ranks: int) -> Settings:
    """Replace `parallel: auto` by the best layout.

    Raises:
        ConfigError: no layout is legal, or something else is wrong with the settings.
        UserError: no layout fits into memory.
    """
    base = plan_of(settings, manifest, ranks)
    return replace(settings, parallel=best(base, ranked(legal_layouts(base))).plan.settings.parallel)


def best(base: RunPlan, estimates: Sequence[Estimate]) -> Estimate:
    """The first of `ranked`, if it fits. Raises what `choose` raises."""
    if not estimates:
        plain = replace(
            base, settings=replace(base.settings, parallel=Parallel(offload=base.settings.parallel.offload))
        )
        raise ConfigError(layout_problems(plain) or problems_of(plain.settings))
    first = estimates[0]
    if not first.fits:
        raise UserError(
            f"none of the {len(estimates)} legal layouts on {base.world_size} ranks fits into hardware.memory_gib="
            f"{base.settings.hardware.memory_gib:g}: the smallest needs {first.memory.total / GIB:.1f} GiB. Lower "
            f"train.micro_batch_size (now {base.settings.train.micro_batch_size}), set parallel.offload, or use more ranks"
        )
    return first


def _rank(estimate: Estimate) -> tuple:
    p = estimate.plan.settings.parallel
    if not estimate.fits:
        return True, estimate.memory.total
    return False, estimate.seconds, p.tensor * p.pipeline, p.zero_stage, estimate.memory.total


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
