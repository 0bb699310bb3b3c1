"""`loopmdm inspect FOLDER`: documents, rows and masks of a prepared folder as a person reads them."""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="what `loopmdm prepare` wrote, or a blend file: its shares alone")
    add("--split", default="train", help="split whose documents and rows are shown [train]")
    add("--documents", type=int, default=2, metavar="N", help="documents to show, evenly spread over the split [2]")
    add("--rows", type=int, default=2, metavar="N", help="rows to show, evenly spread over the split [2]")
    add("--row", type=int, action="append", metavar="I", help="show this row instead; several may be given")
    add("--sample", type=int, action="append", metavar="I", help="show the row that training meets as sample I")
    add("--t", type=float, default=0.5, help="timestep: the share of tokens that is masked [0.5]")
    add("--seed", type=int, default=0, help="run.seed of the masks and of the order of --sample [0]")
    add("--max-tokens", type=int, default=400, metavar="N", help="tokens shown of a document or row [400]")
    add("--html", type=Path, metavar="FILE", help="write a page, which needs no other file, instead of printing")


def run(arguments: argparse.Namespace) -> int:
    """Print, or write the page."""
    from data_pipeline.atomic_files import write_atomic
    from data_pipeline.dataset.blend import load_blend
    from pretrain.errors import UserError
    from pretrain.inspection.facts import look
    from pretrain.inspection.page import page
    from pretrain.inspection.terminal import render, shares

    if not 0 <= arguments.t <= 1:
        raise UserError(f"--t {arguments.t:g}: is the share of tokens that is masked, from 0 to 1")
    for option in ("documents", "rows", "max_tokens"):
        if getattr(arguments, option) < (option == "max_tokens"):
            raise UserError(f"--{option.replace('_', '-')} {getattr(arguments, option)}: is too small")
    if arguments.html is not None and arguments.html.is_dir():
        raise UserError(f"--html {arguments.html}: is a folder; give the name of a file")
    if arguments.folder.is_file():
        if arguments.html or arguments.row or arguments.sample:
            raise UserError(
                f"{arguments.folder} is a blend file, of which only the shares are shown; give the folder of a corpus"
            )
        print("\n".join(shares(load_blend(arguments.folder))))
        return 0
    facts = look(arguments)
    if arguments.html is None:
        print(render(facts, arguments.t, colours=sys.stdout.isatty()))
        return 0
    write_atomic(arguments.html, page(facts, arguments.t))
    print(f"wrote {arguments.html}")
    return 0
