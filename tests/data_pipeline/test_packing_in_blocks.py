"""Best fit of a bounded number of documents at a time, and what is said about its memory."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_packing import SHARDS, write_shards

from data_pipeline.packing import shuffled
from data_pipeline.packing.best_fit import best_fit
from data_pipeline.packing.pack_plan import plan_files, write_plan
from data_pipeline.packing.shuffled import document_order


@pytest.mark.parametrize("shuffle", [False, True])
@given(shards=SHARDS, seq_len=st.integers(1, 24), block=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_best_fit_packs_one_block_of_documents_after_the_other(shuffle, shards, seq_len, block):
    """Against `best_fit` of each block, over the boundaries of the shards; a single block if it is large enough."""
    lengths = np.array([length for shard in shards for length in shard], np.int64)
    starts = np.cumsum(lengths) - lengths
    order = (
        document_order(np.arange(lengths.size), lengths.size) if shuffle and lengths.size else np.arange(lengths.size)
    )
    chosen = [order[i : i + block] for i in range(0, order.size, block)]
    expected = [best_fit(starts[each], lengths[each], seq_len) for each in chosen]
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffled, "PACKED_DOCUMENTS", block)
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


def test_an_estimate_says_what_packing_needs(prepare, jsonl, monkeypatch):
    words = ("--input", jsonl, "--estimate", "--pack")
    assert "packing" not in prepare(*words, "concat").out
    assert "; packing takes about 0.0 MB" in prepare(*words, "best_fit").out
    monkeypatch.setattr("data_pipeline.tasks.estimate.PACKING_BYTES", 10**7)
    assert "; packing takes about 3.0 GB" in prepare(*words, "best_fit").out
    monkeypatch.setattr("data_pipeline.tasks.estimate.PACKED_DOCUMENTS", 20)
    assert "; packing takes about 200.0 MB" in prepare(*words, "best_fit").out
