"""`loopmdm VERB`: all commands. The modules of a verb are imported only when it runs."""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from data_pipeline.errors import DataError
from pretrain.command_line import CommandLine, parse
from pretrain.errors import UserError
from pretrain.machine.library_warnings import filter_library_warnings
from pretrain.training.stop_request import end_process

VERBS = {
    "prepare": ("data_pipeline.prepare", "text -> tokenizer, token documents and packed rows"),
    "verify": ("data_pipeline.verify", "compare every byte of a prepared folder with its manifest"),
    "repack": ("data_pipeline.repack", "change the rows of a prepared folder without tokenizing again"),
    "inspect": ("pretrain.inspection.command", "show documents, rows and masks of a prepared folder, as text or HTML"),
    "plan": ("pretrain.planning.command", "compare all layouts of a recipe on N ranks: memory, traffic, bubble, time"),
    "train": ("pretrain.main", "train a recipe; the same as python pretrain/main.py"),
    "evaluate": ("pretrain.commands.evaluate", "validation NELBO of a run at several numbers of loops"),
    "sample": ("pretrain.commands.sample", "generate text with a run, by ancestral sampling of the reverse process"),
    "doctor": ("pretrain.commands.doctor", "report versions, devices and which optional kernels are used"),
}
"""Verb -> (module with `add_arguments(parser)` and `run(arguments) -> exit status`, help text)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit status, 2 for errors that the user can fix."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = words[0] if words else ""
    if chosen not in VERBS:
        _top_level().parse_args(words)
    module_name, text = VERBS[chosen]
    module = import_module(module_name)
    parser = CommandLine(prog=f"loopmdm {chosen}", description=text)
    module.add_arguments(parser)
    arguments, run = parse(parser, words[1:]), module.run
    if chosen == "train":  # it reports its own errors and ends as pretrain/main.py does
        end_process(run(arguments))
    filter_library_warnings()
    try:
        return run(arguments)
    except BrokenPipeError:
        # `loopmdm ... | head` has closed the pipe: let the interpreter's last flush succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (UserError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _top_level() -> CommandLine:
    """The parser of `loopmdm --help` and of a verb that does not exist."""
    parser = CommandLine(prog="loopmdm", description="Pre-training of looped masked diffusion language models.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (_, text) in VERBS.items():
        verbs.add_parser(verb, help=text)
    return parser


def command() -> NoReturn:
    """The console command: run one verb and exit, leaving the process groups if the verb joined any and succeeded."""
    status = main()
    if status == 0 and (world := sys.modules.get("pretrain.parallel.world")):
        world.leave_world()
    sys.exit(status)


if __name__ == "__main__":
    command()
