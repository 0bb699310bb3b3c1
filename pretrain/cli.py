"""`loopmdm VERB`: all commands. The modules of a verb are imported only when it runs."""

import argparse
import difflib
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from data_pipeline.atomic_files import FULL_DISK
from data_pipeline.errors import DataError
from pretrain.command_line import CommandLine, parse
from pretrain.errors import UserError
from pretrain.machine.console import prepare_console
from pretrain.machine.library_warnings import filter_library_warnings
from pretrain.parallel.reporting import run_reporting_errors
from pretrain.training.stop_request import end_process

VERBS = {
    "prepare": ("data_pipeline.prepare", "text -> tokenizer, token documents and packed rows"),
    "verify": ("data_pipeline.verify", "compare every byte of a prepared folder with its manifest"),
    "repack": ("data_pipeline.repack", "change the rows of a prepared folder without tokenizing again"),
    "copy": ("data_pipeline.copy_folder", "copy a prepared folder to an object store or from one"),
    "inspect": ("pretrain.inspection.command", "show documents, rows and masks of a prepared folder, as text or HTML"),
    "plan": ("pretrain.planning.command", "compare all layouts of a recipe on N ranks: memory, traffic, bubble, time"),
    "train": ("pretrain.main", "train a recipe; the same as python pretrain/main.py"),
    "evaluate": (
        "pretrain.commands.evaluate",
        "validation NELBO of a run at several numbers of loops, tasks, tasks of lm-eval",
    ),
    "sample": (
        "pretrain.commands.sample",
        "generate text with a run: ancestral or another sampler, prompts, templates with gaps",
    ),
    "probe": ("pretrain.commands.probe", "hidden states and attention of every pass of a run's looped block"),
    "report": ("pretrain.inspection.report_command", "curves, figures and samples of runs as one HTML page"),
    "study": ("pretrain.studies.command", "train and compare the arms of a study of the paper's claims; one page"),
    "status": ("pretrain.commands.status", "what a run is doing: state, step, losses, speed, checkpoints, warnings"),
    "checkpoints": ("pretrain.commands.checkpoints", "list, verify or remove the checkpoints of a run"),
    "export": ("pretrain.commands.export", "write a run as a folder that Hugging Face transformers loads"),
    "import": ("pretrain.commands.import_run", "make a run folder of an exported folder"),
    "doctor": ("pretrain.commands.doctor", "report versions, devices and which optional kernels are used"),
}
"""Verb -> (module with `add_arguments(parser)` and `run(arguments) -> exit status`, help text)."""

ONLY_PRINT = ("inspect", "plan", "doctor")
"""Verbs that end when nobody reads what they print (`loopmdm inspect ... | head`). The others go on to their result."""

WITHOUT_REPOSITORY = """\
Everything works from an installed package too. To train without a copy of the repository:
  loopmdm train --config RECIPE                                       one process
  torchrun --nproc-per-node 8 -m pretrain.main --config RECIPE        several; deepspeed: --module pretrain.main
`loopmdm train --help` lists the settings. RECIPE is smoke, quickstart, sudoku6, sudoku6_best, paper_170m
or a YAML file.
"""


MAY_HAVE_RANKS = ("evaluate", "sample")
"""Verbs that a launcher may start on several ranks, besides `train`. All others work alone wherever they are started."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit status, 2 for errors that the user can fix.

    Raises:
        BrokenPipeError: nobody reads what is printed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = words[0] if words else ""
    if chosen not in VERBS:
        parser, close = _top_level(), difflib.get_close_matches(chosen, VERBS, n=1)
        if not chosen:
            parser.error(f"a command is missing: {', '.join(VERBS)}; loopmdm --help explains them")
        if close:
            parser.error(f"no command {chosen!r}: did you mean {close[0]}?")
        parser.parse_args(words)
    module_name, text = VERBS[chosen]
    module = import_module(module_name)
    parser = CommandLine(prog=f"loopmdm {chosen}", description=text)
    module.add_arguments(parser)
    arguments, run = parse(parser, words[1:]), module.run
    if chosen == "train":  # it reports its own errors and ends as pretrain/main.py does
        end_process(run(arguments))
    filter_library_warnings()
    try:
        status = run_reporting_errors(lambda _: run(arguments)) if chosen in MAY_HAVE_RANKS else run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        raise
    except OSError as error:
        fix = "; free some space and run the command again" if error.errno in FULL_DISK else ""
        print(f"error: {error}{fix}", file=sys.stderr)
        return 2
    except (UserError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _top_level() -> CommandLine:
    """The parser of `loopmdm --help` and of a verb that does not exist."""
    parser = CommandLine(
        prog="loopmdm",
        description="Pre-training of looped masked diffusion language models.",
        epilog=WITHOUT_REPOSITORY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (_, text) in VERBS.items():
        verbs.add_parser(verb, help=text)
    return parser


def command() -> NoReturn:
    """The console command: run one verb and exit, leaving the process groups if the verb joined any and succeeded."""
    prepare_console(outlive_reader=not any(word in ONLY_PRINT for word in sys.argv[1:2]))
    try:
        status = main()
    except BrokenPipeError:
        status = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    if status == 0 and (world := sys.modules.get("pretrain.parallel.world")):
        world.leave_world()
    if "pretrain.parallel.rendezvous" in sys.modules:  # threads of torch may still wait for other ranks
        end_process(status)
    sys.exit(status)


if __name__ == "__main__":
    command()
