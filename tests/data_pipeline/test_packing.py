"""Any documents -> shards -> pack plan -> rows -> the same documents, for both packings."""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.atomic_files import lock_prepared_folder
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.dataset.token_stream import TokenStream
from data_pipeline.errors import DataError
from data_pipeline.indexed import IndexedWriter, Shard
from data_pipeline.manifest import load_manifest
from data_pipeline.packing import shuffled
from data_pipeline.packing.best_fit import PackedRows, assign_rows, best_fit
from data_pipeline.packing.pack_plan import load_plan, plan_files, write_plan
from data_pipeline.packing.shuffled import document_order
from data_pipeline.tokenizers.tokenizers import load_tokenizer

PAD = 299


def write_shards(folder, shards):
    """One `.bin/.idx` pair per list of document lengths; token i of the stream is i % 251. Returns the shards."""
    token = 0
    for number, lengths in enumerate(shards):
        with IndexedWriter(folder / f"train-{number:05}", 300) as writer:
            tokens = np.arange(token, token + sum(lengths)) % 251
            writer.append(tokens, np.array(lengths, np.int64))
        token += sum(lengths)
    return [Shard(f"train-{i:05}", np.dtype(np.uint16), len(each), sum(each)) for i, each in enumerate(shards)]


def dataset_of(folder, stems, packing, seq_len, shuffle=False):
    """A `PackedDataset` without the manifest around it."""
    counts = write_plan(folder, "train", stems, packing, seq_len, shuffle)
    dataset = PackedDataset.__new__(PackedDataset)
    dataset.manifest = SimpleNamespace(tokenizer=SimpleNamespace(pad_id=PAD))
    dataset.seq_len, dataset.num_rows, dataset.has_padding = seq_len, counts.rows, counts.padded_tokens > 0
    dataset._plan, dataset._stream = load_plan(folder, "train", packing, seq_len, shuffle), TokenStream(folder, stems)
    return dataset, counts


def segments_of(dataset):
    """(tokens, starts its document) of every segment of one document, in the order of rows and columns."""
    indices = np.arange(dataset.num_rows)
    rows, documents, lengths = dataset.rows(indices), dataset.document_ids(indices), dataset.lengths(indices)
    for row, document, length in zip(rows, documents, lengths, strict=True):
        assert np.all(document[length:] == -1) and np.all(row[length:] == PAD)
        real = document[:length]
        assert real[0] == 0 and set(np.diff(real)) <= {0, 1}
        yield [row[:length][real == number].tolist() for number in range(real[-1] + 1)]


SHARDS = st.lists(st.lists(st.integers(1, 40), max_size=12), min_size=1, max_size=4)
"""Lengths of documents, by shard."""


@given(shards=SHARDS, seq_len=st.integers(1, 24))
@settings(max_examples=150, deadline=None)
def test_best_fit_rows_unpack_to_the_documents(shards, seq_len):
    lengths = [length for shard in shards for length in shard]
    with tempfile.TemporaryDirectory() as name:
        dataset, counts = dataset_of(Path(name), write_shards(Path(name), shards), "best_fit", seq_len)
        segments = sorted(zip(_starts(dataset), (p for row in segments_of(dataset) for p in row), strict=True))
    stream = [token for _, segment in segments for token in segment]
    assert stream == [i % 251 for i in range(sum(lengths))]
    # What fits is whole; what does not is cut into full rows and one remainder.
    expected = [part for n in lengths for part in [seq_len] * (n // seq_len) + [n % seq_len] * (n % seq_len > 0)]
    assert [len(segment) for _, segment in segments] == expected
    assert counts.tokens == sum(lengths) and counts.dropped_tokens == 0
    assert counts.padded_tokens == counts.rows * seq_len - counts.tokens


def _starts(dataset):
    return dataset._plan.segments(np.arange(dataset.num_rows)).starts.tolist()


@given(shards=SHARDS, seq_len=st.integers(1, 24))
@settings(max_examples=150, deadline=None)
def test_concat_rows_are_the_stream_and_its_documents(shards, seq_len):
    lengths = [length for shard in shards for length in shard]
    with tempfile.TemporaryDirectory() as name:
        dataset, counts = dataset_of(Path(name), write_shards(Path(name), shards), "concat", seq_len)
        indices = np.arange(dataset.num_rows)
        rows, documents = dataset.rows(indices), dataset.document_ids(indices)
        backwards = dataset.rows(indices[::-1])
    assert (counts.rows, counts.dropped_tokens) == divmod(sum(lengths), seq_len) and counts.padded_tokens == 0
    kept = counts.rows * seq_len
    assert rows.dtype == np.int64 and rows.shape == documents.shape == (counts.rows, seq_len)
    assert np.array_equal(rows.ravel(), np.arange(kept) % 251)
    assert np.array_equal(backwards, rows[::-1])
    owner = np.repeat(np.arange(len(lengths)), lengths)[:kept].reshape(-1, seq_len)
    assert np.array_equal(documents, owner - owner[:, :1])


@given(texts=st.lists(st.text(max_size=80), max_size=12), seq_len=st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_any_texts_come_back_from_the_rows(tokenizer_file, texts, seq_len):
    """Text -> tokens -> shards -> rows -> tokens -> text, the segments put together in the order of the stream."""
    texts = [text.encode("utf-8", "replace").decode() for text in texts]  # half of a surrogate pair is no text
    tokenizer = load_tokenizer(tokenizer_file)
    encoded = [np.append(ids, tokenizer.eod_id) for ids in tokenizer.encode_batch(texts)]
    for packing in ("best_fit", "concat"):
        with tempfile.TemporaryDirectory() as name:
            shards = []
            for number, part in enumerate((encoded[::2], encoded[1::2])):
                with IndexedWriter(Path(name) / f"train-{number:05}", 500) as writer:
                    writer.append(np.concatenate([np.zeros(0, int), *part]), np.array([len(ids) for ids in part], int))
                shards.append(Shard(f"train-{number:05}", np.dtype(np.uint16), len(part), sum(map(len, part))))
            dataset, counts = dataset_of(Path(name), shards, packing, seq_len)
            segments = dataset.segments(np.arange(counts.rows))
            rows = dataset.rows(np.arange(counts.rows))
        found = {
            start: rows[row, column : column + length].tolist()
            for row, column, start, length in zip(
                segments.rows, segments.columns, segments.starts, segments.lengths, strict=True
            )
        }
        stream = [token for start in sorted(found) for token in found[start]]
        expected = [token for ids in [*encoded[::2], *encoded[1::2]] for token in ids.tolist()]
        assert stream == expected[: counts.tokens] and len(expected) == counts.tokens + counts.dropped_tokens
        if packing == "best_fit":
            cuts = np.flatnonzero(np.array(stream, int) == tokenizer.eod_id)
            parts = np.split(np.array(stream, int), cuts + 1)[:-1]
            assert [tokenizer.decode(part[:-1]) for part in parts] == [*texts[::2], *texts[1::2]]


def test_documents_without_tokens_and_without_text_make_no_row(tmp_path):
    """A Megatron index may hold empty sequences."""
    stems = write_shards(tmp_path, [[0, 3, 0], [], [0, 0], [2, 0]])
    for packing, expected in (("concat", [[0, 0, 0, 1, 1]]), ("best_fit", [[0, 0, 0, 1, 1]])):
        dataset, _ = dataset_of(tmp_path, stems, packing, 5)
        assert dataset.rows(np.array([0])).tolist() == [[0, 1, 2, 3, 4]]
        assert dataset.document_ids(np.array([0])).tolist() == expected
    for packing in ("concat", "best_fit"):
        assert write_plan(tmp_path, "none", write_shards(tmp_path, [[]]), packing, 5).rows == 0


def naive_best_fit_decreasing(lengths, capacity):
    """Room left in every row, by the textbook: one item after the other, looking at every row."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=rooms.__getitem__)] -= length
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


@given(
    sizes=st.integers(1, 70).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=120))),
)
@settings(max_examples=300, deadline=None)
def test_rows_are_those_of_textbook_best_fit_decreasing(sizes):
    capacity, lengths = sizes
    rows, count = assign_rows(np.array(lengths, np.int64), capacity)
    filled = np.bincount(rows, lengths, minlength=count).astype(int)
    assert sorted((capacity - filled).tolist()) == naive_best_fit_decreasing(lengths, capacity)
    # Best fit leaves no two rows half empty.
    assert count <= 2 * -(-sum(lengths) // capacity)


def packed_of(lengths, seq_len, order=slice(None)):
    """Documents of these lengths, one after the other in the stream, placed in an order."""
    parts = [*best_fit((np.cumsum(lengths) - lengths)[order], np.asarray(lengths)[order], seq_len)]
    per_row = np.concatenate([np.diff(part.row_starts) for part in parts])
    starts, sizes = (np.concatenate([getattr(part, name) for part in parts]) for name in ("starts", "lengths"))
    return PackedRows(np.cumsum([0, *per_row]), starts, sizes)


@pytest.mark.parametrize("seq_len", [512, 2048])
def test_padding_is_little_on_lengths_as_of_text(seq_len):
    rng = np.random.default_rng(1)
    lengths = np.exp(rng.normal(5.5, 1.3, 100_000)).astype(np.int64) + 1
    packed = packed_of(lengths, seq_len)
    assert packed.lengths.sum() == lengths.sum()
    assert (packed.row_starts.size - 1) * seq_len / lengths.sum() < 1.001
    again = packed_of(lengths, seq_len)
    assert all(np.array_equal(getattr(packed, n), getattr(again, n)) for n in ("row_starts", "starts", "lengths"))


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("index", [-1, 99])
def test_a_row_outside_the_plan_is_an_error(tmp_path, packing, index):
    dataset, _ = dataset_of(tmp_path, write_shards(tmp_path, [[5, 5]]), packing, 3)
    for method in (dataset.rows, dataset.lengths, dataset.document_ids):
        with pytest.raises(IndexError, match="row indices must be 0 to"):
            method(np.array([0, index]))
        assert len(method(np.array([], np.int64))) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.pack.concat-3.json", b"{", "not a pack plan"),
        ("train.pack.concat-3.json", b"[]", "not a pack plan"),
        ("train.pack.concat-3.json", b'{"strategy": "concat"}', "Field required"),
        ("train.pack.concat-3.json", None, "No such file"),
        ("train.pack.best_fit-3.starts.npy", b"", "not a pack plan"),
        (
            "train.pack.best_fit-3.lengths.npy",
            "train.pack.best_fit-3.row_starts.npy",
            "sizes of its arrays do not match",
        ),
        ("train.pack.best_fit-3.json", "train.pack.concat-3.json", "a plan of concat rows of 3 tokens"),
    ],
)
def test_a_broken_plan_is_named(tmp_path, name, content, message):
    stems = write_shards(tmp_path, [[9]])
    for packing in ("concat", "best_fit"):
        write_plan(tmp_path, "train", stems, packing, 3)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else (tmp_path / content).read_bytes())
    with pytest.raises(DataError, match=message) as raised:
        load_plan(tmp_path, "train", "best_fit" if "best_fit" in name else "concat", 3)
    assert "train.pack." in str(raised.value) and f"loopmdm repack {tmp_path}" in str(raised.value)


def test_prepare_packs_whole_documents_and_repack_changes_rows_alone(prepare, jsonl, tmp_path, verify, repack):
    result = prepare("--input", jsonl, "--output", tmp_path / "data", "--pack", "best_fit", "--seq-len", 512)
    assert result.code == 0, result.err
    folder = tmp_path / "data"
    manifest, tokens = load_manifest(folder), (folder / "train-00000.bin").read_bytes()
    assert manifest.packing == "best_fit" and manifest.splits["train"].padded_tokens > 0
    assert "best_fit rows of 512" in result.out and "padding" in result.out
    date = (folder / "manifest.json").stat().st_mtime_ns
    result = repack(folder, "--seq-len", 64, "--pack", "concat")
    assert result.code == 0 and "concat rows of 64" in result.out
    fresh = prepare("--input", jsonl, "--output", tmp_path / "fresh", "--seq-len", 64)
    assert fresh.code == 0
    assert (folder / "manifest.json").read_text() == (tmp_path / "fresh" / "manifest.json").read_text()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "fresh").iterdir()
    }
    assert (folder / "train-00000.bin").read_bytes() == tokens and (folder / "manifest.json").stat().st_mtime_ns == date
    assert "match the manifest" in verify(folder).out
    assert "nothing to do" in prepare("--input", jsonl, "--output", folder, "--seq-len", 64).out


def test_prepare_points_to_repack_when_only_the_rows_differ(prepare, prepared, jsonl):
    result = prepare("--input", jsonl, "--output", prepared, "--pack", "best_fit")
    assert result.code == 2 and f"loopmdm repack {prepared} --seq-len 32 --pack best_fit" in result.err


@pytest.mark.parametrize("moment", ["data_pipeline.repack.sha256_of", "data_pipeline.repack.write_manifest"])
def test_a_repack_that_dies_leaves_the_folder_as_it_was(prepared, monkeypatch, moment, verify, repack):
    class Killed(BaseException):
        pass

    def die(*args):
        raise Killed

    before = PackedDataset(prepared, "train")
    expected = before.rows(np.arange(before.num_rows))
    with monkeypatch.context() as patch:
        patch.setattr(moment, die)
        with pytest.raises(Killed):
            repack(prepared, "--pack", "best_fit", "--seq-len", 100)
    assert "match the manifest" in verify(prepared).out
    assert np.array_equal(PackedDataset(prepared, "train").rows(np.arange(before.num_rows)), expected)
    assert repack(prepared, "--pack", "best_fit", "--seq-len", 50).code == 0
    assert np.array_equal(before.rows(np.arange(before.num_rows)), expected)  # the old plan stays mapped
    old, new = (set(plan_files("train", *plan)) for plan in (("concat", 32, True), ("best_fit", 50, True)))
    assert {p.name for p in prepared.glob("train.pack.*")} >= old | new  # another machine could not map a removed one
    del before
    assert repack(prepared).code == 0
    assert {p.name for p in prepared.glob("train.pack.*")} == new


def test_a_repack_killed_at_any_moment_leaves_a_whole_folder(prepared, tmp_path, verify, repack):
    """kill -9 after random times, some before the work, some in it, some after; the folder always verifies."""
    dataset, moments = PackedDataset(prepared, "train"), np.random.default_rng(0).uniform(0.08, 0.3, 10)
    stream = dataset.rows(np.arange(dataset.num_rows)).ravel()
    for number, moment in enumerate(moments):
        words = ["repack", str(prepared), "--seq-len", str(20 + number), "--pack", ("best_fit", "concat")[number % 2]]
        process = subprocess.Popen([sys.executable, "-m", "pretrain.cli", *words], stdout=subprocess.DEVNULL)
        time.sleep(moment)
        process.kill()
        process.wait(timeout=60)
        assert "match the manifest" in verify(prepared).out
        assert PackedDataset(prepared, "train").num_rows > 0
    del dataset
    assert repack(prepared, "--seq-len", 32, "--pack", "concat").code == 0
    assert len(list(prepared.glob("*.pack.*"))) == 8  # of two splits, the counts and three arrays
    again = PackedDataset(prepared, "train")
    assert np.array_equal(again.rows(np.arange(again.num_rows)).ravel(), stream)


def test_a_folder_of_several_shards_has_the_rows_of_one(prepare, texts, tmp_path, verify, repack):
    """The shards are those of the documents, not of the four tasks, one of which has no document for the validation split."""
    cuts = [0, 40, 41, 150, len(texts)]
    parts = [write_jsonl(tmp_path / f"part{i}.jsonl", texts[cuts[i] : cuts[i + 1]]) for i in range(4)]
    whole = write_jsonl(tmp_path / "whole.jsonl", texts)
    inputs = {tmp_path / "sharded": [*parts, "--shard-size", "10kB"], tmp_path / "one": [whole]}
    for output, files in inputs.items():
        assert prepare("--input", *files, "--output", output, "--validation-fraction", 0.2).code == 0
    shards = {split: info.shards for split, info in load_manifest(tmp_path / "sharded").splits.items()}
    assert len(shards["train"]) > 4 and len(shards["validation"]) > 1
    assert shards["train"] == [f"train-{i:05}" for i in range(len(shards["train"]))]
    for packing, seq_len in (("best_fit", 32), ("concat", 50), ("best_fit", 50), ("concat", 32)):
        words, found = ("--pack", packing, "--seq-len", seq_len), []
        for output, files in inputs.items():
            assert repack(output, *words).code == 0
            assert "match the manifest" in verify(output).out
            again = prepare("--input", *files, "--output", output, "--validation-fraction", 0.2, *words)
            assert "nothing to do" in again.out, again.err
            for split in shards:
                dataset = PackedDataset(output, split)
                indices = np.arange(dataset.num_rows)
                found.append((dataset.rows(indices), dataset.document_ids(indices), dataset.lengths(indices)))
        for sharded, one in ((found[0], found[2]), (found[1], found[3])):
            assert all(np.array_equal(a, b) for a, b in zip(sharded, one, strict=True))


def test_a_folder_prepared_again_is_not_replaced_under_a_repack(prepare, prepared, jsonl):
    words = ("--input", jsonl, "--output", prepared, "--overwrite", "--seq-len", 64)
    with lock_prepared_folder(prepared):
        result = prepare(*words)
    assert result.code == 2 and f"another process is repacking or replacing {prepared}" in result.err
    assert load_manifest(prepared).seq_len == 32
    again = prepare(*words)
    assert again.code == 0 and "1 of them done before" in again.err


@pytest.mark.parametrize("damage", [b"", None])
def test_repack_makes_a_damaged_plan_again(prepared, damage, verify, repack):
    repack(prepared, "--pack", "best_fit")
    before = {path.name: path.read_bytes() for path in prepared.iterdir()}
    path = prepared / "train.pack.best_fit-32-shuffled.starts.npy"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    assert "starts.npy" in verify(prepared).err
    assert repack(prepared).code == 0
    assert {path.name: path.read_bytes() for path in prepared.iterdir()} == before


def test_one_repack_at_a_time(prepared, repack):
    descriptor = os.open(prepared, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    result = repack(prepared, "--seq-len", 64)
    os.close(descriptor)
    assert result.code == 2 and f"another process is repacking or replacing {prepared}" in result.err


def test_repack_refuses_what_it_cannot_do(prepared, tmp_path, repack):
    result = repack(prepared, "--seq-len", 10**7)
    assert result.code == 2 and "fewer than one row of 10,000,000" in result.err
    before = sorted(path.name for path in prepared.iterdir())
    for words in (("--seq-len", 10**6, "--pack", "best_fit"), ("--seq-len", 10**10, "--pack", "best_fit")):
        result = repack(prepared, *words)
        assert result.code == 2 and ("fewer than one row" in result.err or "at most 16,777,216" in result.err)
    assert sorted(path.name for path in prepared.iterdir()) == before
    assert json.loads((prepared / "manifest.json").read_text())["seq_len"] == 32
    plans = {name for split in ("train", "validation") for name in plan_files(split, "concat", 32, True)}
    assert {p.name for p in prepared.glob("*.pack.*")} == plans
    assert "no prepared data folder" in repack(tmp_path / "none").err
    assert "at least 2" in repack(prepared, "--seq-len", 1).err
    (prepared / "train-00000.idx").unlink()
    (prepared / "train-00000.idx").write_bytes(b"")
    assert "train-00000.idx has 0 bytes" in repack(prepared, "--seq-len", 64).err


@given(shards=SHARDS, seq_len=st.integers(1, 24), block=st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_shuffled_concat_rows_are_the_permuted_documents(shards, seq_len, block):
    """Against the documents put one after the other in the order of the permutation, whatever the size of a block."""
    lengths = [length for shard in shards for length in shard]
    edges = np.cumsum([0, *lengths])
    order = document_order(np.arange(len(lengths)), len(lengths)) if lengths else []
    assert sorted(order) == list(range(len(lengths)))
    stream = np.array([t % 251 for i in order for t in range(edges[i], edges[i + 1])], np.int64)
    owner = np.array([k for k, i in enumerate(order) for _ in range(lengths[i])], np.int64)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffled, "BLOCK_DOCUMENTS", block)
        patch.setattr(shuffled, "BLOCK_SEGMENTS", block)
        dataset, counts = dataset_of(Path(name), write_shards(Path(name), shards), "concat", seq_len, True)
        rows, documents = (read(np.arange(dataset.num_rows)) for read in (dataset.rows, dataset.document_ids))
        for path in Path(name).glob("*.npy"):
            np.save(Path(name) / "again", np.load(path))
            assert path.read_bytes() == (Path(name) / "again.npy").read_bytes()
    kept = counts.rows * seq_len
    assert (counts.rows, counts.dropped_tokens) == divmod(sum(lengths), seq_len) and counts.padded_tokens == 0
    assert np.array_equal(rows.ravel(), stream[:kept])
    owner = owner[:kept].reshape(-1, seq_len)
    assert np.array_equal(documents, owner - owner[:, :1])


def test_shuffled_best_fit_rows_hold_the_documents_and_not_their_neighbors():
    lengths = np.full(4000, 8)
    order = document_order(np.arange(4000), 4000)
    for packed, near in ((packed_of(lengths, 32), True), (packed_of(lengths, 32, order), False)):
        documents = packed.starts.reshape(-1, 4) // 8
        assert sorted(documents.ravel()) == list(range(4000)) and packed.row_starts.size == 1001
        assert (np.median(np.abs(np.diff(documents))) == 1) == near
    mixed = np.random.default_rng(0).integers(1, 40, 500)
    plain, other = (packed_of(mixed, 32, each) for each in (slice(None), document_order(np.arange(500), 500)))
    assert plain.row_starts.size == other.row_starts.size and plain.lengths.sum() == other.lengths.sum()
    assert {*zip(plain.starts, plain.lengths, strict=True)} == {*zip(other.starts, other.lengths, strict=True)}


def test_prepare_shuffles_both_splits_unless_told_otherwise(prepare, jsonl, tmp_path, repack, verify):
    """Repacked to the order of the inputs and back, the bytes are the same again; the manifest says which order it is."""
    words, folders = ("--input", jsonl, "--validation-fraction", 0.3), {}
    for name, extra in (("shuffled", ()), ("plain", ("--no-shuffle",))):
        folders[name] = tmp_path / name
        assert prepare(*words, "--output", folders[name], *extra).code == 0
        manifest = load_manifest(folders[name])
        assert manifest.shuffle == manifest.options["shuffle"] == (name == "shuffled")
    content = {name: {p.name: p.read_bytes() for p in folder.iterdir()} for name, folder in folders.items()}
    for split in ("train", "validation"):
        rows = {name: all_rows(folder, split) for name, folder in folders.items()}
        assert np.array_equal(np.sort(np.diff(rows["plain"].shape)), np.sort(np.diff(rows["shuffled"].shape)))
        assert not np.array_equal(rows["plain"][0], rows["shuffled"][0])
        assert f"{split}.pack.concat-32-shuffled.starts.npy" in content["shuffled"]
        assert f"{split}.pack.concat-32.json" in content["plain"]
    refused = prepare(*words, "--output", folders["plain"])
    assert refused.code == 2 and f"repack {folders['plain']} --seq-len 32 --pack concat --shuffle;" in refused.err
    for option, there, here in (("--shuffle", "plain", "shuffled"), ("--no-shuffle", "shuffled", "plain")):
        assert repack(folders[there], option).code == 0
        assert {p.name: p.read_bytes() for p in folders[there].iterdir()} == content[here]
        assert "match the manifest" in verify(folders[there]).out


def all_rows(folder, split):
    dataset = PackedDataset(folder, split)
    return dataset.rows(np.arange(dataset.num_rows))
