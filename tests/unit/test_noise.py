"""Noise is a function of (seed, step, sample index): reproducible, stratified, of the right distribution."""

import hashlib

import numpy as np
import pytest

from model.noise import Stream, masks, stratified, timesteps, uniform

PINNED_FIRST = [0.7764904680583253, 0.11093525493558876]
PINNED_DIGEST = "5e9e864fb88a60bec07521e17966cdb0a62e0cddff16c405f0b73142c2667f3c"


def test_values_are_pinned():
    """A run's identity: a change of these numbers would change every resumed run."""
    drawn = np.concatenate([uniform(3, stream, 5, 4) for stream in Stream])
    digest = hashlib.sha256((drawn * 2**53).astype("<u8").tobytes()).hexdigest()
    assert drawn[:2] == pytest.approx(PINNED_FIRST, abs=0)
    assert digest == PINNED_DIGEST


def test_positions_do_not_depend_on_length():
    assert np.array_equal(uniform(1, Stream.MASK, 9, 1000)[:10], uniform(1, Stream.MASK, 9, 10))


@pytest.mark.parametrize("other", [(2, Stream.MASK, 9), (1, Stream.LOOPS, 9), (1, Stream.MASK, 10)])
def test_seed_stream_and_index_give_unrelated_draws(other):
    a, b = uniform(1, Stream.MASK, 9, 20_000), uniform(*other, 20_000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(20_000)


def test_uniform_is_uniform():
    draws = np.concatenate([uniform(0, Stream.MASK, index, 100) for index in range(1000)])
    counts = np.bincount((draws * 50).astype(int), minlength=50)
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert 20 < chi_square < 100  # 49 degrees of freedom: mean 49, standard deviation 10


@pytest.mark.parametrize("size", [1, 2, 7, 512])
def test_one_timestep_in_every_stratum(size):
    strata = np.floor(stratified(0, 3, size) * size).astype(int)
    assert sorted(strata) == list(range(size))


def test_timesteps_are_uniform_over_steps():
    """Each sample's t is uniform over the interval, though the samples of a step are tied to each other."""
    first = np.array([timesteps(0, step, 8, 0.1)[0] for step in range(4000)])
    assert first.min() >= 0.1
    assert first.max() < 1
    assert first.mean() == pytest.approx(0.55, abs=4 * 0.9 / np.sqrt(12 * 4000))


def test_steps_have_other_orders():
    orders = {tuple(np.argsort(stratified(0, step, 6))) for step in range(200)}
    assert len(orders) > 100


def test_masks_follow_sample_index_not_batch():
    t = np.array([0.3, 0.6, 0.9, 0.5])
    indices = np.array([40, 41, 42, 43])
    together = masks(7, indices, t, 64)
    apart = np.concatenate([masks(7, indices[i : i + 1], t[i : i + 1], 64) for i in range(4)])
    assert np.array_equal(together, apart)
    assert not np.array_equal(masks(7, indices + 4, t, 64), together)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.95])
def test_masked_share_is_t(t):
    share = masks(0, np.arange(500), np.full(500, t), 100).mean()
    assert share == pytest.approx(t, abs=4 * np.sqrt(t * (1 - t) / 50_000))
