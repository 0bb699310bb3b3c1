"""S is a function of (seed, step) with the configured distribution."""

import numpy as np
import pytest

from model.loops import LoopSchedule


def schedule(distribution, maximum=6, ramp_steps=0, seed=0, start_steps=0, tail=0.0):
    return LoopSchedule(seed, maximum, distribution, ramp_steps, lambda loops: 10.0 + 3.0 * loops, start_steps, tail)


def frequencies(loops: LoopSchedule, steps=range(20_000)) -> np.ndarray:
    largest = loops.maximum * (2 if loops.tail else 1)
    return np.bincount([loops(step) for step in steps], minlength=largest + 1)[1:] / len(steps)


def test_uniform_frequencies():
    assert frequencies(schedule("uniform")) == pytest.approx(np.full(6, 1 / 6), abs=4 * np.sqrt(5 / 36 / 20_000))


def test_inverse_flops_frequencies():
    expected = 1 / (10 + 3 * np.arange(1, 7))
    assert frequencies(schedule("inverse_flops")) == pytest.approx(expected / expected.sum(), abs=0.012)


@pytest.mark.parametrize("distribution", ["uniform", "inverse_flops"])
def test_frequencies_with_a_tail(distribution):
    """The tail takes its share evenly from all S <= S_max."""
    without, tailed = schedule(distribution), schedule(distribution, tail=0.3)
    expected = [*(0.7 * without.probabilities(0)), *([0.05] * 6)]
    assert tailed.probabilities(0) == pytest.approx(expected)
    assert frequencies(tailed) == pytest.approx(np.array(expected), abs=0.012)
    assert tailed.mean(0) == pytest.approx(0.7 * without.mean(0) + 0.3 * 9.5)


def test_fixed():
    assert {schedule(3)(step) for step in range(50)} == {3}
    assert schedule(3).mean(0) == 3


def test_loops_of_a_step_do_not_depend_on_earlier_calls():
    first = [schedule("uniform")(step) for step in range(100)]
    again = schedule("uniform")
    assert [again(step) for step in reversed(range(100))][::-1] == first
    assert [schedule("uniform", seed=1)(step) for step in range(100)] != first


@pytest.mark.parametrize("extras", [{}, {"start_steps": 210}, {"start_steps": 210, "tail": 0.25}])
def test_between_equals_single_steps(extras):
    ramped = schedule("uniform", maximum=6, ramp_steps=500, **extras)
    assert list(ramped.between(3, 900)) == [ramped(step) for step in range(3, 900)]
    expected = sum(ramped.mean(step) for step in range(3, 900))
    assert ramped.expected_passes(3, 900) == pytest.approx(expected)


def test_ramp_raises_the_maximum():
    ramped = schedule("uniform", maximum=12, ramp_steps=1200)
    assert [ramped.maximum_at(step) for step in (0, 108, 110, 600, 1199, 1200, 5000)] == [1, 1, 2, 6, 11, 12, 12]
    assert all(ramped(step) <= ramped.maximum_at(step) for step in range(0, 2000, 7))


def test_start_comes_before_the_ramp():
    """S = 1 before the start, with or without a tail; then the same ramp, and the same draws as without a start."""
    late = schedule("uniform", maximum=12, ramp_steps=1200, start_steps=300, tail=0.5)
    assert [late.maximum_at(step) for step in (0, 299, 300, 408, 410, 1499, 1500)] == [1, 1, 1, 1, 2, 11, 12]
    assert {late(step) for step in range(300)} == {1}
    assert {late(step) for step in range(300, 400)} == {1, 2}
    assert all(late(step) <= 2 * late.maximum_at(step) for step in range(0, 2000, 7))
    abrupt = schedule("uniform", start_steps=300)
    assert {abrupt(step) for step in range(300)} == {1}
    assert list(abrupt.between(300, 900)) == list(schedule("uniform").between(300, 900))


def test_mean_of_the_paper_setting():
    assert schedule("uniform", maximum=12).mean(0) == pytest.approx(6.5)
