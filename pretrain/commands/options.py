"""Options that `evaluate` and `sample` share, and checks of their values before a model is loaded."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipeline.paths import user_path
from pretrain.errors import UserError


def add_run_arguments(parser: argparse.ArgumentParser, suffixes: Sequence[str] = (".json",)) -> None:
    """The run folder, its weights, and the file of the result, which ends in one of `suffixes`."""
    parser.add_argument("folder", type=user_path, metavar="RUN", help="run folder, such as runs/quickstart")
    parser.add_argument(
        "--weights", choices=("ema", "raw"), help="moving average or raw weights [ema if the run keeps it]"
    )
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="step of the checkpoint [the newest]")
    parser.add_argument(
        "--output",
        type=user_path,
        metavar=f"FILE{' or FILE'.join(suffixes)}",
        help="file for the result [a new one in the run folder]",
    )
    parser.set_defaults(output_suffixes=tuple(suffixes))


def add_layout_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of a layout. Ranks beyond tensor x pipeline share the rows."""
    parser.add_argument(
        "--tensor", type=int, default=1, help="tensor-parallel size; start with a launcher if above 1 [1]"
    )
    parser.add_argument("--pipeline", type=int, default=1, help="pipeline stages; start with a launcher if above 1 [1]")


def check_options(arguments: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Check numbers and the output file.

    Args:
        least: option -> the smallest value that means something. An option without a value is not checked.

    Raises:
        UserError: names the option.
    """
    for name, smallest in {**least, "tensor": 1, "pipeline": 1}.items():
        value = getattr(arguments, name)
        if value is not None and value < smallest:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {smallest}")
    if arguments.output is not None:
        _check_output(arguments.output, arguments.output_suffixes)


def _check_output(output: Path, suffixes: Sequence[str]) -> None:
    """Notice before the work that a file cannot be written."""
    if output.suffix not in suffixes:
        raise UserError(f"--output {output}: the result is JSON; give a name that ends in {' or '.join(suffixes)}")
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; give a file name")
    target = output if output.exists() else next(p for p in output.absolute().parents if p.exists())
    if not os.access(target, os.W_OK):
        raise UserError(f"--output {output}: cannot be written (no permission for {target}); choose another file")
