"""Figures of studies against closed forms: where curves tie, intervals, FLOPs conventions, the recurrence exponent, verdicts."""

import math
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from model.architecture import Architecture
from model.flops import FlopsModel
from pretrain.studies.accounting import CONVENTIONS, Work
from pretrain.studies.definition import Rule
from pretrain.studies.estimates import T_975, Interval, jackknife, mean_curve, position_of, to_tie
from pretrain.studies.exponent import Point, fit
from pretrain.studies.figures import judge, tie


def falling(factor=1.0, end=1e13, points=7, shift=0.0):
    """A loss that falls with the logarithm of FLOPs, as if each FLOP counted `factor` times."""
    x = np.geomspace(1e11, end, points)
    return x, 3 - 0.1 * np.log(factor * x / 1e11) + shift


def test_a_curve_is_interpolated_in_the_logarithm():
    assert position_of(falling(), 3 - 0.1 * math.log(37)) == pytest.approx(37e11)
    assert position_of(falling(), 4.0) == 1e11, "below the level from the first point on"
    assert position_of(falling(), 1.0) is None


def test_a_curve_that_rises_again_keeps_its_lowest_value():
    x, y = np.array([1.0, 2.0, 4.0, 8.0]), np.array([4.0, 2.0, 3.0, 1.0])
    assert position_of((x, y), 2.5) == pytest.approx(2**0.75)
    assert position_of((x, y), 1.5) == pytest.approx(4 * 2**0.5), "not on the way from 3, but from 2 to 1"


@pytest.mark.parametrize("factor", [1.7, 3.3])
@pytest.mark.parametrize("points", [5, 12])
def test_flops_to_tie_of_curves_with_a_known_factor(factor, points):
    """Seeds shift both methods alike, and end at slightly different FLOPs, as a run ends at a whole step."""
    shifts, ends = (-0.02, 0.0, 0.02), (1e13, 1.01e13, 0.99e13)
    own = [falling(factor, end, points, shift) for end, shift in zip(ends, shifts, strict=True)]
    reference = [falling(1.0, 1e13, 9, shift) for shift in shifts]
    assert to_tie(own, reference) == pytest.approx(factor, rel=1e-3)
    assert to_tie(reference, [falling(2.0)]) is None, "the plain method never gets there"
    assert to_tie([falling(1.0)], [falling(1.0)]) == pytest.approx(1.0)


def test_the_mean_of_curves_is_taken_at_equal_progress():
    """The second training took twice as long; the first value that both have is that at half of them."""
    first, second = (np.array([1.0, 4.0]), np.array([2.0, 0.0])), (np.array([4.0, 8.0]), np.array([4.0, 2.0]))
    x, y = mean_curve([first, second])
    assert x.tolist() == [3.0, 6.0] and y == pytest.approx([(1 + 4) / 2, (0 + 2) / 2])
    alone = mean_curve([(np.array([5.0]), np.array([1.0])), (np.array([7.0]), np.array([3.0]))])
    assert [part.tolist() for part in alone] == [[6.0], [2.0]]


def test_the_interval_of_a_mean_is_that_of_student():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    found = jackknife(lambda seeds: float(values[list(seeds)].mean()), range(4))
    half = 3.182 * values.std(ddof=1) / 2
    assert (found.value, found.low, found.high) == pytest.approx((4.0, 4.0 - half, 4.0 + half))
    assert jackknife(lambda seeds: float(values[list(seeds)].mean()), range(1)) == Interval(1.0)
    assert T_975[0] == pytest.approx(math.tan(math.pi * 0.475), rel=1e-3)
    assert T_975[1] == pytest.approx(0.95 / math.sqrt(2 * 0.975 * 0.025), rel=1e-3)


def test_the_interval_of_a_ratio_is_taken_of_its_logarithm():
    ratios = np.array([2.0, 3.0, 4.5])

    def geometric_mean(seeds):
        return float(np.exp(np.log(ratios[list(seeds)]).mean()))

    found = jackknife(geometric_mean, range(3), log=True)
    half = 4.303 * np.log(ratios).std(ddof=1) / 3**0.5
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 3 * math.exp(-half), 3 * math.exp(half)))


def test_a_seed_that_decides_alone_leaves_no_interval():
    found = jackknife(lambda seeds: 2.0 if 0 in seeds else None, range(3))
    assert found == Interval(2.0, undecided=True) and str(found) == "2 (not by all seeds)"
    found = jackknife(lambda seeds: 2.0 if len(seeds) == 2 and 0 not in seeds else None, range(3))
    assert found == Interval(None, undecided=True) and str(found).startswith("not reached by some seeds")
    found = jackknife(lambda seeds: None, range(3))
    assert found == Interval(None) and str(found) == "not reached"


@pytest.mark.parametrize(
    ("ends", "seconds", "expected"),
    [
        ((2.01, 2.01, 1.94), 600, "not at this scale"),  # the last seed decides alone
        ((2.01, 2.01, 2.01), 1000, "does not hold"),
        ((2.01, 2.01, 2.01), 600, "not at this scale"),  # with the time of the reference it might get there
        ((1.90, 1.91, 1.90), 600, "holds"),
    ],
)
def test_a_tie_that_some_seeds_miss_decides_nothing(ends, seconds, expected):
    def trained(end, seconds):
        x = np.geomspace(10, seconds, 6)
        return SimpleNamespace(curve=lambda axis, loops=None: (x, np.linspace(3.0, end, 6)))

    best = {"plain": [trained(2.0, 1000) for _ in ends], "looped": [trained(end, seconds) for end in ends]}
    found = tie(SimpleNamespace(best=best, seeds=range(3)), "looped", "seconds", "plain")
    assert judge(Rule(figure="seconds_to_tie", holds=1), found) == expected


def test_the_conventions_give_the_published_numbers_of_steps():
    """Steps of LoopMDM on OpenWebText at the FLOPs of 10**6 steps of its baseline: E[S] = 6.5, blocks 1-2 of 12 looped."""
    model = FlopsModel(Architecture(vocab_size=50257), 1024, masked_fraction=0.5)
    published = {"blocks": 521_739, "full_head": 599_443, "head_and_embedding": 655_426}
    for convention, steps in published.items():
        base, looped = (Work(1.0, passes).flops(model, convention) for passes in (1.0, 6.5))
        assert 1e6 * base / looped == pytest.approx(steps, rel=2e-4), convention


def test_the_work_of_a_run_follows_from_its_tokens_and_flops():
    model = FlopsModel(Architecture(vocab_size=51, hidden_size=64, num_heads=4), 32, masked_fraction=0.55)
    loops, tokens = np.array([1, 6, 3, 2]), 256
    flops = sum(tokens * model.training(int(s)) for s in loops)
    work = Work.of(model, 4 * tokens, flops)
    assert work.passes == pytest.approx(loops.sum() * tokens)
    assert work.flops(model, "masked_head") == pytest.approx(flops)
    ordered = [work.flops(model, name) for name in ("blocks", "masked_head", "full_head", "head_and_embedding")]
    assert ordered == sorted(ordered) and set(CONVENTIONS) == {
        "blocks",
        "masked_head",
        "full_head",
        "head_and_embedding",
    }


def trainings(phi, seed, seeds=1, misfit=0.0):
    """Losses of the law, with noise of 1e-3 nats per training, and of `misfit` nats that the seeds of an arm share."""
    noise = np.random.default_rng(seed)
    return [
        [Point(2e4 * width**2, 4e4 * width**2, loops, tokens, loss + noise.normal(0, 1e-3)) for _ in range(seeds)]
        for width, loops, tokens in product((1.0, 2.0, 4.0), (1, 2, 4, 8), (1e6, 4e6, 1.6e7))
        for loss in [
            0.5
            + 40 * ((2e4 + loops**phi * 4e4) * width**2) ** -0.4
            + 300 * tokens**-0.5
            + (noise.normal(0, misfit) if misfit else 0)
        ]
    ]


@pytest.mark.parametrize("phi", [0.0, 0.46, 0.8])
def test_the_exponent_is_recovered_from_losses_of_its_law(phi):
    found = fit(trainings(phi, 0), resamples=2)
    assert found.phi.value == pytest.approx(phi, abs=0.02) and found.error < 1.5e-3
    assert (found.alpha, found.beta, found.floor) == pytest.approx((0.4, 0.5, 0.5), abs=0.05)


@pytest.mark.parametrize("options", [{}, {"seeds": 3, "misfit": 4e-3}])
def test_the_interval_of_the_exponent_contains_it_as_often_as_it_says(options):
    fits = [fit(trainings(0.46, seed, **options), resamples=40).phi for seed in range(20)]
    assert sum(found.low <= 0.46 <= found.high for found in fits) >= 16


RULES = [
    ({"holds": 2.3, "fails": 1}, Interval(3.2, 2.9, 3.5), "holds"),
    ({"holds": 2.3, "fails": 1}, Interval(3.2, 1.9, 5.0), "not at this scale"),
    ({"holds": 2.3, "fails": 1}, Interval(0.8, 0.7, 0.9), "does not hold"),
    ({"holds": 2.3, "fails": 1}, Interval(None), "does not hold"),
    ({"holds": 2.3, "fails": 1}, Interval(None, undecided=True), "not at this scale"),
    ({"holds": 2.3, "fails": 1}, Interval(4.0, undecided=True), "not at this scale"),
    ({"holds": 0}, Interval(-0.1), "does not hold"),
    ({"holds": 0}, Interval(0.1), "holds"),
    ({"holds": 45, "below": True}, Interval(40.0, 38.0, 42.0), "holds"),
    ({"holds": 45, "below": True}, Interval(60.0, 50.0, 70.0), "does not hold"),
    ({"holds": 45, "below": True}, Interval(44.0, 40.0, 50.0), "not at this scale"),
]


@pytest.mark.parametrize(("rule", "found", "expected"), RULES)
def test_the_interval_of_a_figure_decides(rule, found, expected):
    assert judge(Rule(figure="flops_to_tie", **rule), found) == expected
