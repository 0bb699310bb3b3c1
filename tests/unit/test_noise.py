"""Noise is a function of (seed, step, sample index): reproducible, stratified, with the right distribution."""

import hashlib

import numpy as np
import pytest

from model.noise import BELL, Stream, complement, masks, quantile, stratified, timesteps, uniform

PINNED_FIRST = [0.7764904680583253, 0.11093525493558876]
PINNED_DIGEST = "5e9e864fb88a60bec07521e17966cdb0a62e0cddff16c405f0b73142c2667f3c"


def test_values_are_pinned():
    """If these numbers changed, every resumed run would change."""
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
    """The t of a sample is uniform over the interval, although the samples of one step depend on each other."""
    whole = np.zeros((8, 1), int)
    first = np.array([timesteps(stratified(0, step, 8), whole, 0.1)[0, 0] for step in range(4000)])
    assert first.min() >= 0.1
    assert first.max() < 1
    assert first.mean() == pytest.approx(0.55, abs=4 * 0.9 / np.sqrt(12 * 4000))


DOCUMENTS = np.array([[0, 0, 0, 1, 2, 2, 3, -1], [0, 1, 1, 1, 1, 1, 2, 3], [0] * 8, [0, 0, 1, 1, 2, 2, 3, 3]])


def test_a_document_has_one_timestep_and_the_first_has_the_rows():
    values = stratified(5, 2, 4)
    t = timesteps(values, DOCUMENTS, 0.1)
    rows = timesteps(values, np.zeros_like(DOCUMENTS), 0.1)
    assert np.array_equal(rows, np.broadcast_to(0.1 + 0.9 * values[:, None], rows.shape))
    assert np.array_equal(t[DOCUMENTS == 0], rows[DOCUMENTS == 0])
    for row, owners in zip(t, DOCUMENTS, strict=True):
        numbers = owners[owners >= 0]
        assert len(set(row[owners >= 0])) == len(set(numbers)) == numbers.max() + 1


@pytest.mark.parametrize("document", [0, 1, 2, 7, 300])
def test_timesteps_of_every_document_are_uniform(document):
    """Chi-square test over steps, in twenty equal bins of the interval."""
    owner = np.full((8, 1), document)
    t = np.array([timesteps(stratified(0, step, 8), owner, 0.1)[0, 0] for step in range(4000)])
    counts = np.bincount(((t - 0.1) / 0.9 * 20).astype(int), minlength=20)
    assert len(counts) == 20
    assert ((counts - 200) ** 2 / 200).sum() < 45  # 19 degrees of freedom: mean 19, standard deviation 6


@pytest.mark.parametrize("document", [1, 2, 7, 300])
def test_the_jth_documents_of_a_batch_are_stratified(document):
    values = timesteps(stratified(0, 3, 512), np.full((512, 1), document), 1e-9)[:, 0]
    assert sorted(np.floor(values * 512).astype(int)) == list(range(512))


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_documents_of_a_row_are_spread_over_the_interval(count):
    """The largest gap between their timesteps, modulo 1, is below 2.7 times that of even spacing."""
    t = np.sort(timesteps(np.array([0.3]), np.arange(count)[None], 1e-9)[0])
    assert np.diff([*t, t[0] + 1]).max() < 2.7 / count


def test_steps_have_different_orders():
    orders = {tuple(np.argsort(stratified(0, step, 6))) for step in range(200)}
    assert len(orders) > 100


def test_masks_follow_sample_index_not_batch():
    t = np.repeat([[0.3], [0.6], [0.9], [0.5]], 64, axis=1)
    indices = np.array([40, 41, 42, 43])
    together = masks(7, indices, t)
    apart = np.concatenate([masks(7, indices[i : i + 1], t[i : i + 1]) for i in range(4)])
    assert np.array_equal(together, apart)
    assert not np.array_equal(masks(7, indices + 4, t), together)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.95])
def test_masked_share_is_t(t):
    share = masks(0, np.arange(500), np.full((500, 100), t)).mean()
    assert share == pytest.approx(t, abs=4 * np.sqrt(t * (1 - t) / 50_000))


def test_masked_share_of_every_document_is_its_timestep():
    """Documents of one row, over many samples: the masked share of each is its own t."""
    owners = np.repeat(np.arange(4), 100)[None]
    t = timesteps(np.array([0.3]), owners, 1e-3)
    masked = masks(0, np.arange(500), np.repeat(t, 500, axis=0)).reshape(500, 4, 100).mean(axis=(0, 2))
    assert len(set(t[0])) == 4
    for share, expected in zip(masked, t[0, ::100], strict=True):
        assert share == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 50_000))


def test_quantile_of_the_bell_inverts_its_cumulative_distribution():
    values = np.linspace(0, 1, 10_001)
    u = quantile("bell", values)
    assert (1 - BELL) * u + BELL * (3 * u**2 - 2 * u**3) == pytest.approx(values, abs=1e-12)
    assert u[0] == pytest.approx(0, abs=1e-12) and u[-1] == pytest.approx(1, abs=1e-12) and (np.diff(u) > 0).all()
    assert np.array_equal(quantile("uniform", values), values)


def test_bell_timesteps_have_their_density():
    """Exact share of t in ten bins of the interval, since a batch is stratified."""
    t = timesteps(stratified(0, 3, 10_000), np.zeros((10_000, 1), int), 0.2, "bell")[:, 0]
    edges = np.linspace(0, 1, 11)
    expected = np.diff((1 - BELL) * edges + BELL * (3 * edges**2 - 2 * edges**3))
    assert np.bincount(((t - 0.2) / 0.8 * 10).astype(int)) / 10_000 == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("minimum", [1e-3, 0.2])
def test_complements_mask_what_the_other_row_shows(minimum):
    """Every token is masked in one row of the pair, and in both with probability `minimum`; each row has its own share t."""
    t = np.repeat(timesteps(np.array([0.0, 0.3, 0.7]), np.zeros((3, 1), int), minimum), 4000, axis=1)
    pairs = np.repeat(t, 2, axis=0)
    second = np.arange(6) % 2 == 1
    pairs[second] = complement(pairs[second], minimum)
    assert (pairs[second] > minimum).all() and (pairs <= 1).all()
    masked = masks(5, np.repeat(np.arange(3), 2), pairs, second)
    assert (masked[::2] | masked[1::2]).all()
    assert np.array_equal(masked[::2], masks(5, np.arange(3), t))
    assert (masked[::2] & masked[1::2]).mean() == pytest.approx(minimum, abs=4 * np.sqrt(minimum / 12_000))
    assert masked.mean(axis=1) == pytest.approx(pairs[:, 0], abs=0.035)
