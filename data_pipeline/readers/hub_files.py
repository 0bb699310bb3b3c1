"""Hub datasets whose files are Parquet or JSON lines: read from the hub by ranges, instead of converted on every machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline.errors import DataError, ReadError
from data_pipeline.readers.compression import open_decompressed
from data_pipeline.readers.hub import library_error, split_name
from data_pipeline.readers.kinds import file_kind
from data_pipeline.readers.remote import RemotePath, translated
from data_pipeline.readers.remote_finding import files_under
from data_pipeline.typed_words import is_remote

if TYPE_CHECKING:
    from datasets import DatasetBuilder

BEGINNING_BYTES = 1 << 10
OFFLINE_HINT = "run the same command again, or, to convert a copy in the cache of the library, set HF_HUB_OFFLINE=1 on all machines"


@dataclass(frozen=True)
class HubFiles:
    """The files of one split of a dataset.

    Attributes:
        root: the repository at the commit that was found; it stays the same during the run, whatever is pushed.
    """

    root: RemotePath
    files: tuple[RemotePath, ...]


def hub_files(value: str) -> HubFiles | None:
    """The files of `hf:NAME[:CONFIG][@SPLIT]`, in the order of the library; None for a dataset that has to be converted.

    These are other formats than Parquet and JSON lines, parts of splits such as `train[:10%]`, and all datasets in offline mode.

    Raises:
        DataError: no such dataset, or the hub cannot be reached. Several machines have to cut the same tasks, so a failure does
            not make this one convert a dataset that the others read from the hub.
    """
    import datasets

    if datasets.config.HF_HUB_OFFLINE:
        return None
    _, _, split = split_name(value)
    builder = _builder(value)
    urls = (builder.config.data_files or {}).get(split or "train", []) if _is_read_as_it_is(builder) else []
    if not urls or not all(is_remote(url) and "@" in url for url in urls):
        return None
    try:
        with translated(urls[0]):
            return _checked(urls)
    except ReadError as error:
        raise DataError(f"--input {value}: {error.strerror}") from error


def _builder(value: str) -> "DatasetBuilder":
    """What the library makes of a dataset while the hub is reached; see `hub_files` for what it raises."""
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetsError
    from datasets.packaged_modules.cache.cache import Cache

    name, config, _ = split_name(value)
    try:
        builder = load_dataset_builder(name, config)
    except Exception as error:  # the library raises its own exceptions, the hub's, and many built-in ones
        raised = library_error(value, error)
        if isinstance(error, OSError) and isinstance(raised, DataError) and not isinstance(error, DatasetsError):
            raised = DataError(f"{raised}; {OFFLINE_HINT}")
        raise raised from error
    if isinstance(builder, Cache):
        raise DataError(f"--input {value}: the hub does not answer, or has no such dataset any more; {OFFLINE_HINT}")
    return builder


def _is_read_as_it_is(builder: "DatasetBuilder") -> bool:
    """Whether the library yields the records of the files and does nothing else with them."""
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet

    config = builder.config
    if isinstance(builder, Json):
        return config.field is None and config.encoding == "utf-8"
    return isinstance(builder, Parquet) and config.filters is None


def _checked(urls: Sequence[str]) -> HubFiles | None:
    repository, _, rest = urls[0].partition("@")
    root = f"{repository}@{rest.partition('/')[0]}"
    listed = {path.url: path for path in files_under(root)}
    files = tuple(listed[url] for url in urls if url in listed)
    if len(files) < len(urls) or not all(map(_has_records, files)) or _is_array(files[0]):
        return None
    return HubFiles(RemotePath(root), files)


def _has_records(file: RemotePath) -> bool:
    try:
        return file_kind(file) in ("lines", "parquet")
    except DataError:
        return False


def _is_array(file: RemotePath) -> bool:
    """Whether a JSON file begins like an array, which is not read line by line."""
    if file_kind(file) != "lines":
        return False
    with open_decompressed(file) as opened:
        return opened.content.read(BEGINNING_BYTES).lstrip().startswith(b"[")
