"""Token ids grouped into the smallest pieces that decode to whole characters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.tokenizers.tokenizers import PreparedTokenizer

# A character has at most four bytes in UTF-8, and a tokenizer may use one token for each byte.
MOST_TOKENS = 8
BROKEN = "\ufffd"


@dataclass(frozen=True)
class Piece:
    """One token, or several tokens that together make one character.

    Attributes:
        text: its text; the name of a special token.
        tokens: number of token ids.
        special: whether it is end of document, [MASK] or padding.
        draw: smallest uniform draw of its tokens; the piece is masked at every t above it.
    """

    text: str
    tokens: int
    special: bool
    draw: float


def pieces_of(tokenizer: PreparedTokenizer, ids: Sequence[int], draws: np.ndarray) -> list[Piece]:
    """Split `ids` [n] into pieces; `draws` [n] are the uniform draws that are compared with t."""
    special = {tokenizer.eod_id, tokenizer.mask_id, tokenizer.pad_id}
    pieces: list[Piece] = []
    before: Sequence[int] = []
    at = 0
    while at < len(ids):
        if ids[at] in special:
            text, count, before = tokenizer.decode(ids[at : at + 1]), 1, []
        else:
            run = next((i for i, token in enumerate(ids[at : at + MOST_TOKENS]) if token in special), MOST_TOKENS)
            text, count = _shortest_text(tokenizer, before, ids[at : at + run])
            before = ids[at : at + count]
        pieces.append(Piece(text, count, ids[at] in special, float(draws[at : at + count].min())))
        at += count
    return pieces


def _shortest_text(tokenizer: PreparedTokenizer, before: Sequence[int], ids: Sequence[int]) -> tuple[str, int]:
    """Text and number of the fewest first tokens of `ids` that make whole characters.

    `before` are the tokens of the previous piece: some tokenizers drop a leading space when they decode.
    """
    prefix = tokenizer.decode(before)
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode([*before, *ids[:count]])
        text = text[len(prefix) :] if text.startswith(prefix) else tokenizer.decode(ids[:count])
        if BROKEN not in text:
            return text, count
    return BROKEN, 1
