"""What `loopmdm inspect` shows, gathered once for every way of showing it."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.dataset.shuffle import SampleOrder
from data_pipeline.dataset.token_stream import TokenStream
from data_pipeline.manifest import InputInfo, Manifest
from data_pipeline.tokenizers.tokenizers import PreparedTokenizer, load_prepared_tokenizer
from model.noise import Stream, uniform
from pretrain.errors import UserError
from pretrain.inspection.pieces import Piece, pieces_of

# Of more documents every so-many-th is looked at, so that the largest folder is inspected in seconds.
MOST_LENGTHS = 1 << 23


@dataclass(frozen=True)
class Histogram:
    """Tokens per document, in bins of powers of two.

    Attributes:
        bins: (least length, greatest length, documents, tokens in them), shortest first, none left out between.
        quantiles: (name, tokens).
        looked_at: documents counted.
    """

    bins: list[tuple[int, int, int, int]]
    quantiles: list[tuple[str, int]]
    looked_at: int


@dataclass(frozen=True)
class DocumentView:
    """The beginning of one document.

    Attributes:
        hidden: tokens beyond what `pieces` shows.
    """

    number: int
    tokens: int
    pieces: list[Piece]
    hidden: int


@dataclass(frozen=True)
class PartView:
    """A document's part of a row.

    Attributes:
        tokens: of the part; `pieces` may show fewer.
        pieces: its beginning.
        note: whether the document begins or ends in another row, in words; empty for a whole one.
    """

    tokens: int
    pieces: list[Piece]
    note: str


@dataclass(frozen=True)
class RowView:
    """One row, cut where its documents are.

    Attributes:
        sample: global index of the training sample that it is shown as, or None.
        parts: the documents that are shown; padding is no document.
        documents: documents in the row.
        tokens: real tokens.
        padding: places after them.
        hidden: tokens beyond what is shown.
    """

    number: int
    sample: int | None
    parts: list[PartView]
    documents: int
    tokens: int
    padding: int
    hidden: int


@dataclass(frozen=True)
class Facts:
    """Everything to show."""

    folder: Path
    split: str
    manifest: Manifest
    histogram: Histogram
    documents: list[DocumentView]
    rows: list[RowView]
    seed: int

    @property
    def sources(self) -> list[tuple[InputInfo, float]]:
        """Each input with its share, of what `share_of` says."""
        counts = [each.documents if self.share_of == "documents" else each.tokens or 0 for each in self.manifest.inputs]
        return [(each, count / max(sum(counts), 1)) for each, count in zip(self.manifest.inputs, counts, strict=True)]

    @property
    def share_of(self) -> str:
        """What shares of sources count: tokens, or documents where the folder does not say the tokens."""
        return "documents" if any(each.tokens is None for each in self.manifest.inputs) else "tokens"

    def filled(self, split: str) -> float:
        """Share of a split's places that hold tokens."""
        info = self.manifest.splits[split]
        return 1 - info.padded_tokens / (info.rows * self.manifest.seq_len)


def look(arguments: argparse.Namespace) -> Facts:
    """Gather. Raises DataError for a folder that is not whole, UserError for a row or document that is not there."""
    dataset = PackedDataset(arguments.folder, arguments.split)
    manifest = dataset.manifest
    stream = TokenStream(arguments.folder, manifest.splits[arguments.split].shards)
    tokenizer = load_prepared_tokenizer(arguments.folder, manifest)
    rows = [
        _row(dataset, stream, tokenizer, row, sample, arguments) for row, sample in _wanted(arguments, dataset.num_rows)
    ]
    documents = [
        _document(stream, tokenizer, number, arguments.max_tokens)
        for number in _spread(arguments.documents, stream.num_documents)
    ]
    return Facts(arguments.folder, arguments.split, manifest, _histogram(stream), documents, rows, arguments.seed)


def _wanted(arguments: argparse.Namespace, num_rows: int) -> list[tuple[int, int | None]]:
    """(row, sample that it is shown as or None)."""
    if negative := [i for i in arguments.sample or [] if i < 0]:
        raise UserError(f"--sample {negative[0]}: samples are counted from 0")
    if outside := [i for i in arguments.row or [] if not 0 <= i < num_rows]:
        raise UserError(f"--row {outside[0]}: the {arguments.split} split has the rows 0 to {num_rows - 1}")
    samples = np.array(arguments.sample or [], np.int64)
    met = SampleOrder(arguments.seed, num_rows).rows(samples).tolist()
    asked = [(row, None) for row in arguments.row or []] + list(zip(met, samples.tolist(), strict=True))
    return asked or [(row, None) for row in _spread(arguments.rows, num_rows)]


def _spread(wanted: int, there: int) -> list[int]:
    count = min(wanted, there)
    return [i * there // count for i in range(count)]


def _document(stream: TokenStream, tokenizer: PreparedTokenizer, number: int, most: int) -> DocumentView:
    ids = stream.document(number)
    shown = ids[:most].tolist()
    return DocumentView(number, len(ids), pieces_of(tokenizer, shown, np.ones(len(shown))), len(ids) - len(shown))


def _row(
    dataset: PackedDataset,
    stream: TokenStream,
    tokenizer: PreparedTokenizer,
    number: int,
    sample: int | None,
    arguments: argparse.Namespace,
) -> RowView:
    index = np.array([number])
    ids, owners = dataset.rows(index)[0], dataset.document_ids(index)[0]
    tokens = int((owners >= 0).sum())
    shown = min(tokens, arguments.max_tokens)
    # The draws that training compares with t; a row that was asked for by its number is shown as the sample of that index.
    draws = uniform(arguments.seed, Stream.MASK, number if sample is None else sample, dataset.seq_len)
    # Only the first document of a stretch of the stream may have begun before it.
    segments = dataset.segments(index)
    begun = {
        int(owners[column])
        for column, start in zip(segments.columns.tolist(), segments.starts.tolist(), strict=True)
        if start and stream.token(start - 1) != tokenizer.eod_id
    }
    parts = []
    for owner in range(owners[:shown].max() + 1):
        places = np.flatnonzero(owners == owner)
        notes = ["begun in another row"] if owner in begun else []
        notes += ["goes on in another row"] if ids[places[-1]] != tokenizer.eod_id else []
        seen = places[places < shown]
        parts.append(PartView(places.size, pieces_of(tokenizer, ids[seen].tolist(), draws[seen]), ", ".join(notes)))
    return RowView(
        number, sample, parts, int(owners.max()) + 1, tokens, dataset.seq_len - tokens, hidden=tokens - shown
    )


def _histogram(stream: TokenStream) -> Histogram:
    lengths = stream.lengths(step=-(-stream.num_documents // MOST_LENGTHS))
    lengths = lengths[lengths > 0].astype(np.int64)
    bins = np.floor(np.log2(lengths)).astype(np.int64)
    counts, tokens = np.bincount(bins), np.bincount(bins, weights=lengths)
    table = [
        (2**i, 2 ** (i + 1) - 1, int(counts[i]), int(tokens[i])) for i in range(int(bins.min()), int(bins.max()) + 1)
    ]
    names = (("shortest", 0), ("median", 0.5), ("90%", 0.9), ("99%", 0.99), ("longest", 1))
    quantiles = [(name, int(np.quantile(lengths, q, method="lower"))) for name, q in names]
    return Histogram(table, quantiles, lengths.size)
