"""The benchmark of a large corpus at a small size: its parts fit together."""

import sys

import pytest
from pyarrow import parquet

from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.provenance import PLACES_SUFFIX
from tests.benchmarks import large_manifest
from tests.benchmarks.large_manifest import PHASES, SPLIT


def test_the_phases_of_the_benchmark_make_a_folder_that_training_reads(tmp_path, monkeypatch):
    pytest.importorskip("rensa")
    monkeypatch.setattr(large_manifest, "SHARD_BYTES", 500_000)
    for phase in PHASES.values():
        phase(tmp_path, 5, 130)
    dataset = PackedDataset(tmp_path / "data", SPLIT)
    split = dataset.manifest.splits[SPLIT]
    assert split.documents == 5 * 130 and len(split.shards) > 2
    assert parquet.read_metadata(tmp_path / "data" / f"{SPLIT}{PLACES_SUFFIX}").num_rows == 5 * 130
    assert split.tokens == dataset.num_rows * dataset.seq_len + split.dropped_tokens


def test_a_phase_is_measured_in_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    skipped = [name for name in PHASES if name not in ("make_tasks", "cut")]
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--gigabytes", "0.001", "--tasks", "2", "--skip", *skipped])
    large_manifest.main()
    first, cut = capsys.readouterr().out.splitlines()
    assert first == "250 documents of 0.0 GB of text in 2 tasks" and cut.startswith("cut ") and "for 10 TB" in cut
