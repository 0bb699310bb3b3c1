"""`loopmdm evaluate RUN --lm-eval TASK ...`: tasks of EleutherAI's lm-eval."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pretrain.commands.evaluate_tasks import DEFAULT_LOOPS, Job, model_of
from pretrain.errors import UserError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


DEFAULT_MASKS = 128
INSTALL = "install it, for example with: pip install 'loopmdm[eval]'"


def run_harness(arguments: argparse.Namespace) -> int:
    """Evaluate the tasks at every number of loops, print lm-eval's tables, write `eval/step_N_WEIGHTS_lm_eval_TASKS_....json`."""
    manager = _task_manager(arguments)
    from pretrain.commands.load_run import open_run
    from pretrain.evaluation.sampler_settings import SamplerSettings

    run = open_run(arguments.folder, arguments.weights, arguments.tensor, arguments.pipeline)
    job = Job(
        arguments, [run], SamplerSettings.of(vars(arguments)), arguments.loops or DEFAULT_LOOPS, arguments.seed or 0
    )
    for loops in job.loops:
        _evaluate(job, loops, manager)
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


def _evaluate(job: Job, loops: int, manager: "TaskManager") -> None:
    from lm_eval import simple_evaluate
    from lm_eval.utils import make_table

    from pretrain.evaluation.harness import DiffusionHarness
    from pretrain.evaluation.item_files import ItemFile
    from pretrain.evaluation.result_files import keep_result

    arguments, run = job.arguments, job.runs[0]
    method, masks = arguments.likelihood or "nelbo", arguments.masks or DEFAULT_MASKS
    settings = {
        "lm_eval": list(arguments.lm_eval), "num_fewshot": arguments.num_fewshot, "likelihood": method,
        **({"masks": masks} if method == "nelbo" else {}), "sampler": job.sampler.record(), "seed": job.seed, "loops": loops,
        "step": run.step, "weights": run.weights,
    }  # fmt: skip
    stem = f"step_{run.step}_{run.weights}_lm_eval_{'-'.join(arguments.lm_eval)}_loops_{loops}"
    kept: ItemFile | None = ItemFile(run.folder / "eval", stem, settings) if run.world.is_main else None
    harness = DiffusionHarness(
        model_of(job, run, loops), method, masks, kept, lambda line: run.world.is_main and print(line, flush=True)
    )
    results = simple_evaluate(
        model=harness, tasks=list(arguments.lm_eval), num_fewshot=arguments.num_fewshot, limit=arguments.limit,
        task_manager=manager, log_samples=False,
    )  # fmt: skip
    if not run.world.is_main:
        return
    assert results is not None
    print(f"{run.folder}, step {run.step}, {run.weights} weights, S={loops}\n{make_table(results)}")
    content = {
        **_kept_figures(results),
        "step": run.step,
        "weights": run.weights,
        "settings": settings | {"limit": arguments.limit},
    }
    output = arguments.output
    if output is not None and len(job.loops) > 1:
        output = output.with_stem(f"{output.stem}_loops_{loops}")
    limit = f"_limit_{arguments.limit}" if arguments.limit else ""
    print(keep_result(run.folder / "eval", stem + limit, content, output))


def _kept_figures(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of lm-eval, and what they were computed on."""
    names = ("results", "versions", "n-shot", "higher_is_better", "n-samples")
    return {name.replace("-", "_"): results[name] for name in names if name in results}
