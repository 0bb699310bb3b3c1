"""SentencePiece word by word: the library's ids at several times its speed.

A BPE model merges neighbouring symbols into pieces of its vocabulary and into nothing else. So where no piece holds
two characters side by side, no merge crosses from the one to the other, and the ids on either side do not depend on the
other side. Text is cut at such places, and the ids of each word are looked up in a table that the library fills.

Where the pieces allow no cut, or the model is not BPE (a unigram model adds up rounded scores from the beginning of
the text, so a word's ids may depend on all before it), the library encodes whole documents.
"""

import random
import re
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

META = "▁"  # how SentencePiece writes a space
PUNCTUATION = r"!-@\[-`{-~"
# From the finest cut to the coarsest: words, punctuation and digits apart; words; words of one line apart from the next.
# In each, "_" stands for the space.
PATTERNS = (
    rf"_*[^_\n{PUNCTUATION}]+|_*[{PUNCTUATION}]+|_+|\n",
    r"_*[^_\n]+|_+|\n",
    r"_*[^_]+|_+",
)
# A table of this many words takes about 50 MB; a full one starts anew. Longer words hardly ever come again.
MAX_WORDS = 1 << 18
MAX_WORD_CHARS = 32
# Text whose words are in memory at a time.
SEGMENT_CHARS = 1 << 20
PROBES = 200


class _Table(dict[str, bytes]):
    """Word -> its ids as the bytes of an int32 array."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        ids = array("i", self._encode(word)).tobytes()
        if len(word) <= MAX_WORD_CHARS:
            if len(self) >= MAX_WORDS:
                self.clear()
            self[word] = ids
        return ids


class WordEncoder:
    """Encodes text word by word.

    Args:
        pattern: one of PATTERNS, with the space that `normalize` writes.
        space: that space.
        normalize: what the model does to a text first.
        encode: ids of a normalised word.
    """

    def __init__(
        self, pattern: str, space: str, normalize: Callable[[str], str], encode: Callable[[str], list[int]]
    ) -> None:
        self._words = re.compile(pattern.replace("_", space)).findall
        self._cut = re.compile(f"(?<=[^{space}]){space}")
        self._normalize = normalize
        self._table = _Table(encode)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Ids of a text, int32 [tokens]."""
        text = self._normalize(text)
        look_up = self._table.__getitem__
        if len(text) <= SEGMENT_CHARS:
            return np.frombuffer(b"".join(map(look_up, self._words(text))), np.int32)
        parts, start = [], 0
        while start < len(text):
            found = self._cut.search(text, start + SEGMENT_CHARS)
            stop = found.start() if found else len(text)
            parts.append(b"".join(map(look_up, self._words(text[start:stop]))))
            start = stop
        return np.frombuffer(b"".join(parts), np.int32)


def word_encoder(model: "SentencePieceProcessor", content: bytes) -> WordEncoder | str:
    """An encoder that gives exactly what `model` (with the serialised form `content`) gives, or why there is none."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(content)
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        return "not a BPE model"
    if not proto.normalizer_spec.escape_whitespaces:
        return "it does not mark spaces"
    pattern = next((each for each in PATTERNS if _holds_every_piece(each, proto)), None)
    if pattern is None:
        return "its pieces cross words"
    if not proto.trainer_spec.byte_fallback and model.is_unknown(model.piece_to_id(META)):
        return "it does not know the space"  # neighbouring unknown characters become one id
    if _keeps_text(proto):
        # The model takes its own sign for a space, too.
        encoder = WordEncoder(pattern, " ", lambda text: text.replace(META, " "), model.encode)
    else:
        bare = sentencepiece.SentencePieceProcessor(model_proto=_without_normalizer(proto))
        encoder = WordEncoder(pattern, META, model.normalize, bare.encode)
    return encoder if _agrees(encoder, model, proto) else "word by word gave other ids on a probe"


def _holds_every_piece(pattern: str, proto: "ModelProto") -> bool:
    """Whether each piece that text can become is one match of the pattern: then nothing crosses from match to match."""
    words = re.compile(pattern.replace("_", META)).findall
    spec = proto.SentencePiece
    kinds = (spec.NORMAL, spec.USER_DEFINED, spec.UNUSED)
    return all(len(words(piece.piece)) == 1 for piece in proto.pieces if piece.type in kinds)


def _keeps_text(proto: "ModelProto") -> bool:
    spec = proto.normalizer_spec
    return not (spec.precompiled_charsmap or spec.add_dummy_prefix or spec.remove_extra_whitespaces)


def _without_normalizer(proto: "ModelProto") -> bytes:
    """The model for text that has been normalised already."""
    bare = type(proto)()
    bare.CopyFrom(proto)
    spec = bare.normalizer_spec
    spec.name, spec.precompiled_charsmap = "identity", b""
    spec.add_dummy_prefix = spec.remove_extra_whitespaces = False
    return bare.SerializeToString()


def _agrees(encoder: WordEncoder, model: "SentencePieceProcessor", proto: "ModelProto") -> bool:
    """Compare on texts made of the model's own pieces, spaces and line ends in any order."""
    rng = random.Random(0)
    pieces = [piece.piece.replace(META, " ") for piece in proto.pieces]
    for length in range(PROBES):
        some = rng.choices(pieces, k=length) + rng.choices([" ", "\n", "é", "漢", "1", "."], k=length // 4)
        rng.shuffle(some)
        if encoder.encode("".join(some)).tolist() != model.encode("".join(some)):
            return False
    return True
