"""Files of this machine that a study names: what is made from them is made again when they have changed. Imports no torch."""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from data_pipeline.generators.names import find_generator
from data_pipeline.json_text import shown_name
from data_pipeline.manifest import MANIFEST_NAME, sha256_of
from data_pipeline.paths import user_input
from data_pipeline.readers.hub import HUB, dataset_folder
from data_pipeline.readers.input_files import status_of
from data_pipeline.readers.inputs import resolve_input
from data_pipeline.typed_words import is_remote
from pretrain.errors import UserError

OF_TASKS = ("--tasks", "--few-shot")
"""Options of a measurement that may name a file; `--tasks` also a prepared folder."""


def files_of_input(value: str) -> list[tuple[str, int, int]]:
    """Path, size and modification time (ns) of the files that a value of `loopmdm prepare --input` names.

    None for instances of a generator, the sources of Python's library and what is in a store.

    Raises:
        UserError, DataError: there is nothing of that name.
    """
    value = _expanded("--input", value)
    if is_remote(value) or (value.startswith(HUB) and dataset_folder(value) is None):
        return []
    found = resolve_input(value)
    files = () if found.kind in ("generated", "stdlib") else found.files
    return [(shown_name(Path(path).absolute()), *status_of(path)) for path in files]


def hashes_of_files(words: Sequence[str]) -> list[str]:
    """Of the files and prepared folders that the words of a measurement name, by their content; none if they name none.

    Raises:
        UserError: no such home folder.
    """
    named = [
        _expanded(option, value)
        for option, value in pairwise(words)
        if option in OF_TASKS and find_generator(value) is None
    ]
    files = [path / MANIFEST_NAME if path.is_dir() else path for path in map(Path, named)]
    return [sha256_of(path) for path in files if path.is_file()]


def _expanded(option: str, value: str) -> str:
    """A value with its `~` replaced, as the command takes it."""
    try:
        return user_input(value)
    except ArgumentTypeError as error:
        raise UserError(f"{option} {error}") from None
