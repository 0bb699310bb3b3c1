"""Hugging Face datasets: saved on disk, or by name."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "hf:"
SAVED_MARKS = ("state.json", "dataset_dict.json")


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder is what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    return any((path / mark).is_file() for mark in SAVED_MARKS)


def dataset_folder(word: str) -> Path | None:
    """The folder of a saved dataset that an `--input` word names; None for one that is known by name."""
    path = Path(_split_word(word)[0])
    return path if path.is_dir() else None


def open_dataset(word: str) -> "Dataset":
    """The one split that an `--input` word names: `hf:NAME[:CONFIG][@SPLIT]`, or the folder of a saved dataset.

    Raises:
        DataError: no such dataset or split.
    """
    import datasets

    name, config, split = _split_word(word)
    datasets.disable_progress_bars()
    try:
        saved = dataset_folder(word) is not None
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library raises its own, the hub's, and many built-in exceptions
        raise DataError(f"--input {word}: {type(error).__name__}: {error}") from error
    return _pick_split(word, loaded, split)


def _split_word(word: str) -> tuple[str, str | None, str | None]:
    """Name, configuration and split of `hf:NAME[:CONFIG][@SPLIT]`; a bare folder is its own name."""
    if not word.startswith(HUB):
        return word, None, None
    name, _, split = word.removeprefix(HUB).partition("@")
    name, _, config = name.partition(":")
    if not name:
        raise DataError(f"--input {word}: expected hf:NAME[:CONFIG][@SPLIT]")
    return name, config or None, split or None


def _pick_split(word: str, loaded: Any, split: str | None) -> "Dataset":
    """The one split to read of a dataset or a dictionary of splits: as asked, else "train"."""
    import datasets

    if isinstance(loaded, datasets.Dataset):
        return loaded
    wanted = split or "train"
    if wanted not in loaded:
        prefix = "" if word.startswith(HUB) else HUB
        raise DataError(
            f"--input {word}: no split {wanted!r}; it has {', '.join(loaded)}: "
            f"name one as {prefix}{word.partition('@')[0]}@SPLIT"
        )
    return loaded[wanted]
