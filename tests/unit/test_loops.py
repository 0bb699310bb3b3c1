"""S is a function of (seed, step) with the configured distribution."""

import numpy as np
import pytest

from model.loops import LoopSchedule


def schedule(distribution, maximum=6, ramp_steps=0, seed=0):
    return LoopSchedule(seed, maximum, distribution, ramp_steps, flops=lambda loops: 10.0 + 3.0 * loops)


def frequencies(loops: LoopSchedule, steps=range(20_000)) -> np.ndarray:
    return np.bincount([loops(step) for step in steps], minlength=loops.maximum + 1)[1:] / len(steps)


def test_uniform_frequencies():
    assert frequencies(schedule("uniform")) == pytest.approx(np.full(6, 1 / 6), abs=4 * np.sqrt(5 / 36 / 20_000))


def test_inverse_flops_frequencies():
    expected = 1 / (10 + 3 * np.arange(1, 7))
    assert frequencies(schedule("inverse_flops")) == pytest.approx(expected / expected.sum(), abs=0.012)


def test_fixed():
    assert {schedule(3)(step) for step in range(50)} == {3}
    assert schedule(3).mean(0) == 3


def test_loops_of_a_step_do_not_depend_on_earlier_calls():
    first = [schedule("uniform")(step) for step in range(100)]
    again = schedule("uniform")
    assert [again(step) for step in reversed(range(100))][::-1] == first
    assert [schedule("uniform", seed=1)(step) for step in range(100)] != first


def test_between_equals_single_steps():
    ramped = schedule("uniform", maximum=6, ramp_steps=500)
    assert list(ramped.between(3, 900)) == [ramped(step) for step in range(3, 900)]


def test_ramp_raises_the_maximum():
    ramped = schedule("uniform", maximum=12, ramp_steps=1200)
    assert [ramped.maximum_at(step) for step in (0, 108, 110, 600, 1199, 1200, 5000)] == [1, 1, 2, 6, 11, 12, 12]
    assert all(ramped(step) <= ramped.maximum_at(step) for step in range(0, 2000, 7))


def test_mean_of_the_paper_setting():
    assert schedule("uniform", maximum=12).mean(0) == pytest.approx(6.5)
