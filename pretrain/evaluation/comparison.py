"""Paired differences between two runs that were evaluated on the same rows with the same masks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pretrain.evaluation.sets import EvaluationSet
from pretrain.evaluation.statistics import Estimate, standard_error_of_mean


def add_comparison(
    results: Sequence[dict[str, Any]],
    sets: Sequence[EvaluationSet],
    own: Sequence[Sequence[Estimate]],
    other: Sequence[Sequence[Estimate]],
) -> None:
    """Add to the figures of every set and number of loops those of the other run, and the difference, own minus other.

    The difference of a row's two estimates has a much smaller spread than either, because its text and masks are the same.

    Args:
        results: as from `figures_of_sets`; the last one is the mixture if there are several sets.
        own, other: estimates of every set at every number of loops.
    """
    compared = [
        [_compared(a, b) for a, b in zip(mine, theirs, strict=True)] for mine, theirs in zip(own, other, strict=True)
    ]
    if len(results) > len(sets):
        weights = np.array([one.weight for one in sets])
        shares = weights / weights.sum()
        compared.append([_mixed(shares, same) for same in zip(*compared, strict=True)])
    for result, of_set in zip(results, compared, strict=True):
        for row, figures in zip(result["loops"], of_set, strict=True):
            row["compared"] = figures


def _compared(own: Estimate, other: Estimate) -> dict[str, float | None]:
    difference = own.residuals - other.residuals
    return {
        "nats_per_token": other.nats_per_token,
        "nats_per_token_se": other.standard_error,
        "difference": float(difference.mean()),
        "difference_se": standard_error_of_mean(difference),
    }


def _mixed(shares: np.ndarray, parts: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Of a mixture: the shares' mean, and the root of the squared errors with the squared shares."""
    mixed = {}
    for name in ("nats_per_token", "difference"):
        mixed[name] = float(shares @ np.array([part[name] for part in parts]))
        errors = [part[f"{name}_se"] for part in parts]
        mixed[f"{name}_se"] = (
            None if None in errors else float(np.sqrt(((shares * np.array(errors, float)) ** 2).sum()))
        )
    return mixed


def format_comparison(figures: dict[str, Any], name: str) -> str:
    """The other run's figures and the differences as a table."""
    lines = [f"{'loops':<8}{f'{name}, nats/token':>30}{'this run minus it':>26}"]
    for row in figures["loops"]:
        one = row["compared"]
        cells = (
            _with_error(f"{one['nats_per_token']:.4f}", one["nats_per_token_se"]),
            _with_error(f"{one['difference']:+.4f}", one["difference_se"]),
        )
        lines.append(f"S={row['loops']:<6}{cells[0]:>30}{cells[1]:>26}")
    return "\n".join(lines)


def _with_error(value: str, error: float | None) -> str:
    return value if error is None else f"{value} ± {error:.4f}"
