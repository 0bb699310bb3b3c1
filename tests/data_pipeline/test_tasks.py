"""Every way of cutting a corpus into tasks gives each record once, in order."""

import json

import numpy as np
import pyarrow
import pytest
from conftest import make_texts, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from test_prepare import all_texts, token_documents

from data_pipeline.filters import ActiveFilters
from data_pipeline.manifest import load_manifest
from data_pipeline.readers.inputs import resolve_input
from data_pipeline.rejects import RecordCounter
from data_pipeline.tasks import task as task_module
from data_pipeline.tasks.reading import task_documents
from data_pipeline.tasks.task import cut_into_tasks

INPUTS = ["lines", "parquet", "dataset", "texts"]


def write(kind, folder, texts):
    if kind == "lines":
        return write_jsonl(folder / "x.jsonl", texts)
    if kind == "parquet":
        parquet.write_table(pyarrow.table({"text": texts}), folder / "x.parquet", row_group_size=7)
        return folder / "x.parquet"
    if kind == "dataset":
        pytest.importorskip("datasets").Dataset.from_dict({"text": texts}).save_to_disk(folder / "saved")
        return folder / "saved"
    (folder / "texts").mkdir()
    for i, text in enumerate(texts):
        (folder / "texts" / f"{i:04}.txt").write_bytes(text.encode())
    return folder / "texts"


def read(word, size):
    tasks_of_word = cut_into_tasks([resolve_input(str(word))])
    documents = [
        [document.text for document in task_documents(task, RecordCounter(), "text", ActiveFilters(), strict=True)]
        for task in tasks_of_word
    ]
    return [texts for texts in documents if texts]


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("size", [1, 300, 5000, 10**9])
def test_each_record_is_in_one_task(tmp_path, monkeypatch, kind, size):
    monkeypatch.setattr(task_module, "_task_size", lambda total: size)
    texts = make_texts(50)
    found = read(write(kind, tmp_path, texts), size)
    assert [text for part in found for text in part] == texts
    assert len(found) == 1 if size == 10**9 else len(found) > 3


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(st.text("abé ", max_size=30), min_size=1, max_size=20), size=st.integers(1, 60), ends=st.booleans()
)
def test_lines_of_any_length_and_ranges_of_any_size(tmp_path_factory, lines, size, ends):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    texts = [f"{i} {line}" for i, line in enumerate(lines)]
    content = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    path.write_text(content + "\n" * ends, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_module, "_task_size", lambda total: size)
        found = read(path, size)
    assert [text for part in found for text in part] == texts


def test_a_growing_corpus_keeps_the_size_of_its_tasks():
    sizes = [task_module._task_size(total) for total in (0, 10**9, 2**40, 2**40 + 10**9, 2**60)]
    assert sizes == [2 << 20, 4 << 20, 512 << 20, 512 << 20, 512 << 20]


def test_several_shards_are_read_as_one_stream(prepare, several_tasks, tmp_path):
    """By the training's reader and, each shard, by megatron-core's."""
    from data_pipeline.dataset.packed_dataset import PackedDataset

    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    assert (
        prepare("--input", several_tasks, "--output", tmp_path / "data", "--shard-size", "1MB", "--no-shuffle").code
        == 0
    )
    shards = load_manifest(tmp_path / "data").splits["train"].shards
    assert len(shards) > 3 and shards == sorted(shards)
    documents = token_documents(tmp_path / "data", "train")
    theirs = [indexed_dataset.IndexedDataset(str(tmp_path / "data" / stem)) for stem in shards]
    read_by_them = [dataset[i] for dataset in theirs for i in range(len(dataset))]
    assert all(np.array_equal(a, b) for a, b in zip(documents, read_by_them, strict=True))
    dataset = PackedDataset(tmp_path / "data", "train")
    rows = dataset.rows(np.arange(len(dataset)))
    assert np.array_equal(rows.ravel(), np.concatenate(documents)[: rows.size])


def test_bytes_as_tokens(prepare, jsonl, tmp_path, texts):
    result = prepare("--input", jsonl, "--output", tmp_path / "data", "--tokenizer", "bytes")
    assert result.code == 0, result.err
    manifest = load_manifest(tmp_path / "data")
    ids = manifest.tokenizer
    assert (ids.kind, ids.vocab_size, ids.eod_id, ids.mask_id, manifest.vocab_size) == ("bytes", 256, 256, 257, 258)
    assert all_texts(tmp_path / "data") == sorted(texts)
    again = prepare("--input", jsonl, "--output", tmp_path / "data", "--tokenizer", "bytes")
    assert "nothing to do" in again.out
