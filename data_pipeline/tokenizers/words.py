"""SentencePiece word by word: the library's ids at several times its speed.

A BPE model only merges neighbouring symbols into pieces of its vocabulary. Where no piece contains two given characters next
to each other, no merge crosses the boundary between them, and the ids on either side do not depend on the other side. Text is
cut at such boundaries, and the ids of each word are looked up in a table that the library fills.

Where the pieces do not allow this, or the model is not BPE, the library encodes whole documents. (A unigram model adds up
rounded scores from the beginning of the text, so the ids of a word may depend on everything before it.)
"""

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.tokenizers.word_table import LETTER, LINE_END, PUNCTUATION, SPACE, WordTable

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

META = "▁"  # how SentencePiece writes a space
# From the shortest words to the longest: the class of punctuation and of line ends, beside letters and spaces.
CUTS = (
    {PUNCTUATION: PUNCTUATION, LINE_END: LINE_END},
    {PUNCTUATION: LETTER, LINE_END: LINE_END},
    {PUNCTUATION: LETTER, LINE_END: LETTER},
)
PROBES = 50
# Of a sample, for `WordEncoder.share_known`.
PART_CHARS = 4096
BETWEEN = (" ", "é", "\n", "漢", "1", ".")


class WordEncoder:
    """Encodes text word by word.

    Args:
        normalize: the model's normalization of a text, with spaces as spaces.
        classes: class of each byte, see `WordTable`.
        encode: the library's ids of normalized texts.
        takes_chunks: `normalize` gives the same for a text as for its chunks one by one.

    Attributes:
        keeps_words: each distinct word is encoded once. Otherwise the library encodes whole texts, or chunks of whole words.
            The ids are the same.
    """

    def __init__(
        self,
        normalize: Callable[[str], str],
        classes: NDArray[np.uint8],
        encode: Callable[[list[str]], list[list[int]]],
        takes_chunks: bool,
    ) -> None:
        self._normalize = normalize
        self._library = encode
        self._table = WordTable(classes, encode)
        self.takes_chunks = takes_chunks
        self.keeps_words = True

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Ids of each text, int32 [tokens]."""
        return self._encode([self._normalize(text).encode("utf-8") for text in texts])

    def stream(self) -> "WordStream":
        """An encoder of texts that come in chunks."""
        return WordStream(self._normalize, self._table, self._encode)

    def _encode(self, texts: list[bytes]) -> list[NDArray[np.int32]]:
        if self.keeps_words:
            return self._table.encode(texts)
        encoded = self._library([text.decode("utf-8") for text in texts])
        return [np.asarray(ids, dtype=np.int32) for ids in encoded]

    def share_known(self, texts: Iterable[str]) -> float:
        """Share of the text, in bytes, that belongs to words of an earlier part of it: how much a table of words saves.

        The texts are cut into parts, of which every other one is earlier.
        """
        parts = [text[i : i + PART_CHARS] for text in texts for i in range(0, len(text), PART_CHARS)]
        new_bytes = 0

        def count(words: list[str]) -> list[list[int]]:
            nonlocal new_bytes
            new_bytes += sum(len(word.encode("utf-8")) for word in words)
            return [[] for _ in words]

        table = self._table.like(count)
        for part in parts[::2]:
            table.encode([self._normalize(part).encode("utf-8")])
        new_bytes, num_bytes = 0, 0
        for part in parts[1::2]:
            content = self._normalize(part).encode("utf-8")
            table.encode([content])
            num_bytes += len(content)
        return 1 - new_bytes / max(1, num_bytes)


class WordStream:
    """Encodes texts that come in chunks: complete words at once, and the last word of a chunk with the next chunk."""

    def __init__(
        self,
        normalize: Callable[[str], str],
        table: WordTable,
        encode: Callable[[list[bytes]], list[NDArray[np.int32]]],
    ) -> None:
        self._normalize, self._table, self._encode = normalize, table, encode
        self._left = b""

    def feed(self, chunk: str) -> NDArray[np.int32]:
        """Ids of the words that are complete with this chunk, int32 [tokens]."""
        self._left += self._normalize(chunk).encode("utf-8")
        end = self._table.last_start(self._left)
        whole, self._left = self._left[:end], self._left[end:]
        return self._encode([whole])[0]

    def finish(self) -> NDArray[np.int32]:
        """Ids of the last word of the text, int32 [tokens]. Another text may follow."""
        last, self._left = self._left, b""
        return self._encode([last])[0]


def word_encoder(model: "SentencePieceProcessor", content: bytes) -> WordEncoder | str:
    """An encoder with exactly the ids of `model`, whose serialised form is `content`, or why there is none."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(content)
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        return "not a BPE model"
    if not proto.normalizer_spec.escape_whitespaces:
        return "it does not escape spaces"
    # Without byte pieces, neighbouring unknown characters become one id, so words may only begin at a known one, the space.
    safe = CUTS if proto.trainer_spec.byte_fallback else CUTS[-1:]
    pieces = _text_pieces(proto)
    classes = next((found for found in map(_byte_classes, safe) if _holds_every_piece(found, pieces)), None)
    if classes is None:
        return "its pieces cross words"
    if not proto.trainer_spec.byte_fallback and model.is_unknown(model.piece_to_id(META)):
        return "it does not know the space"
    if _keeps_text(proto):
        encoder = WordEncoder(_spaces, classes, partial(model.encode, num_threads=1), True)
    else:
        bare = sentencepiece.SentencePieceProcessor(model_proto=_without_normalizer(proto))
        encoder = WordEncoder(
            lambda text: _spaces(model.normalize(text)), classes, partial(bare.encode, num_threads=1), False
        )
    return encoder if _agrees(encoder, model, pieces) else "encoding word by word gave other ids in a test"


def _spaces(text: str) -> str:
    """Undo the model's representation of spaces."""
    return text.replace(META, " ")


def _byte_classes(cut: dict[int, int]) -> NDArray[np.uint8]:
    """Class of each byte, uint8 [256]; digits count as punctuation."""
    kinds = np.full(256, LETTER, np.uint8)
    kinds[[byte for byte in range(0x21, 0x7F) if not chr(byte).isalpha()]] = cut[PUNCTUATION]
    kinds[ord("\n")] = cut[LINE_END]
    kinds[ord(" ")] = SPACE
    return kinds


def _text_pieces(proto: "ModelProto") -> list[str]:
    """The pieces that text can become."""
    spec = proto.SentencePiece
    kinds = (spec.NORMAL, spec.USER_DEFINED, spec.UNUSED)
    return [piece.piece for piece in proto.pieces if piece.type in kinds]


def _holds_every_piece(classes: NDArray[np.uint8], pieces: list[str]) -> bool:
    """Whether each piece lies within one word, so that no merge crosses words."""
    # All pieces at once, because every process does this when it starts. A piece with a NUL or a real space is not a word.
    joined = "\0".join(pieces)
    texts = _spaces(joined).encode("utf-8").split(b"\0")
    if " " in joined or len(texts) != len(pieces):
        return False
    edges = np.cumsum([0, *map(len, texts)])
    table = WordTable(classes, lambda words: [])
    return table.word_starts(b"".join(texts), edges).size == len(texts)


def _keeps_text(proto: "ModelProto") -> bool:
    spec = proto.normalizer_spec
    return not (spec.precompiled_charsmap or spec.add_dummy_prefix or spec.remove_extra_whitespaces)


def _without_normalizer(proto: "ModelProto") -> bytes:
    """The serialised model without its normalization."""
    bare = type(proto)()
    bare.CopyFrom(proto)
    spec = bare.normalizer_spec
    spec.name, spec.precompiled_charsmap = "identity", b""
    spec.add_dummy_prefix = spec.remove_extra_whitespaces = False
    return bare.SerializeToString()


def _agrees(encoder: WordEncoder, model: "SentencePieceProcessor", pieces: list[str]) -> bool:
    """Compare on random texts made of the model's pieces, spaces and line ends."""
    rng = random.Random(0)
    texts = []
    for length in range(0, 2 * PROBES, 2):
        some = rng.choices(pieces, k=length)
        for _ in range(length // 4):
            some[rng.randrange(length)] += rng.choice(BETWEEN)
        texts.append(_spaces("".join(some)))
    return [ids.tolist() for ids in encoder.encode_batch(texts)] == model.encode(texts, num_threads=1)
