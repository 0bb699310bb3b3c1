"""Training: `deepspeed pretrain/main.py --config RECIPE [key=value ...]`, or started by torchrun, srun or python.

`loopmdm train` is the same command. Configuration errors are reported before torch is imported.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

# Started by path, Python puts `pretrain/` first in the module path (`python -P`: nothing). Put the repository there instead.
HERE = Path(__file__).resolve().parent
if not __package__:
    sys.path[:] = [str(HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != HERE)]

if importlib.util.find_spec("torch") is None:
    sys.exit(
        f"error: {sys.executable} has no torch: `source .venv/bin/activate`, or install with `bash launchers/install.sh`"
    )

import pretrain  # noqa: E402, F401 - before the other packages: it makes sure that they are this project's
from pretrain.command_line import CommandLine, parse  # noqa: E402
from pretrain.config.keys import describe_keys  # noqa: E402
from pretrain.config.load import load_run  # noqa: E402
from pretrain.config.run_plan import make_run_plan  # noqa: E402
from pretrain.config.validation_split import require_validation_split  # noqa: E402
from pretrain.errors import OutOfMemoryError, RankError  # noqa: E402
from pretrain.machine.console import prepare_console  # noqa: E402
from pretrain.machine.library_warnings import filter_library_warnings  # noqa: E402
from pretrain.machine.versions import require_supported_versions  # noqa: E402
from pretrain.parallel.reporting import run_reporting_errors  # noqa: E402
from pretrain.planning.layouts import choose  # noqa: E402
from pretrain.planning.less_memory import advice  # noqa: E402
from pretrain.training.stop_request import end_process  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train; returns the exit status of `run`."""
    parser = CommandLine(prog="pretrain/main.py")
    add_arguments(parser)
    return run(parse(parser, sys.argv[1:] if argv is None else argv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line; `--help` lists every key with its type, default and meaning."""
    keys = "\n".join(
        f"  {key}=<{kind}>{f' [{default}]' if default else ''}\n      {text}"
        for key, kind, default, text in describe_keys()
    )
    parser.description = (
        "Train a looped masked diffusion language model.\n"
        "One process: loopmdm train, or python pretrain/main.py.\n"
        "Several: deepspeed or torchrun with pretrain/main.py, or launchers/pretrain.sh under SLURM.\n"
        "Without the repository: torchrun -m pretrain.main, deepspeed --module pretrain.main."
    )
    parser.epilog = f"keys, with their type and [default]; ~ and $NAME are expanded in paths:\n{keys}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--config", required=True, metavar="RECIPE", help="a shipped recipe (smoke, quickstart, ...) or a YAML file"
    )
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True,
        help="resume from the newest checkpoint in the run folder, if there is one (the default); --no-resume renames the old "
        "run folder and starts from step 0",
    )  # fmt: skip
    # Added by the deepspeed launcher and by torch.distributed.launch.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="override a key of the recipe, such as optim.lr=3e-4; of a key given twice, the last value counts",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train.

    Returns:
        The exit status: 0 done; 2 an error that the user can fix; 75 stopped by a signal or the time limit after saving, to be
        started again; 128 + n ended by signal n before the ranks have met.
    """
    return run_reporting_errors(lambda ranks: _train(arguments, ranks[1]))


def _train(arguments: argparse.Namespace, world_size: int) -> int:
    require_supported_versions()
    settings, blend = load_run(arguments.config, arguments.overrides)
    require_validation_split(settings, blend)
    if settings.parallel.auto:
        settings = choose(settings, blend.manifest, world_size)
    plan = make_run_plan(settings, blend.manifest, world_size)
    filter_library_warnings()
    from pretrain.parallel.world import leave_world
    from pretrain.training.start import run_training

    try:
        status = run_training(plan, blend, resume=arguments.resume)
    except OutOfMemoryError as error:
        raise RankError(f"{error}. {advice(plan)}") from error
    leave_world()
    return status


if __name__ == "__main__":
    prepare_console(outlive_reader=True)
    end_process(main())
