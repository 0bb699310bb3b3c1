"""Likelihoods of texts, or of parts of texts given the rest.

A masked diffusion model defines p(x_i | revealed tokens) for every set of revealed tokens. An order of the L tokens makes of
it a distribution: p_order(x) = product over i of p(x_i | the tokens before it in the order). From these follow

- the NELBO, E_order[-log p_order(x)], which `monte_carlo` estimates without bias by masking k random tokens, k uniform on 1..L
  (LLaDA, Nie et al. 2025, equation 6);
- -log p_order(x) of one order, by the chain rule in L rows (`chain_rule`): exact for samples drawn in this order;
- both the NELBO and -log E_order[p_order(x)], the likelihood of samples drawn in a random order, exactly and in 2^L - 1 rows
  (`any_order`).
"""

from collections.abc import Iterator, Sequence
from math import comb
from typing import NamedTuple

import numpy as np

from model.noise import Stream, uniform
from pretrain.evaluation.scoring import MaskedRow, TokenScorer

MAX_EXACT_TOKENS = 12
"""Tokens of the longest text whose likelihood is computed over all orders."""

ROWS_AT_ONCE = 8192
"""Rows that are in memory at once."""

SAMPLE_BITS = 20
"""Random numbers of sample j of group g have the index g * 2^20 + j; the last one is the group's offset of the strata."""


class Text(NamedTuple):
    """Tokens whose likelihood is asked for.

    Attributes:
        tokens: ids of the whole row, int64 [s].
        targets: positions of these tokens, ascending, int64 [L]; all others are given.
    """

    tokens: np.ndarray
    targets: np.ndarray

    @classmethod
    def after(cls, given: Sequence[int], tokens: Sequence[int]) -> "Text":
        """`tokens` after `given`."""
        row = np.array([*given, *tokens], np.int64)
        return cls(row, np.arange(len(given), len(row)))

    def masked(self, hidden: np.ndarray, wanted: np.ndarray | None = None) -> MaskedRow:
        """The row in which the targets of `hidden` (bool [L]) are [MASK]; those of `wanted` are asked for, by default all."""
        of_row, of_wanted = np.zeros(len(self.tokens), bool), np.zeros(len(self.tokens), bool)
        of_row[self.targets] = hidden
        of_wanted[self.targets] = hidden if wanted is None else wanted
        return MaskedRow(self.tokens, of_row, of_wanted)


def monte_carlo(
    scorer: TokenScorer, texts: Sequence[Text], groups: Sequence[int], samples: int, seed: int
) -> np.ndarray:
    """Estimates of the NELBO of each text in nats, fp64 [texts, samples], the mean of a row without bias. Collective.

    Args:
        groups: texts of the same group get the same random numbers: their differences are known better than their values.
        samples: masks per text, stratified over k; at most 2^20 - 1.
    """
    estimates = []
    for part in _parts([samples] * len(texts)):
        masks = [_masks(len(texts[i].targets), samples, seed, groups[i]) for i in part]
        nats = scorer.nats([texts[i].masked(mask) for i, of_text in zip(part, masks, strict=True) for mask in of_text])
        sums = np.array([one.sum() for one in nats]).reshape(len(part), samples)
        estimates.append(sums * np.array([mask.shape[1] / np.maximum(mask.sum(axis=1), 1) for mask in masks]))
    return np.concatenate([np.zeros((0, samples)), *estimates])


def _parts(rows: Sequence[int]) -> Iterator[range]:
    """Texts that are scored together, about `ROWS_AT_ONCE` rows; `rows` are those of each text."""
    start = count = 0
    for i, of_text in enumerate(rows):
        if i > start and count + of_text > ROWS_AT_ONCE:
            yield range(start, i)
            start, count = i, 0
        count += of_text
    if start < len(rows):
        yield range(start, len(rows))


def _masks(length: int, samples: int, seed: int, group: int) -> np.ndarray:
    """Random sets of targets to mask, bool [samples, length]. Sample j has the same draws for every length."""
    first = group << SAMPLE_BITS
    offset = uniform(seed, Stream.EVALUATION, first + 2**SAMPLE_BITS - 1, 1)
    counts = 1 + ((np.arange(samples) + offset) / samples * length).astype(np.int64)
    draws = np.stack([uniform(seed, Stream.EVALUATION, first + j, length) for j in range(samples)])
    ranks = draws.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return ranks < np.minimum(counts, length)[:, None]


def chain_rule(scorer: TokenScorer, texts: Sequence[Text], orders: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """-log p of each text under one order, in nats, fp64 [texts]. Exact. Collective.

    Args:
        orders: of each text, a permutation of 0 .. L - 1; from left to right if None.
    """
    orders = [np.arange(len(text.targets)) for text in texts] if orders is None else orders
    sums = np.zeros(len(texts))
    for part in _parts([len(order) for order in orders]):
        rows, owners = [], []
        for i in part:
            place = np.argsort(orders[i])
            rows += (texts[i].masked(place >= step, place == step) for step in range(len(place)))
            owners += [i] * len(place)
        np.add.at(sums, owners, [one.sum() for one in scorer.nats(rows)])
    return sums


class AnyOrder(NamedTuple):
    """Exact likelihoods of a text over all orders, in nats.

    Attributes:
        nelbo: E_order[-log p_order(x)].
        random_order: -log E_order[p_order(x)], at most the NELBO.
    """

    nelbo: float
    random_order: float


def any_order(scorer: TokenScorer, text: Text) -> AnyOrder:
    """Exact likelihoods of a short text, from the conditionals of all sets of masked tokens. Collective.

    Raises:
        ValueError: it has more than `MAX_EXACT_TOKENS` tokens.
    """
    length = len(text.targets)
    if length > MAX_EXACT_TOKENS:
        raise ValueError(f"{length} tokens have too many orders; at most {MAX_EXACT_TOKENS}")
    sets = np.arange(1, 2**length)  # of masked tokens, as bits
    hidden = (sets[:, None] >> np.arange(length) & 1).astype(bool)
    nats = scorer.nats([text.masked(one) for one in hidden])
    shares = [1 / (count * comb(length, count)) for count in hidden.sum(axis=1).tolist()]
    nelbo = sum(share * one.sum() for share, one in zip(shares, nats, strict=True))
    # Mean over the orders of what remains, of -log p after the set of masked tokens has this value. From small sets to large.
    remaining = np.zeros(2**length)
    for masked, flags, of_set in zip(sets.tolist(), hidden, nats, strict=True):
        next_sets = [masked & ~(1 << int(i)) for i in np.flatnonzero(flags)]
        terms = -of_set - remaining[next_sets]
        remaining[masked] = -(np.logaddexp.reduce(terms) - np.log(len(terms)))
    return AnyOrder(float(nelbo), float(remaining[-1]))


def rolling(tokens: Sequence[int], seq_len: int, stride: int) -> list[Text]:
    """The windows of a text of any length: their NELBOs add up to a bound for the whole text.

    The first window has no context. Each later one asks for the next `stride` tokens and gives the tokens before them, as many
    as fit into `seq_len`.

    Args:
        stride: from 1 to `seq_len`.
    """
    row = np.asarray(tokens, np.int64)
    stops = [*range(min(seq_len, len(row)), len(row), stride), len(row)]
    starts = [0, *stops[:-1]]
    windows = []
    for start, stop in zip(starts, stops, strict=True):
        first = max(0, stop - seq_len)
        windows.append(Text(row[first:stop], np.arange(start - first, stop - first)))
    return windows
