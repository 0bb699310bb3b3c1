"""Likelihoods against enumeration: with the true conditionals each of them is exact or unbiased."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pretrain.errors import UserError
from pretrain.evaluation.likelihood import MAX_EXACT_TOKENS, Text, any_order, chain_rule, monte_carlo, rolling
from pretrain.evaluation.scoring import MaskedRow, TokenScorer
from tests.toy_denoisers import HashedDenoiser, JointDenoiser

SIZE, LENGTH = 3, 4


def scorer_of(denoiser, world, mask_id, batch_size=7):
    """The toy networks answer queries of samplers; padded to the width that the loss takes."""

    def predict(inputs):
        queries = [SimpleNamespace(tokens=one.tokens, positions=one.logit_positions) for one in inputs]
        return [denoiser(query).clamp_min(-1e30).float() for query in queries]

    return TokenScorer(predict, world, mask_id, batch_size)


@pytest.fixture(scope="module")
def joint():
    """A joint distribution in which all positions depend on each other."""
    return torch.rand((SIZE,) * LENGTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64) ** 3 + 0.01


@pytest.fixture(scope="module")
def exact(joint, world):
    """A network that knows it."""
    return scorer_of(JointDenoiser(joint), world, SIZE)


@pytest.fixture(scope="module")
def inconsistent(world):
    """A network whose conditionals belong to no joint distribution, as those of a trained one: every order counts."""
    return scorer_of(HashedDenoiser(SIZE, spread=3.0), world, SIZE)


TEXTS = [Text(np.array(tokens), np.arange(LENGTH)) for tokens in ((0, 1, 2, 0), (2, 2, 2, 2), (1, 0, 0, 1))]


def true_nats(joint, text):
    return -math.log(joint[tuple(text.tokens.tolist())] / joint.sum())


def test_with_the_true_conditionals_every_order_gives_the_likelihood(exact, joint):
    expected = [true_nats(joint, text) for text in TEXTS]
    assert chain_rule(exact, TEXTS) == pytest.approx(expected, rel=1e-6)
    orders = [np.array(order) for order in ((3, 1, 0, 2), (0, 2, 3, 1), (2, 1, 3, 0))]
    assert chain_rule(exact, TEXTS, orders) == pytest.approx(expected, rel=1e-6)
    for text, nats in zip(TEXTS, expected, strict=True):
        assert any_order(exact, text) == pytest.approx((nats, nats), rel=1e-6)


def test_given_tokens_are_conditioned_on(exact, joint):
    """-log p(x_1, x_3 | x_0, x_2)."""
    text = Text(np.array([0, 1, 2, 0]), np.array([1, 3]))
    expected = -math.log(joint[0, 1, 2, 0] / joint[0, :, 2, :].sum())
    assert chain_rule(exact, [text])[0] == pytest.approx(expected, rel=1e-6)
    assert any_order(exact, text) == pytest.approx((expected, expected), rel=1e-6)
    assert monte_carlo(exact, [text], [0], 4000, 0).mean() == pytest.approx(expected, rel=0.02)
    after = Text.after([0, 1], [2, 0])
    assert after.tokens.tolist() == [0, 1, 2, 0] and after.targets.tolist() == [2, 3]


def test_all_orders_of_an_inconsistent_model(inconsistent):
    """Against the 24 orders one by one."""
    orders = [np.array(order) for order in itertools.permutations(range(LENGTH))]
    for text in TEXTS:
        nats = chain_rule(inconsistent, [text] * len(orders), orders)
        assert np.ptp(nats) > 0.1
        found = any_order(inconsistent, text)
        assert found.nelbo == pytest.approx(nats.mean(), rel=1e-6)
        assert found.random_order == pytest.approx(-np.log(np.exp(-nats).mean()), rel=1e-6)
        assert found.random_order < found.nelbo


def test_monte_carlo_is_unbiased_and_its_spread_is_its_error(inconsistent):
    """Independent groups: their means scatter about the exact NELBO as their own spread says."""
    text, groups = TEXTS[0], list(range(300))
    estimates = monte_carlo(inconsistent, [text] * len(groups), groups, 8, 5).mean(axis=1)
    error = estimates.std(ddof=1) / math.sqrt(len(groups))
    assert abs(estimates.mean() - any_order(inconsistent, text).nelbo) < 3 * error < 0.15
    # Stratified: 8 masks of 4 tokens have each number of masked tokens twice.
    independent = monte_carlo(inconsistent, [text] * 300, groups, 1, 5)
    assert estimates.var() < 0.8 * independent.var() / 8


def test_many_rows_are_scored_in_parts(inconsistent, monkeypatch):
    orders = [np.array([3, 1, 0, 2])] * 3
    whole = (monte_carlo(inconsistent, TEXTS, [0, 1, 2], 5, 0), chain_rule(inconsistent, TEXTS, orders))
    monkeypatch.setattr("pretrain.evaluation.likelihood.ROWS_AT_ONCE", 9)
    again = (monte_carlo(inconsistent, TEXTS, [0, 1, 2], 5, 0), chain_rule(inconsistent, TEXTS, orders))
    assert all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))
    empty = Text.after([0, 1], [])
    assert monte_carlo(inconsistent, [empty], [0], 3, 0).tolist() == [[0, 0, 0]]
    assert chain_rule(inconsistent, [empty]).tolist() == [0]


def test_the_same_random_numbers_for_every_choice(inconsistent):
    """In one group a text has the same estimates wherever it stands; a longer text shares the draws."""
    texts = [TEXTS[0], TEXTS[1], TEXTS[0]]
    same, other = (monte_carlo(inconsistent, texts, groups, 16, 0) for groups in ([4, 4, 4], [4, 5, 6]))
    assert np.array_equal(same[0], same[2]) and not np.array_equal(other[0], other[2])
    assert np.array_equal(same[0], monte_carlo(inconsistent, texts[:1], [4], 16, 0)[0])


def test_more_than_one_row_has_too_many_orders(inconsistent):
    with pytest.raises(ValueError, match="too many orders"):
        any_order(inconsistent, Text(np.zeros(13, np.int64), np.arange(MAX_EXACT_TOKENS + 1)))


@pytest.mark.parametrize(
    ("length", "seq_len", "stride"), [(1, 8, 4), (8, 8, 4), (9, 8, 4), (23, 8, 3), (21, 8, 8), (5, 2, 1)]
)
def test_windows_ask_for_every_token_once_with_the_context_that_fits(length, seq_len, stride):
    tokens, asked = list(range(100, 100 + length)), []
    for number, window in enumerate(rolling(tokens, seq_len, stride)):
        asked += window.tokens[window.targets].tolist()
        assert len(window.tokens) == min(length, seq_len)
        assert window.targets.tolist() == list(range(len(window.tokens) - len(window.targets), len(window.tokens)))
        assert len(window.targets) <= (stride if number else seq_len)
    assert asked == tokens


def test_rolling_likelihood_of_a_markov_chain(world):
    """A model that sees the neighbours only: windows with one token of context are exact."""
    steps = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]], dtype=torch.float64)
    start = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    def joint_of(first, length):
        joint = first
        for _ in range(length - 1):
            joint = joint[..., None] * steps
        return joint

    whole = scorer_of(JointDenoiser(joint_of(start, LENGTH)), world, SIZE)
    tokens = [0, 0, 1, 2, 2, 0, 1]
    expected = -math.log(start[0]) - sum(math.log(steps[a, b]) for a, b in itertools.pairwise(tokens))
    found = chain_rule(whole, rolling(tokens, LENGTH, LENGTH - 1)).sum()
    assert found == pytest.approx(expected, rel=1e-6)


def test_rows_of_all_lengths_and_batch_sizes_give_the_same_figures(world):
    denoiser, rng = HashedDenoiser(5), np.random.default_rng(0)
    rows = []
    for length in (3, 9, 4, 9, 3, 1, 9):
        masked = rng.random(length) < 0.7
        rows.append(MaskedRow(rng.integers(0, 5, length), masked, masked & (rng.random(length) < 0.7)))
    one, many = (scorer_of(denoiser, world, 5, size).nats(rows) for size in (1, 3))
    assert [len(nats) for nats in one] == [row.wanted.sum() for row in rows]
    assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))
    assert sum(map(len, one)) > 5


def test_logits_that_are_not_numbers_are_named(world):
    broken = TokenScorer(
        lambda inputs: [torch.full((len(one.logit_positions), 3), math.nan) for one in inputs], world, SIZE, 2
    )
    with pytest.raises(UserError, match="its weights are damaged"):
        chain_rule(broken, TEXTS)
