"""Token ids as the smallest stretches that have a text of their own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.tokenizers.tokenizers import PreparedTokenizer

# A character of UTF-8 has four bytes at most, and a tokenizer may spell each as a token.
MOST_TOKENS = 8
BROKEN = "\ufffd"


@dataclass(frozen=True)
class Piece:
    """One token, or the few tokens that together spell one character.

    Attributes:
        text: what it says; for a special token its name.
        tokens: how many ids.
        special: whether it is an end of document or padding.
        draw: least uniform draw of its tokens: the piece is masked at every t above it.
    """

    text: str
    tokens: int
    special: bool
    draw: float


def pieces_of(tokenizer: PreparedTokenizer, ids: Sequence[int], draws: np.ndarray) -> list[Piece]:
    """Cut `ids` [n] into pieces; `draws` are the uniform draws of their masks, [n]."""
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
    """Text and number of the first tokens of `ids` that make whole characters.

    `before` are the tokens of the piece before: some tokenizers drop a space from the beginning of what they decode.
    """
    prefix = tokenizer.decode(before)
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode([*before, *ids[:count]])
        text = text[len(prefix) :] if text.startswith(prefix) else tokenizer.decode(ids[:count])
        if BROKEN not in text:
            return text, count
    return BROKEN, 1
