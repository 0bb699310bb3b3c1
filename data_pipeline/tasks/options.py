"""The options that, with the inputs, decide the content of a prepared folder."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data_pipeline.dedup import Duplicates
from data_pipeline.documents import Document
from data_pipeline.filters import ActiveFilters, Limit
from data_pipeline.manifest import TRAIN, VALIDATION, Packing, RowFormat, sha256_of
from data_pipeline.readers.kinds import ReadAs
from data_pipeline.tokenizers.characters import PREFIX
from data_pipeline.tokenizers.huggingface import HuggingFaceTokenizer
from data_pipeline.tokenizers.tokenizers import BYTES, find_tokenizer_file
from data_pipeline.tokenizers.training import ModelType

DEFAULT_SHARD_SIZE = 4_000_000_000
DEFAULT_SAMPLE_BYTES = 10_000_000


@dataclass(frozen=True)
class Options:
    """What `loopmdm prepare` was asked for.

    Attributes:
        text_key: key or column that holds the text of a record.
        tokenizer: a tokenizer file, a folder with one, or "bytes"; None for the characters of the alphabet, or to train one.
        vocab_size: ids of the tokenizer to train, before [MASK] is added.
        model_type: kind of SentencePiece model to train.
        seq_len: tokens per row.
        packing: how documents become rows.
        validation_fraction: share of documents, chosen by hash, for the validation split; 0 for no such split.
        strict: stop at the first rejected record. Decides whether there is an output, not what it is.
        filters: which documents are left out.
        duplicates: whether documents that came before are left out: "keep" none, "exact" those of equal text, "near" also
            those that MinHash finds similar; "together" keeps all, and similar ones in one split.
        accept_broken_files: write the output although a file is broken or an input gives no document.
        alphabet: characters to use as tokens if no tokenizer is given; None to train one.
        max_rejected: largest share of records that may be unreadable. Like the option before, it decides whether there is an
            output, not what it is.
        shuffle: pack the documents in shuffled order.
        sample_bytes: size of the sample of text that a tokenizer is trained on.
        shard_size: largest size of a shard of tokens in bytes; a longer document has a shard of its own.
        read_as: how to read files that are given by name or by a pattern and have none of the suffixes of records; None to go
            by their suffixes.
    """

    text_key: str
    tokenizer: Path | None
    vocab_size: int
    model_type: ModelType
    seq_len: int
    packing: Packing
    validation_fraction: float
    strict: bool
    filters: ActiveFilters = field(default_factory=ActiveFilters)
    duplicates: Duplicates = "keep"
    accept_broken_files: bool = False
    max_rejected: float = 0.01
    alphabet: str | None = None
    shuffle: bool = True
    sample_bytes: int = DEFAULT_SAMPLE_BYTES
    shard_size: int = DEFAULT_SHARD_SIZE
    read_as: ReadAs | None = None

    @property
    def row_format(self) -> RowFormat:
        """What decides the rows."""
        return RowFormat(self.packing, self.seq_len, self.shuffle)

    def record(self) -> dict[str, str | Limit | None]:
        """The options as the manifest has them; a tokenizer is identified by its content, not by its path."""
        given = not self.trains_tokenizer
        return {
            **self.of_documents(),
            "tokenizer_sha256": self._tokenizer_identity(),
            **self.configured_tokens,
            "vocab_size": None if given else self.vocab_size,
            "model_type": None if given else self.model_type,
            "sample_bytes": None if given else self.sample_bytes,
            **self.row_format._asdict(),
            "shard_size": self.shard_size,
        }

    def of_documents(self) -> dict[str, str | Limit | None]:
        """Those that decide which documents each split has; they are part of the address of every task."""
        return {
            "text_key": self.text_key,
            "validation_fraction": self.validation_fraction,
            **self.filters.record(),
            "duplicates": self.duplicates,
            # Only where it is given, so that finished folders and tasks without it stay valid.
            **({"as": self.read_as} if self.read_as else {}),
        }

    def of_training(self) -> dict[str, str | Limit | None]:
        """Those that decide which tokenizer is trained."""
        return {
            **self.of_documents(),
            "vocab_size": self.vocab_size,
            "model_type": self.model_type,
            "sample_bytes": self.sample_bytes,
        }

    def _tokenizer_identity(self) -> str | None:
        if self.tokenizer is None:
            return None if self.alphabet is None else f"{PREFIX}{self.alphabet}"
        if self.uses_bytes:
            return BYTES
        return sha256_of(find_tokenizer_file(self.tokenizer))

    @cached_property
    def configured_tokens(self) -> dict[str, str]:
        """Names of the end and padding tokens, where the configuration beside a `tokenizer.json` decides them."""
        if self.tokenizer is None or self.uses_bytes:
            return {}
        path = find_tokenizer_file(self.tokenizer)
        return HuggingFaceTokenizer(path).configured if path.suffix == ".json" else {}

    @property
    def trains_tokenizer(self) -> bool:
        """Whether the tokenizer is trained on the text."""
        return self.tokenizer is None and self.alphabet is None

    @property
    def uses_bytes(self) -> bool:
        """Whether the tokens are bytes."""
        return str(self.tokenizer) == BYTES

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits to write."""
        return (TRAIN, VALIDATION) if self.validation_fraction else (TRAIN,)

    def split_of(self, document: Document) -> str:
        """The split of a document. It depends on the text only, so equal texts are in the same split."""
        return self.split_of_digest(document.digest)

    def split_of_digest(self, digest: bytes) -> str:
        """The split of the document with this digest."""
        position = int.from_bytes(digest[:8], "big") / 2**64
        return VALIDATION if position < self.validation_fraction else TRAIN
