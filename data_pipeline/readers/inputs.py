"""What the values of `--input` mean: files, folders, globs, datasets, the standard library's sources, generators."""

import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data_pipeline.errors import DataError, listed
from data_pipeline.generators.names import KNOWN, names_generator, parse_generated
from data_pipeline.json_text import shown_name
from data_pipeline.readers.finding import files_of_folder, files_of_pattern
from data_pipeline.readers.hub import HUB, dataset_folder, is_saved_dataset, open_dataset
from data_pipeline.readers.hub_files import hub_files
from data_pipeline.readers.input_files import InputFile, status_of
from data_pipeline.readers.kinds import Kind, ReadAs, file_kind, names_records, without_as
from data_pipeline.readers.remote import RemotePath
from data_pipeline.readers.remote_finding import find_remote
from data_pipeline.typed_words import LOCAL, is_remote

STDLIB = "stdlib:"
# Tests are half of the text and unlike the rest; not all distributions have idlelib; the others are not the library.
STDLIB_EXCLUDED = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib"})
MAX_LISTED = 20


@dataclass(frozen=True)
class Input:
    """What one value of `--input` stands for.

    Attributes:
        value: as given.
        files: the files to read, sorted; for a dataset, its files as far as they are known.
        root: messages show the files relative to it; None for their full names.
        unread, repeated: what lies in the folder, or matches the pattern, and is not read: see `FoundFiles`.
        read_as: how to read files whose suffixes are none of JSON lines or Parquet; None to go by these.
        rows, fingerprint: of a dataset, its number of rows and the fingerprint that its library computes; of a generator, the
            number of instances and what decides them.
    """

    value: str
    kind: Literal["file", "folder", "glob", "stdlib", "datasets", "hub", "generated"]
    files: tuple[InputFile, ...]
    root: Path | RemotePath | None = None
    rows: int = 0
    fingerprint: str = ""
    unread: tuple[InputFile, ...] = ()
    repeated: tuple[tuple[Path, Path], ...] = ()
    read_as: ReadAs | None = None

    @property
    def name(self) -> str:
        """The value as text."""
        return shown_name(self.value)

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(status_of(path).size for path in self.files)

    @property
    def is_empty(self) -> bool:
        """Whether it has files, all of 0 bytes."""
        return bool(self.files) and not any(status_of(path).size for path in self.files)

    @property
    def is_remote(self) -> bool:
        """Whether the files are in a store."""
        return any(isinstance(path, RemotePath) for path in self.files[:1])

    def kind_of(self, path: InputFile) -> Kind:
        """How one of the files is read."""
        return file_kind(path, self.read_as)

    def shown(self, path: InputFile) -> str:
        """The name of a file in messages."""
        return shown_name(str(path.relative_to(self.root) if self.root else path))

    @property
    def versions(self) -> str | None:
        """Hash of what the store says of the versions of remote files; None where it says nothing, and of local files."""
        remote = [(self.shown(file), file.size, file.version) for file in self.files if isinstance(file, RemotePath)]
        if not remote or not all(version for *_, version in remote):
            return None
        return hashlib.blake2b(json.dumps(remote).encode(), digest_size=16).hexdigest()

    def may_have_changed_since(self, time_ns: int, versions: str | None) -> bool:
        """Whether a file's content or name may be newer than a time (ns since 1970), or of remote files than these versions.

        True where that is unknown. The change time of the inode also detects a file moved into place with an old modification time.
        """
        if self.kind == "generated":
            return False
        if self.is_remote:
            return versions is None or versions != self.versions
        stats = (path.stat() for path in self.files)
        return not self.files or any(max(stat.st_mtime_ns, stat.st_ctime_ns) >= time_ns for stat in stats)


def resolve_input(value: str, read_as: ReadAs | None = None) -> Input:
    """Find what a value of `--input` stands for.

    Args:
        read_as: of files that are given by name or by a pattern, see `Input`.

    Raises:
        DataError: there is nothing, nothing readable, or an unknown dataset.
    """
    if is_remote(value):
        return _resolve_remote(value, read_as)
    value = value.removeprefix(LOCAL)
    if value == STDLIB:
        return _resolve_stdlib()
    if names_generator(value) and not Path(value).exists():
        generated = parse_generated(value)
        return Input(value, "generated", (), None, generated.count, generated.identity)
    path = Path(value)
    if value.startswith(HUB) or (path.is_dir() and is_saved_dataset(path)):
        return _resolve_dataset(value)
    if path.is_dir():
        found = files_of_folder(path)
        return _checked(Input(value, "folder", found.files, path, unread=found.unread, repeated=found.repeated))
    if path.exists():
        return _checked(Input(value, "file", (path,), read_as=read_as))
    if glob.has_magic(value):
        found = files_of_pattern(value)
        return _checked(Input(value, "glob", found.files, None, 0, "", found.unread, found.repeated, read_as))
    raise DataError(f"--input {value}: {_why_nothing(value)}")


@contextmanager
def naming(option: str, has_as: bool) -> Iterator[None]:
    """Errors about inputs that are the values of another option than `--input` name that one.

    Args:
        has_as: whether `--as` says how to read them, too.
    """
    try:
        yield
    except DataError as error:
        why = str(error).replace("--input ", f"{option} ", 1)
        raise DataError(why if has_as else without_as(why)) from error


def _resolve_remote(value: str, read_as: ReadAs | None) -> Input:
    found = find_remote(value)
    input_ = Input(value.rstrip("/"), found.kind, found.files, found.root, unread=found.unread)
    if not found.files:
        raise DataError(f"--input {value}: {_why_empty(input_)}")
    return input_ if found.kind == "folder" else replace(input_, read_as=read_as)


def _why_nothing(value: str) -> str:
    if value == "-":
        return "standard input cannot be read; write its content to a file first"
    also = f"; the generators are {KNOWN}, as NAME:COUNT" if ":" in value else ""
    return f"no such file or folder{also}"


def _checked(found: Input) -> Input:
    """`found`, after a check that every file can be read: a failure now is cheaper than one hours into a run."""
    if not found.files:
        raise DataError(f"--input {found.value}: {_why_empty(found)}")
    for path in found.files:
        if not path.is_file() or path.is_relative_to("/dev") or path.is_relative_to("/proc"):
            raise DataError(f"--input {path}: not a regular file; write its content to a file first")
        if not os.access(path, os.R_OK):
            raise DataError(f"--input {path}: permission denied")
    return found


def require_versions(inputs: Sequence[Input]) -> None:
    """Raise DataError when nothing tells the version of a remote file: a later run cannot know whether it has changed."""
    for path in (path for found in inputs for path in found.files):
        if isinstance(path, RemotePath) and not path.version:
            raise DataError(
                f"{path}: the server tells neither an ETag nor when it was modified, so that --stage cannot know whether it is the "
                "same in all stages; leave --stage out, or download the file and give its path"
            )


def require_known_kinds(inputs: Sequence[Input]) -> None:
    """Raise DataError when an input holds files that are not read as anything. The reason is that of the first."""
    for found in inputs:
        refused = []
        for path in () if found.kind == "datasets" else found.files:
            try:
                found.kind_of(path)
            except DataError as error:
                refused.append((path, str(error)))
        if refused:
            raise _refusal(found, refused)


def _why_empty(found: Input) -> str:
    others = f" other than {_listed(found.unread)}, which are not read as data" if found.unread else ""
    if found.kind == "folder":
        return f"the folder holds no files{others}"
    brackets = "; [ begins a set of characters, [[] stands for the character itself" if "[" in found.value else ""
    return f"matches no file{others}{brackets}"


def _refusal(found: Input, refused: list[tuple[InputFile, str]]) -> DataError:
    """The error for the files that cannot be read, with the reason of the first."""
    path, why = refused[0]
    if isinstance(path, Path) and is_saved_dataset(path.parent):
        return DataError(
            f"--input {found.value}: {path.parent} is a saved dataset; give that folder as an --input of its own"
        )
    if found.kind == "file":
        return DataError(f"--input {why}")
    others = [other for other, _ in refused[1:]]
    more = f" (nor can {_listed(others)} be read)" if others else ""
    root = glob.escape(found.value.rstrip("/")) if found.root else "FOLDER"
    read = [other for other in found.files if other not in {path, *others}]
    suffixes = list(dict.fromkeys(other.suffix for other in read if other.suffix)) or [".jsonl"]
    patterns = " ".join(f"'{root}/**/*{suffix}'" for suffix in suffixes[:MAX_LISTED])
    return DataError(f"--input {found.value}: {why}{more}; or give what to read by patterns, such as {patterns}")


def require_use(read_as: ReadAs, inputs: Sequence[Input]) -> None:
    """Raise DataError when there is no file that `--as` is for."""
    given = [path for found in inputs if found.read_as for path in found.files]
    if not given:
        raise DataError(
            f"--as {read_as}: no --input names files; give them by path or by a pattern, such as 'FOLDER/*'"
        )
    if all(names_records(path) for path in given):
        raise DataError(
            f"--as {read_as}: {given[0]} and all other files are read as their suffixes say; leave it out, or rename the files"
        )


def unread_note(inputs: Sequence[Input]) -> str | None:
    """Which files of folders and patterns are not read, in words; None if all are."""
    given = {path for found in inputs for path in found.files}
    unread = [path for found in inputs for path in found.unread if path not in given]
    if not unread:
        return None
    return (
        f"note: not read, because they are READMEs, licenses, checksums or the like, or no files: {_listed(unread)}; to read a "
        "text among them, give it by name"
    )


def repeated_note(inputs: Sequence[Input]) -> str | None:
    """Which paths of folders and patterns lead to files that are read already, in words; None if none do."""
    repeated = [f"{path} is {read}" for found in inputs for path, read in found.repeated]
    return f"note: links to the same files, which are read once: {listed(repeated, MAX_LISTED)}" if repeated else None


def empty_note(inputs: Sequence[Input]) -> str | None:
    """Which inputs hold nothing, in words; None if all hold something."""
    empty = [found.name for found in inputs if found.is_empty]
    return f"note: empty, so without any document: {listed(empty, MAX_LISTED)}" if empty else None


def _listed(paths: Sequence[InputFile]) -> str:
    return listed([f"{path}{_no_target(path)}" for path in paths], MAX_LISTED)


def _no_target(path: InputFile) -> str:
    return " (a link to nothing)" if isinstance(path, Path) and not path.exists() else ""


def _sorted(root: Path, paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def _resolve_stdlib() -> Input:
    root = Path(sysconfig.get_path("stdlib"))
    sources = (p for p in root.rglob("*.py") if not STDLIB_EXCLUDED.intersection(p.relative_to(root).parts))
    return Input(STDLIB, "stdlib", tuple(_sorted(root, sources)), root)


def _resolve_dataset(value: str) -> Input:
    if dataset_folder(value) is None and (found := hub_files(value)):
        return Input(value, "hub", found.files, found.root)
    return converted_dataset(value)


def converted_dataset(value: str) -> Input:
    """A saved dataset, or one of the hub, as its library reads it, which converts those of the hub. Raises as `open_dataset`."""
    folder = dataset_folder(value)
    dataset = open_dataset(value)
    files = _sorted(folder, folder.rglob("*.arrow")) if folder else []
    return Input(value, "datasets", tuple(files), folder, len(dataset), dataset._fingerprint)
