"""Zero-shot perplexity of the documents of a prepared folder, of any length and with any tokenizer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.dataset.token_stream import TokenStream
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, load_manifest
from data_pipeline.tokenizers.tokenizers import PreparedTokenizer, load_prepared_tokenizer
from pretrain.errors import UserError
from pretrain.evaluation.likelihood import rolling
from pretrain.evaluation.statistics import ratio_and_error, ratio_residuals
from pretrain.evaluation.tasks.rows import digest, nats_of_texts
from pretrain.evaluation.tasks.task import Record, TaskModel

WINDOW_BITS = 20
"""Window w of document d has the random numbers of group d * 2^20 + w."""


@dataclass(frozen=True)
class Documents:
    """The documents of a split of a prepared folder."""

    folder: Path
    split: str

    @cached_property
    def manifest(self) -> Manifest:
        """Of the folder."""
        return load_manifest(self.folder)

    @cached_property
    def _stream(self) -> TokenStream:
        splits = self.manifest.splits
        if self.split not in splits:
            raise UserError(f"{self.folder} has no split {self.split!r}; it has: {', '.join(sorted(splits))}")
        return TokenStream(self.folder, self.manifest.shards(self.split))

    @cached_property
    def _tokenizer(self) -> PreparedTokenizer:
        return load_prepared_tokenizer(self.folder, self.manifest)

    def __len__(self) -> int:
        return self._stream.num_documents

    def size(self, number: int) -> int:
        """Tokens of a document in the folder, with the end of the document."""
        return len(self._stream.document(number))

    def text(self, number: int) -> str:
        """A document's text."""
        return self._tokenizer.decode(self._stream.document(number)[:-1])

    @property
    def identity(self) -> str:
        """Decides the texts: the hashes of the files."""
        return str([self.manifest.splits[self.split], self.manifest.tokenizer])


@dataclass(frozen=True)
class RowLengths(Sequence[int]):
    """Tokens of the longest row of each document. Looked up when asked for: a corpus may have many."""

    documents: Documents
    seq_len: int

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, number: int) -> int:
        return min(self.documents.size(number), self.seq_len)


@dataclass(frozen=True)
class DocumentTask:
    """-log p of whole documents with their ends, in windows where they are longer than a row.

    Attributes:
        name: of the folder.
        stride: tokens of each window but the first that are not context.
        method, masks: see `nats_of_texts`.
        tokenizer: that of the model. Texts are tokenized again if the folder has another; bits per byte stay comparable.
    """

    name: str
    documents: Documents
    stride: int
    method: str
    masks: int
    seq_len: int
    tokenizer: PreparedTokenizer
    metric: str = "bits_per_byte"
    samples: bool = False

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Task`."""

        masks = {"masks": self.masks} if self.method == "nelbo" else {}
        about = {"task": "documents", "name": self.name, "split": self.documents.split, "stride": self.stride}
        return {**about, "likelihood": self.method, **masks, "items_sha256": digest(self.documents.identity)}

    @property
    def sizes(self) -> "RowLengths":
        """See `Task`."""
        return RowLengths(self.documents, self.seq_len)

    def run(self, model: TaskModel, items: Sequence[int]) -> list[Record]:
        """See `Task`."""
        texts = [self.documents.text(item) for item in items]
        tokens = [[*ids.tolist(), self.tokenizer.eod_id] for ids in self.tokenizer.encode_batch(texts)]
        windows = [rolling(ids, self.seq_len, self.stride) for ids in tokens]
        flat = [window for of_item in windows for window in of_item]
        owners = np.repeat(np.arange(len(items)), [len(of_item) for of_item in windows])
        groups = [
            (item << WINDOW_BITS) + i for item, of_item in zip(items, windows, strict=True) for i in range(len(of_item))
        ]
        nats = nats_of_texts(model, flat, groups, self.method, self.masks)
        sums = np.bincount(owners, nats, minlength=len(items))
        return [
            {"item": item, "nats": nat, "tokens": len(ids), "bytes": len(text.encode("utf-8"))}
            for item, nat, ids, text in zip(items, sums.tolist(), tokens, texts, strict=True)
        ]

    def figures(self, model: TaskModel, records: Sequence[Record]) -> dict[str, float | None]:
        """See `Task`."""
        nats, tokens, num_bytes = (np.array([float(r[key]) for r in records]) for key in ("nats", "tokens", "bytes"))
        per_token, token_error = ratio_and_error(nats, tokens)
        bits, bits_error = ratio_and_error(nats / math.log(2), num_bytes)
        perplexity = math.exp(min(per_token, 700))
        return {
            "nats_per_token": per_token, "nats_per_token_se": token_error,
            "bits_per_byte": bits, "bits_per_byte_se": bits_error,
            "perplexity": perplexity, "perplexity_se": None if token_error is None else perplexity * token_error,
        }  # fmt: skip

    def values(self, records: Sequence[Record]) -> np.ndarray:
        """See `Task`."""
        nats, num_bytes = (np.array([float(record[key]) for record in records]) for key in ("nats", "bytes"))
        return ratio_residuals(nats / math.log(2), num_bytes)


def documents_of(folder: Path, split: str) -> Documents:
    """The documents of a split.

    Raises:
        UserError, DataError: no prepared folder, no such split, or no document in it.
    """
    documents = Documents(folder, split)
    if not len(documents):
        raise DataError(f"{folder}: its split {split!r} has no document")
    return documents
