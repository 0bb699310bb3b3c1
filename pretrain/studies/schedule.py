"""The units of a study, several at a time: first every arm with every learning rate, then the best with further seeds."""

import time
from collections.abc import Callable, Sequence

from pretrain.durations import format_duration
from pretrain.errors import UserError
from pretrain.studies.processes import Runner
from pretrain.studies.results import best_rates
from pretrain.studies.side_by_side import side_by_side
from pretrain.studies.trials import Experiment, Trial
from pretrain.studies.unit import Workplace, run_unit

REPORT_EVERY = 30.0
"""Seconds between lines of progress."""


class Progress:
    """Prints how far a study is, and when it will be done at the present rate.

    Args:
        total: training FLOPs of all trainings, also of those that are not known yet.
    """

    def __init__(self, total: float, show: Callable[[str], None]) -> None:
        self._total, self._show = total, show
        self._begin: tuple[float, float] | None = None
        self._last = 0.0

    def report(self, trials: Sequence[Trial], running: Sequence[Trial]) -> None:
        """Print a line if one is due."""
        now = time.monotonic()
        if now - self._last < REPORT_EVERY:
            return
        self._last = now
        # The total is an estimate from seed 0: other seeds draw other loops, and so take other numbers of steps for the budget.
        done = min(self._total, sum(trial.flops * share(trial) for trial in trials))
        self._begin = self._begin or (now, done)
        since, before = self._begin
        line = f"{done / self._total:.0%} of {self._total:.2g} training FLOPs"
        if done > before:
            line += f", eta {format_duration((self._total - done) * (now - since) / (done - before))}"
        shown = "; ".join(f"{trial.name} {share(trial):.0%}" for trial in running)
        self._show(f"{line} | {shown or 'measuring'}")


def share(trial: Trial) -> float:
    """How much of a training is done."""
    return min(1.0, Workplace(trial).steps_done() / trial.plan.total_steps)


def run_all(experiment: Experiment, run: Runner, jobs: int, show: Callable[[str], None]) -> None:
    """Run what is missing of a study.

    Raises:
        UserError: a unit failed. Those that run are finished first.
        Stopped: a signal arrived; the trainings have saved.
    """
    tuning = experiment.tuning
    mean = sum(trial.flops for trial in tuning) / len(tuning)
    progress = Progress(mean * experiment.units, show)
    _run_phase(experiment, tuning, run, jobs, lambda running: progress.report(tuning, running), show)
    repeats = experiment.repeats(best_rates(experiment))
    both = [*tuning, *repeats]
    _run_phase(experiment, repeats, run, jobs, lambda running: progress.report(both, running), show)


def unit_of(experiment: Experiment, number: int) -> Trial:
    """Unit `number`, from 0: those that tune the learning rate come first.

    Raises:
        UserError: there is no such unit, or its learning rate is not known before the first ones are done.
    """
    if not 0 <= number < experiment.units:
        raise UserError(f"--unit {number}: the study has the units 0 to {experiment.units - 1}")
    arms, tuning = list(experiment.arms), experiment.tuning
    if number < len(tuning):
        return tuning[number]
    arm, seed = divmod(number - len(tuning), experiment.scale.seeds - 1)
    return experiment.trial(arms[arm], best_rates(experiment)[arms[arm]], 1 + seed)


def _run_phase(
    experiment: Experiment,
    trials: Sequence[Trial],
    run: Runner,
    jobs: int,
    report: Callable[[Sequence[Trial]], None],
    show: Callable[[str], None],
) -> None:
    """Run these units, `jobs` at a time; those that are done already cost nothing."""
    left = [trial for trial in trials if not Workplace(trial).is_done(experiment)]
    if not left:
        return
    show(f"{len(left)} of {len(trials)} trainings to do or to measure, {min(jobs, len(left))} at a time")

    def work(trial: Trial, slot: int) -> None:
        begin = time.monotonic()
        run_unit(experiment, trial, run, slot)
        show(f"{Workplace(trial).state(experiment)}: {trial.name} in {format_duration(time.monotonic() - begin)}")

    side_by_side(work, left, run, jobs, show, report)
