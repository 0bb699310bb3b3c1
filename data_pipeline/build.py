"""From inputs to the files of a prepared folder."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.encode import encode_documents
from data_pipeline.errors import DataError
from data_pipeline.indexed import IndexedWriter, token_dtype
from data_pipeline.inputs import ContentDigest, Input
from data_pipeline.manifest import (
    FileInfo,
    InputInfo,
    Manifest,
    Packing,
    SplitInfo,
    TokenizerInfo,
    sha256_of,
    write_manifest,
)
from data_pipeline.pack_plan import plan_files, write_plan
from data_pipeline.records import Document, RecordLog
from data_pipeline.report import Progress
from data_pipeline.sampling import HashSample
from data_pipeline.staging import require_space
from data_pipeline.tokenizers import find_tokenizer_file, load_tokenizer, train_sentencepiece

TRAIN, VALIDATION = "train", "validation"
# Ordinary text has three to five bytes to a token; the estimate of the space needed errs on the safe side.
ASSUMED_BYTES_PER_TOKEN = 3
UNPACKED_SUFFIXES = (".gz", ".parquet", ".pq", ".arrow")


@dataclass(frozen=True)
class BuildOptions:
    """What decides the content of a prepared folder, besides its inputs.

    Attributes:
        text_key: key or column of the text in structured records.
        tokenizer: a tokenizer file (or a folder with one) to use, None to train one.
        vocab_size: ids of a tokenizer to train, before [MASK] is added.
        seq_len: tokens per row.
        packing: how documents become rows.
        validation_fraction: share of documents, chosen by hash, for the validation split; 0 for no such split.
    """

    text_key: str
    tokenizer: Path | None
    vocab_size: int
    seq_len: int
    packing: Packing
    validation_fraction: float

    def record(self) -> dict[str, str | int | float | None]:
        """The options as the manifest keeps them; a tokenizer is known by its content, not by its place."""
        given = self.tokenizer is not None
        return {
            "text_key": self.text_key,
            "tokenizer_sha256": sha256_of(find_tokenizer_file(self.tokenizer)) if given else None,
            "vocab_size": None if given else self.vocab_size,
            "seq_len": self.seq_len,
            "packing": self.packing,
            "validation_fraction": self.validation_fraction,
        }

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits to write."""
        return (TRAIN, VALIDATION) if self.validation_fraction else (TRAIN,)

    def split_of(self, document: Document) -> str:
        """The split of a document: a function of its text alone, so equal texts stay together."""
        position = int.from_bytes(document.digest[:8], "big") / 2**64
        return VALIDATION if position < self.validation_fraction else TRAIN


@dataclass
class _Counts:
    documents: int = 0
    tokens: int = 0
    bytes: int = 0


@dataclass
class _Corpus:
    """All inputs as one stream of (split, document), with a digest of what each input gave."""

    inputs: list[Input]
    options: BuildOptions
    log: RecordLog
    digests: list[ContentDigest] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[str, Document]]:
        self.digests = [ContentDigest() for _ in self.inputs]
        for found, digest in zip(self.inputs, self.digests, strict=True):
            for document in found.documents(self.log):
                digest.add(document)
                yield self.options.split_of(document), document
        self.log.raise_if_key_is_wrong()
        if not self.log.accepted:
            rejected = ", ".join(f"{count} {cause}" for cause, count in self.log.rejected.items())
            raise DataError(f"the inputs hold no usable text ({rejected or 'no records at all'})")


def build(folder: Path, inputs: list[Input], options: BuildOptions, workers: int, log: RecordLog) -> Manifest:
    """Write every file of a prepared folder into the empty `folder`, the manifest last.

    Raises:
        DataError: no usable text, too little for one row of each split, or a vocabulary that does not fit the text.
    """
    started = time.time_ns()
    total_bytes = _expected_text_bytes(inputs)
    if options.tokenizer is None:
        # A first estimate, before the long reading; a better one follows.
        require_space(folder, _estimate(inputs, total_bytes, options.vocab_size))
        total_bytes = _train_tokenizer(folder / "tokenizer.model", inputs, options, log.strict)
    else:
        source = find_tokenizer_file(options.tokenizer)
        shutil.copyfile(source, folder / f"tokenizer{source.suffix}")
    tokenizer, vocab_size = _describe_tokenizer(find_tokenizer_file(folder))
    require_space(folder, _estimate(inputs, total_bytes, vocab_size))
    corpus = _Corpus(inputs, options, log)
    progress = Progress("tokenising", total_bytes)
    counts = _write_tokens(folder, corpus, tokenizer, vocab_size, workers, progress)
    manifest = Manifest(
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        seq_len=options.seq_len,
        packing=options.packing,
        splits={split: _finish_split(folder, split, counts[split], options) for split in options.splits},
        inputs=[_describe_input(*pair) for pair in zip(inputs, corpus.digests, strict=True)],
        options=options.record(),
        records={str(cause): count for cause, count in sorted(log.rejected.items())},
    )
    write_manifest(folder, manifest, started)
    return manifest


def _expected_text_bytes(inputs: list[Input]) -> int | None:
    """Bytes on disk as a stand-in for bytes of text, None where files are packed."""
    packed = any(path.suffix in UNPACKED_SUFFIXES for found in inputs for path in found.files)
    known = all(found.files for found in inputs)
    return sum(found.num_bytes for found in inputs) if known and not packed else None


def _estimate(inputs: list[Input], total_bytes: int | None, vocab_size: int) -> int:
    text_bytes = total_bytes or sum(found.num_bytes for found in inputs)
    return text_bytes // ASSUMED_BYTES_PER_TOKEN * token_dtype(vocab_size).itemsize


def _train_tokenizer(path: Path, inputs: list[Input], options: BuildOptions, strict: bool) -> int:
    """Train a tokenizer on a sample of the training split; returns the bytes of text of all documents."""
    sample = HashSample()
    total_bytes = 0
    progress = Progress("reading for the tokenizer")
    # A log of its own: the records are counted when they are tokenised.
    for split, document in _Corpus(inputs, options, RecordLog(options.text_key, strict)):
        total_bytes += document.num_bytes
        progress.update(1, document.num_bytes)
        if split == TRAIN:
            sample.add(document)
    progress.close()
    train_sentencepiece(sample.texts(), options.vocab_size, path)
    return total_bytes


def _describe_tokenizer(path: Path) -> tuple[TokenizerInfo, int]:
    """Ids of a tokenizer and the size of the vocabulary once EOD, if it has none, and [MASK] are added."""
    base = load_tokenizer(path)
    eod_id = base.vocab_size if base.eod_id is None else base.eod_id
    mask_id = max(base.vocab_size, eod_id + 1)
    info = TokenizerInfo(
        kind=base.kind,
        file=path.name,
        sha256=sha256_of(path),
        vocab_size=base.vocab_size,
        eod_id=eod_id,
        mask_id=mask_id,
        pad_id=eod_id if base.pad_id is None else base.pad_id,
    )
    return info, mask_id + 1


def _write_tokens(
    folder: Path, corpus: _Corpus, tokenizer: TokenizerInfo, vocab_size: int, workers: int, progress: Progress
) -> dict[str, _Counts]:
    """Tokenise the corpus into one `.bin/.idx` pair per split; returns the counts by split."""
    counts = {split: _Counts() for split in corpus.options.splits}
    with ExitStack() as stack:
        writers = {split: stack.enter_context(IndexedWriter(folder / split, vocab_size)) for split in counts}
        for encoded in encode_documents(corpus, folder / tokenizer.file, tokenizer.eod_id, workers):
            writers[encoded.split].append(encoded.tokens, encoded.lengths)
            total = counts[encoded.split]
            total.documents += encoded.lengths.size
            total.tokens += encoded.tokens.size
            total.bytes += encoded.num_bytes
            progress.update(encoded.lengths.size, encoded.num_bytes, encoded.tokens.size)
    progress.close()
    return counts


def _finish_split(folder: Path, split: str, counts: _Counts, options: BuildOptions) -> SplitInfo:
    """Plan a split's rows and describe its files."""
    shards = [split]
    plan = write_plan(folder, split, shards, options.packing, options.seq_len)
    if plan.rows == 0:
        raise DataError(_explain_no_rows(split, counts, options))
    names = [f"{shard}.{suffix}" for shard in shards for suffix in ("bin", "idx")]
    names += plan_files(split, options.packing, options.seq_len)
    return SplitInfo(
        documents=counts.documents,
        tokens=counts.tokens,
        bytes=counts.bytes,
        shards=shards,
        rows=plan.rows,
        dropped_tokens=plan.dropped_tokens,
        padded_tokens=plan.padded_tokens,
        files={name: FileInfo(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name)) for name in names},
    )


def _explain_no_rows(split: str, counts: _Counts, options: BuildOptions) -> str:
    found = f"the {split} split has {counts.tokens:,} tokens in {counts.documents:,} documents"
    problem = f"{found}, fewer than one row of {options.seq_len:,}"
    if split == TRAIN:
        return f"{problem}; give more text or a smaller --seq-len"
    return (
        f"{problem}; give more documents, a larger --validation-fraction (now {options.validation_fraction:g}), "
        "a smaller --seq-len, or --validation-fraction 0 to go without"
    )


def _describe_input(found: Input, digest: ContentDigest) -> InputInfo:
    return InputInfo(
        input=found.word,
        kind=found.kind,
        files=len(found.files),
        bytes=found.num_bytes,
        documents=digest.documents,
        digest=digest.hexdigest(),
    )
