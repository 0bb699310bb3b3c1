"""`loopmdm import DIR [RUN]`: a run folder from a folder that `loopmdm export` wrote."""

import argparse
import re
from pathlib import Path

from data_pipeline.paths import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("folder", type=user_path, metavar="DIR", help="folder that `loopmdm export` wrote")
    parser.add_argument(
        "output",
        type=user_path,
        nargs="?",
        metavar="RUN",
        help="run folder to write; must be new or empty [runs/NAME of the run]",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the run folder and print what can be done with it."""
    from pretrain.commands.write_run import write_run
    from pretrain.errors import UserError
    from pretrain.export.new_folder import require_new
    from pretrain.export.read import read_export
    from pretrain.export.weight_files import read_exported

    record, manifest = read_export(arguments.folder)
    output = arguments.output or Path("runs") / (record.settings["run.name"] or arguments.folder.resolve().name)
    require_new(output, "RUN" if arguments.output else "the default RUN")
    if not re.fullmatch(r"[\w.\-]+", output.resolve().name):
        raise UserError(f"{output}: the name of a run has only letters, digits, '_', '-' and '.'; choose another")
    weights = read_exported(arguments.folder, record.architecture)
    write_run(output, record, weights, arguments.folder, manifest)
    print(
        f"wrote {output}: step {record.step}, {record.weights} weights, without the optimizer states that training needs"
    )
    print(f"next: loopmdm sample {output}   loopmdm evaluate {output} --data DIR")
    return 0
