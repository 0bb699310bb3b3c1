"""What a study will take: FLOPs, the planner's hours, and hours at the speed of this machine. Imports no torch."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pretrain.config.run_folder import read_status
from pretrain.durations import format_duration
from pretrain.errors import UserError
from pretrain.planning.layouts import ranked
from pretrain.studies.processes import Runner, require_success
from pretrain.studies.results import best_rates
from pretrain.studies.schedule import share
from pretrain.studies.side_by_side import side_by_side
from pretrain.studies.trials import Experiment, Trial
from pretrain.studies.unit import Workplace, last_record, owned

CALIBRATION_STEPS = 20


def describe(experiment: Experiment, run: Runner, jobs: int, show: Callable[[str], None]) -> str:
    """A table of the arms and the time of the study.

    The first steps of every arm, at its lowest learning rate, are run to measure the speed. They are saved, and the study goes on
    from there.

    Raises:
        UserError: a training failed or diverged.
        Stopped: a signal arrived; the trainings that were running have ended.
    """
    arms = [experiment.trial(arm, min(experiment.rates(arm)), 0) for arm in experiment.arms]
    speeds = _speeds(experiment, arms, run, jobs, show)
    each = len(experiment.scale.learning_rates) + experiment.scale.seeds - 1
    lines = [f"{'arm':<24}{'trainings':>10}{'steps':>10}{'FLOPs each':>12}{'FLOP/s':>10}{'each':>9}"]
    for trial, speed in zip(arms, speeds, strict=True):
        time = format_duration(trial.flops / speed)
        lines.append(
            f"{trial.arm:<24}{each:>10}{trial.plan.total_steps:>10,}{trial.flops:>12.3g}{speed:>10.2g}{time:>9}"
        )
    flops = each * sum(trial.flops for trial in arms)
    done = _done(experiment)
    seconds = {trial.arm: trial.flops / speed for trial, speed in zip(arms, speeds, strict=True)}
    left = {arm: (each - sum(done[arm])) * seconds[arm] for arm in seconds}
    longest = max(min(left[arm], seconds[arm]) for arm in left)
    ended = sum(part == 1 for parts in done.values() for part in parts)
    rest = f" for what is left; {ended} of {experiment.units} trainings are done" if ended else ""
    lines += [
        f"{experiment.units} trainings, {flops:.3g} training FLOPs, without validation and measurements",
        f"this machine, {jobs} at a time: about {format_duration(max(sum(left.values()) / jobs, longest))}{rest}",
        f"by the planner, on the devices that hardware.* describes: {_planned(arms, each, jobs)}",
        f"kept, and used by the study: the data in {experiment.data}, the first steps in {experiment.runs}",
    ]
    return "\n".join(lines)


def _done(experiment: Experiment) -> dict[str, list[float]]:
    """Arm -> how much of each of its trainings is done, of those that are known: before the best rates are, only with seed 0."""
    known = [*experiment.tuning]
    with suppress(UserError):
        known += experiment.repeats(best_rates(experiment))
    return {arm: [share(trial) for trial in known if trial.arm == arm] for arm in experiment.arms}


def _speeds(
    experiment: Experiment, arms: Sequence[Trial], run: Runner, jobs: int, show: Callable[[str], None]
) -> list[float]:
    """Training FLOPs per second of every arm, see `_speed`."""
    new = sum(_missing_steps(trial) > 0 for trial in arms)
    if new:
        arms_first = "1 arm by its first" if new == 1 else f"{new} arms by their first"
        show(f"measuring the speed of {arms_first} {CALIBRATION_STEPS} steps, {min(jobs, new)} at a time")

    def measured(trial: Trial, slot: int) -> float:
        begin, known = time.monotonic(), not _missing_steps(trial)
        speed = _speed(experiment, trial, run, slot)
        if not known:
            show(f"measured: {trial.arm} in {format_duration(time.monotonic() - begin)}")
        return speed

    return side_by_side(measured, arms, run, jobs, show)


def _metrics(trial: Trial) -> Path:
    return trial.folder / "metrics.jsonl"


def _missing_steps(trial: Trial) -> int:
    """Steps until the speed is known; an earlier measurement may have been stopped in its first steps."""
    done = last_record(_metrics(trial)).get("step", 0)
    return max(0, min(CALIBRATION_STEPS, trial.plan.total_steps) - done)


def _planned(arms: Sequence[Trial], each: int, jobs: int) -> str:
    """Time by the planner at the share of the peak that it assumes, which a small model does not reach."""
    seconds = sum(trial.plan.total_steps * ranked([trial.plan])[0].seconds for trial in arms) * each / jobs
    hardware = arms[0].plan.settings.hardware
    peak = f"{hardware.peak_tflops:g} TFLOP/s" if hardware.peak_tflops else "an H100"
    return f"about {format_duration(seconds)} at {hardware.efficiency:.0%} of {peak}"


def _speed(experiment: Experiment, trial: Trial, run: Runner, slot: int) -> float:
    """Training FLOPs per second of the first steps, or of what has been trained already."""
    place = Workplace(trial)
    if missing := _missing_steps(trial):
        words = ["train", "--config", trial.recipe, *trial.words, f"run.stop_after={missing}"]
        with owned(place.folder, lambda: not run.stopping):
            status = run(words, place.log, slot, experiment.scale.ranks)
        if status and read_status(trial.folder).get("diverged"):
            raise UserError(
                f"{trial.name}: diverged in its first steps; give the study lower learning_rates ({place.log})"
            )
        require_success(status, f"the first steps of {trial.name}", place.log)
    record = last_record(_metrics(trial))
    return record["flops"] / record["elapsed"]
