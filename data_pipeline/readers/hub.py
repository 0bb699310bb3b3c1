"""Hugging Face datasets, saved on disk or from the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import DataError, ReadError

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "hf:"
SAVED_DATASET_FILES = ("state.json", "dataset_dict.json")


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder is what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    return any((path / name).is_file() for name in SAVED_DATASET_FILES)


def dataset_folder(name: str) -> Path | None:
    """The folder of a saved dataset that an `--input` value names; None for a dataset of the hub."""
    path = Path(split_name(name)[0])
    return path if path.is_dir() else None


def open_dataset(value: str) -> "Dataset":
    """The split that an `--input` value names: `hf:NAME[:CONFIG][@SPLIT]`, or the folder of a saved dataset.

    Raises:
        DataError: no such dataset or split. ReadError: the system reported a failure.
    """
    import datasets

    name, config, split = split_name(value)
    datasets.disable_progress_bars()
    try:
        saved = dataset_folder(value) is not None
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library raises its own exceptions, the hub's, and many built-in ones
        raise library_error(value, error) from error
    return _pick_split(value, loaded, split)


def library_error(value: str, error: Exception) -> DataError | ReadError:
    """What to raise for an exception of the datasets library at an `--input` value."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return ReadError.of(error, split_name(value)[0])
    if isinstance(error, UnicodeEncodeError):
        return DataError(f"--input {value}: the datasets library reads no folder whose name is not UTF-8; rename it")
    return DataError(f"--input {value}: {type(error).__name__}: {error}")


def split_name(value: str) -> tuple[str, str | None, str | None]:
    """Name, configuration and split of `hf:NAME[:CONFIG][@SPLIT]`; a bare folder is its own name."""
    if not value.startswith(HUB):
        return value, None, None
    name, _, split = value.removeprefix(HUB).partition("@")
    name, _, config = name.partition(":")
    if not name:
        raise DataError(f"--input {value}: expected hf:NAME[:CONFIG][@SPLIT]")
    return name, config or None, split or None


def _pick_split(value: str, loaded: Any, split: str | None) -> "Dataset":
    """The split to read from a dataset or a dictionary of splits: the one asked for, else "train"."""
    import datasets

    if isinstance(loaded, datasets.Dataset):
        return loaded
    wanted = split or "train"
    if wanted not in loaded:
        prefix = "" if value.startswith(HUB) else HUB
        raise DataError(
            f"--input {value}: no split {wanted!r}; it has {', '.join(loaded)}: "
            f"name one as {prefix}{value.partition('@')[0]}@SPLIT"
        )
    return loaded[wanted]
