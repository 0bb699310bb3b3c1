"""`loopmdm report RUN [RUN ...] --html FILE`: runs as one HTML page."""

import argparse

from data_pipeline.paths import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("folders", type=user_path, nargs="+", metavar="RUN", help="run folder, such as runs/quickstart")
    parser.add_argument("--html", type=user_path, required=True, metavar="FILE", help="the page to write")


def run(arguments: argparse.Namespace) -> int:
    """Write the page."""
    from data_pipeline.atomic_files import write_output
    from pretrain.errors import UserError
    from pretrain.inspection.run_facts import read_runs
    from pretrain.inspection.run_page import run_page

    if arguments.html.is_dir():
        raise UserError(f"--html {arguments.html}: is a folder; give a file name")
    page = run_page(read_runs(arguments.folders))
    write_output("--html", arguments.html, page.encode("utf-8", "backslashreplace"))
    print(f"wrote {arguments.html}")
    return 0
