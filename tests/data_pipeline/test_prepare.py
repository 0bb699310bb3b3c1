import bz2
import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import make_texts, write_jsonl

from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.indexed import IndexedReader
from data_pipeline.manifest import load_manifest
from data_pipeline.packing.pack_plan import plan_files, write_plan
from data_pipeline.packing.shuffled import document_order
from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer


def token_documents(folder, split):
    """Ids of a split's documents, shard after shard."""
    readers = [IndexedReader(folder / stem) for stem in load_manifest(folder).splits[split].shards]
    return [reader.document(i) for reader in readers for i in range(len(reader))]


def documents_of(folder):
    """Texts of a prepared folder by split, decoded from its tokens."""
    manifest = load_manifest(folder)
    tokenizer = load_prepared_tokenizer(folder, manifest)
    found = {}
    for split in manifest.splits:
        documents = token_documents(folder, split)
        assert all(document[-1] == tokenizer.eod_id for document in documents)
        found[split] = [tokenizer.decode(document[:-1]) for document in documents]
    return found


def all_texts(folder):
    return sorted(text for texts in documents_of(folder).values() for text in texts)


def folder_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_documents_come_back_and_counts_add_up(prepared, texts):
    assert all_texts(prepared) == sorted(texts)
    manifest = load_manifest(prepared)
    splits = manifest.splits.values()
    assert sum(split.documents for split in splits) == len(texts) == manifest.inputs[0].documents
    assert sum(split.bytes for split in splits) == sum(len(text.encode()) for text in texts)
    for split in splits:
        assert split.tokens == split.rows * 32 + split.dropped_tokens
        assert split.dropped_tokens < 32
    assert manifest.tokenizer.mask_id == manifest.vocab_size - 1


@pytest.mark.parametrize("split", ["train", "validation"])
def test_dataset_rows_are_the_documents_in_shuffled_order(prepared, split):
    dataset = PackedDataset(prepared, split)
    documents = token_documents(prepared, split)
    stream = np.concatenate([documents[i] for i in document_order(np.arange(len(documents)), len(documents))])
    rows = dataset.rows(np.arange(len(dataset)))
    assert rows.dtype == np.int64 and rows.shape == (dataset.num_rows, dataset.seq_len) == (len(dataset), 32)
    assert np.array_equal(rows.ravel(), stream[: rows.size])
    some = np.array([len(dataset) - 1, 0, 0])
    assert np.array_equal(dataset.rows(some), rows[some])


def _text_folder(path, texts):
    for i, text in enumerate(texts):
        file = path / f"part{i % 3}" / f"{i:04}.{('txt', 'py', 'md')[i % 3]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    (path / ".hidden").write_text("not text")
    return [path]


def _json_bytes(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def _packed_json(path, texts):
    """The corpus in four parts, each packed in its own way; the zstd one in two frames."""
    packers = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": _two_frames}
    for i, (suffix, pack) in enumerate(packers.items()):
        Path(f"{path}.jsonl.{suffix}").write_bytes(pack(_json_bytes(texts[i::4])))
    return [f"{path}.jsonl.{suffix}" for suffix in packers]


def _two_frames(data):
    pyarrow = pytest.importorskip("pyarrow")
    halves = data[: len(data) // 2], data[len(data) // 2 :]
    return b"".join(pyarrow.compress(half, "zstd", asbytes=True) for half in halves)


def _marked_json(path, texts):
    path.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(json.dumps({"text": text}).encode() for text in texts))
    return [path.rename(f"{path}.json")]


def _parquet(path, texts):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"n": list(range(len(texts))), "text": texts}), f"{path}.parquet")
    return [f"{path}.parquet"]


def _several(path, texts):
    return [write_jsonl(Path(f"{path}.{i}.jsonl"), texts[i::3]) for i in range(3)]


def _glob(path, texts):
    _several(path, texts)
    return [f"{path}.*.jsonl"]


def _saved_dataset(path, texts):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(path)
    return [path]


def _saved_splits(path, texts):
    datasets = pytest.importorskip("datasets")
    wanted, other = (datasets.Dataset.from_dict({"text": each}) for each in (texts, ["other"]))
    datasets.DatasetDict({"train": other, "part": wanted}).save_to_disk(path)
    return [f"hf:{path}@part"]


KINDS = [_text_folder, _packed_json, _marked_json, _parquet, _several, _glob, _saved_dataset, _saved_splits]


@pytest.mark.parametrize("write", KINDS)
def test_every_kind_of_input_gives_the_same_documents_and_splits(prepare, prepared, tmp_path, texts, write):
    words = write(tmp_path / "input", texts)
    result = prepare("--input", *words, "--output", tmp_path / "other")
    assert result.code == 0, result.err
    expected, found = documents_of(prepared), documents_of(tmp_path / "other")
    assert {split: sorted(texts) for split, texts in found.items()} == {
        split: sorted(texts) for split, texts in expected.items()
    }
    assert load_manifest(tmp_path / "other").records == {}


def test_another_text_key(prepare, tmp_path, texts):
    path = write_jsonl(tmp_path / "keyed.jsonl", texts, key="question")
    assert prepare("--input", path, "--output", tmp_path / "data", "--text-key", "question").code == 0
    assert all_texts(tmp_path / "data") == sorted(texts)


def test_workers_and_reruns_give_the_same_bytes(prepare, jsonl, tmp_path):
    for name, workers in (("a", 1), ("b", 1), ("c", 2)):
        words = ("--input", jsonl, "--output", tmp_path / name, "--vocab-size", 400, "--workers", workers)
        assert prepare(*words, train=True).code == 0
    first = folder_bytes(tmp_path / "a")
    assert set(first) == {
        "manifest.json",
        "tokenizer.model",
        "sources.parquet",
        *(f"{split}.places.parquet" for split in ("train", "validation")),
        *(f"{split}-00000.{suffix}" for split in ("train", "validation") for suffix in ("bin", "idx")),
        *(name for split in ("train", "validation") for name in plan_files(split, "concat", 32, True)),
    }
    assert folder_bytes(tmp_path / "b") == first
    assert folder_bytes(tmp_path / "c") == first


def test_one_worker_starts_no_process(prepare, jsonl, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fork", None)
    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", None)
    assert prepare("--input", jsonl, "--output", tmp_path / "data").code == 0


def test_the_split_depends_on_the_text_alone(prepare, prepared, tmp_path, texts):
    shuffled = [*texts[::-1], *texts[:150], *make_texts(20, seed=9)]
    path = write_jsonl(tmp_path / "shuffled.jsonl", shuffled)
    assert prepare("--input", path, "--output", tmp_path / "other").code == 0
    before, after = documents_of(prepared), documents_of(tmp_path / "other")
    assert set(before["validation"]) <= set(after["validation"])
    assert not set(after["train"]) & set(after["validation"])


def test_the_validation_fraction_is_kept(prepare, jsonl, tmp_path):
    for fraction in (0.5, 0.1):
        words = ("--input", jsonl, "--output", tmp_path / f"f{fraction}", "--validation-fraction", fraction)
        assert prepare(*words).code == 0
        held_out = load_manifest(tmp_path / f"f{fraction}").splits["validation"].documents
        assert abs(held_out / 300 - fraction) < 0.09


def test_no_validation_split(prepare, jsonl, tmp_path):
    assert prepare("--input", jsonl, "--output", tmp_path / "data", "--validation-fraction", 0).code == 0
    assert list(load_manifest(tmp_path / "data").splits) == ["train"]


def test_the_standard_library(prepare, tmp_path):
    from data_pipeline.readers.inputs import resolve_input

    found = resolve_input("stdlib:")
    names = [path.relative_to(found.root).as_posix() for path in found.files]
    assert names == sorted(names) and "json/decoder.py" in names and "argparse.py" in names
    assert not any({"site-packages", "test", "__pycache__"} & set(name.split("/")) for name in names)
    assert 5e6 < found.num_bytes < 20e6


def test_summary_and_progress_are_readable(prepare, jsonl, tmp_path):
    result = prepare("--input", jsonl, "--output", tmp_path / "data")
    manifest = load_manifest(tmp_path / "data")
    train = manifest.splits["train"]
    assert f"{train.tokens:,}" in result.out and f"{train.rows:,}" in result.out
    assert f"{train.bytes / train.tokens:.3f}" in result.out
    assert str(tmp_path / "data") in result.out
    assert "300 documents" in result.err and "MB/s" in result.err
    assert "\r" not in result.err and len(result.err.splitlines()) < 5


def test_a_second_run_has_nothing_to_do(prepare, jsonl, tmp_path):
    words = ("--input", jsonl, "--output", tmp_path / "data")
    prepare(*words)
    before = (tmp_path / "data" / "train-00000.bin").stat()
    result = prepare(*words)
    assert (result.code, "nothing to do" in result.out) == (0, True)
    jsonl.touch()
    assert "nothing to do" in prepare(*words).out
    assert (tmp_path / "data" / "train-00000.bin").stat().st_ino == before.st_ino


def test_other_options_are_refused_and_overwrite_replaces(prepare, jsonl, tmp_path, leftovers):
    words = ("--input", jsonl, "--output", tmp_path / "data")
    prepare(*words)
    result = prepare(*words, "--seq-len", 64)
    assert result.code == 2
    assert "seq_len 32 instead of 64" in result.err and "--overwrite" in result.err
    assert prepare(*words, "--seq-len", 64, "--overwrite").code == 0
    assert load_manifest(tmp_path / "data").seq_len == 64
    assert leftovers() == ["data"]


def test_a_changed_input_is_noticed_even_at_equal_size(prepare, jsonl, tmp_path):
    words = ("--input", jsonl, "--output", tmp_path / "data")
    prepare(*words)
    old = jsonl.stat()
    jsonl.write_bytes(jsonl.read_bytes().replace(b"lattice", b"LATTICE", 1))
    os.utime(jsonl, ns=(old.st_atime_ns, old.st_mtime_ns))
    result = prepare(*words)
    assert result.code == 2 and "corpus.jsonl has changed" in result.err


def test_an_input_that_changed_during_the_run_is_noticed(prepare, jsonl, tmp_path, monkeypatch):
    def plan_after_a_change(*args):
        jsonl.write_bytes(jsonl.read_bytes().replace(b"lattice", b"LATTICE", 1))
        return write_plan(*args)

    words = ("--input", jsonl, "--output", tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.tasks.join.write_plan", plan_after_a_change)
        assert prepare(*words).code == 0
    assert "corpus.jsonl has changed" in prepare(*words).err


def test_a_failed_overwrite_keeps_the_old_folder(prepare, jsonl, tmp_path, leftovers):
    words = ("--input", jsonl, "--output", tmp_path / "data")
    prepare(*words)
    before = folder_bytes(tmp_path / "data")
    assert prepare(*words, "--overwrite", "--seq-len", 10**6).code == 2
    assert folder_bytes(tmp_path / "data") == before
    assert leftovers() == ["data", "data.work"]
    assert prepare(*words, "--overwrite", "--seq-len", 16).code == 0
    assert leftovers() == ["data"]


def test_the_command_runs_as_a_module_and_needs_no_parent_folder(jsonl, tmp_path, tokenizer_file):
    words = ["--input", jsonl, "--output", tmp_path / "new" / "deep" / "data", "--tokenizer", tokenizer_file]
    command = [sys.executable, "-m", "data_pipeline.prepare", *map(str, words), "--seq-len", "32", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "deep" / "data" / "manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_from_its_tasks(tmp_path, number, several_tasks, tokenizer_file):
    words = ["--input", several_tasks, "--output", tmp_path / "new" / "data", "--tokenizer", tokenizer_file]
    command = [sys.executable, "-m", "data_pipeline.prepare", *map(str, words), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(f"new/data.work/tokens/{'?' * 32}/mark.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}" in err and "Traceback" not in err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["data.work"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "done before" in done.stderr, done.stderr
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["data"]


def test_imports_stay_light():
    heavy = {"datasets", "pyarrow", "sentencepiece", "tokenizers", "torch", "megatron", "deepspeed"}
    code = (
        "import argparse, sys; import data_pipeline.prepare as p, data_pipeline.dataset.shuffle, data_pipeline.manifest;"
        f"p.add_arguments(argparse.ArgumentParser()); print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_that_several_inputs_name_are_said_to_count_as_often(prepare, jsonl, tmp_path, texts):
    result = prepare("--input", jsonl, tmp_path / "*.jsonl", "--output", tmp_path / "data")
    assert (
        f"note: 1 files belong to more than one --input and are read once for each, for example {jsonl}" in result.out
    )
    assert load_manifest(tmp_path / "data").splits["train"].documents > len(texts)
