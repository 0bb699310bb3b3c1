"""The planner's order of work and its times, compared with megatron-core's own schedules run in virtual time."""

import random

import pytest

from model.architecture import LoopSplit
from model.placement import Costs, group_size, place
from pretrain.planning.programs import programs_of
from pretrain.planning.timing import Case, Durations, case_of, makespans, step_times
from tests.virtual_time import run_schedule

pytestmark = pytest.mark.usefixtures(
    "world"
)  # without process groups in torch, megatron-core treats every group as one rank
PAPER = LoopSplit(head=1, mid=2, tail=9, max=12)
DEEP = LoopSplit(head=4, mid=8, tail=12, max=12)
FORWARD, BACKWARD = Costs(1.0, 0.05, 0.7), Costs(2.1, 0.0, 1.3)


def simulate(case: Case) -> tuple[float, list[int]]:
    """The case under megatron-core's schedule: time, and the most chunks held on each stage."""
    stages = len(case.programs)
    return run_schedule(
        case.forward, case.backward, case.micro_batches, group_size(case.micro_batches, stages), case.hop
    )


@pytest.mark.parametrize("split", [PAPER, DEEP], ids=["paper", "deep"])
@pytest.mark.parametrize(
    ("stages", "micro_batches", "loops", "kind"),
    [
        (2, 8, 1, "looped"), (2, 8, 12, "looped"), (2, 5, 4, "looped"), (3, 7, 2, "looped"), (4, 8, 6, "looped"),
        (4, 4, 3, "looped"), (4, 18, 5, "looped"), (8, 16, 7, "looped"), (16, 16, 12, "looped"), (16, 40, 6, "looped"),
        (2, 8, 4, "contiguous"), (4, 8, 12, "contiguous"), (16, 24, 6, "contiguous"),
    ],
)  # fmt: skip
def test_time_and_bubble_equal_those_of_the_original_schedule(split, stages, micro_batches, loops, kind):
    placement = place(split, stages, FORWARD, [1 / 12] * 12, kind)
    case = case_of(placement, loops, micro_batches, Durations(FORWARD, BACKWARD, hop=0.03))
    simulated, held = simulate(case)
    (time,) = makespans([case])
    assert time == pytest.approx(simulated, rel=1e-9)
    assert case.bubble(time) == pytest.approx(1 - case.work / (stages * simulated), rel=1e-9)
    chunks = len(case.forward[0])
    assert [program.peak([1.0] * chunks) for program in case.programs] == held


def test_random_costs_and_all_recompute_modes():
    rng = random.Random(3)
    for stages in (2, 3, 4):
        for recompute in ("none", "full", "loop"):
            forward, backward = (Costs(rng.random() + 0.1, rng.random(), 3 * rng.random()) for _ in range(2))
            placement = place(PAPER, stages, forward, [0.25] * 4)
            case = case_of(placement, 3, 7, Durations(forward, backward, rng.random(), recompute))
            (time,) = makespans([case])
            assert time == pytest.approx(simulate(case)[0], rel=1e-9)


def test_cases_timed_together_do_not_affect_each_other():
    placement = place(PAPER, 4, FORWARD, [1 / 12] * 12)
    cases = [case_of(placement, loops, 8, Durations(FORWARD, BACKWARD, hop=0.1)) for loops in (1, 5, 12)]
    assert makespans(cases) == [makespans([case])[0] for case in cases]


def test_recompute_adds_its_forward_to_the_backward():
    placement = place(PAPER, 2, FORWARD, [1 / 12] * 12)
    none, loop, full = (
        case_of(placement, 4, 8, Durations(FORWARD, BACKWARD, recompute=mode)) for mode in ("none", "loop", "full")
    )
    assert loop.work - none.work == pytest.approx(8 * 4 * 2 * FORWARD.layer)
    assert full.work - none.work == pytest.approx(8 * (10 + 4 * 2) * FORWARD.layer)


def test_one_stage_has_no_bubble():
    placement = place(PAPER, 1, FORWARD, [1.0])
    case = case_of(placement, 3, 4, Durations(FORWARD, BACKWARD))
    assert makespans([case]) == [pytest.approx(4 * (16 * 3.1 + 0.05 + 2.0))]


def test_messages_are_counted():
    """A micro-batch makes one hop forward and one backward between any two consecutive chunks."""
    programs = programs_of(4, 5, 8)
    assert sum(program.sent() for program in programs) == 2 * 8 * (4 * 5 - 1)


def test_long_steps_are_timed_through_short_ones():
    """Random costs, every kind of pipeline: the same time as simulating all micro-batches."""
    rng = random.Random(5)
    for stages in (1, 2, 3, 4, 8):
        for kind in ("looped", "contiguous"):
            forward, backward = (Costs(rng.random() + 0.1, rng.random(), 4 * rng.random()) for _ in range(2))
            placement = place(PAPER, stages, forward, [1 / 12] * 12, kind)
            for loops, groups in ((1, 6), (5, 9), (12, 16)):
                case = case_of(placement, loops, groups * stages, Durations(forward, backward, hop=0.3 * rng.random()))
                assert step_times([case]) == pytest.approx(makespans([case]), rel=1e-9)
