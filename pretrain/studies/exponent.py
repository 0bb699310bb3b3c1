"""The recurrence exponent: L = E + A (N_once + r^phi N_rec)^-alpha + B D^-beta, fitted to the final NELBO of many trainings.

N_once and N_rec are the weights of the layers that run once and of the looped block, r the number of loops, D the training tokens
(arXiv 2604.21106, where phi is 0.46 for autoregressive models). phi = 1: a loop is worth as much as layers with their own
weights; phi = 0: it is worth nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from pretrain.studies.estimates import Interval
from pretrain.studies.results import Results, TrialResult

RESAMPLES = 200
PHIS, POWERS = (0.0, 0.25, 0.5, 0.75, 1.0), (0.1, 0.3, 0.6, 1.0)
"""Values of phi, and of alpha and beta, from the best of which the fit starts."""

LOWEST, HIGHEST = np.array([-2.0, 0.01, 0.01]), np.array([3.0, 3.0, 3.0])
"""Limits of phi, alpha and beta."""

STEPS = 60
STEP = 1e-5
"""Difference for the slopes."""


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
        phi: with its bootstrap interval over the arms.
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
    return fit([[_point(result) for result in group] for group in results.best.values()])


def _point(result: TrialResult) -> Point:
    count = result.trial.plan.settings.model.parameter_count()
    return Point(count["head"] + count["tail"], count["mid"], result.mean_loops, result.end["tokens"], result.nelbo())


def fit(arms: Sequence[Sequence[Point]], resamples: int = RESAMPLES) -> Fit:
    """Least squares, with a bootstrap interval of phi.

    Args:
        arms: the trainings of each arm. Whole arms are drawn anew: seeds of one arm share how far it lies from the law.
    """
    groups = [np.array([[p.once, p.looped, p.loops, p.tokens, p.nelbo] for p in points]) for points in arms]
    data = np.concatenate(groups)
    best, error = _search(data)
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(groups), len(groups)) for _ in range(resamples)]
    found = [_search(np.concatenate([groups[g] for g in drawn]), best)[0][0] for drawn in draws]
    low, high = np.quantile(found, (0.025, 0.975))
    floor = float(_linear(data, *best)[0][0])
    return Fit(Interval(float(best[0]), float(low), float(high)), float(best[1]), float(best[2]), floor, error)


def _search(data: np.ndarray, start: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """phi, alpha and beta with the least squared error, and its root mean: Levenberg-Marquardt from a grid, or from `start`.

    For given exponents, E, A and B follow from linear least squares, so three numbers remain to be searched (variable
    projection, Golub and Pereyra 1973).
    """
    if start is None:
        start = min(product(PHIS, POWERS, POWERS), key=lambda exponents: _rms(_linear(data, *exponents)[1]))
    best, damping = np.array(start), 1e-3
    residuals = _linear(data, *best)[1]
    for _ in range(STEPS):
        slopes = np.stack([(_linear(data, *(best + STEP * axis))[1] - residuals) / STEP for axis in np.eye(3)], axis=1)
        normal = slopes.T @ slopes
        move = np.linalg.lstsq(normal + damping * np.diag(np.diag(normal)), -slopes.T @ residuals, rcond=None)[0]
        tried = np.clip(best + move, LOWEST, HIGHEST)
        found = _linear(data, *tried)[1]
        if _rms(found) < _rms(residuals):
            best, residuals, damping = tried, found, damping / 3
        else:
            damping *= 4
        if np.abs(move).max() < 1e-7 or damping > 1e9:
            break
    return best, _rms(residuals)


def _linear(data: np.ndarray, phi: float, alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """E, A and B for given exponents, where A and B are in units of the mean of their power, and the residuals."""
    once, looped, loops, tokens, nelbo = data.T
    weights, data_term = (once + loops**phi * looped) ** -alpha, tokens**-beta
    columns = np.stack([np.ones_like(nelbo), weights / weights.mean(), data_term / data_term.mean()], axis=1)
    solution = np.linalg.lstsq(columns, nelbo, rcond=None)[0]
    return solution, columns @ solution - nelbo


def _rms(residuals: np.ndarray) -> float:
    return float(np.sqrt(np.mean(residuals**2)))
