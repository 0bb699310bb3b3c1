"""`manifest.json`: what a prepared folder holds, and checks that it still does."""

import glob
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from data_pipeline.atomic_files import write_atomic
from data_pipeline.errors import DataError
from data_pipeline.indexed import Shard, token_dtype

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
PREPARE_HINT = "prepare one with: loopmdm prepare --input PATH... --output {folder}"
REPAIR_HINT = "copy the folder again from its source, or prepare it again with --overwrite"
# Hashing more would delay the start of a run; `loopmdm verify` hashes everything.
QUICKLY_HASHED_BYTES = 1 << 26
# What opening a file counts as in it, so that many small files are not all hashed.
BYTES_PER_FILE = 1 << 16

Packing = Literal["concat", "best_fit"]
TRAIN, VALIDATION = "train", "validation"


class RowFormat(NamedTuple):
    """What decides the rows that documents are packed into."""

    packing: Packing
    seq_len: int
    shuffle: bool


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileInfo(_Record):
    """Size in bytes and SHA-256 (hexadecimal) of one file of the folder."""

    bytes: int = Field(ge=0)
    sha256: str


class TokenizerInfo(_Record):
    """The copy of the tokenizer in the folder, and the ids that the pipeline relies on."""

    kind: Literal["sentencepiece", "huggingface", "bytes"]
    file: str
    sha256: str
    vocab_size: int = Field(ge=1, description="ids that the tokenizer itself can produce")
    eod_id: int = Field(ge=0, description="end-of-document id, appended to every document")
    mask_id: int = Field(ge=0, description="[MASK], always the last id")
    pad_id: int = Field(ge=0, description="the tokenizer's own, else eod_id; padding never enters a loss")


class SplitInfo(_Record):
    """One split: the documents of its shards, one shard after the other.

    `tokens` includes one end-of-document id per document; `bytes` counts UTF-8 bytes of the texts.
    """

    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    bytes: int = Field(ge=0)
    shards: list[str] = Field(min_length=1, description="stems of the `.bin/.idx` pairs, in the order of the documents")
    rows: int = Field(ge=0)
    dropped_tokens: int = Field(ge=0, description="tail of the token stream that does not fill a row")
    padded_tokens: int = Field(ge=0, description="positions of the rows that hold padding")
    files: dict[str, FileInfo]


class TextLoss(_Record):
    """What a lossy tokenizer changes in a sample of the texts. Bits per byte count the bytes of the texts as they were."""

    texts: int = Field(ge=1, description="texts of the sample")
    changed: int = Field(ge=0, description="those that do not come back from their ids")
    tokens: int = Field(ge=0)
    unknown: int = Field(ge=0, description="tokens that stand for something that the tokenizer does not know")

    def __str__(self) -> str:
        unknown = f", {self.unknown / self.tokens:.1%} of the tokens are unknown" if self.unknown else ""
        return f"{self.changed:,} of {self.texts:,} sampled texts do not come back from their tokens{unknown}"


class InputInfo(_Record):
    """One `--input` value as given, what was found there, and a digest of the documents read, in their order."""

    input: str
    kind: Literal["file", "folder", "glob", "stdlib", "datasets", "hub", "generated"]
    files: int = Field(ge=0)
    bytes: int = Field(ge=0, description="on disk, compressed where the files are")
    documents: int = Field(ge=0)
    tokens: int | None = Field(
        default=None, ge=0, description="of all splits; None in folders written before it was counted"
    )
    rejected: dict[str, int] | None = Field(
        default=None, description="records left out by cause; None in folders written before they were counted by input"
    )
    digest: str = Field(description="BLAKE2b over the digests of the tasks, each over those of its documents")
    versions: str | None = Field(default=None, description="hash of the versions of remote files; None for local ones")

    @model_serializer(mode="wrap")
    def _without_no_versions(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `versions` for local files: such a record is the same as before there was the field."""
        return {key: value for key, value in serialize(self).items() if key != "versions" or value is not None}


class Manifest(_Record):
    """The whole manifest. It has no time stamp and no machine name, so equal runs of equal software write equal bytes."""

    format_version: Literal[2] = FORMAT_VERSION
    tokenizer: TokenizerInfo
    vocab_size: int = Field(ge=2, description="all ids, including those that the pipeline added")
    seq_len: int = Field(ge=1)
    packing: Packing
    shuffle: bool = Field(default=False, description="whether the documents were shuffled before they were packed")
    splits: dict[str, SplitInfo]
    inputs: list[InputInfo]
    against: list[InputInfo] = Field(
        default=[],
        description="texts of other corpora that duplicates were looked for in; nothing of them is in the folder",
    )
    options: dict[str, str | bool | int | float | None]
    records: dict[str, int] = Field(description="rejected records by cause")
    provenance: dict[str, FileInfo] = Field(
        default={},
        description="files of `data_pipeline.provenance`, which training does not need; none in older folders",
    )
    versions: dict[str, str] = Field(
        default={}, description="of the packages that wrote the folder; none in older ones"
    )
    text_loss: TextLoss | None = Field(default=None, description="None if the sampled texts come back from their ids")

    @model_serializer(mode="wrap")
    def _without_no_loss(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `text_loss` where nothing is lost: such a manifest is the same as before there was the field."""
        fields = serialize(self)
        return {key: value for key, value in fields.items() if key != "text_loss" or value is not None}

    @property
    def row_format(self) -> RowFormat:
        """How the rows were made."""
        return RowFormat(self.packing, self.seq_len, self.shuffle)

    def shards(self, split: str) -> list[Shard]:
        """The shards of a split, in the order of the documents; opens no file.

        Raises:
            DataError: the sizes of their files are missing or are not those of a shard.
        """
        info, dtype = self.splits[split], token_dtype(self.vocab_size)
        try:
            sizes = [(info.files[f"{stem}.bin"].bytes, info.files[f"{stem}.idx"].bytes) for stem in info.shards]
            return [Shard.of_sizes(stem, dtype, *each) for stem, each in zip(info.shards, sizes, strict=True)]
        except KeyError as error:
            raise DataError(f"{MANIFEST_NAME} lists no file {error} of the {split} split; {REPAIR_HINT}") from error
        except ValueError as error:
            raise DataError(f"{MANIFEST_NAME}: {error}; {REPAIR_HINT}") from error

    @model_validator(mode="after")
    def _ids_fit(self) -> Self:
        special = self.tokenizer
        if special.mask_id != self.vocab_size - 1:
            raise ValueError(f"mask_id {special.mask_id} is not the last id of a vocabulary of {self.vocab_size}")
        if max(special.eod_id, special.pad_id) >= special.mask_id:
            raise ValueError("eod_id and pad_id must lie below mask_id")
        return self


def load_manifest(folder: Path) -> Manifest:
    """Read and validate `folder/manifest.json`.

    Raises:
        DataError: no such folder, no manifest in it, broken JSON, another format version, or a wrong field.
    """
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    if folder.is_file():
        raise DataError(f"{folder} is a file; give the folder that `loopmdm prepare` wrote")
    if not folder.is_dir():
        seen_from = "" if folder.is_absolute() else f" (from {Path.cwd()})"
        raise DataError(f"no prepared data folder at {folder}{seen_from}; {_missing_hint(folder)}")
    if (folder / "config.yaml").is_file() and (folder / "tokenizer").is_dir():
        raise DataError(
            f"{folder} is the folder of a run; give a prepared folder, such as data.path in its config.yaml"
        )
    if not path.is_file():
        raise DataError(
            f"{folder} has no {MANIFEST_NAME}, so it is not a prepared data folder, or "
            f"its copy is incomplete; {PREPARE_HINT.format(folder=folder)}"
        )
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(content: bytes, name: str) -> Manifest:
    """Validate the content of a manifest.

    Args:
        name: of the file, for errors.

    Raises:
        DataError: broken JSON, another format version, or a wrong field.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise DataError(_explain(name, error)) from error


def replaced_folders(folder: Path) -> list[Path]:
    """Where `loopmdm prepare` keeps the older folder while it replaces `folder`; versions before this one used the second."""
    folder = folder.resolve()
    older = (p for p in folder.parent.glob(f"{glob.escape(folder.name)}.replaced-*") if p.suffix[10:].isdigit())
    return [
        folder.with_name(f"{folder.name}.work") / "replaced",
        *sorted(older, key=lambda path: path.stat().st_mtime, reverse=True),
    ]


def _missing_hint(folder: Path) -> str:
    """What to do where there is no folder."""
    kept = [path for path in replaced_folders(folder) if (path / MANIFEST_NAME).is_file()]
    if kept:
        return (
            f"`loopmdm prepare` was interrupted while it replaced it: run that command again, which finishes the work, or move "
            f"{kept[0]} back to {folder}"
        )
    return PREPARE_HINT.format(folder=folder)


def write_manifest(folder: Path, manifest: Manifest, inputs_read: int) -> None:
    """Write `folder/manifest.json`.

    Args:
        inputs_read: modification time to set, in ns since 1970: when the run began to read its inputs. An input that
            changed during the run is newer than the manifest, and so is noticed by the next run.
    """
    text = json.dumps(manifest.model_dump(), indent=2, ensure_ascii=False) + "\n"
    write_atomic(folder / MANIFEST_NAME, text, modified_ns=inputs_read)


def _explain(path: str, error: ValidationError) -> str:
    """The first problem of an invalid manifest, in words."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return f"{path} is not valid JSON ({first['msg']}); {REPAIR_HINT}"
    if field == "format_version":
        return (
            f"{path} has format version {first['input']}, this version of loopmdm reads {FORMAT_VERSION}; "
            "prepare the data again with --overwrite"
        )
    return f"{path}: {field + ': ' if field else ''}{first['msg']}; {REPAIR_HINT}"


def check_files(folder: Path, manifest: Manifest) -> None:
    """Quick check before a run: the size of every file, and the hashes of the smallest, up to `QUICKLY_HASHED_BYTES`.

    `data_pipeline.verify` hashes everything.

    Raises:
        DataError: names the first file that differs, with what was found and what was expected.
    """
    folder = Path(folder)
    check_hash(folder / manifest.tokenizer.file, manifest.tokenizer.sha256)
    left = QUICKLY_HASHED_BYTES
    for split in manifest.splits.values():
        for name, info in sorted(split.files.items(), key=lambda each: each[1].bytes):
            check_size(folder / name, info.bytes)
            cost = max(info.bytes, BYTES_PER_FILE)
            if not name.endswith(".bin") and cost <= left:
                left -= cost
                check_hash(folder / name, info.sha256)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_size(path: Path, expected: int) -> None:
    """Raise DataError when a file is missing or has another size in bytes."""
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {REPAIR_HINT}") from error
    if found != expected:
        raise DataError(f"{path} has {found} bytes, the manifest says {expected}; {REPAIR_HINT}")


def check_hash(path: Path, expected: str) -> None:
    """Raise DataError when a file is missing or has another SHA-256."""
    if not path.is_file():
        raise DataError(f"{path} is missing; {REPAIR_HINT}")
    found = sha256_of(path)
    if found != expected:
        raise DataError(
            f"{path} has changed: its SHA-256 is {found[:16]}..., the manifest says {expected[:16]}...; {REPAIR_HINT}"
        )
