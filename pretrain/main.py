"""Training: `deepspeed pretrain/main.py --config RECIPE [key=value ...]`, or torchrun, srun, plain python.

parse -> check -> build -> train. Configuration errors are answered before torch is imported.
"""

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path

# Started by path, `pretrain/` stands first in the module path instead of the repository: make both ways the same.
HERE = Path(__file__).resolve().parent
if __name__ == "__main__" and Path(sys.path[0]).resolve() == HERE:
    sys.path[0] = str(HERE.parent)

from data_pipeline.dataset.blend import load_blend  # noqa: E402
from data_pipeline.errors import DataError  # noqa: E402
from pretrain.config.load import describe_keys, load_settings  # noqa: E402
from pretrain.config.run_plan import make_run_plan  # noqa: E402
from pretrain.errors import RankError, UserError  # noqa: E402
from pretrain.machine.library_warnings import filter_library_warnings  # noqa: E402
from pretrain.parallel.launcher import read_launcher  # noqa: E402
from pretrain.planning.layouts import choose  # noqa: E402
from pretrain.training.stop_request import end_process  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit status (0 done, 2 the user's error, 128 + n stopped by signal n after saving)."""
    arguments = build_parser().parse_args(argv)
    rank, world_size, _ = read_launcher()
    try:
        settings = load_settings(arguments.config, arguments.overrides)
        blend = load_blend(settings.data.path)
        if settings.parallel.auto:
            settings = choose(settings, blend.manifest, world_size)
        plan = make_run_plan(settings, blend.manifest, world_size)
        filter_library_warnings()
        from pretrain.parallel.world import leave_world
        from pretrain.training.start import run_training

        status = run_training(plan, blend, resume=arguments.resume)
        leave_world()
        return status
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: rank {rank}: {error}; make room and start again", file=sys.stderr, flush=True)
        return 2
    except (UserError, DataError) as error:
        if rank == 0 or isinstance(error, RankError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The command line; `--help` lists every key with its type, default and meaning."""
    keys = "\n".join(
        f"  {key}=<{kind}>{f' [{default}]' if default else ''}\n      {text}"
        for key, kind, default, text in describe_keys()
    )
    parser = argparse.ArgumentParser(
        prog="pretrain/main.py",
        description="Train a looped masked diffusion language model. Started by python (one process), deepspeed, "
        "torchrun, or srun (launchers/pretrain.sh).",
        epilog=f"keys:\n{keys}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", required=True, metavar="RECIPE", help="a shipped recipe (smoke, quickstart, ...) or a YAML file"
    )
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True,
        help="go on from the run folder's newest checkpoint when it has one; --no-resume moves the old run folder aside",
    )  # fmt: skip
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override the recipe, such as optim.lr=3e-4")
    return parser


if __name__ == "__main__":
    end_process(main())
