"""`loopmdm evaluate RUN --tasks ...`: tasks at several numbers of loops, and differences to another run."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import DataError
from pretrain.commands.task_job import OF_ADAPTIVE, Job
from pretrain.commands.task_options import TASK_OPTIONS
from pretrain.errors import UserError
from pretrain.evaluation.compute_settings import ComputeSettings
from pretrain.evaluation.sampler_settings import SamplerSettings

if TYPE_CHECKING:
    import numpy as np

    from data_pipeline.dataset.blend import Blend
    from data_pipeline.manifest import InputInfo
    from pretrain.commands.load_run import LoadedRun
    from pretrain.evaluation.tasks.task import Task


def run_tasks(arguments: argparse.Namespace) -> int:
    """Evaluate every task, print its table, write `eval/step_N_WEIGHTS_TASK_....json` and the records of its items."""
    from pretrain.commands.load_run import open_runs

    job = Job.of(arguments)
    runs = open_runs(arguments)
    blend = _blend(arguments, runs[0])
    of_runs = [_tasks(job, run, blend) for run in runs]
    names = [task.name for task in of_runs[0]]
    twice = next((name for name in names if names.count(name) > 1), None)
    if arguments.output is not None and twice:
        raise UserError(
            f"--output {arguments.output}: two tasks are named {twice}, and one file would hold both; name one NAME:FILE"
        )
    saved: list[str] = []
    for tasks in zip(*of_runs, strict=True):
        result = _evaluate(job, runs, tasks)
        if runs[0].world.is_main:
            saved.append(_report(job, runs, tasks[0], result))
    if saved:
        print("\n".join(dict.fromkeys(saved)))  # a folder that cannot be written is mentioned once
    return 0


def _tasks(job: Job, run: "LoadedRun", blend: "Blend | None") -> "list[Task]":
    """The tasks for one of the runs. Raises UserError for options of samplers if no task draws samples, and the other way.

    Args:
        blend: the same for all runs, so that all get the same items.
    """
    from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
    from pretrain.commands.load_run import check_tokenizer
    from pretrain.evaluation.tasks.names import GENERATIVE, TaskMaker, TaskOptions, untrained_task

    arguments = job.arguments
    if blend is not None and GENERATIVE in arguments.tasks:  # other tasks take texts, not tokens
        check_tokenizer(blend, run)
    given = {name: getattr(arguments, name) for name in TASK_OPTIONS}
    given["until"] = given["until"] and tuple(given["until"])
    maker = TaskMaker(
        TaskOptions(**given), blend, arguments.split,
        load_prepared_tokenizer(run.tokenizer_folder, run.manifest), run.settings.data.seq_len, job.seed,
    )  # fmt: skip
    tasks = maker.make(arguments.tasks)
    if run.world.is_main and (inputs := _trained_inputs(run)):
        for value in arguments.tasks:
            if line := untrained_task(value, run.folder, inputs):
                print(line, file=sys.stderr)
    names = {field.name for settings in (SamplerSettings, ComputeSettings) for field in fields(settings)}
    for name in sorted(names - {"loops", "adaptive", *OF_ADAPTIVE}):
        if getattr(arguments, name) is not None and not any(task.samples for task in tasks):
            raise UserError(f"--{name.replace('_', '-')}: has no effect on these tasks, which draw no samples")
    return tasks


def _blend(arguments: argparse.Namespace, run: "LoadedRun") -> "Blend | None":
    """The data with held-out instances; None if those of the run are not there, which only some tasks need."""
    from pretrain.commands.load_run import data_of

    try:
        return data_of(run, arguments.data)
    except UserError:
        return None


def _trained_inputs(run: "LoadedRun") -> "Sequence[InputInfo]":
    """What the data of a run were prepared from; empty if that is not known: of a blend that is gone, one manifest is left."""
    from data_pipeline.dataset.blend import BLEND_SUFFIXES, load_blend
    from pretrain.commands.load_run import find_data

    try:
        return [info for corpus in load_blend(find_data(run)).corpora for info in corpus.manifest.inputs]
    except (UserError, DataError):
        return [] if run.settings.data.path.suffix in BLEND_SUFFIXES else run.manifest.inputs


def _evaluate(job: Job, runs: "Sequence[LoadedRun]", tasks: "Sequence[Task]") -> dict[str, Any]:
    """Figures of a task at every number of loops, with differences. Collective.

    Args:
        tasks: the same task for each of the runs.
    """
    from pretrain.evaluation.tasks.runner import chosen_items

    items = chosen_items(len(tasks[0].sizes), job.arguments.limit)
    rows: list[dict[str, Any]] = []
    first: np.ndarray | None = None
    for computes in zip(*(job.resolved(run) for run in runs), strict=True):
        pairs = zip(tasks, runs, computes, strict=True)
        figures, values = zip(*(_measure(job, task, run, compute, items) for task, run, compute in pairs), strict=True)
        first = values[0] if first is None else first
        metric = tasks[0].metric
        shares = f"{metric}_low" in figures[0]
        row = {
            **computes[0].record(),
            **figures[0],
            **_difference("change_from_first", values[0], first, shares and bool(rows)),
        }
        if len(values) > 1:
            of_metric = (metric, *(f"{metric}{ending}" for ending in ("_se", "_low", "_high")))
            other = {name: figures[1][name] for name in of_metric if name in figures[1]}
            row["compared"] = other | _difference("difference", values[0], values[1], shares)
        rows.append(row)
    return {"task": tasks[0].name, "metric": tasks[0].metric, "items": len(items), "loops": rows}


def _difference(name: str, own: "np.ndarray", other: "np.ndarray", shares: bool) -> dict[str, float | None]:
    """The paired difference of two sets of values of the same items; of shares with its 95% interval."""
    from pretrain.evaluation.statistics import mean_and_error
    from pretrain.proportions import paired_difference_interval

    value, error = mean_and_error(own - other)
    found = {name: value, f"{name}_se": error}
    if shares:
        found[f"{name}_low"], found[f"{name}_high"] = paired_difference_interval(own, other)
    return found


def _measure(
    job: Job, task: "Task", run: "LoadedRun", compute: ComputeSettings, items: Sequence[int]
) -> "tuple[dict[str, Any], np.ndarray]":
    """Figures of a task with what they have cost, and what each item contributes. Collective."""
    from pretrain.evaluation.item_files import ItemFile
    from pretrain.evaluation.tasks.runner import cost_of, run_task

    model, kept, is_main = job.model(run, compute), None, run.world.is_main
    if is_main:
        settings = job.settings(task, run) | compute.record()
        kept = ItemFile(run.folder / "eval", job.stem(task, run, [compute]), settings)
    records = run_task(task, model, items, kept, lambda line: print(line, flush=True) if is_main else None)
    figures: dict[str, Any] = task.figures(model, records)
    counted = task.samples or not isinstance(model.loops, int)
    if kept is not None and counted and kept.spent and kept.records.keys() == set(items):
        figures["cost"] = cost_of(kept.spent).record()  # that of other items could not be told apart
    return figures, task.values(records)


def _report(job: Job, runs: "Sequence[LoadedRun]", task: "Task", result: Mapping[str, Any]) -> str:
    """Print the table of a task and save it; returns the line that says where."""
    from pretrain.evaluation.result_files import keep_result
    from pretrain.evaluation.tasks.report import format_task

    arguments, run = job.arguments, runs[0]
    computes = job.resolved(run)
    settings = job.settings(task, run) | {"compute": [one.record() for one in computes], "limit": arguments.limit}
    for other in runs[1:]:
        settings["compared_with"] = {"run": str(other.folder), "step": other.step, "weights": other.weights}
    others = [f"{one.folder.resolve().name}, step {one.step}" for one in runs[1:]]
    print(f"{arguments.folder}, step {run.step}, {run.weights} weights\n{format_task(result, others)}")
    stem = job.stem(task, run, computes)
    stem += f"_limit_{arguments.limit}" if arguments.limit else ""
    stem += "".join(f"_vs_{one.folder.resolve().name}_step_{one.step}" for one in runs[1:])
    output = arguments.output
    if output is not None and len(arguments.tasks) > 1:
        output = output.with_stem(f"{output.stem}_{task.name}")
    about = {"step": run.step, "weights": run.weights, "settings": settings}
    return keep_result(run.folder / "eval", stem, {**result, **about}, output)
