"""Figures of a task as text."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from model.sampling.tally import Cost
from pretrain.evaluation.compute_settings import ComputeSettings
from pretrain.proportions import INTERVAL_NOTE, interval_of, with_error

COMPUTE = tuple(field.name for field in fields(ComputeSettings))
NOT_SHOWN = (*COMPUTE, "compared", "cost", "change_from_first")
SPREAD = ("_se", "_low", "_high")


def format_task(result: Mapping[str, Any], others: Sequence[str]) -> str:
    """All figures of a task at every number of loops.

    Args:
        result: as written to `eval/`.
        others: what each result is compared with.
    """
    lines = [f"{result['task']}: {result['items']:,} items"]
    first, metric = result["loops"][0]["loops"], result["metric"]
    for row in result["loops"]:
        figures = [
            f"{name.replace('_', ' ')} {_shown(row, name)}"
            for name in row
            if not name.endswith(SPREAD) and name not in NOT_SHOWN
        ]
        lines.append(f"S={row['loops']:<4} {', '.join(figures)}")
        about = metric.replace("_", " ")
        if row["loops"] != first:
            lines.append(f"       {about} against S={first}: {_shown(row, 'change_from_first', '+')}")
        for name in others:
            compared = row["compared"]
            difference = _shown(compared, "difference", "+")
            lines.append(f"       {about} of {name}: {_shown(compared, metric)}; this run minus it: {difference}")
        if cost := row.get("cost"):
            lines.append(f"       {Cost(**cost).describe()}")
    if interval_of(result["loops"][0], metric):
        lines.append(INTERVAL_NOTE)
    return "\n".join(lines)


def _shown(figures: Mapping[str, Any], name: str, sign: str = "") -> str:
    """A figure with its spread."""
    return with_error(figures[name], figures.get(f"{name}_se"), interval_of(figures, name), sign)
