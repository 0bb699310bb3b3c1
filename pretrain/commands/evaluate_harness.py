"""`loopmdm evaluate RUN --lm-eval TASK ...`: tasks of EleutherAI's lm-eval, on a run or an exported folder."""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import listed
from pretrain.commands.task_job import Job, loops_part
from pretrain.errors import UserError
from pretrain.evaluation.compute_settings import ComputeSettings
from pretrain.proportions import wilson_interval

if TYPE_CHECKING:
    from pretrain.evaluation.harness import Tasks
    from pretrain.evaluation.tasks.task import TaskModel
    from pretrain.parallel.world import World

DEFAULT_MASKS = 128
NAMES_SHOWN = 5
INSTALL = "install it, for example in the repository with: pip install -e '.[eval]'"


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        folder: of the run or the export; results go to its `eval/`.
        name: of the weights, in names of files.
        about: the same for results.
        computes: what is computed, one result for each.
        model: makes the model with what it computes.
    """

    folder: Path
    name: str
    about: Mapping[str, Any]
    world: "World"
    computes: list[ComputeSettings]
    model: "Callable[[ComputeSettings], TaskModel]"


def run_harness(arguments: argparse.Namespace) -> int:
    """Evaluate the tasks at every number of loops, print lm-eval's tables, write `eval/step_N_WEIGHTS_lm_eval_TASKS_....json`."""
    from pretrain.evaluation.exported import is_export

    job, tasks = Job.of(arguments), _tasks(arguments)
    subject = _export(job) if is_export(arguments.folder) else _run(job)
    for compute in subject.computes:
        _evaluate(job, subject, compute, tasks)
    return 0


def _run(job: Job) -> Subject:
    from pretrain.commands.load_run import open_run

    arguments = job.arguments
    run = open_run(arguments.folder, arguments.weights, arguments.tensor, arguments.pipeline, step=arguments.checkpoint)
    name, about = f"step_{run.step}_{run.weights}", {"step": run.step, "weights": run.weights}
    return Subject(run.folder, name, about, run.world, job.resolved(run), lambda compute: job.model(run, compute))


def _export(job: Job) -> Subject:
    """An exported folder. Raises UserError for options that need a run."""
    from pretrain.evaluation.exported import ExportedModel
    from pretrain.parallel.launcher import read_launcher
    from pretrain.parallel.world import start_world

    arguments, size = job.arguments, job.arguments.batch_size
    for name, plain in (("weights", None), ("checkpoint", None), ("tensor", 1), ("pipeline", 1)):
        if getattr(arguments, name) != plain:
            raise UserError(f"--{name}: has no effect on an exported folder")
    for compute in job.computes:
        if set(compute.record()) != {"loops"} or not compute.loops_name.isdecimal():
            raise UserError(
                f"--loops {compute.loops_name}: an exported model takes a number of loops, without cache or warm start"
            )
    world = start_world(read_launcher())
    exported = ExportedModel(arguments.folder, world)

    def model(compute: ComputeSettings) -> "TaskModel":
        return exported.task_model(compute.loops[0], job.sampler, size, job.seed)

    return Subject(arguments.folder, "export", {"weights": "export"}, world, list(job.computes), model)


def _tasks(arguments: argparse.Namespace) -> "Tasks":
    """lm-eval's tasks, or those of a folder.

    Raises:
        UserError: lm-eval is not installed, a folder is not there, or a task is unknown.
    """
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise UserError(f"--lm-eval: needs the package lm-eval, 0.4.13 or newer ({error}); {INSTALL}") from None
    from pretrain.evaluation.harness import Tasks

    path = arguments.lm_eval_path
    if path is not None and not path.is_dir():
        raise UserError(f"--lm-eval-path {path}: no such folder; give the folder of task files in lm-eval's YAML")
    tasks = Tasks(include_path=str(path) if path is not None else None, include_defaults=path is None)
    for name in arguments.lm_eval:
        matching = tasks.match_tasks([name])
        if name not in matching and matching:
            raise UserError(
                f"--lm-eval {name}: name the tasks or a group of them; this matches {listed(matching, NAMES_SHOWN)}"
            )
        if not matching:
            where = (
                f"in {path}" if path is not None else "among those of lm-eval; --lm-eval-path names a folder of others"
            )
            raise UserError(f"--lm-eval {name}: no such task {where}")
    return tasks


def _evaluate(job: Job, subject: Subject, compute: ComputeSettings, tasks: "Tasks") -> None:
    from lm_eval import simple_evaluate
    from lm_eval.utils import make_table

    from pretrain.evaluation.harness import DiffusionHarness
    from pretrain.evaluation.item_files import ItemFile
    from pretrain.evaluation.result_files import keep_result

    arguments, is_main = job.arguments, subject.world.is_main
    settings = _settings(job, compute) | subject.about
    stem = f"{subject.name}_lm_eval_{'-'.join(arguments.lm_eval)}_{loops_part([compute])}"
    kept = ItemFile(subject.folder / "eval", stem, settings) if is_main else None
    harness = DiffusionHarness(
        subject.model(compute), settings["likelihood"], settings.get("masks", 1), tasks, kept,
        lambda line: print(line, flush=True) if is_main else None,
    )  # fmt: skip
    results = simple_evaluate(
        model=harness, tasks=list(arguments.lm_eval), num_fewshot=arguments.num_fewshot, limit=arguments.limit,
        task_manager=tasks, log_samples=False,
    )  # fmt: skip
    if not is_main:
        return
    assert results is not None
    print(f"{subject.folder}, {subject.name.replace('_', ' ')}, S={compute.loops_name}\n{make_table(results)}")
    intervals = share_intervals(results)
    print("\n".join(_interval_lines(intervals)))
    content = {**_kept_figures(results), "intervals": intervals, **subject.about}
    content["settings"] = settings | {"limit": arguments.limit}
    output = arguments.output
    if output is not None and len(subject.computes) > 1:
        output = output.with_stem(f"{output.stem}_{loops_part([compute])}")
    limit = f"_limit_{arguments.limit}" if arguments.limit else ""
    print(keep_result(subject.folder / "eval", stem + limit, content, output))


def _settings(job: Job, compute: ComputeSettings) -> dict[str, Any]:
    """What answers depend on, besides the weights."""
    arguments = job.arguments
    method = arguments.likelihood or "nelbo"
    masks = {"masks": arguments.masks or DEFAULT_MASKS} if method == "nelbo" else {}
    return {
        "lm_eval": list(arguments.lm_eval), "num_fewshot": arguments.num_fewshot, "likelihood": method, **masks,
        "sampler": job.sampler.record(), "seed": job.seed, **compute.record(),
    }  # fmt: skip


def share_intervals(results: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """Task -> name of a metric that is a share of its items -> 95% interval; lm-eval's standard error is 0 where all items agree.

    A mean of values from 0 to 1 has the standard error of a share only if all values are 0 or 1.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for task, figures in results["results"].items():
        count = results["n-samples"].get(task, {}).get("effective", 0)
        for name, share in figures.items():
            metric, comma, filtered = name.partition(",")
            error = figures.get(f"{metric}_stderr,{filtered}")
            if not comma or count < 2 or not isinstance(error, float) or not isinstance(share, int | float):
                continue
            if not 0 <= share <= 1:
                continue
            if math.isclose(error, math.sqrt(share * (1 - share) / (count - 1)), abs_tol=1e-9):
                found.setdefault(task, {})[name] = wilson_interval(share, count)
    return found


def _interval_lines(intervals: Mapping[str, Mapping[str, tuple[float, float]]]) -> Iterator[str]:
    for task, of_task in intervals.items():
        for name, (low, high) in of_task.items():
            yield f"{task}, {name.removesuffix(',none')}: 95% interval {low:.4f} to {high:.4f}"


def _kept_figures(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of lm-eval, and what they were computed on."""
    names = ("results", "versions", "n-shot", "higher_is_better", "n-samples")
    return {name.replace("-", "_"): results[name] for name in names if name in results}
