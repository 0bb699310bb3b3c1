"""Paths of command lines: `~` is the home folder."""

from argparse import ArgumentTypeError
from pathlib import Path

from data_pipeline.readers.hub import HUB
from data_pipeline.typed_words import home_expanded, without_protocol


def user_path(text: str) -> Path:
    """A path of the command line with its `~` replaced; a `type` of argparse. Raises as `user_pattern`."""
    return Path(user_pattern(text))


def user_pattern(text: str) -> str:
    """A path of this machine, which may be a pattern, with its `~` replaced.

    Raises:
        ArgumentTypeError: it is empty, a URL, or there is no such home folder.
    """
    try:
        return user_input(without_protocol(text))
    except ValueError as error:
        raise ArgumentTypeError(f"{text}: {error}") from None


def user_input(text: str) -> str:
    """A value of `--input` with its `~` replaced, the rest as given: it may be a pattern. Raises as `user_path`."""
    if not text:
        raise ArgumentTypeError("the path is empty; is a shell variable unset?")
    prefix = HUB if text.startswith(HUB) else ""
    try:
        return prefix + home_expanded(text.removeprefix(prefix))
    except ValueError as error:
        raise ArgumentTypeError(f"{text}: {error}") from None
