"""What the values of `--input` mean: files, folders, globs, datasets, the standard library's sources, generators."""

import glob
import os
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.errors import DataError
from data_pipeline.generators.names import KNOWN, names_generator, parse_generated
from data_pipeline.readers.file_ranges import file_kind
from data_pipeline.readers.hub import HUB, dataset_folder, is_saved_dataset, open_dataset

STDLIB = "stdlib:"
# Tests are half of the text and unlike the rest; not all distributions have idlelib; the others are not the library.
STDLIB_EXCLUDED = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib"})


@dataclass(frozen=True)
class Input:
    """What one value of `--input` stands for.

    Attributes:
        value: as given.
        files: the files to read, sorted; for a dataset, its files as far as they are known.
        root: messages show the files relative to it; None for their full names.
        rows, fingerprint: of a dataset, its number of rows and the fingerprint that its library computes; of a generator, the
            number of instances and what decides them.
    """

    value: str
    kind: Literal["file", "folder", "glob", "stdlib", "datasets", "generated"]
    files: tuple[Path, ...]
    root: Path | None = None
    rows: int = 0
    fingerprint: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.files)

    def shown(self, path: Path) -> str:
        """The name of a file in messages."""
        return str(path.relative_to(self.root)) if self.root else str(path)

    def may_have_changed_since(self, time_ns: int) -> bool:
        """Whether a file's content or name may be newer than a time (ns since 1970); True where that is unknown.

        The change time of the inode also detects a file moved into place with an old modification time.
        """
        if self.kind == "generated":
            return False
        stats = (path.stat() for path in self.files)
        return not self.files or any(max(stat.st_mtime_ns, stat.st_ctime_ns) >= time_ns for stat in stats)


def resolve_input(value: str) -> Input:
    """Find what a value of `--input` stands for.

    Raises:
        DataError: there is nothing, nothing readable, an unknown dataset, or an unsupported compression.
    """
    if value == STDLIB:
        return _resolve_stdlib()
    if names_generator(value) and not Path(value).exists():
        generated = parse_generated(value)
        return Input(value, "generated", (), None, generated.count, generated.identity)
    path = Path(value)
    if value.startswith(HUB) or (path.is_dir() and is_saved_dataset(path)):
        return _resolve_dataset(value)
    if path.is_dir():
        return _checked(Input(value, "folder", tuple(_walk(path)), path))
    if path.exists():
        return _checked(Input(value, "file", (path,)))
    if glob.has_magic(value):
        matches = (Path(name) for name in sorted(glob.glob(value, recursive=True)))  # noqa: PTH207 (absolute patterns)
        return _checked(Input(value, "glob", tuple(match for match in matches if match.is_file())))
    also = f"; the generators are {KNOWN}, as NAME:COUNT" if ":" in value else ""
    raise DataError(f"--input {value}: no such file or folder{also}")


def _checked(found: Input) -> Input:
    """`found`, after a check that every file can be read: a failure now is cheaper than one hours into a run."""
    if not found.files:
        where = "matches no file" if found.kind == "glob" else "the folder holds no files"
        raise DataError(f"--input {found.value}: {where}")
    for path in found.files:
        if not path.is_file():
            raise DataError(f"--input {path}: not a regular file; write its content to a file first")
        if not os.access(path, os.R_OK):
            raise DataError(f"--input {path}: permission denied")
        file_kind(path)
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


def _resolve_dataset(value: str) -> Input:
    dataset = open_dataset(value)
    folder = dataset_folder(value)
    files = _sorted(folder, folder.rglob("*.arrow")) if folder else []
    return Input(value, "datasets", tuple(files), folder, len(dataset), dataset._fingerprint)
