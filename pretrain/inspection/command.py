"""`loopmdm inspect FOLDER`: documents, rows and masks of a prepared folder as readable text."""

import argparse
import sys

from data_pipeline.paths import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.description = "Documents, rows and samples are numbered from 0."
    add = parser.add_argument
    add(
        "folder",
        type=user_path,
        metavar="FOLDER",
        help="folder written by `loopmdm prepare`, or a blend file (shows only its shares)",
    )
    add("--split", default="train", help="split whose documents and rows are shown [train]")
    add(
        "--documents",
        type=int,
        default=2,
        metavar="N",
        help="number of documents to show, evenly spaced over the split [2]",
    )
    add("--document", type=int, action="append", metavar="I", help="show document I instead; can be repeated")
    add("--rows", type=int, default=2, metavar="N", help="number of rows to show, evenly spaced over the split [2]")
    add("--row", type=int, action="append", metavar="I", help="show row I instead; can be repeated")
    add(
        "--sample",
        type=int,
        action="append",
        metavar="I",
        help="show the row that training uses as sample I; can be repeated",
    )
    add("--t", type=float, default=0.5, help="timestep: the fraction of tokens that is masked [0.5]")
    add("--seed", type=int, default=0, help="run.seed, which determines the masks and the row of each --sample [0]")
    add("--max-tokens", type=int, default=400, metavar="N", help="tokens to show of a document or row [400]")
    add("--html", type=user_path, metavar="FILE", help="write a self-contained HTML page instead of printing")


def run(arguments: argparse.Namespace) -> int:
    """Print the report or write the page; returns the exit status."""
    from data_pipeline.atomic_files import write_output
    from data_pipeline.dataset.blend import load_blend
    from pretrain.errors import UserError
    from pretrain.inspection.facts import collect
    from pretrain.inspection.page import page
    from pretrain.inspection.terminal import render, shares

    if not 0 <= arguments.t <= 1:
        raise UserError(
            f"--t {arguments.t:g}: the timestep is the fraction of tokens that is masked; give a number from 0 to 1"
        )
    for option in ("documents", "rows", "max_tokens"):
        least = 1 if option == "max_tokens" else 0
        if getattr(arguments, option) < least:
            raise UserError(f"--{option.replace('_', '-')} {getattr(arguments, option)}: must be at least {least}")
    if arguments.html is not None and arguments.html.is_dir():
        raise UserError(f"--html {arguments.html}: is a folder; give a file name")
    if arguments.folder.is_file():
        if arguments.html or arguments.row or arguments.sample or arguments.document:
            raise UserError(
                f"{arguments.folder} is a blend file, which has no rows of its own; give the folder of one of its corpora"
            )
        print("\n".join(shares(load_blend(arguments.folder))))
        return 0
    facts = collect(arguments)
    if arguments.html is None:
        print(render(facts, arguments.t, colours=sys.stdout.isatty()))
        return 0
    write_output("--html", arguments.html, page(facts, arguments.t).encode("utf-8", "backslashreplace"))
    print(f"wrote {arguments.html}")
    return 0
