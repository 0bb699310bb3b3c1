"""Figures of a task as text."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from model.sampling.tally import Cost
from pretrain.evaluation.compute_settings import ComputeSettings

COMPUTE = tuple(field.name for field in fields(ComputeSettings))
NOT_SHOWN = (*COMPUTE, "compared", "cost", "change_from_first")


def format_task(result: Mapping[str, Any], others: Sequence[str]) -> str:
    """All figures of a task at every number of loops.

    Args:
        result: as written to `eval/`.
        others: what each result is compared with.
    """
    lines = [f"{result['task']}: {result['items']:,} items"]
    first = result["loops"][0]["loops"]
    for row in result["loops"]:
        figures = [
            f"{name.replace('_', ' ')} {with_error(row[name], row.get(f'{name}_se'))}"
            for name in row
            if not name.endswith("_se") and name not in NOT_SHOWN
        ]
        lines.append(f"S={row['loops']:<4} {', '.join(figures)}")
        metric = result["metric"].replace("_", " ")
        if row["loops"] != first:
            change = with_error(row["change_from_first"], row["change_from_first_se"], "+")
            lines.append(f"       {metric} against S={first}: {change}")
        for name in others:
            compared = row["compared"]
            value = with_error(compared[result["metric"]], compared[f"{result['metric']}_se"])
            difference = with_error(compared["difference"], compared["difference_se"], "+")
            lines.append(f"       {metric} of {name}: {value}; this run minus it: {difference}")
        if cost := row.get("cost"):
            lines.append(f"       {Cost(**cost).describe()}")
    return "\n".join(lines)


def with_error(value: float, error: float | None, sign: str = "") -> str:
    """A value and its standard error."""
    shown = f"{value:{sign}.4f}"
    return shown if error is None else f"{shown} ± {error:.4f}"
