"""Ranges of flattened shards as rectangles of whole weights, against slices of the whole weight."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.weights import Shards
from pretrain.checkpoints.index import as_matrix, missing_part
from pretrain.checkpoints.rectangles import Rectangle, regions_of

SPLITS = [None, Shards(0), Shards(1), Shards(0, blocks=2)]


@st.composite
def ranges(draw):
    """(whole matrix of distinct numbers, how it is split, size, start and length of a range, rows that count)."""
    shards, size = draw(st.sampled_from(SPLITS)), draw(st.integers(1, 4))
    blocks = shards.blocks if shards is not None else 1
    rows, columns = draw(st.integers(1, 4)) * size * blocks, draw(st.integers(1, 4)) * size
    whole = torch.arange(rows * columns).view(rows, columns)
    numbers = rows * columns // (1 if shards is None else size)
    start = draw(st.integers(0, numbers - 1))
    return whole, shards, size, start, draw(st.integers(1, numbers - start)), draw(st.integers(1, rows))


@given(ranges())
def test_regions_are_where_the_numbers_of_a_range_lie(case):
    whole, shards, size, start, length, rows = case
    for rank in range(size):
        shard = whole if shards is None else shards.take(whole, rank, size)
        expected = shard.flatten()[start : start + length]
        regions = regions_of(start, length, tuple(shard.shape), shards, rank, size, rows)
        found = torch.full_like(expected, -1)
        for region in regions:
            part = whole[region.rectangle.within(Rectangle(0, 0, *whole.shape))]
            found[region.start : region.start + region.rectangle.size] = part.flatten()
        counts = expected < rows * whole.shape[1]  # numbers of the rows that count
        assert torch.equal(found, torch.where(counts, expected, -1))
        assert len(regions) <= 3 * (shards.blocks if shards is not None else 1)


@given(ranges(), st.integers(1, 5))
def test_the_ranges_of_all_ranks_cover_the_weight_once(case, pieces):
    whole, shards, size, _, _, rows = case
    found = []
    for rank in range(size if shards is not None else 1):
        shard = whole if shards is None else shards.take(whole, rank, size)
        cuts = [i * shard.numel() // pieces for i in range(pieces + 1)]
        for start, end in pairwise(cuts):
            found += regions_of(start, end - start, tuple(shard.shape), shards, rank, size, rows)
    assert missing_part((rows, whole.shape[1]), (region.rectangle for region in found)) is None


def test_a_vector_is_a_matrix_of_one_column():
    assert as_matrix((5,)) == (5, 1)
    (region,) = regions_of(1, 3, (5, 1), None, 0, 1, 5)
    assert region.rectangle == Rectangle(1, 0, 3, 1)


@pytest.mark.parametrize(
    "rectangles, problem",
    [
        ([Rectangle(0, 0, 2, 3)], "6 of 12 numbers are missing"),
        ([Rectangle(0, 0, 4, 3), Rectangle(3, 2, 1, 1)], "two parts overlap"),
        ([Rectangle(0, 0, 5, 3)], "a part lies outside"),
    ],
)
def test_rectangles_that_do_not_cover_a_weight_once(rectangles, problem):
    assert missing_part((4, 3), rectangles) == problem
