"""The recurrence exponent: L = E + A (N_once + r^phi N_rec)^-alpha + B D^-beta, fitted to the final NELBO of many trainings.

N_once and N_rec are the weights of the layers that run once and of the looped block, r the number of loops, D the training tokens
(arXiv 2604.21106, where phi is 0.46 for autoregressive models). phi = 1: a loop is worth as much as layers with their own
weights; phi = 0: it is worth nothing.
"""

from dataclasses import dataclass

import numpy as np

from pretrain.studies.estimates import Interval
from pretrain.studies.results import Results

RESAMPLES = 200
PHIS = np.linspace(-0.5, 1.5, 41)
POWERS = np.linspace(0.05, 1.5, 30)
"""Values of alpha and beta of the grid from which the fit starts."""


@dataclass(frozen=True)
class Point:
    """One training: weights that run once, weights of the looped block, loops, tokens, final NELBO."""

    once: float
    looped: float
    loops: float
    tokens: float
    nelbo: float


@dataclass(frozen=True)
class Fit:
    """A fit.

    Attributes:
        phi: with its bootstrap interval over the trainings.
        alpha, beta, floor: of the fit of all trainings; `floor` is E.
        error: root mean square of the residuals, nats per token.
    """

    phi: Interval
    alpha: float
    beta: float
    floor: float
    error: float


def exponent_of(results: Results) -> Fit:
    """The fit to all trainings of a study."""
    return fit([
        Point(
            once=r.trial.plan.settings.model.parameter_count()["head"]
            + r.trial.plan.settings.model.parameter_count()["tail"],
            looped=r.trial.plan.settings.model.parameter_count()["mid"],
            loops=r.mean_loops,
            tokens=r.end["tokens"],
            nelbo=r.nelbo(),
        )
        for group in results.best.values() for r in group
    ])  # fmt: skip


def fit(points: list[Point], resamples: int = RESAMPLES) -> Fit:
    """Least squares, with a bootstrap interval of phi."""
    data = np.array([[p.once, p.looped, p.loops, p.tokens, p.nelbo] for p in points])
    best, error = _search(data)
    rng = np.random.default_rng(0)
    found = [_search(data[rng.integers(0, len(data), len(data))], best)[0][0] for _ in range(resamples)]
    low, high = np.quantile(found, (0.025, 0.975))
    floor = float(_linear(data, *best)[0][0])
    return Fit(Interval(float(best[0]), float(low), float(high)), float(best[1]), float(best[2]), floor, error)


def _search(data: np.ndarray, start: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """phi, alpha and beta with the least squared error, and its root mean; from a grid, or from near a known fit.

    For given exponents, E, A and B follow from linear least squares, so three numbers remain to be searched.
    """
    if start is None:
        grid = [(phi, alpha, beta) for phi in PHIS[::4] for alpha in POWERS[::4] for beta in POWERS[::4]]
        start = np.array(min(grid, key=lambda exponents: _linear(data, *exponents)[1]))
    best, error, step = start, _linear(data, *start)[1], np.array([0.1, 0.1, 0.1])
    while step.max() > 1e-4:
        moves = [best + sign * step * axis for axis in np.eye(3) for sign in (-1, 1)]
        moves = [m for m in moves if min(m[1:]) > 0.01]
        errors = [_linear(data, *move)[1] for move in moves]
        lowest = int(np.argmin(errors))
        if errors[lowest] < error:
            best, error = moves[lowest], errors[lowest]
        else:
            step = step / 2
    return best, error


def _linear(data: np.ndarray, phi: float, alpha: float, beta: float) -> tuple[np.ndarray, float]:
    """E, A and B for given exponents, and the root mean square of the residuals."""
    once, looped, loops, tokens, nelbo = data.T
    weights = (once + loops**phi * looped) ** -alpha
    columns = np.stack([np.ones_like(nelbo), weights / weights.mean(), tokens**-beta / (tokens**-beta).mean()], axis=1)
    solution = np.linalg.lstsq(columns, nelbo, rcond=None)[0]
    return solution, float(np.sqrt(np.mean((columns @ solution - nelbo) ** 2)))
