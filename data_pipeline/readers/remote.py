"""Files that are read through fsspec: `s3://`, `gs://`, `hf://`, `https://` and the other protocols that it knows.

They are read by ranges, never copied. Credentials, endpoints and retries are those of the library of each protocol, from its
environment variables and configuration files.
"""

import errno
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import DataError, ReadError
from data_pipeline.typed_words import URL

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from fsspec.spec import AbstractBufferedFile

# How much is read at once, and kept per open file. A multiple of the delay of a request at usual rates.
BLOCK_BYTES = 4 << 20
BUFFER_BYTES = 1 << 20
# What tells the content of an object from that of another one, by the names that the libraries use in `info`; the first that
# is there. They are the same in a listing and for a single object.
VERSIONS = ("ETag", "etag", "blob_id", "md5Hash", "Content-MD5", "Digest", "generation", "mtime")
VERSIONS += ("LastModified", "Last-Modified", "last_modified", "created")
DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
DRIVERS |= dict.fromkeys(("abfs", "abfss", "az"), "adlfs")
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run aws configure; for a public bucket set FSSPEC_S3_ANON=true",
    "gs": "run gcloud auth application-default login; for a public bucket set FSSPEC_GS_TOKEN=anon",
    "hf": "run hf auth login, or set HF_TOKEN",
}
NO_RANGES = "the server does not send parts of files (ranges); download the file and give its path"
NO_NUMBER = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, TimeoutError: errno.ETIMEDOUT}


@dataclass(frozen=True)
class RemotePath:
    """A file, or a folder, of a store; has the methods of `pathlib.Path` that inputs need.

    Attributes:
        url: its name, as it is given to fsspec.
        size: bytes of a file as it was listed; None of a folder, or where the store does not tell.
        version: of the file when it was listed: see `VERSIONS`; "" where the store tells nothing but the size.
    """

    url: str
    size: int | None = None
    version: str = ""

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.name.removesuffix(self.suffix)

    @property
    def suffix(self) -> str:
        """The last suffix of the name."""
        stem, dot, last = self.name.rpartition(".")
        return dot + last if stem and last else ""

    def relative_to(self, folder: "RemotePath") -> str:
        """The name inside a folder."""
        return self.url.removeprefix(f"{folder.url}/")

    def resolve(self) -> "RemotePath":
        """Itself: stores have no links."""
        return self

    def open(self, mode: str = "rb", buffering: int = -1) -> "RemoteReader | _RawRemote":
        """Open the file for reading; with a `buffering` of 0, each read is a request.

        Raises:
            DataError: it is not the file that was listed. ReadError: it cannot be read now.
        """
        assert mode == "rb"
        return RemoteReader(self) if buffering else _RawRemote(self, "none")


class RemoteReader(io.BufferedReader):
    """An open remote file. All failures are ReadErrors, so that none is taken for broken content."""

    _second: "_RawRemote | None" = None

    def __init__(self, path: RemotePath) -> None:
        self._path, self._raw = path, _RawRemote(path, "readahead")
        super().__init__(self._raw, BUFFER_BYTES)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._raw.size

    def read_again(self, size: int, start: int) -> bytes:
        """Bytes from `start` on, read anew."""
        if self._second is None:
            self._second = _RawRemote(self._path, "none")
        self._second.seek(start)
        return self._second.read(size)

    def close(self) -> None:
        """Close the file."""
        if self._second is not None:
            self._second.close()
        super().close()


class _RawRemote(io.RawIOBase):
    """fsspec's file, with its exceptions translated."""

    def __init__(self, path: RemotePath, cache: str) -> None:
        self._url = path.url
        with translated(path.url):
            self._file, self.size = _opened(path.url, cache)
            details = getattr(self._file, "details", None) or {}
        # `details` of an open file is what was asked for when it was opened, so this is no further request.
        if path.size is not None and (path.size != self.size or _differ(path.version, version_of(details))):
            raise modified(path.url)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with translated(self._url):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()


def _opened(url: str, cache: str) -> tuple["AbstractBufferedFile | io.BytesIO", int]:
    """fsspec's file, which can be read from any place, and its size."""
    fs, name = filesystem(url)
    file = fs.open(name, "rb", block_size=BLOCK_BYTES, cache_type=cache)
    size = getattr(file, "size", None)
    if size is not None and file.seekable():
        return file, size
    # Over HTTP, a stream; also of an empty file.
    file.close()
    size = fs.info(name).get("size")
    if size == 0:
        return io.BytesIO(), 0
    why = NO_RANGES if size else "the server does not say how long it is; download the file and give its path"
    raise DataError(f"{url}: {why}")


def _differ(listed: str, opened: str) -> bool:
    # Not all libraries tell the version of an open file; it is asked for again at the end of the task.
    return bool(listed and opened) and listed != opened


def filesystem(url: str) -> tuple["AbstractFileSystem", str]:
    """fsspec's object for the protocol of a URL, and the name of the file or folder in it.

    Raises:
        DataError: the protocol is not known, or the package for it is not installed.
    """
    from fsspec import available_protocols
    from fsspec.core import url_to_fs

    protocol = protocol_of(url)
    if "::" in url or protocol not in available_protocols():
        raise DataError(f"{url}: fsspec does not know this protocol; give s3://, gs://, hf://, https://, or a path")
    try:
        return url_to_fs(url)
    except ImportError as error:
        package = DRIVERS.get(protocol)
        fix = f"pip install {package}" if package else str(error)
        raise DataError(f"{url}: the package that reads {protocol}:// is not installed; {fix}") from error


def protocol_of(url: str) -> str:
    """What stands before `://`."""
    found = URL.match(url)
    assert found
    return found[1]


def version_of(info: Mapping[str, Any]) -> str:
    """What `fsspec`'s description of a file says of its content; "" for nothing."""
    return next((str(info[key]) for key in VERSIONS if info.get(key)), "")


def current(url: str) -> RemotePath:
    """A file as it is now.

    Raises:
        ReadError: it cannot be looked at.
    """
    with translated(url):
        fs, name = filesystem(url)
        fs.invalidate_cache()
        info = fs.info(name)
        return RemotePath(url, info.get("size"), version_of(info))


def modified(name: str) -> DataError:
    """The error for a file that is not what it was when the tasks were cut."""
    return DataError(f"{name} was modified while it was read; run the command again when it does not change any more")


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn the exceptions of fsspec and the libraries below it into ReadErrors that name the file, the reason and the fix."""
    try:
        yield
    except (DataError, ReadError, MemoryError):
        raise
    except Exception as error:  # each library has its own
        if type(error).__name__ == "FileExpired":
            raise modified(url) from error
        number = getattr(error, "errno", None)
        number = (
            number
            if isinstance(number, int)
            else next((value for kind, value in NO_NUMBER.items() if isinstance(error, kind)), errno.EIO)
        )
        raise ReadError(number, reason(url, error), url) from error


def reason(url: str, error: Exception) -> str:
    """Why a store did not answer as hoped, and what to do."""
    protocol, name = protocol_of(url), type(error).__name__
    credentials = CREDENTIALS.get({"s3a": "s3", "gcs": "gs"}.get(protocol, protocol), "check the credentials")
    said = next(iter(str(error).splitlines()), "") or name
    if error.__cause__:
        said += f"; {type(error.__cause__).__name__}: {error.__cause__}"
    if "range requests" in said:
        return NO_RANGES
    if "Credential" in name or "credentials" in said.lower():
        return f"no usable credentials ({said}): {credentials}"
    if isinstance(error, PermissionError):
        return f"permission denied ({said}): {credentials}, of a user who may list and read it"
    if isinstance(error, FileNotFoundError):
        return f"no such file, folder or bucket ({said})"
    return f"{name}: {said}: check the network, the endpoint and its region"
