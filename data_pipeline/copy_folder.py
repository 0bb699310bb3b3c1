"""`loopmdm copy SOURCE TARGET`: a prepared folder to an object store, or from one to a local or shared folder.

Until a copy is complete, its manifest has the name `copying.json`, so what has a `manifest.json` is whole. After a kill, the same
command goes on.
"""

import argparse
import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from data_pipeline.atomic_files import locked, move_into_place, sync, write_atomic
from data_pipeline.errors import DataError, ReadError
from data_pipeline.exit_status import exit_status
from data_pipeline.in_use import hold
from data_pipeline.manifest import MANIFEST_NAME, Manifest, parse_manifest, sha256_of
from data_pipeline.paths import user_path
from data_pipeline.readers.remote import RemotePath, filesystem, translated
from data_pipeline.readers.remote_finding import files_under
from data_pipeline.typed_words import is_remote

UNFINISHED_NAME = "copying.json"
BLOCK_BYTES = 1 << 22


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `loopmdm copy`."""
    parser.description = (
        "Copy a prepared folder to a store (s3://, gs:// or another protocol of fsspec), or from there to a local or shared "
        "folder. What is read from a store is compared with the hashes in the manifest. After a stop or a kill, the same "
        "command goes on."
    )
    parser.add_argument("source", metavar="SOURCE", help="prepared folder: a path or a URL")
    parser.add_argument("target", metavar="TARGET", help="folder to write: a URL if the source is a path, else a path")


def run(args: argparse.Namespace) -> int:
    """Copy and print what was done; returns the exit status."""
    return exit_status(lambda: print(copy_folder(args.source, args.target)))


def copy_folder(source: str, target: str) -> str:
    """Copy a prepared folder; returns what was done, in words.

    Raises:
        DataError: not one path and one URL, the source is no prepared folder, the target holds something else, a file differs
            from the manifest, or the store does not answer.
    """
    if is_remote(source) == is_remote(target):
        raise DataError(_other_way(source, target))
    try:
        if is_remote(target):
            return upload(_path(source), StoredFolder(target))
        return download(StoredFolder(source), _path(target))
    except ReadError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from error


def _other_way(source: str, target: str) -> str:
    """How to copy where neither or both are in a store."""
    if is_remote(source):
        return (
            f"{source} and {target} are both URLs; copy to a folder, and from there to the other store, or use the tool of the "
            "stores, such as aws s3 cp --recursive"
        )
    return (
        f"{source} and {target} are both on this machine; copy with: cp -r {quote(source)} {quote(target)} && loopmdm verify "
        f"{quote(target)}; loopmdm copy is for a URL, such as s3://bucket/mine, as one of the two"
    )


def _path(text: str) -> Path:
    try:
        return user_path(text)
    except argparse.ArgumentTypeError as error:
        raise DataError(str(error)) from None


class StoredFolder:
    """A folder of a store. A file in it appears complete or not at all.

    The methods raise ReadError when the store fails.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if not is_remote(self.url):
            raise DataError(f"{url}: names no bucket or host")
        self._fs, self._root = filesystem(self.url)

    def __str__(self) -> str:
        return self.url

    def sizes(self) -> dict[str, int]:
        """Names of the files and their sizes in bytes. A store that has folders has to have this one."""
        with translated(self.url):
            return {path.relative_to(RemotePath(self.url)): path.size or 0 for path in files_under(self.url)}

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        return b"".join(self.blocks(name))

    def blocks(self, name: str) -> Iterator[bytes]:
        """The content of a file, in blocks."""
        with translated(f"{self.url}/{name}"):
            stored = self._fs.open(f"{self._root}/{name}", "rb", block_size=BLOCK_BYTES)
        with stored:
            while True:
                with translated(f"{self.url}/{name}"):
                    block = stored.read(BLOCK_BYTES)
                if not block:
                    return
                yield block

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        with translated(f"{self.url}/{name}"):
            self._fs.pipe_file(f"{self._root}/{name}", content)

    def upload(self, path: Path) -> None:
        """Write a local file under its own name."""
        with translated(f"{self.url}/{path.name}"):
            self._fs.put_file(str(path), f"{self._root}/{path.name}")

    def remove(self, name: str) -> None:
        """Remove a file."""
        with translated(f"{self.url}/{name}"):
            self._fs.rm_file(f"{self._root}/{name}")


def upload(folder: Path, target: StoredFolder) -> str:
    """Write the files that the store lacks, and the manifest last; returns what was done, in words."""
    _, held = hold(folder)
    try:
        content = (folder / MANIFEST_NAME).read_bytes()
        names = _hashes(parse_manifest(content, str(folder / MANIFEST_NAME)))
        sizes = {name: (folder / name).stat().st_size for name in names}
        there = _sizes_or_none(target)
        _require_same(target, there, content)
        if MANIFEST_NAME not in there:
            target.write(UNFINISHED_NAME, content)
        missing = [name for name in names if there.get(name) != sizes[name]]
        for name in missing:
            target.upload(folder / name)
        written = target.sizes()
        if wrong := [name for name in names if written.get(name) != sizes[name]]:
            raise DataError(
                f"{target}/{wrong[0]} has not the {sizes[wrong[0]]:,} bytes that were written; copy it again"
            )
        target.write(MANIFEST_NAME, content)
        if UNFINISHED_NAME in written:
            target.remove(UNFINISHED_NAME)
    finally:
        if held:
            held.close()
    return f"{target}: {len(missing)} of {len(names)} files written" if missing else f"{target}: already there"


def _sizes_or_none(target: StoredFolder) -> dict[str, int]:
    try:
        return target.sizes()
    except ReadError as error:
        if error.errno != errno.ENOENT:
            raise
        return {}


def _require_same(target: StoredFolder, there: dict[str, int], content: bytes) -> None:
    """Raise DataError if a store has something else than this manifest's data, finished or not."""
    name = next((name for name in (MANIFEST_NAME, UNFINISHED_NAME) if name in there), None)
    if name is None and there:
        raise DataError(f"{target} is not empty: it has {min(there)}; choose another place")
    if name and target.read(name) != content:
        raise DataError(f"{target} has other data, or an unfinished copy of it; remove it or choose another place")


def download(source: StoredFolder, folder: Path) -> str:
    """Read a prepared folder and move it into place when it is whole; returns what was done, in words."""
    there = source.sizes()
    if MANIFEST_NAME not in there:
        unfinished = "holds an unfinished copy; run the command that writes it again"
        raise DataError(f"{source} {unfinished if UNFINISHED_NAME in there else 'holds no prepared data'}")
    content = source.read(MANIFEST_NAME)
    names = _hashes(parse_manifest(content, f"{source}/{MANIFEST_NAME}"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if _has(folder / MANIFEST_NAME, content):
            return f"{folder}: already there"
        raise DataError(f"{folder} has something else; remove it or choose another folder")
    partial = folder.with_name(f"{folder.name}.copying")
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial, DataError(f"another process copies to {folder}; wait until it has finished")):
        _require_own(partial, content)
        write_atomic(partial / UNFINISHED_NAME, content)
        for name, sha256 in names.items():
            _fetch(source, name, sha256, partial)
        (partial / UNFINISHED_NAME).rename(partial / MANIFEST_NAME)
        move_into_place(partial, folder)
    return f"{folder}: {len(names)} files, all as in the manifest"


def _require_own(partial: Path, content: bytes) -> None:
    """Raise DataError if a folder has something else than an unfinished copy of this manifest's data."""
    for path in partial.glob(f"{UNFINISHED_NAME}.partial-*"):  # of a process killed while it wrote the first file
        path.unlink()
    names = (UNFINISHED_NAME, MANIFEST_NAME)  # the second if it was killed after the last file
    if any(partial.iterdir()) and not any(_has(partial / name, content) for name in names):
        raise DataError(f"{partial} has something else, or an unfinished copy of other data; remove it")


def _has(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _fetch(source: StoredFolder, name: str, sha256: str, folder: Path) -> None:
    """Read a file, unless an earlier run has."""
    path, partial = folder / name, folder / f"{name}.partial"
    if path.is_file() and sha256_of(path) == sha256:
        return
    digest = hashlib.sha256()
    with partial.open("wb") as file:
        for block in source.blocks(name):
            file.write(block)
            digest.update(block)
    if digest.hexdigest() != sha256:
        partial.unlink()
        raise DataError(f"{source}/{name} is not what the manifest says; remove {source} and copy it there again")
    sync(partial)
    partial.replace(path)


def _hashes(manifest: Manifest) -> dict[str, str]:
    """SHA-256 of all files but the manifest, by name.

    Raises:
        DataError: a name leads out of the folder, in a manifest of somebody else.
    """
    found = {manifest.tokenizer.file: manifest.tokenizer.sha256}
    for infos in (manifest.provenance, *(split.files for split in manifest.splits.values())):
        found |= {name: info.sha256 for name, info in infos.items()}
    for name in found:
        if Path(name).name != name:
            raise DataError(f"{MANIFEST_NAME} lists {name!r}, which is not the name of a file in its folder")
    return found
