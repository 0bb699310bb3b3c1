"""What a study will take: FLOPs, the planner's hours, and hours at the speed of this machine. Imports no torch."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pretrain.planning.layouts import ranked
from pretrain.studies.processes import Runner, require_success
from pretrain.studies.schedule import duration
from pretrain.studies.trials import Experiment, Trial
from pretrain.studies.unit import Workplace, last_record, owned

CALIBRATION_STEPS = 20


def describe(experiment: Experiment, run: Runner, jobs: int) -> str:
    """A table of the arms and the time of the study.

    The first steps of every arm are run to measure the speed. They are saved, and the study goes on from there.
    """
    arms = [experiment.trial(arm, experiment.rates(arm)[0], 0) for arm in experiment.arms]
    with ThreadPoolExecutor(jobs) as pool:
        speeds = list(pool.map(lambda pair: _speed(experiment, pair[1], run, pair[0] % jobs), enumerate(arms)))
    each = len(experiment.scale.learning_rates) + experiment.scale.seeds - 1
    lines = [f"{'arm':<24}{'trainings':>10}{'steps':>10}{'FLOPs each':>12}{'FLOP/s':>10}{'each':>9}"]
    for trial, speed in zip(arms, speeds, strict=True):
        time = duration(trial.flops / speed)
        lines.append(
            f"{trial.arm:<24}{each:>10}{trial.plan.total_steps:>10,}{trial.flops:>12.3g}{speed:>10.2g}{time:>9}"
        )
    flops = each * sum(trial.flops for trial in arms)
    times = [trial.flops / speed for trial, speed in zip(arms, speeds, strict=True)]
    seconds = max(each * sum(times) / jobs, *times, 0)
    lines += [
        f"{experiment.units} trainings, {flops:.3g} training FLOPs, without validation and measurements",
        f"this machine, {jobs} at a time: about {duration(seconds)}",
        f"by the planner, on the devices that hardware.* describes: {_planned(arms, each, jobs)}",
    ]
    return "\n".join(lines)


def _planned(arms: Sequence[Trial], each: int, jobs: int) -> str:
    """Time by the planner at the share of the peak that it assumes, which a small model does not reach."""
    seconds = sum(trial.plan.total_steps * ranked([trial.plan])[0].seconds for trial in arms) * each / jobs
    hardware = arms[0].plan.settings.hardware
    peak = f"{hardware.peak_tflops:g} TFLOP/s" if hardware.peak_tflops else "an H100"
    return f"about {duration(seconds)} at {hardware.efficiency:.0%} of {peak}"


def _speed(experiment: Experiment, trial: Trial, run: Runner, slot: int) -> float:
    """Training FLOPs per second of the first steps, or of what has been trained already."""
    place = Workplace(trial)
    if not (trial.folder / "metrics.jsonl").is_file():
        words = ["train", "--config", trial.recipe, *trial.words, f"run.stop_after={CALIBRATION_STEPS}"]
        with owned(place.folder, wait=True):
            status = run(words, place.log, slot, experiment.scale.ranks)
        require_success(status, f"the first steps of {trial.name}", place.log)
    record = last_record(trial.folder / "metrics.jsonl")
    return record["flops"] / record["elapsed"]
