"""The figures of a study that its verdict and its page use, as estimates over seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pretrain.errors import UserError
from pretrain.proportions import difference_interval, interval_of
from pretrain.studies.definition import Rule
from pretrain.studies.estimates import Interval, end_of, jackknife, to_tie
from pretrain.studies.exponent import exponent_of
from pretrain.studies.results import Results, TrialResult

VERDICTS = ("holds", "not at this scale", "does not hold")

SAME_LENGTH = 1.01
"""Without the reference's loss at its end, a training shows that it needs more than the reference if the reference was at most this
factor longer. Budgets are met to a step: FLOPs of the arms of `results/sudoku_flops.json` differ by up to 0.02%."""

Verdict = tuple[str, list[tuple[Rule, Interval, str]]]
"""One of `VERDICTS`, and for each rule its figure and its own verdict."""


def figure(results: Results, rule: Rule) -> Interval:
    """The figure that a rule names.

    Raises:
        UserError: the results do not have what it needs.
    """
    try:
        return _FIGURES[rule.figure](results, rule)
    except (KeyError, IndexError) as error:
        raise UserError(
            f"verdict, {rule.figure}: nothing was measured at {error}; correct the rule or the loops of the study"
        ) from None


def verdict(results: Results) -> Verdict:
    """The verdict of a study: the claim holds if all rules hold, and does not if one fails."""
    judged = [(rule, found, judge(rule, found)) for rule in results.experiment.study.verdict
              for found in [figure(results, rule)]]  # fmt: skip
    return max((each for *_, each in judged), key=VERDICTS.index), judged


def judge(rule: Rule, found: Interval) -> str:
    """One of `VERDICTS`. Without an interval, with one seed, the estimate alone decides."""
    if found.undecided:
        return "not at this scale"
    if found.value is None:
        return "does not hold"
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    if rule.below:
        low, high = -high, -low
    sign = -1 if rule.below else 1
    if low >= sign * rule.holds:
        return "holds"
    return "does not hold" if high < sign * (rule.holds if rule.fails is None else rule.fails) else "not at this scale"


def tie(results: Results, arm: str, axis: str, reference: str, loops: str | None = None) -> Interval:
    """`to_tie` of an arm with another one, see `estimates`."""
    own = [result.curve(axis, loops) for result in results.best[arm]]
    other = [result.curve(axis) for result in results.best[reference]]

    def ratio(seeds: Sequence[int]) -> float | None:
        return to_tie([own[s] for s in seeds], [other[s] for s in seeds])

    found = jackknife(ratio, results.seeds, log=True)
    ended_early = found.value is None and end_of(other) > SAME_LENGTH * end_of(own)
    return replace(found, undecided=found.undecided or ended_early)


def difference(results: Results, value: Callable[[TrialResult], float], other: Callable[[TrialResult], float],
               arms: tuple[str, str]) -> Interval:  # fmt: skip
    """Mean over seeds of `value` of the first arm minus `other` of the second, paired by seed."""
    first, second = (results.best[arm] for arm in arms)
    values = np.array([value(a) - other(b) for a, b in zip(first, second, strict=True)])
    return jackknife(lambda seeds: float(values[list(seeds)].mean()), results.seeds)


def score_row(result: TrialResult, measurement: str, option: str, loops: str | None) -> Mapping[str, Any]:
    """The row of a task at a number of loops, S_max if None."""
    wanted = str(loops or result.trial.largest_loops)
    rows = result.measured[measurement][option]["loops"]
    for row in rows:
        if str(row["loops"]) == wanted:
            return row
    raise KeyError(f"S={wanted} of {measurement}")


def score(result: TrialResult, measurement: str, option: str, loops: str | None) -> float:
    """The main figure of a task."""
    content = result.measured[measurement][option]
    return score_row(result, measurement, option, loops)[content["metric"]]


def _flops_to_tie(results: Results, rule: Rule) -> Interval:
    return tie(results, rule.arm, "masked_head", rule.reference or results.reference, rule.loops)


def _seconds_to_tie(results: Results, rule: Rule) -> Interval:
    return tie(results, rule.arm, "seconds", rule.reference or results.reference, rule.loops)


def _nelbo_gain(results: Results, rule: Rule) -> Interval:
    arms = rule.reference or rule.arm, rule.arm
    return difference(results, lambda r: r.nelbo(rule.reference_loops), lambda r: r.nelbo(rule.loops), arms)


def _score_gain(results: Results, rule: Rule) -> Interval:
    arms = rule.arm, rule.reference or rule.arm

    def own(result: TrialResult) -> float:
        return score(result, rule.measurement, rule.option, rule.loops)

    def other(result: TrialResult) -> float:
        return score(result, rule.measurement, rule.option, rule.reference_loops)

    found = difference(results, own, other, arms)
    content = results.best[rule.arm][0].measured[rule.measurement][rule.option]
    agree = found.low is not None and math.isclose(found.low, found.high, abs_tol=1e-9)
    if not agree or not interval_of(content["loops"][0], content["metric"]):
        return found
    # All seeds agree, such as on no valid board at all: their spread is 0, but they have a limited number of items.
    items = content["items"] * len(results.seeds)
    means = (float(np.mean([of(r) for r in results.best[arm]])) for of, arm in zip((own, other), arms, strict=True))
    return Interval(found.value, *difference_interval(*means, items))


def _loops_spent(results: Results, rule: Rule) -> Interval:
    values = np.array([
        score_row(r, rule.measurement, rule.option, rule.loops)["cost"]["loops_per_forward"]
        for r in results.best[rule.arm]
    ])  # fmt: skip
    return jackknife(lambda seeds: float(values[list(seeds)].mean()), results.seeds)


def _attention_gain(results: Results, rule: Rule) -> Interval:
    """Mask-to-mask attention of the last pass minus that of the first, relative to uniform attention, mean over t."""
    values = np.array([
        np.mean([at["attention_over_share"]["mean"][-1] - at["attention_over_share"]["mean"][0]
                 for at in r.measured[rule.measurement][rule.option]["timesteps"]])
        for r in results.best[rule.arm]
    ])  # fmt: skip
    return jackknife(lambda seeds: float(values[list(seeds)].mean()), results.seeds)


def _seconds_to_target(results: Results, rule: Rule) -> Interval:
    """Seconds of the whole training, if the final bits per byte reach the target of the study in the mean over the seeds."""
    target, own = results.experiment.study.target, results.best[rule.arm]
    assert target is not None

    def seconds(seeds: Sequence[int]) -> float | None:
        reached = np.mean([own[s].figures(rule.loops)["bits_per_byte"] for s in seeds]) <= target
        return float(np.mean([own[s].end["seconds"] for s in seeds])) if reached else None

    return jackknife(seconds, results.seeds)


def _exponent(results: Results, rule: Rule) -> Interval:
    return exponent_of(results).phi


_FIGURES: dict[str, Callable[[Results, Rule], Interval]] = {
    "flops_to_tie": _flops_to_tie,
    "seconds_to_tie": _seconds_to_tie,
    "nelbo_gain": _nelbo_gain,
    "score_gain": _score_gain,
    "loops_spent": _loops_spent,
    "attention_gain": _attention_gain,
    "seconds_to_target": _seconds_to_target,
    "exponent": _exponent,
}
