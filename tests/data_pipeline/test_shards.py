"""Shards of a chosen size: their documents, kills and lack of space while they are joined, and how many are open."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_texts, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dataset import open_maps
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.dataset.token_stream import TokenStream
from data_pipeline.indexed import DTYPE_CODES, HEADER, MAGIC, VERSION, IndexedReader, IndexedWriter, Shard
from data_pipeline.manifest import FileInfo, load_manifest, sha256_of
from data_pipeline.tasks import shards as shards_module
from data_pipeline.tasks.shards import ShardWriter, Source, cut_into_shards
from data_pipeline.tasks.task_records import ShardInfo
from data_pipeline.typed_words import number_of_bytes

UINT16 = np.dtype(np.uint16)


def write_source(prefix, lengths, first):
    """A task's result whose token i is (first + i) % 251."""
    with IndexedWriter(prefix, 300) as writer:
        writer.append(np.arange(first, first + sum(lengths)) % 251, np.array(lengths, np.int64))
    paths = {suffix: prefix.with_suffix(suffix) for suffix in (".bin", ".idx")}
    files = {s: FileInfo(bytes=path.stat().st_size, sha256=sha256_of(path)) for s, path in paths.items()}
    return Source(
        prefix, ShardInfo(documents=len(lengths), tokens=sum(lengths), bytes=0, files=files, places=files[".idx"])
    )


def greedy(lengths, limit):
    """Lengths of the documents of each shard, one document after the other."""
    found = [[]]
    for length in lengths:
        if found[-1] and 2 * (sum(found[-1]) + length) > limit:
            found.append([])
        found[-1].append(length)
    return [each for each in found if each]


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=9), min_size=1, max_size=5),
    st.one_of(st.integers(1, 200), st.just(10**6)),
)
@settings(max_examples=60, deadline=None)
def test_shards_hold_as_many_whole_documents_as_fit(tmp_path_factory, tasks, limit):
    folder, first, sources = tmp_path_factory.mktemp("work"), 0, []
    for number, lengths in enumerate(tasks):
        sources.append(write_source(folder / f"task{number}", lengths, first))
        first += sum(lengths)
    cut = cut_into_shards(sources, limit)
    writer = ShardWriter(folder, workers=2)
    writer.write(cut)
    readers = [IndexedReader(prefix) for prefix, _ in map(writer.written, cut)]
    assert [reader.lengths.tolist() for reader in readers] == greedy([n for each in tasks for n in each], limit)
    assert np.array_equal(np.concatenate([reader.tokens for reader in readers]), np.arange(first) % 251)
    for prefix, files in map(writer.written, cut):
        for suffix, info in files.items():
            path = prefix.with_suffix(suffix)
            assert (path.stat().st_size, sha256_of(path)) == (info.bytes, info.sha256)
    # Four bytes: the offsets and document indices of a shard start at 0 again.
    assert all(reader.index.start(0) == 0 for reader in readers)


@pytest.fixture
def tasks_done(prepare, texts, tmp_path):
    """A corpus of four tasks that are done but not joined, and the words that join it into ten shards."""
    parts = [write_jsonl(tmp_path / f"part{i}.jsonl", texts[75 * i : 75 * i + 75]) for i in range(4)]
    words = ("--input", *parts, "--output", tmp_path / "data", "--shard-size", "12kB")
    assert prepare(*words, "--stage", "tokens").code == 0
    return words


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_join_that_is_killed_goes_on_from_the_shards_that_it_has_written(tasks_done, prepare, tmp_path, monkeypatch):
    shutil.copytree(tmp_path / "data.work", tmp_path / "undisturbed.work")
    other = [tmp_path / "undisturbed" if word == tmp_path / "data" else word for word in tasks_done]
    assert prepare(*other, "--stage", "join").code == 0

    class Killed(BaseException):
        pass

    real, calls = shards_module._write_pair, []

    def write_pair(parts, prefix):
        calls.append(prefix)
        if len(calls) == 4:
            prefix.with_suffix(".bin").write_bytes(b"half")
            raise Killed
        return real(parts, prefix)

    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "_write_pair", write_pair)
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # a killed process removes nothing
        with pytest.raises(Killed):
            prepare(*tasks_done, "--stage", "join")
    left = {path.name for path in (tmp_path / "data.work" / "shards").iterdir()}
    assert len([name for name in left if ".partial-" not in name]) >= 3
    assert not (tmp_path / "data").exists()
    before, calls[:] = len(calls), []
    patched = monkeypatch.setattr(shards_module, "_write_pair", lambda *args: calls.append(0) or real(*args))
    assert patched is None and prepare(*tasks_done, "--stage", "join").code == 0
    assert len(calls) <= len(load_manifest(tmp_path / "data").splits["train"].shards) + 1 - 3 and before >= 4
    assert content(tmp_path / "data") == content(tmp_path / "undisturbed")
    assert not (tmp_path / "data.work").exists()


def test_the_space_for_the_shards_is_compared_before_they_are_written(tasks_done, prepare, tmp_path, monkeypatch):
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        result = prepare(*tasks_done, "--stage", "join")
    assert result.code == 2 and "MB are needed" in result.err and "0.0 MB free" in result.err
    assert not list((tmp_path / "data.work" / "shards").iterdir())
    # One shard of several tasks must not hide that the result of one has changed.
    damaged = next((tmp_path / "data.work" / "tokens").glob("*/train.bin"))
    damaged.write_bytes(bytes(damaged.stat().st_size))
    result = prepare(*tasks_done, "--stage", "join")
    assert result.code == 2 and f"{damaged} has changed since its task was done" in result.err
    shutil.rmtree(damaged.parent)
    assert prepare(*tasks_done).code == 0


def test_sizes_are_typed_with_units(prepare, jsonl, tmp_path):
    sizes = {"4GB": 4 * 10**9, "500 mb": 5 * 10**8, "1.5GiB": 3 << 29, "1e3": 1000, "7": 7, "2k": 2000, "1TB": 10**12}
    assert {word: number_of_bytes(word) for word in sizes} == sizes
    for word in ("0", "-1", "4XB", "GB", "", "inf", "1.2.3"):
        with pytest.raises(ValueError, match="should be a size"):
            number_of_bytes(word)
    result = prepare("--input", jsonl, "--output", tmp_path / "data", "--shard-size", "lots")
    assert result.code == 2 and "--shard-size lots: should be a size such as 500MB or 4GB" in result.err


READ = """
import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import os, numpy as np; from pathlib import Path; from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline import repack, verify
folder = Path(sys.argv[1])
sets = [PackedDataset(folder, split) for split in ("train", "validation") for _ in range(3)]
rows = [each.rows(np.arange(each.num_rows))[::-1] for each in sets]
ids = [each.document_ids(np.arange(each.num_rows)) for each in sets]
assert all(np.array_equal(a, b) for a, b in zip(rows[:3], rows[1:3]))
print(len(os.listdir("/proc/self/fd")))
verify.verify(folder); np.save(folder.parent / "rows.npy", rows[0][::-1])
del sets
print(len(os.listdir("/proc/self/fd")))
repack.repack(folder, "best_fit", 40)
"""


def test_many_shards_are_read_with_few_descriptors(prepare, jsonl, tmp_path):
    """A shard per document: 300 shards, read by six datasets of a process that may open 64 files."""
    for name, words in (("many", ("--shard-size", "1")), ("one", ())):
        assert prepare("--input", jsonl, "--output", tmp_path / name, *words).code == 0
    assert len(load_manifest(tmp_path / "many").splits["train"].shards) > 250
    done = subprocess.run(
        [sys.executable, "-c", READ, tmp_path / "many"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    reading, after = map(int, done.stdout.split())
    assert reading < 50 and after < 12  # 16 maps, and a lock and three arrays of the plan per dataset
    dataset = PackedDataset(tmp_path / "one", "train")
    assert np.array_equal(np.load(tmp_path / "rows.npy"), dataset.rows(np.arange(dataset.num_rows)))


def test_the_least_recently_used_map_is_dropped():
    maps, opened = open_maps.OpenMaps(2), []

    class Owner:
        pass

    owner, other = Owner(), Owner()
    maps.drop_with(owner)
    get = lambda who, name: maps.get(who, name, lambda: opened.append(name) or name)  # noqa: E731
    assert [get(owner, name) for name in "abacab"] == list("abacab") and opened == list("abcb")
    assert get(other, "a") == "a" and opened == list("abcba") and len(maps) == 2
    del owner
    assert len(maps) == 1
    assert open_maps.process_maps() is open_maps.process_maps()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 64


def large_shard(folder, documents=5, tokens=2**30):
    """A shard of five documents of 2^30 tokens, nearly all of them a hole in the file."""
    stem = folder / "train-00000"
    lengths = np.full(documents, tokens, np.int32)
    with stem.with_suffix(".bin").open("wb") as file:
        for i in range(documents):
            file.seek(2 * (i + 1) * tokens - 2)
            file.write(np.array([i + 1], np.uint16).tobytes())
    with stem.with_suffix(".idx").open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, DTYPE_CODES[UINT16], documents, documents + 1))
        offsets = 2 * tokens * np.arange(documents, dtype=np.int64)
        for array in (lengths, offsets, np.arange(documents + 1, dtype=np.int64)):
            file.write(array.tobytes())
    return Shard("train-00000", UINT16, documents, documents * tokens)


def test_a_shard_of_more_than_2_31_tokens(tmp_path):
    shard, size = large_shard(tmp_path), 2**30
    reader = IndexedReader(tmp_path / "train-00000")
    assert [int(reader.document(i)[-1]) for i in range(5)] == [1, 2, 3, 4, 5]
    stream = TokenStream(tmp_path, [shard])
    assert stream.num_tokens == 5 * size and stream.token(5 * size - 1) == 5 and stream.token(3 * size - 1) == 3
    assert stream.document_ids(4 * size - 2, 4).tolist() == [0, 0, 1, 1]
    cut = cut_into_shards([Source(tmp_path / "train-00000", info_of(tmp_path, shard))], 6 * size)
    assert [(part.first, part.stop) for parts in cut for part in parts] == [(0, 3), (3, 5)]
    for packing in ("concat", "best_fit"):
        dataset = planned(tmp_path, shard, packing, 2**20)
        last = dataset.num_rows - 1
        assert dataset.rows(np.array([last]))[0, -1] == 5 and dataset.lengths(np.array([last])) == 2**20


def info_of(folder, shard):
    files = {s: FileInfo(bytes=(folder / (shard.stem + s)).stat().st_size, sha256="") for s in (".bin", ".idx")}
    return ShardInfo(documents=shard.documents, tokens=shard.tokens, bytes=0, files=files, places=files[".idx"])


def planned(folder, shard, packing, seq_len):
    from test_packing import dataset_of

    return dataset_of(folder, [shard], packing, seq_len)[0]


def test_a_folder_of_one_pair_per_task_still_opens(prepare, texts, tmp_path, verify, repack):
    """As written before --shard-size: the manifest's options do not name it, and shards have the numbers of tasks."""
    files = [write_jsonl(tmp_path / f"part{i}.jsonl", make_texts(20, seed=i)) for i in range(3)]
    words = ("--input", *files, "--output", tmp_path / "data", "--validation-fraction", 0)
    assert prepare(*words, "--shard-size", "9kB").code == 0
    dataset = PackedDataset(tmp_path / "data", "train")
    expected = dataset.rows(np.arange(dataset.num_rows))
    del dataset
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    del manifest["options"]["shard_size"]
    train = manifest["splits"]["train"]
    renamed = {stem: f"train-{int(stem[-5:]) * 7:05}" for stem in train["shards"]}
    for path in list((tmp_path / "data").glob("train-0*")):
        path.rename(path.with_stem(renamed[path.stem]))
    train["shards"] = [renamed[stem] for stem in train["shards"]]
    train["files"] = {renamed.get(Path(n).stem, Path(n).stem) + Path(n).suffix: i for n, i in train["files"].items()}
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    assert verify(tmp_path / "data").code == 0
    assert "nothing to do" in prepare(*words).out
    dataset = PackedDataset(tmp_path / "data", "train")
    assert np.array_equal(dataset.rows(np.arange(dataset.num_rows)), expected)
    assert repack(tmp_path / "data", "--seq-len", 16).code == 0
