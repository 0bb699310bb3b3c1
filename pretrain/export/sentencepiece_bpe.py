"""A SentencePiece BPE model as a model of the `tokenizers` library, for environments without the SentencePiece library.

SentencePiece merges the neighboring symbols whose joined piece has the highest score; `tokenizers` merges the pair that comes
first in a list. The list has every split of every piece into two pieces, in the order of the scores. SentencePiece writes a
space as U+2581; here pieces have spaces, so that U+2581 in a text is an unknown character and becomes bytes, as in
`data_pipeline.tokenizers.tokenizers.SentencePieceTokenizer`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

META = "▁"


@dataclass(frozen=True)
class BpeFields:
    """A converted model.

    Attributes:
        model: the section `model` of a `tokenizer.json`.
        special: names of the pieces that text never becomes, such as the end-of-document piece.
    """

    model: dict[str, Any]
    special: list[str]


def bpe_fields(content: bytes) -> BpeFields | None:
    """The model for a `tokenizer.json`, or None for models that may give other ids there.

    Args:
        content: a serialized SentencePiece model.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(content)
    if not _is_plain(proto):
        return None
    kinds = proto.SentencePiece
    scores = {p.piece.replace(META, " "): p.score for p in proto.pieces if p.type == kinds.NORMAL}
    merged = [piece for piece in scores if len(piece) > 1]
    if not all(set(piece) <= scores.keys() for piece in merged) or len({scores[p] for p in merged}) < len(merged):
        return None
    merged.sort(key=lambda piece: -scores[piece])
    splits = ((piece[:i], piece[i:]) for piece in merged for i in range(1, len(piece)))
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": proto.pieces[proto.trainer_spec.unk_id].piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {p.piece.replace(META, " "): i for i, p in enumerate(proto.pieces)},
        "merges": [[left, right] for left, right in splits if left in scores and right in scores],
    }
    return BpeFields(model, [p.piece for p in proto.pieces if p.type in (kinds.UNKNOWN, kinds.CONTROL)])


def piece_names(content: bytes) -> dict[int, str]:
    """Id -> piece of a serialized SentencePiece model."""
    from sentencepiece import sentencepiece_model_pb2

    return {i: piece.piece for i, piece in enumerate(sentencepiece_model_pb2.ModelProto.FromString(content).pieces)}


def _is_plain(proto: "ModelProto") -> bool:
    """BPE with byte fallback that does not change the text, with pieces of the kinds that merging and bytes can give."""
    trainer, normalizer, kinds = proto.trainer_spec, proto.normalizer_spec, proto.SentencePiece
    keeps_text = not (
        normalizer.precompiled_charsmap or normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces
    )
    known = {kinds.NORMAL, kinds.UNKNOWN, kinds.CONTROL, kinds.BYTE}
    return (
        trainer.model_type == trainer.BPE
        and trainer.byte_fallback
        and normalizer.escape_whitespaces
        and keeps_text
        and all(piece.type in known and " " not in piece.piece for piece in proto.pieces)
        and sum(piece.type == kinds.BYTE for piece in proto.pieces) == 256
    )
