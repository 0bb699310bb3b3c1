"""Content addresses: a result is found by what it was made from, wherever the inputs lie and in whatever order they are.

Modification times, inodes and paths are not part of an address, so `touch`, `chmod`, a copy or another mount point do not make
a result be made again.
"""

import hashlib
import json
import platform
import unicodedata
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from data_pipeline.errors import ReadError
from data_pipeline.readers.input_files import InputFile

# Raise it when a change of this package changes documents, tokens, samples or signatures of equal inputs.
FORMAT = 2
# A file's beginning and end change with most edits; edits between them are noticed by the modification time.
PROBE_BYTES = 64 << 10
PACKAGES = ("loopmdm", "numpy", "pyarrow", "datasets", "duckdb", "rensa", "sentencepiece", "tokenizers")


def content_address(*parts: object) -> str:
    """Hash of JSON values."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


@cache
def software(*packages: str) -> dict[str, str | int]:
    """Versions that decide a result: of this package's format, of Python's Unicode tables, and of some packages.

    The Unicode tables decide what a letter or a blank is. Libraries that only read (pyarrow, datasets, decompressors) are not
    included: they return the values that were stored, and a wrong value would be noticed by the digest of the documents.
    """
    return {
        "format": FORMAT,
        "unicode": unicodedata.unidata_version,
        **{package: version(package) for package in packages},
    }


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that make the output, for the manifest; without those not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def probe(path: InputFile, start: int, stop: int, size: int, version: int | str) -> str:
    """Hash of the first and last `PROBE_BYTES` of bytes `start` to `stop` of a file.

    Args:
        size, version: of the file now; with others, it is read again.

    Raises:
        ReadError: the file cannot be read.
    """
    del size, version
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            digest.update(file.read(min(PROBE_BYTES, stop - start)))
            tail = max(start + PROBE_BYTES, stop - PROBE_BYTES)
            if tail < stop:
                file.seek(tail)
                digest.update(file.read(stop - tail))
    except OSError as error:
        raise ReadError.of(error, str(path)) from error
    return digest.hexdigest()
