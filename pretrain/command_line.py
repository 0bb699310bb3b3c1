"""Parsing of command lines: overrides may stand between options, and a wrong option names the right spelling."""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pretrain.config.keys import annotations, hint
from pretrain.errors import UserError
from pretrain.parallel.launcher import read_launcher
from pretrain.parallel.reporting import run_reporting_errors


class CommandLine(argparse.ArgumentParser):
    """An argument parser whose errors are printed once over all ranks, and which takes no part of a name for an option."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.register("type", int, _whole_number)
        self.register("type", float, _number)

    def error(self, message: str) -> NoReturn:
        """Print the message, and the usage if something is missing; exit with status 2."""
        usage = (
            f"\n{self.format_usage().rstrip()}" if message.startswith("the following arguments are required") else ""
        )
        try:
            size = read_launcher()[1]
        except UserError:
            size = 1
        if size > 1:
            end_with_error(UserError(f"{message}{usage}"))
        print(f"error: {message}{usage}", file=sys.stderr, flush=True)
        sys.exit(2)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def end_with_error(error: UserError) -> NoReturn:
    """Print the error of this rank once over all ranks, and exit."""

    def fail(_: tuple[int, int, int]) -> int:
        raise error

    status = run_reporting_errors(fail)
    sys.stdout.flush()
    os._exit(status)  # not through the interpreter's end, during which a launcher's SIGTERM would change the status


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Arguments from the words of a command line, options and other words in any order. Exits after --help or an error."""
    if {"-h", "--help"} & set(words):
        parser.parse_args(["--help"])
    options = {option for action in parser._actions for option in action.option_strings}
    overridable = any(action.dest == "overrides" for action in parser._actions)
    for number, word in enumerate(words):
        if word == "--":
            break
        name = word.partition("=")[0]
        if name not in options and name.startswith("-") and name.strip("-")[:1].isalpha():
            parser.error(_unknown_option(words[number:], options, overridable))
    if sum(word.partition("=")[0] == "--config" for word in words) > 1:
        parser.error("--config: is given twice; give one recipe, and override its keys with key=value")
    if "--config" in options and not any(word.partition("=")[0] == "--config" for word in words):
        bare = [word for word in words if word.isidentifier() or word.endswith((".yaml", ".yml"))]
        if bare:
            parser.error(f"--config is missing: did you mean --config {bare[0]}?")
    return parser.parse_intermixed_args(words)


def _unknown_option(words: Sequence[str], options: set[str], overridable: bool) -> str:
    """What to write in place of the first of the words."""
    name, equals, value = words[0].partition("=")
    if overridable:
        key = name.strip("-").replace("-", "_")
        given = value if equals else next((word for word in words[1:2] if not word.startswith("-")), "VALUE")
        if key in annotations():
            return f"{name}: keys are written without dashes; write {key}={given}"
        meant = hint(key)
        if meant.startswith("did you mean") and (
            "." in key or not difflib.get_close_matches(name, options, cutoff=0.8)
        ):
            return f"{name}: no such option or key; {meant.removesuffix('?')}={given}?"
    longer = sorted(option for option in options if option.startswith(name))
    close = longer or difflib.get_close_matches(name, sorted(options), n=1)
    return f"{name}: no such option; {f'did you mean {close[0]}?' if close else '--help lists all options'}"
