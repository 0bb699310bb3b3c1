"""`loopmdm VERB`: every command beside training. A verb's libraries are imported when it runs, not before."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from data_pipeline.errors import DataError
from pretrain.errors import UserError
from pretrain.machine.library_warnings import filter_library_warnings

VERBS = {
    "prepare": (
        "data_pipeline.prepare",
        "text -> tokenizer, token documents and packed rows",
    ),
    "verify": ("data_pipeline.verify", "compare every byte of a prepared folder with its manifest"),
    "repack": ("data_pipeline.repack", "other rows for a prepared folder, without tokenising again"),
    "plan": (
        "pretrain.planning.command",
        "every layout of a recipe on N ranks: memory, traffic, bubble, time, the best one",
    ),
    "inspect": (
        "pretrain.inspection.command",
        "documents, rows and masks of a prepared folder, on the terminal or as a page",
    ),
    "doctor": ("pretrain.commands.doctor", "what this machine has, what is used instead of what it lacks, and why"),
    "evaluate": ("pretrain.commands.evaluate", "validation NELBO of a run at several numbers of loops"),
    "sample": ("pretrain.commands.sample", "text from a run, by the ancestral reverse process"),
}
"""Verb -> (module with `add_arguments(parser)` and `run(arguments) -> exit status`, help line)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit status, 2 for the user's errors."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="loopmdm",
        description="Pre-training of looped masked diffusion language models.",
        epilog="Training: python pretrain/main.py --config RECIPE [key=value ...]; see its --help for launchers and keys.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    chosen = words[0] if words else ""
    run: Callable[[argparse.Namespace], int] | None = None
    for verb, (module_name, text) in VERBS.items():
        subparser = verbs.add_parser(verb, help=text, description=text)
        if verb == chosen:
            module = import_module(module_name)
            module.add_arguments(subparser)
            run = module.run
    arguments = parser.parse_args(words)
    assert run is not None
    filter_library_warnings()
    try:
        return run(arguments)
    except BrokenPipeError:
        # `loopmdm ... | head`: the reader has had enough, and the interpreter's last flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (UserError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
