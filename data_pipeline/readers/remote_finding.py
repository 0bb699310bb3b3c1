"""Files of remote folders and patterns, chosen as those of local ones are (`data_pipeline.readers.finding`)."""

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import DataError, ReadError
from data_pipeline.readers.finding import ANY_FOLDERS, matches
from data_pipeline.readers.hub import SAVED_DATASET_FILES
from data_pipeline.readers.kinds import describes_data
from data_pipeline.readers.remote import RemotePath, filesystem, protocol_of, translated, version_of

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Their libraries list all that lies under a folder at once, and raise what goes wrong.
FLAT = frozenset(("s3", "s3a", "gs", "gcs", "hf"))
# Of `s3://bucket/name` between slashes: protocol, nothing, bucket.
BUCKET_PARTS = 3


@dataclass(frozen=True)
class FoundRemote:
    """What a URL stands for; the fields are those of `Input`."""

    kind: str
    files: tuple[RemotePath, ...]
    root: RemotePath | None = None
    unread: tuple[RemotePath, ...] = ()


def find_remote(value: str) -> FoundRemote:
    """The file, the files of the folder, or those that match the pattern.

    Raises:
        DataError: there is no such thing, or the store cannot be reached; says why.
    """
    if not value.partition("://")[2].strip("/"):
        raise DataError(f"--input {value}: names no bucket or host")
    url = value.rstrip("/")
    if glob.has_magic("/".join(url.split("/")[:BUCKET_PARTS])):
        raise DataError(f"--input {value}: a pattern cannot stand for a bucket or host; write it out")
    try:
        with translated(url):
            info = _info(url)
            if info is None:
                return _of_pattern(url)
            if info["type"] != "directory":
                return FoundRemote("file", (_described(url, info),))
            return _of_folder(url)
    except ReadError as error:
        raise DataError(f"--input {value}: {error.strerror}") from error


def _info(url: str) -> Mapping[str, Any] | None:
    """What the store says of a file or folder; None where there is none and the name may be a pattern."""
    fs, name = filesystem(url)
    try:
        return fs.info(name)
    except FileNotFoundError:
        if not glob.has_magic(url):
            raise
        return None


def _of_folder(url: str) -> FoundRemote:
    found = [(parts, path) for parts, path in _under(url) if not any(part.startswith(".") for part in parts)]
    saved = next((path for _, path in found if path.name in SAVED_DATASET_FILES), None)
    if saved:
        raise DataError(f"--input {url}: {saved} belongs to a saved dataset; copy its folder here, and give that")
    return _sorted_out("folder", [path for _, path in found], RemotePath(url), all_are_data=False)


def _of_pattern(url: str) -> FoundRemote:
    pieces = url.split("/")
    fixed = next(i for i, piece in enumerate(pieces) if glob.has_magic(piece))
    pattern = tuple(pieces[fixed:])
    found = [path for parts, path in _under("/".join(pieces[:fixed]), pattern) if matches(parts, pattern)]
    names_files = not glob.has_magic(pattern[-1][:1])
    return _sorted_out("glob", found, None, all_are_data=names_files)


def _under(url: str, pattern: tuple[str, ...] = (ANY_FOLDERS,)) -> Iterator[tuple[tuple[str, ...], RemotePath]]:
    """The files under a folder, each with the parts of its name there; maybe without some that do not match the pattern."""
    fs, root = filesystem(url)
    fs.invalidate_cache()
    is_flat = ANY_FOLDERS in pattern and protocol_of(url) in FLAT
    for info in fs.find(root, detail=True).values() if is_flat else _walk(fs, root, root, pattern):
        # A name that ends with a slash is an empty object that marks a folder.
        if info["type"] == "file" and not info["name"].endswith("/"):
            parts = _parts(info["name"], root)
            yield parts, _described("/".join((url, *parts)), info)


def _walk(fs: "AbstractFileSystem", root: str, folder: str, pattern: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """What lies under a folder. Not `walk` or `find` of fsspec: they leave out the folders that cannot be listed."""
    # Stores with empty names, such as `a//b`, list a folder in itself.
    listed = [info for info in fs.ls(folder, detail=True) if info["name"].rstrip("/") != folder.rstrip("/")]
    yield from listed
    for info in listed:
        if info["type"] == "directory" and _leads_to_matches(_parts(info["name"].rstrip("/"), root), pattern):
            yield from _walk(fs, root, info["name"], pattern)


def _parts(name: str, root: str) -> tuple[str, ...]:
    return tuple(name.removeprefix(root.rstrip("/")).removeprefix("/").split("/"))


def _leads_to_matches(folder: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the names of files in a folder, or below it, may match a pattern."""
    if ANY_FOLDERS in pattern[: len(folder)]:
        before = pattern.index(ANY_FOLDERS)
        return matches(folder[:before], pattern[:before])
    return len(folder) < len(pattern) and matches(folder, pattern[: len(folder)])


def files_under(url: str) -> Iterator[RemotePath]:
    """All files under a folder."""
    return (path for _, path in _under(url))


def _described(url: str, info: Mapping[str, Any]) -> RemotePath:
    if info.get("size") is None:
        raise DataError(
            f"--input {url}: {protocol_of(url)}:// does not say how long it is; download the file and give its path"
        )
    return RemotePath(url, info["size"], version_of(info))


def _sorted_out(kind: str, found: list[RemotePath], root: RemotePath | None, all_are_data: bool) -> FoundRemote:
    files, unread = [], []
    for path in sorted(found, key=str):
        (files if all_are_data or not describes_data(path.name) else unread).append(path)
    return FoundRemote(kind, tuple(files), root, tuple(unread))
