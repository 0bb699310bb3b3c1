"""`loopmdm evaluate RUN --lm-eval TASK ...`: tasks of EleutherAI's lm-eval."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pretrain.commands.task_job import Job, loops_part
from pretrain.errors import UserError
from pretrain.evaluation.compute_settings import ComputeSettings

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from pretrain.commands.load_run import LoadedRun

DEFAULT_MASKS = 128
INSTALL = "install it, for example with: pip install 'loopmdm[eval]'"


def run_harness(arguments: argparse.Namespace) -> int:
    """Evaluate the tasks at every number of loops, print lm-eval's tables, write `eval/step_N_WEIGHTS_lm_eval_TASKS_....json`."""
    from pretrain.commands.load_run import open_run

    job, manager = Job.of(arguments), _task_manager(arguments)
    run = open_run(arguments.folder, arguments.weights, arguments.tensor, arguments.pipeline)
    for compute in job.resolved(run):
        _evaluate(job, run, compute, manager)
    return 0


def _task_manager(arguments: argparse.Namespace) -> "TaskManager":
    """lm-eval's tasks.

    Raises:
        UserError: lm-eval is not installed, a folder is not there, or a task is unknown.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"--lm-eval: needs the package lm-eval, 0.4.13 or newer ({error}); {INSTALL}") from None
    path = arguments.lm_eval_path
    if path is not None and not path.is_dir():
        raise UserError(f"--lm-eval-path {path}: no such folder; give the folder of task files in lm-eval's YAML")
    manager = TaskManager(include_path=str(path) if path is not None else None, include_defaults=path is None)
    known = set(manager.all_tasks)
    for name in arguments.lm_eval:
        if not manager.match_tasks([name]) and name not in known:
            where = f"in {path}" if path is not None else "among those of lm-eval; --lm-eval-path adds a folder"
            raise UserError(f"--lm-eval {name}: no such task {where}")
    return manager


def _evaluate(job: Job, run: "LoadedRun", compute: ComputeSettings, manager: "TaskManager") -> None:
    from lm_eval import simple_evaluate
    from lm_eval.utils import make_table

    from pretrain.evaluation.harness import DiffusionHarness
    from pretrain.evaluation.item_files import ItemFile
    from pretrain.evaluation.result_files import keep_result

    arguments = job.arguments
    method, masks = arguments.likelihood or "nelbo", arguments.masks or DEFAULT_MASKS
    settings = {
        "lm_eval": list(arguments.lm_eval), "num_fewshot": arguments.num_fewshot, "likelihood": method,
        **({"masks": masks} if method == "nelbo" else {}), "sampler": job.sampler.record(), "seed": job.seed, **compute.record(),
        "step": run.step, "weights": run.weights,
    }  # fmt: skip
    stem = f"step_{run.step}_{run.weights}_lm_eval_{'-'.join(arguments.lm_eval)}_{loops_part([compute])}"
    kept: ItemFile | None = ItemFile(run.folder / "eval", stem, settings) if run.world.is_main else None
    harness = DiffusionHarness(
        job.model(run, compute), method, masks, kept, lambda line: run.world.is_main and print(line, flush=True)
    )
    results = simple_evaluate(
        model=harness, tasks=list(arguments.lm_eval), num_fewshot=arguments.num_fewshot, limit=arguments.limit,
        task_manager=manager, log_samples=False,
    )  # fmt: skip
    if not run.world.is_main:
        return
    assert results is not None
    print(f"{run.folder}, step {run.step}, {run.weights} weights, S={compute.loops_name}\n{make_table(results)}")
    content = {
        **_kept_figures(results),
        "step": run.step,
        "weights": run.weights,
        "settings": settings | {"limit": arguments.limit},
    }
    output = arguments.output
    if output is not None and len(job.computes) > 1:
        output = output.with_stem(f"{output.stem}_{loops_part([compute])}")
    limit = f"_limit_{arguments.limit}" if arguments.limit else ""
    print(keep_result(run.folder / "eval", stem + limit, content, output))


def _kept_figures(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of lm-eval, and what they were computed on."""
    names = ("results", "versions", "n-shot", "higher_is_better", "n-samples")
    return {name.replace("-", "_"): results[name] for name in names if name in results}
