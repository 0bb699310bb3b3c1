"""Tokenizers behind one small protocol: SentencePiece models, Hugging Face `tokenizer.json` files, and bytes."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest
from data_pipeline.tokenizers.huggingface import HuggingFaceTokenizer
from data_pipeline.tokenizers.special_tokens import EOD_TEXT, MASK_TEXT, PAD_TEXT
from data_pipeline.tokenizers.words import META, WordEncoder, word_encoder

TOKENIZER_SUFFIXES = (".json", ".model", ".bytes")
WORD_BY_WORD = "word by word, each distinct word once"
# A table of words is faster where at least this share of the text is known. A small sample does not tell.
LEAST_KNOWN = 0.5
LEAST_SAMPLE_CHARS = 1 << 18
# The value of --tokenizer, and the content of the tokenizer file in a prepared folder.
BYTES = "bytes"
BYTES_FILE_CONTENT = b"ids 0 to 255 are the bytes of the text in UTF-8\n"


class Tokenizer(Protocol):
    """Text to ids and back. Nothing is added to a text: no beginning, end or special tokens.

    Attributes:
        unknown_id: the id of what the tokenizer does not know, None if there is no such text.
        symbols: the words that its author added to the vocabulary, not as special tokens. Each becomes one id where a text has it.
        is_lossless: every text comes back from its ids. Where False, it depends on the text.
        method: how texts are encoded, for the user.
    """

    kind: Literal["sentencepiece", "huggingface", "bytes"]
    vocab_size: int
    eod_id: int | None
    pad_id: int | None
    unknown_id: int | None
    symbols: tuple[str, ...]
    is_lossless: bool
    method: str

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Ids of each text, int32 [tokens]."""

    def encode_long(self, chunks: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """Ids of one text that comes in chunks; together they are those of the whole text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids below `vocab_size`."""


class SentencePieceTokenizer:
    """A SentencePiece model. Control pieces, such as the end-of-document piece, are never produced from text.

    Each distinct word is encoded once where that gives exactly the library's ids (`data_pipeline.tokenizers.words`), unless
    `choose_method` finds that words hardly come again.
    """

    kind: Literal["sentencepiece"] = "sentencepiece"

    def __init__(self, path: Path, keeps_words: bool = True) -> None:
        import sentencepiece

        content = path.read_bytes()
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise DataError(f"{path} is not a SentencePiece model: {error}") from error
        self.vocab_size: int = self._model.vocab_size()
        self.eod_id = _id_or_none(self._model.eos_id())
        self.pad_id = _id_or_none(self._model.pad_id())
        encoder = word_encoder(self._model, content)
        self._words = encoder if isinstance(encoder, WordEncoder) else None
        if self._words:
            self._words.keeps_words = keeps_words
        self.method = WORD_BY_WORD if self._words else f"document by document ({encoder})"
        self._meta_symbol_ids = self._find_meta_symbol_ids()
        self.is_lossless = self._meta_symbol_ids is not None
        self.unknown_id = _id_or_none(self._model.unk_id())

    @property
    def keeps_words(self) -> bool:
        """Whether each distinct word is encoded once."""
        return self._words is not None and self._words.keeps_words

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """See `Tokenizer`."""
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto.FromString(self._model.serialized_model_proto())
        return tuple(
            each.piece.replace(META, " ") for each in proto.pieces if each.type == proto.SentencePiece.USER_DEFINED
        )

    def choose_method(self, sample: Sequence[str]) -> None:
        """Leave texts like the sample to the library where a table of words is slower: scripts without spaces, sequences."""
        if self._words is None or sum(map(len, sample)) < LEAST_SAMPLE_CHARS:
            return
        known = self._words.share_known(sample)
        self._words.keeps_words = known >= LEAST_KNOWN
        method = WORD_BY_WORD if self.keeps_words else "document by document"
        self.method = f"{method} ({known:.0%} of a sample are words that came before)"

    def _find_meta_symbol_ids(self) -> NDArray[np.int32] | None:
        """The byte pieces of U+2581; None where the model has none or is not lossless in other ways."""
        ids = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in "▁".encode()]
        is_lossless = all(self._model.is_byte(i) for i in ids) and self._model.normalize("  a ") == "▁▁a▁"
        return np.array(ids, np.int32) if is_lossless else None

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """See `Tokenizer.encode_batch`. Uses one thread; the caller decides on the number of processes."""
        if self._meta_symbol_ids is None or not any("▁" in text for text in texts):
            return self._encode_all(texts)
        # SentencePiece represents a space as U+2581, so a real U+2581 would be decoded as a space. Byte pieces keep it.
        split_texts = [text.split("▁") for text in texts]
        encoded = iter(self._encode_all([part for parts in split_texts for part in parts]))
        return [self._with_meta_symbols(list(islice(encoded, len(parts)))) for parts in split_texts]

    def encode_long(self, chunks: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """See `Tokenizer.encode_long`. The whole text is in memory where the library encodes whole documents."""
        if not (self._words and self._words.takes_chunks):
            yield from self.encode_batch(["".join(chunks)])
            return
        stream = self._words.stream()
        for chunk in chunks:
            first, *others = [chunk] if self._meta_symbol_ids is None else chunk.split("▁")
            yield stream.feed(first)
            for part in others:
                yield from (stream.finish(), self._meta_symbol_ids, stream.feed(part))
        yield stream.finish()

    def _encode_all(self, texts: list[str]) -> list[NDArray[np.int32]]:
        if self._words:
            return self._words.encode_batch(texts)
        encoded = self._model.encode(texts, out_type=int, num_threads=1)
        return [np.asarray(ids, dtype=np.int32) for ids in encoded]

    def _with_meta_symbols(self, parts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
        between = ((self._meta_symbol_ids, part) for part in parts[1:])
        return np.concatenate([parts[0], *(ids for pair in between for ids in pair)])

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`. Control pieces, such as the end-of-document piece, have no text."""
        return self._model.decode([int(i) for i in ids])


class ByteTokenizer:
    """The ids are the bytes of the text in UTF-8."""

    kind: Literal["bytes"] = "bytes"
    vocab_size = 256
    eod_id = None
    pad_id = None
    unknown_id = None
    symbols = ()
    is_lossless = True
    method = "as bytes"

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """See `Tokenizer.encode_batch`."""
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) for text in texts]

    def encode_long(self, chunks: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """See `Tokenizer.encode_long`."""
        return (self.encode_batch([chunk])[0] for chunk in chunks)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`. Bytes that are not UTF-8, which a sampler may produce, become U+FFFD."""
        return bytes(int(i) for i in ids).decode("utf-8", errors="replace")


class PreparedTokenizer:
    """The tokenizer of a prepared folder together with the ids that the pipeline added.

    Attributes:
        vocab_size: all ids, including those added.
        eod_id, mask_id, pad_id: as in the manifest.
    """

    def __init__(self, base: Tokenizer, manifest: Manifest) -> None:
        self.kind = base.kind
        self._base = base
        self.vocab_size = manifest.vocab_size
        self.eod_id = manifest.tokenizer.eod_id
        self.mask_id = manifest.tokenizer.mask_id
        self.pad_id = manifest.tokenizer.pad_id
        self._shown = {self.pad_id: PAD_TEXT, self.eod_id: EOD_TEXT, self.mask_id: MASK_TEXT}

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """See `Tokenizer.encode_batch`. Never produces the added ids."""
        return self._base.encode_batch(texts)

    def encode_long(self, chunks: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """See `Tokenizer.encode_long`."""
        return self._base.encode_long(chunks)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, with the special ids as "<|eod|>", "[MASK]" and "[PAD]"."""
        parts = []
        for special, run in groupby((int(i) for i in ids), key=self._shown.get):
            run_ids = list(run)
            parts.append(self._base.decode(run_ids) if special is None else special * len(run_ids))
        return "".join(parts)


def load_tokenizer(path: Path, keeps_words: bool = True) -> Tokenizer:
    """Load a SentencePiece `.model`, a Hugging Face `tokenizer.json`, `tokenizer.bytes`, or a folder that holds one.

    Args:
        keeps_words: of a SentencePiece model, see `WordEncoder`.

    Raises:
        DataError: there is nothing, or not a tokenizer of these kinds.
    """
    path = find_tokenizer_file(Path(path))
    if path.suffix == ".bytes":
        return ByteTokenizer()
    return HuggingFaceTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path, keeps_words)


def find_tokenizer_file(path: Path) -> Path:
    """The tokenizer file at `path`, or in the folder at `path`."""
    if path.is_dir():
        names = [f"tokenizer{suffix}" for suffix in TOKENIZER_SUFFIXES]
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise DataError(f"the folder {path} has no {', '.join(names[:-1])} or {names[-1]}")
        return found[0]
    if not path.is_file():
        raise DataError(f"no tokenizer at {path}")
    if path.suffix not in TOKENIZER_SUFFIXES:
        raise DataError(f"{path}: expected a SentencePiece .model or a Hugging Face tokenizer .json")
    return path


def load_prepared_tokenizer(folder: Path, manifest: Manifest) -> PreparedTokenizer:
    """The tokenizer of a prepared folder, including the special ids."""
    return PreparedTokenizer(load_tokenizer(Path(folder) / manifest.tokenizer.file), manifest)


def _id_or_none(piece_id: int) -> int | None:
    return piece_id if piece_id >= 0 else None
