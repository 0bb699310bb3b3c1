"""What `loopmdm inspect` shows, collected once for the terminal and the HTML page."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.dataset.shuffle import SampleOrder
from data_pipeline.dataset.token_stream import TokenStream
from data_pipeline.manifest import InputInfo, Manifest
from data_pipeline.provenance import PLACES_SUFFIX, SOURCES_NAME, DocumentSource, Provenance
from data_pipeline.tokenizers.tokenizers import PreparedTokenizer, load_prepared_tokenizer
from model.noise import Stream, uniform
from pretrain.errors import UserError
from pretrain.inspection.pieces import Piece, pieces_of

# With more documents only every n-th is counted, so that the largest folder is inspected in seconds.
MOST_LENGTHS = 1 << 23


@dataclass(frozen=True)
class Histogram:
    """Tokens per document, in bins of powers of two.

    Attributes:
        bins: (least length, greatest length, documents, tokens in them), shortest first, without gaps.
        quantiles: (name, tokens).
        counted: number of documents counted.
    """

    bins: list[tuple[int, int, int, int]]
    quantiles: list[tuple[str, int]]
    counted: int


@dataclass(frozen=True)
class DocumentView:
    """The beginning of one document, as text.

    Attributes:
        number: its position in the split, from 0.
        source: where it was read; None in folders that do not say it.
        hidden: number of tokens after those in `pieces`.
    """

    number: int
    source: DocumentSource | None
    tokens: int
    pieces: list[Piece]
    hidden: int


@dataclass(frozen=True)
class PartView:
    """A document's part of a row.

    Attributes:
        number, source: of the document, as in `DocumentView`.
        tokens: number of tokens in the part; `pieces` may hold fewer.
        pieces: its beginning.
        note: says if the document begins or ends in another row; empty for a whole document.
    """

    number: int
    source: DocumentSource | None
    tokens: int
    pieces: list[Piece]
    note: str


@dataclass(frozen=True)
class RowView:
    """One row, split into its documents.

    Attributes:
        sample: global index of the training sample whose masks are shown, or None.
        parts: the documents that are shown, without the padding.
        documents: number of documents in the row.
        tokens: number of tokens without padding.
        padding: number of padding tokens.
        hidden: number of tokens that are not shown.
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
    """Everything that is shown."""

    folder: Path
    split: str
    manifest: Manifest
    histogram: Histogram
    documents: list[DocumentView]
    rows: list[RowView]
    seed: int

    @property
    def sources(self) -> list[tuple[InputInfo, float]]:
        """Each input with its share of the documents or tokens (`share_of`)."""
        share_of, inputs = self.share_of, self.manifest.inputs
        counts = [each.documents if share_of == "documents" else each.tokens or 0 for each in inputs]
        total = max(sum(counts), 1)
        return [(each, count / total) for each, count in zip(inputs, counts, strict=True)]

    @property
    def share_of(self) -> str:
        """What the shares of the sources refer to: tokens, or documents if the manifest has no token counts."""
        return "documents" if any(each.tokens is None for each in self.manifest.inputs) else "tokens"

    def filled(self, split: str) -> float:
        """Fraction of a split's positions that are not padding."""
        info = self.manifest.splits[split]
        return 1 - info.padded_tokens / (info.rows * self.manifest.seq_len)


@dataclass(frozen=True)
class _Shown:
    """The split that is shown; `provenance` is None in folders that do not say where their documents come from."""

    dataset: PackedDataset
    stream: TokenStream
    tokenizer: PreparedTokenizer
    provenance: Provenance | None

    def source(self, document: int) -> DocumentSource | None:
        """Where a document was read, if that is known."""
        return self.provenance and self.provenance.of_document(document)


def collect(arguments: argparse.Namespace) -> Facts:
    """Collect. Raises DataError for a damaged folder, UserError for a row or sample that does not exist."""
    dataset = PackedDataset(arguments.folder, arguments.split)
    manifest = dataset.manifest
    stream = TokenStream(arguments.folder, manifest.shards(arguments.split))
    shown = _Shown(
        dataset, stream, load_prepared_tokenizer(arguments.folder, manifest), _provenance(dataset, arguments)
    )
    rows = [_row(shown, row, sample, arguments) for row, sample in _wanted(arguments, dataset.num_rows)]
    documents = [_document(shown, number, arguments.max_tokens) for number in _documents(arguments, stream)]
    return Facts(arguments.folder, arguments.split, manifest, _histogram(stream), documents, rows, arguments.seed)


def _provenance(dataset: PackedDataset, arguments: argparse.Namespace) -> Provenance | None:
    # They may have been left out of a copy: training does not need them.
    is_known = all((arguments.folder / name).is_file() for name in (SOURCES_NAME, f"{arguments.split}{PLACES_SUFFIX}"))
    return Provenance(arguments.folder, arguments.split) if dataset.manifest.provenance and is_known else None


def _documents(arguments: argparse.Namespace, stream: TokenStream) -> list[int]:
    """The documents to show: those asked for, or some."""
    asked = arguments.document or []
    if outside := [i for i in asked if not 0 <= i < stream.num_documents]:
        raise UserError(
            f"--document {outside[0]}: the {arguments.split} split has documents 0 to {stream.num_documents - 1}"
        )
    return asked or _spread(arguments.documents, stream.num_documents)


def _wanted(arguments: argparse.Namespace, num_rows: int) -> list[tuple[int, int | None]]:
    """(row, sample whose masks are shown, or None) of each row to show."""
    if negative := [i for i in arguments.sample or [] if i < 0]:
        raise UserError(f"--sample {negative[0]}: samples are numbered from 0")
    if outside := [i for i in arguments.row or [] if not 0 <= i < num_rows]:
        raise UserError(f"--row {outside[0]}: the {arguments.split} split has rows 0 to {num_rows - 1}")
    samples = np.array(arguments.sample or [], np.int64)
    met = SampleOrder(arguments.seed, num_rows).rows(samples).tolist()
    asked = [(row, None) for row in arguments.row or []] + list(zip(met, samples.tolist(), strict=True))
    return asked or [(row, None) for row in _spread(arguments.rows, num_rows)]


def _spread(wanted: int, existing: int) -> list[int]:
    """At most `wanted` indices, evenly spaced over `existing`."""
    count = min(wanted, existing)
    return [i * existing // count for i in range(count)]


def _document(split: _Shown, number: int, most: int) -> DocumentView:
    ids = split.stream.document(number)
    shown = ids[:most].tolist()
    pieces = pieces_of(split.tokenizer, shown, np.ones(len(shown)))
    return DocumentView(number, split.source(number), len(ids), pieces, len(ids) - len(shown))


def _row(split: _Shown, number: int, sample: int | None, arguments: argparse.Namespace) -> RowView:
    dataset, stream, tokenizer = split.dataset, split.stream, split.tokenizer
    index = np.array([number])
    ids, owners = dataset.rows(index)[0], dataset.document_ids(index)[0]
    tokens = int((owners >= 0).sum())
    shown = min(tokens, arguments.max_tokens)
    # The uniform draws that training compares with t. A row given by --row is shown with the draws of the sample of that index.
    draws = uniform(arguments.seed, Stream.MASK, number if sample is None else sample, dataset.seq_len)
    # Only the first document of a contiguous part of the stream can begin before it.
    segments = dataset.segments(index)
    begun = {
        int(owners[column])
        for column, start in zip(segments.columns.tolist(), segments.starts.tolist(), strict=True)
        if start and stream.token(start - 1) != tokenizer.eod_id
    }
    parts = []
    for owner in range(owners[:shown].max() + 1):
        places = np.flatnonzero(owners == owner)
        notes = ["begins in another row"] if owner in begun else []
        notes += ["continues in another row"] if ids[places[-1]] != tokenizer.eod_id else []
        seen = places[places < shown]
        last = np.searchsorted(segments.columns, places[0], side="right") - 1  # the segment that the part begins in
        document = stream.document_at(int(segments.starts[last] + places[0] - segments.columns[last]))
        pieces = pieces_of(tokenizer, ids[seen].tolist(), draws[seen])
        parts.append(PartView(document, split.source(document), places.size, pieces, ", ".join(notes)))
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
    names = (("shortest", 0), ("median", 0.5), ("90th percentile", 0.9), ("99th percentile", 0.99), ("longest", 1))
    quantiles = [(name, int(np.quantile(lengths, q, method="lower"))) for name, q in names]
    return Histogram(table, quantiles, lengths.size)
