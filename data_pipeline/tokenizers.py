"""Tokenizers behind one small protocol: SentencePiece models and Hugging Face `tokenizer.json` files."""

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest

EOD_TEXT = "<|eod|>"
MASK_TEXT = "[MASK]"
PAD_TEXT = "[PAD]"
# Names under which published tokenizers carry their end-of-text and padding tokens, the most specific first.
EOD_NAMES = (EOD_TEXT, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]")
PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>")
# The SentencePiece trainer leaves out longer lines than it is told to expect; a character has 4 bytes at most.
MAX_LINE_CHARS = 4096


class Tokenizer(Protocol):
    """Text to ids and back. Nothing is added around a text: no beginning, end or special tokens."""

    kind: Literal["sentencepiece", "huggingface"]
    vocab_size: int
    eod_id: int | None
    pad_id: int | None

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Ids of each text, int32 [tokens]."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids below `vocab_size`."""


class SentencePieceTokenizer:
    """A SentencePiece model. Control pieces such as the end-of-document one are never produced from text."""

    kind: Literal["sentencepiece"] = "sentencepiece"

    def __init__(self, path: Path) -> None:
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        except RuntimeError as error:
            raise DataError(f"{path} is not a SentencePiece model: {error}") from error
        self.vocab_size: int = self._model.vocab_size()
        self.eod_id = _id_or_none(self._model.eos_id())
        self.pad_id = _id_or_none(self._model.pad_id())
        self._meta_symbol_ids = self._find_meta_symbol_ids()

    def _find_meta_symbol_ids(self) -> list[int] | None:
        """Byte pieces that spell U+2581, None where the model has none."""
        ids = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in "▁".encode()]
        return ids if all(self._model.is_byte(i) for i in ids) else None

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """See `Tokenizer.encode_batch`. One thread: the caller decides how many processes run."""
        if self._meta_symbol_ids is None:
            encoded = self._model.encode(texts, out_type=int, num_threads=1)
        else:
            plain = [text for text in texts if "▁" not in text]
            fast = iter(self._model.encode(plain, out_type=int, num_threads=1))
            encoded = [self._encode_with_meta_symbol(text) if "▁" in text else next(fast) for text in texts]
        return [np.asarray(ids, dtype=np.int32) for ids in encoded]

    def _encode_with_meta_symbol(self, text: str) -> list[int]:
        # SentencePiece writes spaces as U+2581 inside; a real U+2581 would come back as a space. As bytes it survives.
        ids: list[int] = []
        for i, part in enumerate(text.split("▁")):
            ids += (self._meta_symbol_ids or []) if i else []
            ids += self._model.encode(part, out_type=int)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`. Control pieces (end of document) have no text."""
        return self._model.decode([int(i) for i in ids])


class HuggingFaceTokenizer:
    """A `tokenizer.json`. Its template, truncation and padding are switched off; text never yields special tokens.

    `tokenizer.json` does not say which token ends a text: a `tokenizer_config.json` beside it does, otherwise the
    usual names are tried.
    """

    kind: Literal["huggingface"] = "huggingface"

    def __init__(self, path: Path) -> None:
        import tokenizers

        try:
            self._model = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{path} is not a Hugging Face tokenizer.json: {error}") from error
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True
        vocabulary = self._model.get_vocab(with_added_tokens=True)
        # Ids may have gaps; rows of the embedding may not.
        self.vocab_size = max(vocabulary.values()) + 1
        config = _read_tokenizer_config(path.with_name("tokenizer_config.json"))
        self.eod_id = _first_known(vocabulary, (config.get("eos_token"), *EOD_NAMES))
        self.pad_id = _first_known(vocabulary, (config.get("pad_token"), *PAD_NAMES))

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """See `Tokenizer.encode_batch`."""
        encoded = self._model.encode_batch(texts, add_special_tokens=False)
        return [np.asarray(item.ids, dtype=np.int32) for item in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return self._model.decode([int(i) for i in ids], skip_special_tokens=False)


class PreparedTokenizer:
    """A prepared folder's tokenizer with the ids that the pipeline added, for samplers.

    Attributes:
        vocab_size: all ids. eod_id, mask_id, pad_id: as in the manifest.
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
        """See `Tokenizer.encode_batch`. Yields none of the added ids."""
        return self._base.encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; the special ones show as "<|eod|>", "[MASK]" and "[PAD]"."""
        parts = []
        for special, run in groupby((int(i) for i in ids), key=self._shown.get):
            run_ids = list(run)
            parts.append(self._base.decode(run_ids) if special is None else special * len(run_ids))
        return "".join(parts)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a SentencePiece `.model`, a Hugging Face `tokenizer.json`, or a folder that holds one.

    Raises:
        DataError: nothing there, or not a tokenizer of these kinds.
    """
    path = find_tokenizer_file(Path(path))
    return HuggingFaceTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path)


def find_tokenizer_file(path: Path) -> Path:
    """The tokenizer file meant by `path`: itself, or the one inside a folder."""
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        if not found:
            raise DataError(f"the folder {path} holds no tokenizer.json or tokenizer.model")
        return found[0]
    if not path.is_file():
        raise DataError(f"no tokenizer at {path}")
    if path.suffix not in (".json", ".model"):
        raise DataError(f"{path}: expected a SentencePiece .model or a Hugging Face tokenizer .json")
    return path


def load_prepared_tokenizer(folder: Path, manifest: Manifest) -> PreparedTokenizer:
    """The tokenizer of a prepared folder, special ids included."""
    return PreparedTokenizer(load_tokenizer(Path(folder) / manifest.tokenizer.file), manifest)


def train_sentencepiece(texts: Iterable[str], vocab_size: int, model_path: Path) -> None:
    """Train a byte-fallback BPE model of exactly `vocab_size` pieces and write it to `model_path`.

    Lossless: `decode(encode(text)) == text` for every text that UTF-8 can carry, since nothing is normalised, no
    space is added or removed, unknown characters become bytes, and a literal U+2581 (SentencePiece's own sign for a
    space) is spelled as bytes by `SentencePieceTokenizer`. Digits are single pieces; the end-of-document piece has
    id 1; there is no beginning-of-text or padding piece. Training runs on one thread, so that equal texts in equal
    order give equal bytes.

    Raises:
        DataError: the vocabulary is too large or too small for the text; the message gives the limit.
    """
    import sentencepiece

    model = io.BytesIO()  # written to memory: a path would become part of the model's bytes
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            unk_id=0,
            eos_id=1,
            eos_piece=EOD_TEXT,
            bos_id=-1,
            pad_id=-1,
            max_sentence_length=4 * MAX_LINE_CHARS,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(_explain_training(str(error), vocab_size)) from error
    model_path.write_bytes(model.getvalue())


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Non-empty lines without their ends: the trainer counts characters within a line."""
    for text in texts:
        for line in re.split(r"[\r\n]+", text):
            for start in range(0, len(line), MAX_LINE_CHARS):
                yield line[start : start + MAX_LINE_CHARS]


def _explain_training(message: str, vocab_size: int) -> str:
    """SentencePiece's complaint about a vocabulary, in the user's words."""
    if limit := re.search(r"size too high.*value <= (\d+)", message):
        return f"--vocab-size {vocab_size} is more than the text supports; use at most {limit[1]} or give more text"
    if limit := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return (
            f"--vocab-size {vocab_size} is too small: the 256 byte pieces and the characters of the text need "
            f"at least {limit[1]}"
        )
    return f"training a tokenizer with --vocab-size {vocab_size} failed: {message}"


def _id_or_none(piece_id: int) -> int | None:
    return piece_id if piece_id >= 0 else None


def _first_known(vocabulary: dict[str, int], names: Iterable[str | dict | None]) -> int | None:
    # A tokenizer_config.json gives a token as a string or as an object with its "content".
    texts = (name.get("content") if isinstance(name, dict) else name for name in names)
    return next((vocabulary[text] for text in texts if text in vocabulary), None)


def _read_tokenizer_config(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
