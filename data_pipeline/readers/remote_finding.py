"""Files of remote folders and patterns, chosen as those of local ones are (`data_pipeline.readers.finding`)."""

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline.errors import DataError, ReadError
from data_pipeline.readers.finding import ANY_FOLDERS, matches
from data_pipeline.readers.hub import SAVED_DATASET_FILES
from data_pipeline.readers.kinds import describes_data
from data_pipeline.readers.remote import RemotePath, filesystem, protocol_of, translated, version_of

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
    found = [(parts, path) for parts, path in _under(url, None) if not any(part.startswith(".") for part in parts)]
    saved = next((path for _, path in found if path.name in SAVED_DATASET_FILES), None)
    if saved:
        raise DataError(f"--input {url}: {saved} belongs to a saved dataset; copy its folder here, and give that")
    return _sorted_out("folder", [path for _, path in found], RemotePath(url), all_are_data=False)


def _of_pattern(url: str) -> FoundRemote:
    pieces = url.split("/")
    fixed = next(i for i, piece in enumerate(pieces) if glob.has_magic(piece))
    pattern = tuple(pieces[fixed:])
    depth = None if ANY_FOLDERS in pattern else len(pattern)
    found = [path for parts, path in _under("/".join(pieces[:fixed]), depth) if matches(parts, pattern)]
    names_files = not glob.has_magic(pattern[-1][:1])
    return _sorted_out("glob", found, None, all_are_data=names_files)


def _under(url: str, depth: int | None) -> Iterator[tuple[tuple[str, ...], RemotePath]]:
    """All files under a folder, each with the parts of its name there."""
    fs, root = filesystem(url)
    fs.invalidate_cache()
    for name, info in fs.find(root, maxdepth=depth, detail=True).items():
        # A name that ends with a slash is an empty object that marks a folder.
        if info["type"] == "file" and not name.endswith("/"):
            inside = name.removeprefix(root.rstrip("/")).lstrip("/")
            yield tuple(inside.split("/")), _described(f"{url}/{inside}", info)


def files_under(url: str) -> Iterator[RemotePath]:
    """All files under a folder."""
    return (path for _, path in _under(url, None))


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
