"""`loopmdm study NAME`: run a study, or what is missing of it, and write its page."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from data_pipeline.atomic_files import locked
from data_pipeline.paths import user_path
from data_pipeline.stop_signals import Stopped, raise_stopped
from pretrain.config.load import override_of
from pretrain.config.overrides import parse_overrides
from pretrain.errors import UserError
from pretrain.studies.accounting import CONVENTIONS
from pretrain.studies.data import prepare_data
from pretrain.studies.definition import DECIDED, MAX_SEEDS, Scale, Study, find_scale, load_study, study_names
from pretrain.studies.estimate import describe
from pretrain.studies.output import write_results
from pretrain.studies.processes import Runner, Subprocesses, visible_gpus
from pretrain.studies.results import best_rates, read_results
from pretrain.studies.schedule import run_all, unit_of
from pretrain.studies.trials import Experiment, unit_counts
from pretrain.studies.unit import Workplace, run_unit

SCALES = ("smoke", "desk", "cluster")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="a shipped study, see --list, or a YAML file")
    add(
        "overrides", nargs="*", metavar="key=value",
        help="override a key of the recipe in all arms, such as train.max_flops=1e13; only what depends on it runs again",
    )  # fmt: skip
    add("--list", action="store_true", help="list the studies")
    add("--scale", default="desk", choices=SCALES, help="how much is computed [desk]")
    add("--jobs", type=int, metavar="N", help="trainings at the same time [as many as there are GPUs, else CPU cores]")
    add("--seeds", type=int, metavar="N", help="trainings of every arm at its best learning rate [as the study says]")
    add("--output", type=user_path, default=Path("studies"), metavar="DIR", help="folder of all studies [studies]")
    add(
        "--dry-run",
        action="store_true",
        help="show FLOPs and time; prepares the data and runs the first steps of every arm to measure them, and keeps both",
    )
    add(
        "--flops",
        default="masked_head",
        choices=tuple(CONVENTIONS),
        help="convention of the page's charts [masked_head]",
    )
    add("--units", action="store_true", help="list the trainings by number, and which are done")
    add("--count", action="store_true", help="print how many trainings tune the learning rates, and how many follow")
    add("--unit", type=int, metavar="K", help="do training K alone, with all cores, for a SLURM array")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: something that the user can fix.
    """
    if arguments.list:
        names = study_names()
        width = max(map(len, names)) + 2
        print("\n".join(f"{name:<{width}}{load_study(name).claim}" for name in names))
        return 0
    if arguments.name is None:
        raise UserError(f"NAME: give a study, one of: {', '.join(study_names())}")
    if arguments.count:
        study, scale = _chosen(arguments)
        print(*unit_counts(study, scale))
        return 0
    ranks = _chosen(arguments)[1].ranks
    jobs = _jobs(arguments, ranks)
    runner = Subprocesses(jobs, visible_gpus(), ranks)
    try:
        with raise_stopped():
            return run_study(arguments, runner, jobs)
    except Stopped as stopped:
        print(f"stopped by {stopped}; run the same command again to continue", file=sys.stderr)
        return 128 + stopped.signal_number


def run_study(arguments: argparse.Namespace, runner: Runner, jobs: int) -> int:
    """`run`, with commands that are run by `runner`."""
    experiment = experiment_of(arguments, runner)
    _ = experiment.tuning  # wrong settings leave no folder
    experiment.check_rules()
    if arguments.units:
        print("\n".join(_units(experiment)))
    elif arguments.unit is not None:
        trial = unit_of(experiment, arguments.unit)
        run_unit(experiment, trial, runner, slot=0)
        print(f"{Workplace(trial).state(experiment)}: {trial.name}, {trial.folder}")
    else:
        folder = arguments.output / experiment.study.name / experiment.folder_name
        folder.mkdir(parents=True, exist_ok=True)
        busy = UserError(f"{folder}: another process runs this study; wait for it")
        with locked(folder / ".lock", busy):
            if arguments.dry_run:
                print(describe(experiment, runner, jobs, _show))
                return 0
            run_all(experiment, runner, jobs, _show)
            print(write_results(folder, read_results(experiment), arguments.flops, command_of(arguments)))
    return 0


def experiment_of(arguments: argparse.Namespace, runner: Runner) -> Experiment:
    """The study at its scale, with its data prepared."""
    study, scale = _chosen(arguments)
    output = arguments.output.absolute()
    for key, _ in parse_overrides(arguments.overrides)[0]:
        if key in DECIDED and key != "data.path":
            raise UserError(f"{key} is decided by the study; give {DECIDED[key]}")
    given = override_of("data.path", arguments.overrides)
    if given is not None and given.is_file():
        raise UserError(f"data.path={given}: a study needs a prepared folder, not a mixture of several")
    data = given.absolute() if given else prepare_data(scale.data, output / "data", runner, _show)
    return Experiment(study, arguments.scale, scale, tuple(arguments.overrides), data, output / "runs")


def _show(line: str) -> None:
    """Print a line of progress at once."""
    print(line, flush=True)


def _chosen(arguments: argparse.Namespace) -> tuple[Study, Scale]:
    """The study and its scale, with the seeds of the command line."""
    study = load_study(arguments.name)
    scale = find_scale(study, arguments.scale)
    if arguments.seeds is None:
        return study, scale
    if not 1 <= arguments.seeds <= MAX_SEEDS:
        raise UserError(f"--seeds {arguments.seeds}: must be from 1 to {MAX_SEEDS}")
    return study, scale.model_copy(update={"seeds": arguments.seeds})


def _jobs(arguments: argparse.Namespace, ranks: int) -> int:
    """Trainings of `ranks` processes at the same time."""
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"--jobs {arguments.jobs}: must be at least 1")
    if arguments.unit is not None:
        return 1
    return arguments.jobs or max(1, (len(visible_gpus()) or len(os.sched_getaffinity(0))) // ranks)


def _units(experiment: Experiment) -> list[str]:
    trials, wait = list(experiment.tuning), ""
    try:
        trials += experiment.repeats(best_rates(experiment))
    except UserError:
        wait = f"{len(trials):>4}  and further ones wait for the learning rates"
    states = [Workplace(trial).state(experiment) for trial in trials]
    lines = [f"{k:>4}  {states[k]:<8} {trial.name:<40} {trial.folder}" for k, trial in enumerate(trials)]
    return [*lines, *([wait] if wait else [])]


def command_of(arguments: argparse.Namespace) -> str:
    """The command that makes the page, for a shell; options at their defaults are left out, but for the scale."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["loopmdm", "study", arguments.name, "--scale", arguments.scale]
    for name in ("jobs", "seeds", "output", "flops"):
        if (value := getattr(arguments, name)) != parser.get_default(name):
            words += [f"--{name}", str(value)]
    return shlex.join([*words, *arguments.overrides])
