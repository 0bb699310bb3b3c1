"""Rows and numbers that several tasks need."""

import hashlib
from collections.abc import Sequence

import numpy as np

from data_pipeline.json_text import json_text
from pretrain.errors import UserError
from pretrain.evaluation.likelihood import MAX_EXACT_TOKENS, Text, any_order, chain_rule, monte_carlo
from pretrain.evaluation.tasks.task import TaskModel

LENGTH_STEP = 32
"""Lengths of rows with prompts of different lengths are multiples of it, so that rows of equal length can share a batch."""

METHODS = ("nelbo", "left-to-right", "any-order")
"""How likelihoods are computed: see `pretrain.evaluation.likelihood`."""


def digest(value: object) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json_text(value).encode("utf-8")).hexdigest()


def answer_row(prompt: Sequence[int], answer_length: int, seq_len: int, mask_id: int, source: str) -> list[int]:
    """A prompt and the [MASK] tokens of its answer: at least `answer_length`, and as many more as make the length a multiple.

    Raises:
        UserError: the prompt leaves too little room.
    """
    least = len(prompt) + answer_length
    if least > seq_len:
        raise UserError(
            f"{source}: the prompt has {len(prompt)} tokens, which leaves less than {answer_length} of the {seq_len} of a row for "
            "the answer; shorten it, or lower --answer-length"
        )
    length = min(-(-least // LENGTH_STEP) * LENGTH_STEP, seq_len)
    return [*prompt, *[mask_id] * (length - len(prompt))]


def nats_of_texts(
    model: TaskModel, texts: Sequence[Text], groups: Sequence[int], method: str, samples: int
) -> np.ndarray:
    """-log p of each text in nats, fp64 [texts]. Collective.

    Args:
        groups: texts with the same number get the same random numbers.
        method: one of `METHODS`.
        samples: masks per text for the NELBO.

    Raises:
        UserError: a text is too long for all orders.
    """
    if method == "left-to-right":
        return chain_rule(model.scorer, texts)
    if method == "any-order":
        longest = max(len(text.targets) for text in texts)
        if longest > MAX_EXACT_TOKENS:
            raise UserError(
                f"--likelihood any-order: {longest} tokens have too many orders; at most {MAX_EXACT_TOKENS}; use nelbo or "
                "left-to-right"
            )
        return np.array([any_order(model.scorer, text).random_order for text in texts])
    return monte_carlo(model.scorer, texts, groups, samples, model.seed).mean(axis=1)
