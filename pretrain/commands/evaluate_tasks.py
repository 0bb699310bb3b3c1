"""`loopmdm evaluate RUN --tasks ...`: tasks at several numbers of loops, and differences to another run."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.commands.task_options import TASK_OPTIONS
from pretrain.errors import UserError

if TYPE_CHECKING:
    from data_pipeline.dataset.blend import Blend
    from pretrain.commands.load_run import LoadedRun
    from pretrain.evaluation.sampler_settings import SamplerSettings
    from pretrain.evaluation.tasks.task import Record, Task, TaskModel

DEFAULT_LOOPS = [4]


@dataclass(frozen=True)
class Job:
    """What was asked for.

    Attributes:
        runs: the run, and the one to compare it with if there is one.
        sampler: how samples are drawn.
    """

    arguments: argparse.Namespace
    runs: "Sequence[LoadedRun]"
    sampler: "SamplerSettings"
    loops: Sequence[int]
    seed: int

    def settings(self, task: "Task", run: "LoadedRun") -> dict[str, Any]:
        """What distinguishes the records of a task's items from others, without the number of loops."""
        sampler = {"sampler": self.sampler.record()} if task.samples else {}
        return {**task.settings, **sampler, "seed": self.seed, "step": run.step, "weights": run.weights}

    def stem(self, task: "Task", run: "LoadedRun") -> str:
        """Begins the names of files: the settings that differ from the defaults as far as they are short."""
        parts = [f"step_{run.step}_{run.weights}", task.name]
        if task.samples:
            parts += [self.sampler.order] if self.sampler.order != "ancestral" else []
            parts += [f"steps_{self.sampler.steps}"] if self.sampler.steps is not None else []
        given = {name: getattr(self.arguments, name) for name in ("likelihood", "masks", "split")}
        parts += [str(value) for name, value in given.items() if name != "masks" and value not in (None, "validation")]
        parts += [f"masks_{given['masks']}"] if given["masks"] is not None else []
        parts += [f"seed_{self.seed}"] if self.seed else []
        return "_".join(parts)


def run_tasks(arguments: argparse.Namespace) -> int:
    """Evaluate every task, print its table, write `eval/step_N_WEIGHTS_TASK_....json` and the records of its items."""
    from pretrain.commands.load_run import open_run
    from pretrain.evaluation.sampler_settings import SamplerSettings

    sampler = SamplerSettings.of(vars(arguments))
    folders = [arguments.folder, *([arguments.compare] if arguments.compare else [])]
    runs = [open_run(folder, arguments.weights, arguments.tensor, arguments.pipeline) for folder in folders]
    job = Job(arguments, runs, sampler, arguments.loops or DEFAULT_LOOPS, arguments.seed or 0)
    makers = [_tasks(job, run) for run in runs]
    saved: list[str] = []
    for of_runs in zip(*makers, strict=True):
        result = _evaluate(job, of_runs)
        if runs[0].world.is_main:
            saved.append(_report(job, of_runs[0], result))
    if saved:
        print("\n".join(dict.fromkeys(saved)))
    return 0


def _tasks(job: Job, run: "LoadedRun") -> "list[Task]":
    """The tasks for one of the runs. Raises UserError for sampler options that no task needs."""
    from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
    from pretrain.evaluation.tasks.names import TaskMaker, TaskOptions

    arguments = job.arguments
    given = {name: getattr(arguments, name) for name in TASK_OPTIONS}
    given["until"] = given["until"] and tuple(given["until"])
    maker = TaskMaker(
        TaskOptions(**given), _blend(arguments, run), arguments.split,
        load_prepared_tokenizer(run.tokenizer_folder, run.manifest), run.settings.data.seq_len, job.seed,
    )  # fmt: skip
    tasks = maker.make(arguments.tasks)
    if not any(task.samples for task in tasks):
        for name in (f.name for f in fields(job.sampler)):
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name.replace('_', '-')}: has no effect on these tasks, which draw no samples")
    return tasks


def _blend(arguments: argparse.Namespace, run: "LoadedRun") -> "Blend | None":
    """The data with held-out instances; None if those of the run are not there, which only some tasks need."""
    from data_pipeline.dataset.blend import load_blend
    from pretrain.commands.load_run import find_data

    if arguments.data is not None:
        return load_blend(arguments.data)
    try:
        return load_blend(find_data(run))
    except UserError:
        return None


def _evaluate(job: Job, tasks: "Sequence[Task]") -> dict[str, Any]:
    """Figures of a task at every number of loops, with differences. Collective.

    Args:
        tasks: the same task for each of the runs.
    """
    from pretrain.evaluation.tasks.runner import chosen_items

    items = chosen_items(len(tasks[0].sizes), job.arguments.limit)
    rows: list[dict[str, Any]] = []
    first: np.ndarray | None = None
    for loops in job.loops:
        figures, values = zip(
            *(_measure(job, task, run, loops, items) for task, run in zip(tasks, job.runs, strict=True)), strict=True
        )
        first = values[0] if first is None else first
        row = {"loops": loops, **figures[0], **_difference("change_from_first", values[0], first)}
        if len(values) > 1:
            metric = tasks[1].metric
            other = {name: figures[1][name] for name in (metric, f"{metric}_se")}
            row["compared"] = other | _difference("difference", values[0], values[1])
        rows.append(row)
    return {"task": tasks[0].name, "metric": tasks[0].metric, "items": len(items), "loops": rows}


def _difference(name: str, own: np.ndarray, other: np.ndarray) -> dict[str, float | None]:
    """The paired difference of two sets of values of the same items."""
    from pretrain.evaluation.statistics import mean_and_error

    value, error = mean_and_error(own - other)
    return {name: value, f"{name}_se": error}


def _measure(
    job: Job, task: "Task", run: "LoadedRun", loops: int, items: Sequence[int]
) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of a task, and what each item contributes. Collective."""
    from pretrain.evaluation.item_files import ItemFile
    from pretrain.evaluation.tasks.runner import run_task

    model = model_of(job, run, loops)
    kept = None
    if run.world.is_main:
        settings = job.settings(task, run) | {"loops": loops}
        kept = ItemFile(run.folder / "eval", f"{job.stem(task, run)}_loops_{loops}", settings)
    records: list[Record] = run_task(task, model, items, kept, lambda line: print(line, flush=True))
    figures: dict[str, Any] = task.figures(model, records)
    if kept is not None and task.samples:
        figures["cost"] = _cost(kept.spent)
    return figures, task.values(records)


def _cost(spent: Sequence[Sequence[float]]) -> dict[str, Any]:
    *_, tokens, seconds = np.sum(spent, axis=0).tolist()
    return {"tokens": int(tokens), "seconds": seconds, "described": f"{tokens:,.0f} tokens in {seconds:.1f} s"}


def model_of(job: Job, run: "LoadedRun", loops: int) -> "TaskModel":
    """The run at a number of loops."""
    from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
    from pretrain.evaluation.scoring import TokenScorer
    from pretrain.evaluation.tasks.task import TaskModel, Work

    work = Work()
    return TaskModel(
        scorer=TokenScorer(run.logits, run.world, run.settings.model.mask_id, job.arguments.batch_size),
        loops=loops,
        network=lambda: run.denoiser(loops),
        sampler=job.sampler,
        tokenizer=load_prepared_tokenizer(run.tokenizer_folder, run.manifest),
        seq_len=run.settings.data.seq_len,
        seed=job.seed,
        work=work,
    )


def _report(job: Job, task: "Task", result: Mapping[str, Any]) -> str:
    """Print the table of a task and save it; returns the line that says where."""
    from pretrain.evaluation.result_files import keep_result
    from pretrain.evaluation.tasks.report import format_task

    arguments, run = job.arguments, job.runs[0]
    settings = job.settings(task, run) | {"loops": list(job.loops), "limit": arguments.limit}
    for other in job.runs[1:]:
        settings["compared_with"] = {"run": str(other.folder), "step": other.step, "weights": other.weights}
    others = [f"{one.folder.resolve().name}, step {one.step}" for one in job.runs[1:]]
    print(f"{arguments.folder}, step {run.step}, {run.weights} weights\n{format_task(result, others)}")
    stem = "_".join(
        [
            job.stem(task, run),
            f"loops_{'-'.join(map(str, job.loops))}",
            *([f"limit_{arguments.limit}"] if arguments.limit else []),
            *(f"vs_{one.folder.resolve().name}_step_{one.step}" for one in job.runs[1:]),
        ]
    )
    output = arguments.output
    if output is not None and len(arguments.tasks) > 1:
        output = output.with_stem(f"{output.stem}_{task.name}")
    about = {"step": run.step, "weights": run.weights, "settings": settings}
    return keep_result(run.folder / "eval", stem, {**result, **about}, output)
