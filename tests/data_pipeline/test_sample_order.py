import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dataset.shuffle import SampleOrder


def epoch_of(seed, num_rows, epoch):
    return SampleOrder(seed, num_rows).rows(np.arange(num_rows) + epoch * num_rows)


@pytest.mark.parametrize("num_rows", [*range(1, 70), 255, 256, 257, 1000, 4095, 65537, 10**6, 999_983])
def test_every_epoch_is_a_permutation(num_rows):
    for epoch in (0, 1, 7):
        assert np.array_equal(np.sort(epoch_of(3, num_rows, epoch)), np.arange(num_rows))


def test_epochs_and_seeds_differ():
    orders = [epoch_of(seed, 1000, epoch) for seed in (0, 1, -1) for epoch in (0, 1)]
    for i, left in enumerate(orders):
        for right in orders[:i]:
            assert np.mean(left == right) < 0.01


def test_result_is_a_function_of_each_index_alone():
    order = SampleOrder(5, 1003)
    indices = np.random.default_rng(0).integers(0, 5 * 1003, size=(40, 3))
    expected = np.concatenate([epoch_of(5, 1003, epoch) for epoch in range(5)])
    assert np.array_equal(order.rows(indices), expected[indices])
    assert [int(order.rows(np.array([i]))[0]) for i in (0, 1, 1003)] == [int(expected[i]) for i in (0, 1, 1003)]


def test_order_never_changes_between_versions():
    """A resumed run must see the same rows: changing this digest breaks every run in progress."""
    rows = SampleOrder(1234, 100_003).rows(np.arange(250_000)).astype("<i8")
    assert hashlib.sha256(rows.tobytes()).hexdigest()[:16] == "bc2fc7a925bf3f8e"


def test_huge_splits_and_indices_stay_in_range():
    num_rows = 2**40 + 15
    rows = SampleOrder(0, num_rows).rows(np.arange(2**45, 2**45 + 5000))
    assert rows.min() >= 0 and rows.max() < num_rows
    assert len(set(rows.tolist())) == 5000
    assert rows.max() > 0.9 * num_rows


@pytest.mark.parametrize("num_rows", [10_000, 99_991])
def test_statistics_are_those_of_random_permutations(num_rows):
    position = np.arange(num_rows)
    correlations, fixed, displacement, neighbours = [], [], [], []
    for epoch in range(60):
        order = epoch_of(11, num_rows, epoch)
        correlations.append(np.corrcoef(position, order)[0, 1] * np.sqrt(num_rows))
        fixed.append(np.sum(order == position))
        displacement.append(np.mean(np.abs(order - position)) / num_rows)
        neighbours.append(np.sum(np.abs(np.diff(order)) == 1))
    assert abs(np.mean(correlations)) < 0.5 and 0.75 < np.std(correlations) < 1.3
    assert 0.5 < np.mean(fixed) < 1.6
    assert abs(np.mean(displacement) - 1 / 3) < 0.002
    assert 1.2 < np.mean(neighbours) < 2.9


@pytest.mark.parametrize("num_rows", [4, 5, 6])
def test_small_permutations_are_all_about_equally_likely(num_rows):
    epochs = 24_000
    drawn = SampleOrder(2, num_rows).rows(np.arange(epochs * num_rows)).reshape(epochs, num_rows)
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    cells = math.factorial(num_rows)
    assert len(counts) == cells
    chi_square = np.sum((counts - epochs / cells) ** 2 / (epochs / cells))
    assert chi_square < cells - 1 + 5 * np.sqrt(2 * (cells - 1))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        SampleOrder(0, 0)
    with pytest.raises(ValueError, match="negative"):
        SampleOrder(0, 5).rows(np.array([-1]))
    assert SampleOrder(0, 5).rows(np.array([], dtype=np.int64)).shape == (0,)


@given(num_rows=st.integers(1, 10**6), epoch=st.integers(0, 10**6), seed=st.integers(-(2**70), 2**70))
@settings(max_examples=40, deadline=None)
def test_any_epoch_of_any_size_is_a_permutation(num_rows, epoch, seed):
    seen = np.zeros(num_rows, bool)
    seen[epoch_of(seed, num_rows, epoch)] = True
    assert seen.all()
