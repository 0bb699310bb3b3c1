"""`loopmdm evaluate RUN`: validation NELBO with its standard error at several numbers of loops, or tasks."""

import argparse
from dataclasses import fields

from data_pipeline.paths import user_path
from pretrain.commands.compute_options import add_network_arguments, share_threshold
from pretrain.commands.evaluate_harness import run_harness
from pretrain.commands.evaluate_nelbo import DEFAULT_SPLIT, run_nelbo
from pretrain.commands.evaluate_tasks import run_tasks
from pretrain.commands.options import add_layout_arguments, add_run_arguments, check_options
from pretrain.commands.sampler_options import add_sampler_arguments
from pretrain.commands.task_options import add_task_arguments, check_task_options
from pretrain.config.run_folder import check_run_folder
from pretrain.errors import UserError
from pretrain.evaluation.compute_settings import ComputeSettings, parse_loops
from pretrain.evaluation.sampler_settings import SamplerSettings
from pretrain.machine.versions import require_supported_versions

LOOPS_HELP = """\
numbers of loops to evaluate at [1,2,4,8; tasks 4]; tasks also take schedules and adaptive, as loopmdm sample"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_run_arguments(parser)
    add = parser.add_argument
    add("--loops", type=loop_list, metavar="S,S,...", help=LOOPS_HELP)
    add("--rows", type=int, metavar="N", help="validation rows to use; all if there are fewer [1024]")
    add("--batch-size", type=int, default=32, metavar="N", help="rows per forward pass [32]")
    add("--data", type=user_path, metavar="DIR", help="prepared folder or blend file to evaluate on [the run's]")
    add("--split", default=DEFAULT_SPLIT, help="split of the folder [validation]")
    add(
        "--compare",
        type=user_path,
        metavar="RUN",
        help="another run, for differences on the same rows, masks and items",
    )
    add_layout_arguments(parser)
    add_task_arguments(parser)
    add_sampler_arguments(parser)
    add_network_arguments(parser.add_argument_group("compute of samplers"))


def loop_list(text: str) -> list[str]:
    """`1,2,adaptive` -> ["1", "2", "adaptive"]."""
    loops = [part.strip() for part in text.split(",")]
    try:
        parsed = [parse_loops(part) for part in loops]
    except UserError as error:
        reason = str(error).removeprefix("--loops ")
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 1,2,4: {reason}") from None
    if len(set(parsed)) < len(parsed):
        raise argparse.ArgumentTypeError(f"{text!r}: a number of loops is given twice")
    return loops


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the figures, write `eval/step_N_*.json`."""
    require_supported_versions()
    check_options(arguments, {"batch_size": 1})
    chosen = next((f"--{name}" for name in ("tasks", "lm-eval") if getattr(arguments, name.replace("-", "_"))), "")
    if arguments.rows is not None and (chosen or arguments.rows < 2):
        why = f"has no effect with {chosen}; use --limit" if chosen else "a standard error needs at least 2 rows"
        raise UserError(f"--rows {arguments.rows}: {why}")
    if arguments.tasks:
        arguments.tasks = [value for values in arguments.tasks for value in values]
    check_task_options(vars(arguments))
    share_threshold(arguments)
    if not arguments.lm_eval:  # which takes exported folders too
        for folder in filter(None, (arguments.folder, arguments.compare)):
            check_run_folder(folder)
    if arguments.tasks:
        return run_tasks(arguments)
    if arguments.lm_eval:
        if arguments.compare:
            raise UserError("--compare: has no effect with --lm-eval; evaluate the other run by itself")
        return run_harness(arguments)
    names = {field.name for settings in (SamplerSettings, ComputeSettings) for field in fields(settings)}
    for name in sorted(names - {"loops", "adaptive"}):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: has no effect without --tasks or --lm-eval")
    return run_nelbo(arguments)
