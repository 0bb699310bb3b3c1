"""What `--input` words mean: files, folders, globs, Hugging Face datasets and the standard library's sources."""

import glob
import os
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.errors import DataError
from data_pipeline.readers.file_ranges import span_kind
from data_pipeline.readers.hub import HUB, dataset_folder, is_saved_dataset, open_dataset

STDLIB = "stdlib:"
# Tests are half of the text and unlike the rest; distributions ship idlelib or not; the others are not part of it.
STDLIB_EXCLUDED = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib"})


@dataclass(frozen=True)
class Input:
    """One `--input` word, resolved.

    Attributes:
        word: as given.
        files: what is read, sorted; for a dataset the files behind it, as far as known.
        root: files are shown relative to it in messages, None for their full names.
        rows, fingerprint: of a dataset; its rows, and what its library knows it by.
    """

    word: str
    kind: Literal["file", "folder", "glob", "stdlib", "datasets"]
    files: tuple[Path, ...]
    root: Path | None = None
    rows: int = 0
    fingerprint: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.files)

    def shown(self, path: Path) -> str:
        """A file's name in messages."""
        return str(path.relative_to(self.root)) if self.root else str(path)

    def may_have_changed_since(self, time_ns: int) -> bool:
        """Whether a file's content or name may be newer than a time (ns since 1970); True where nobody can tell.

        The inode's change time also catches a file moved into place with an old modification time.
        """
        stats = (path.stat() for path in self.files)
        return not self.files or any(max(stat.st_mtime_ns, stat.st_ctime_ns) >= time_ns for stat in stats)


def resolve_input(word: str) -> Input:
    """Find what an `--input` word names.

    Raises:
        DataError: nothing there, nothing readable, an unknown dataset, or an unsupported compression.
    """
    if word == STDLIB:
        return _resolve_stdlib()
    path = Path(word)
    if word.startswith(HUB) or (path.is_dir() and is_saved_dataset(path)):
        return _resolve_dataset(word)
    if path.is_dir():
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
        span_kind(path)
    return found


def _walk(root: Path) -> list[Path]:
    """All files under `root`, hidden ones left out, sorted by relative name."""
    return _sorted(root, (path for path in root.rglob("*") if path.is_file() and not _is_hidden(path, root)))


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _sorted(root: Path, paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def _resolve_stdlib() -> Input:
    root = Path(sysconfig.get_path("stdlib"))
    sources = (p for p in root.rglob("*.py") if not STDLIB_EXCLUDED.intersection(p.relative_to(root).parts))
    return Input(STDLIB, "stdlib", tuple(_sorted(root, sources)), root)


def _resolve_dataset(word: str) -> Input:
    dataset = open_dataset(word)
    folder = dataset_folder(word)
    files = _sorted(folder, folder.rglob("*.arrow")) if folder else []
    return Input(word, "datasets", tuple(files), folder, len(dataset), dataset._fingerprint)
