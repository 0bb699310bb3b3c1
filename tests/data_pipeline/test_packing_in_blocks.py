"""Best fit of a bounded number of documents at a time, and what is said about its memory."""

import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_packing import SHARDS, write_shards

from data_pipeline.packing import best_fit as best_fit_module
from data_pipeline.packing import shuffled
from data_pipeline.packing.best_fit import best_fit
from data_pipeline.packing.pack_plan import plan_files, write_plan
from data_pipeline.packing.shuffled import document_order


@pytest.mark.parametrize("shuffle", [False, True])
@given(shards=SHARDS, seq_len=st.integers(1, 24), block=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_best_fit_packs_one_block_of_documents_after_the_other(shuffle, shards, seq_len, block):
    """Against `best_fit` of each block, over the boundaries of the shards; a single block if it is large enough.

    Full rows are written in parts of other sizes than those of the oracle.
    """
    lengths = np.array([length for shard in shards for length in shard], np.int64)
    starts = np.cumsum(lengths) - lengths
    order = (
        document_order(np.arange(lengths.size), lengths.size) if shuffle and lengths.size else np.arange(lengths.size)
    )
    chosen = [order[i : i + block] for i in range(0, order.size, block)]
    expected = [part for each in chosen for part in best_fit(starts[each], lengths[each], seq_len)]
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffled, "PACKED_DOCUMENTS", block)
        patch.setattr(best_fit_module, "PART_ROWS", block)
        folder = Path(name)
        counts = write_plan(folder, "train", write_shards(folder, shards), "best_fit", seq_len, shuffle)
        _, *files = plan_files("train", "best_fit", seq_len, shuffle)
        row_starts, found_starts, found_lengths = (np.load(folder / file) for file in files)
    assert np.array_equal(found_starts, np.concatenate([np.zeros(0), *(each.starts for each in expected)]))
    assert np.array_equal(found_lengths, np.concatenate([np.zeros(0), *(each.lengths for each in expected)]))
    per_row = [np.diff(each.row_starts) for each in expected]
    assert np.array_equal(np.diff(row_starts), np.concatenate([np.zeros(0), *per_row])) and row_starts[0] == 0
    assert counts.rows == sum(map(len, per_row))
    covered = sorted(t for s, n in zip(found_starts, found_lengths, strict=True) for t in range(s, s + n))
    assert covered == list(range(lengths.sum()))


def test_full_rows_are_not_all_in_memory(tmp_path, monkeypatch):
    """A million full rows of 2,000 documents, which took 40 MB."""
    monkeypatch.setattr(best_fit_module, "PART_ROWS", 1 << 12)
    shards = write_shards(tmp_path, [[8000] * 2000])
    tracemalloc.start()
    try:
        counts = write_plan(tmp_path, "train", shards, "best_fit", 16, shuffle=True)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()
    assert counts.rows == 1_000_000


def test_an_estimate_says_what_packing_needs(prepare, jsonl, monkeypatch):
    words = ("--input", jsonl, "--estimate", "--pack")
    assert "packing" not in prepare(*words, "concat").out
    assert "; packing takes about 0.1 MB" in prepare(*words, "best_fit").out
    monkeypatch.setattr("data_pipeline.tasks.estimate.PACKING_BYTES", 10**7)
    assert "; packing takes about 3.0 GB" in prepare(*words, "best_fit").out
    monkeypatch.setattr("data_pipeline.tasks.estimate.PACKED_DOCUMENTS", 20)
    assert "; packing takes about 200.0 MB" in prepare(*words, "best_fit").out
