"""What `--input` words mean: files, folders, globs, Hugging Face datasets and the standard library's sources."""

import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_pipeline.errors import DataError
from data_pipeline.readers import content_suffix, read_dataset, read_file
from data_pipeline.records import Document, RecordLog

if TYPE_CHECKING:
    from datasets import Dataset

STDLIB = "stdlib:"
HUB = "hf:"
# Tests are half of the text and unlike the rest; distributions ship idlelib or not; the others are not part of it.
STDLIB_EXCLUDED = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib"})
SAVED_DATASET_MARKS = ("state.json", "dataset_dict.json")


@dataclass(frozen=True)
class Input:
    """One `--input` word, resolved.

    Attributes:
        word: as given.
        files: what is read, sorted; for a dataset the files behind it, as far as known.
        root: files are shown relative to it in messages, None for their full names.
        dataset: the opened dataset, for the kind "datasets".
    """

    word: str
    kind: Literal["file", "folder", "glob", "stdlib", "datasets"]
    files: tuple[Path, ...]
    root: Path | None = None
    dataset: "Dataset | None" = None

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.files)

    def documents(self, log: RecordLog) -> Iterator[Document]:
        """Every usable document, in a fixed order."""
        if self.dataset is not None:
            yield from read_dataset(self.dataset, self.word, log)
            return
        for path in self.files:
            shown = str(path.relative_to(self.root)) if self.root else str(path)
            yield from read_file(path, shown, log)

    def may_have_changed_since(self, time_ns: int) -> bool:
        """Whether a file's content or name may be newer than a time (ns since 1970); True where nobody can tell.

        The inode's change time also catches a file moved into place with an old modification time.
        """
        stats = (path.stat() for path in self.files)
        return not self.files or any(max(stat.st_mtime_ns, stat.st_ctime_ns) >= time_ns for stat in stats)


class ContentDigest:
    """BLAKE2b over documents' digests, in order: equal exactly when the same texts were read in the same order."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.documents = 0

    def add(self, document: Document) -> None:
        """Take in the next document."""
        self._hash.update(document.digest)
        self.documents += 1

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._hash.hexdigest()


def resolve_input(word: str) -> Input:
    """Find what an `--input` word names.

    Raises:
        DataError: nothing there, nothing readable, an unknown dataset, or an unsupported compression.
    """
    if word == STDLIB:
        return _resolve_stdlib()
    if word.startswith(HUB):
        return _resolve_dataset(word, *_split_dataset_name(word))
    path = Path(word)
    if path.is_dir():
        if any((path / mark).is_file() for mark in SAVED_DATASET_MARKS):
            return _resolve_dataset(word, word, None, None)
        return _checked(Input(word, "folder", tuple(_walk(path)), path))
    if path.exists():
        return _checked(Input(word, "file", (path,)))
    if glob.has_magic(word):
        matches = (Path(name) for name in sorted(glob.glob(word, recursive=True)))  # noqa: PTH207 (absolute patterns)
        return _checked(Input(word, "glob", tuple(match for match in matches if match.is_file())))
    raise DataError(f"--input {word}: no such file or folder")


def _checked(found: Input) -> Input:
    """`found`, once every file can be read; better now than hours into a run."""
    if not found.files:
        where = "matches no file" if found.kind == "glob" else "the folder holds no files"
        raise DataError(f"--input {found.word}: {where}")
    for path in found.files:
        if not path.is_file():
            raise DataError(f"--input {path}: not a regular file; write what it yields to a file first")
        if not os.access(path, os.R_OK):
            raise DataError(f"--input {path}: permission denied")
        content_suffix(path)
    return found


def _walk(root: Path) -> list[Path]:
    """All files under `root`, hidden ones left out, sorted by relative name."""
    return _sorted(root, (path for path in root.rglob("*") if path.is_file() and not _is_hidden(path, root)))


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _sorted(root: Path, paths: Iterator[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def _resolve_stdlib() -> Input:
    root = Path(sysconfig.get_path("stdlib"))
    sources = (p for p in root.rglob("*.py") if not STDLIB_EXCLUDED.intersection(p.relative_to(root).parts))
    return Input(STDLIB, "stdlib", tuple(_sorted(root, sources)), root)


def _split_dataset_name(word: str) -> tuple[str, str | None, str | None]:
    """Name, configuration and split of `hf:NAME[:CONFIG][@SPLIT]`."""
    name, _, split = word.removeprefix(HUB).partition("@")
    name, _, config = name.partition(":")
    if not name:
        raise DataError(f"--input {word}: expected hf:NAME[:CONFIG][@SPLIT]")
    return name, config or None, split or None


def _resolve_dataset(word: str, name: str, config: str | None, split: str | None) -> Input:
    import datasets

    saved = Path(name).is_dir()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library raises its own, the hub's, and many built-in exceptions
        raise DataError(f"--input {word}: {type(error).__name__}: {error}") from error
    files = _sorted(Path(name), Path(name).rglob("*.arrow")) if saved else []
    return Input(word, "datasets", tuple(files), Path(name), _pick_split(word, loaded, split))


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
