import bz2
import errno
import gzip
import json
import lzma
import os
import re
import shutil
import subprocess
from pathlib import Path

import pyarrow
import pytest
from conftest import make_texts, write_jsonl
from pyarrow import parquet

from data_pipeline import prepare as prepare_verb
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.errors import DataError
from data_pipeline.manifest import check_files, load_manifest
from data_pipeline.tasks.work import finished_tasks
from data_pipeline.tokenizers.training import train_sentencepiece


@pytest.fixture
def refused(prepare, tmp_path):
    """Run a command that must fail; returns its message after checking that nothing but finished tasks was left."""

    def call(*words, output=tmp_path / "data", **kwargs):
        before = sorted(tmp_path.rglob("*"))
        result = prepare("--output", output, *words, **kwargs)
        assert result.code == 2 and result.out == ""
        work = tmp_path / "data.work"
        if work.exists():
            assert f"finished tasks are kept in {work}" in result.err
            assert finished_tasks(work) and not list(work.glob("*/*.partial*"))
            shutil.rmtree(work)
        assert sorted(tmp_path.rglob("*")) == before
        (message,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in result.err
        return message

    return call


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({}, "missing.txt: no such file"),
        ({"x.jsonl": ""}, "no usable text (no records at all)"),
        ({"x.txt": ""}, "no usable text (1 empty text)"),
        ({"x.jsonl": "{\n"}, "no usable text (1 broken JSON)"),
        ({"x.zip": "?"}, ".zip files cannot be read"),
        ({"x.tar.gz": "?"}, ".tar.gz files cannot be read; unpack the archive"),
        ({"x.txt.gz": "?"}, "no usable text (1 broken or truncated file)"),
    ],
)
def test_inputs_without_text(refused, tmp_path, names, message, train):
    for name, content in names.items():
        (tmp_path / name).write_text(content)
    found = refused("--input", *(tmp_path / name for name in names or ["missing.txt"]), train=train)
    assert message in found


def test_an_empty_folder_and_a_glob_without_matches(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "the folder holds no files" in refused("--input", tmp_path / "empty")
    assert "matches no file" in refused("--input", tmp_path / "*.none")


def test_broken_records_are_counted_with_examples(prepare, tmp_path, texts):
    path = write_jsonl(tmp_path / "x.jsonl", texts)
    with path.open("ab") as file:
        for line in (
            b'{"text": "cut',
            b"[1]",
            b'{"body": "x"}',
            b'{"text": 5}',
            b'{"text": null}',
            b'{"text": " \\n"}',
        ):
            file.write(line + b"\n")
        file.write(b'{"text": "\xff"}\n{"text": "\\ud800"}\n' + b"[" * 100_000 + b"\n")
    result = prepare("--input", path, "--output", tmp_path / "data", "--max-rejected", 1)
    assert result.code == 0, result.err
    manifest = load_manifest(tmp_path / "data")
    assert manifest.records == {
        "broken JSON": 3,
        "empty text": 2,
        "key missing": 1,
        "not UTF-8": 2,
        "text is not a string": 1,
    }
    assert manifest.inputs[0].documents == len(texts)
    for line, why in ((301, "Unterminated"), (303, "'body'"), (304, "int"), (305, "null"), (307, "0xff")):
        assert any(f"x.jsonl:{line}:" in shown and why in shown for shown in result.out.splitlines()), line
    assert "left out, broken JSON: 3" in result.out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "x.jsonl:301: broken JSON: Unterminated string"),
        (b'{"text": "\xff"}', "x.jsonl:301: not UTF-8: byte 0xff at position 10"),
        (b'{"b": 1}', "x.jsonl:301: key missing: no key 'text' among 'b'"),
    ],
)
def test_strict_stops_at_the_first(refused, tmp_path, texts, line, message):
    path = write_jsonl(tmp_path / "x.jsonl", texts)
    path.write_bytes(path.read_bytes() + line + b"\n")
    assert message in refused("--input", path, "--strict")


def test_a_truncated_gzip_keeps_what_was_whole(prepare, tmp_path, texts):
    data = gzip.compress(write_jsonl(tmp_path / "x.jsonl", texts).read_bytes())
    (tmp_path / "x.jsonl.gz").write_bytes(data[: len(data) // 2])
    words = ("--input", tmp_path / "x.jsonl.gz", "--output", tmp_path / "data", "--validation-fraction", 0)
    result = prepare(*words, "--accept-broken-files")
    assert result.code == 0, result.err
    assert 50 < load_manifest(tmp_path / "data").inputs[0].documents < 250
    assert "left out, broken or truncated file: 1" in result.out and "x.jsonl.gz: the gzip stream ends" in result.out


@pytest.mark.parametrize(
    ("suffix", "pack"), [("gz", gzip.compress), ("xz", lzma.compress), ("bz2", bz2.compress), ("zst", None)]
)
@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_packed_file_that_ends_early_is_counted(prepare, tmp_path, jsonl, suffix, pack, kept):
    data = pack(jsonl.read_bytes()) if pack else pyarrow.compress(jsonl.read_bytes(), "zstd", asbytes=True)
    path = tmp_path / f"x.jsonl.{suffix}"
    path.write_bytes(data[: int(len(data) * kept)])
    result = prepare("--input", jsonl, path, "--output", tmp_path / "data", "--accept-broken-files")
    assert result.code == 0, result.err
    assert load_manifest(tmp_path / "data").records["broken or truncated file"] == 1
    assert f"{path}: the {'gzip' if suffix == 'gz' else suffix} stream ends early or is damaged" in result.out
    strict = prepare("--input", path, "--output", tmp_path / "strict", "--strict")
    assert strict.code == 2 and f"{path}" in strict.err


def test_a_parquet_file_without_the_key(refused, tmp_path):
    parquet.write_table(pyarrow.table({"body": ["x"], "id": [1]}), tmp_path / "x.parquet")
    assert "no record has the key 'text'; the records have 'body', 'id'" in refused("--input", tmp_path / "x.parquet")


def test_another_tokenizer_than_the_manifests(prepare, prepared, jsonl, texts, tmp_path):
    train_sentencepiece(texts[:200], 390, tmp_path / "other.model")
    result = prepare("--input", jsonl, "--output", prepared, "--tokenizer", tmp_path / "other.model")
    assert result.code == 2 and "is already prepared, but with tokenizer_sha256 " in result.err


def test_other_inputs_are_no_reason_to_repack(prepare, prepared, jsonl, tmp_path):
    """The same options from other inputs: other rows of the present text would not help."""
    other = tmp_path / "other.jsonl"
    shutil.copyfile(jsonl, other)
    result = prepare("--input", other, "--output", prepared)
    assert (
        result.code == 2 and f"already prepared, but from the inputs {jsonl}; replace it with --overwrite" in result.err
    )


def test_a_broken_parquet_file(prepare, tmp_path, jsonl):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    words = ("--input", jsonl, tmp_path / "x.parquet", "--output", tmp_path / "data")
    result = prepare(*words, "--accept-broken-files")
    assert result.code == 0 and "left out, broken or truncated file: 1" in result.out


def test_parquet_values_that_are_no_text(prepare, tmp_path, texts):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    broken = pyarrow.array([b"\xff\xfe"]).view(pyarrow.string())
    column = pyarrow.chunked_array([pyarrow.array([*texts, None, ""]), broken])
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "x.parquet")
    result = prepare("--input", tmp_path / "x.parquet", "--output", tmp_path / "data")
    assert result.code == 0, result.err
    assert load_manifest(tmp_path / "data").records == {"empty text": 2, "text is not a string": 1}
    assert "row 300: 'text' holds null" in result.out and "row 302: 'text' holds bytes" in result.out


@pytest.mark.parametrize("key", ["texts", "question"])
@pytest.mark.parametrize("train", [False, True])
def test_a_key_missing_everywhere_names_those_that_exist(refused, tmp_path, texts, key, train):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({key: text, "id": 1}) + "\n" for text in texts))
    message = refused("--input", path, train=train)
    assert f"no record has the key 'text'; the records have '{key}', 'id'" in message
    assert ("did you mean --text-key texts?" if key == "texts" else "with --text-key") in message


def test_a_wrong_key_is_noticed_before_the_end(refused, prepare, tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", ["x"] * 1000, key="body")
    with path.open("a") as file:
        file.write(json.dumps({"text": "too late"}) + "\n")
    assert "no record has the key 'text'" in refused("--input", path)
    err = prepare("--input", path, "--output", tmp_path / "data").err
    assert f"\n    {path}:1: no key 'text' among 'body'\n" in err


def test_a_missing_column(refused, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"body": ["x"]}).save_to_disk(tmp_path / "saved")
    assert "the records have 'body'" in refused("--input", tmp_path / "saved")
    datasets.DatasetDict({"odd": datasets.Dataset.from_dict({"text": ["x"]})}).save_to_disk(tmp_path / "splits")
    message = refused("--input", tmp_path / "splits")
    assert "no split 'train'; it has odd" in message and "@SPLIT" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seq-len", 10**6], "the train split has"),
        (["--seq-len", 10**6, "--pack", "best_fit"], "the train split has"),
        (["--seq-len", 10**7, "--pack", "best_fit"], "bytes, which cannot fill one row; give more text or a smaller"),
        (["--seq-len", 10**9], "--seq-len 1000000000: a row may have at most 16,777,216 tokens"),
        (["--validation-fraction", 0.0001], "larger --validation-fraction (now 0.0001)"),
        (["--validation-fraction", 0.999999], "a smaller --validation-fraction (now 0.999999)"),
        (["--validation-fraction", 1.5], "--validation-fraction 1.5"),
        (["--seq-len", 1], "--seq-len 1"),
        (["--workers", 0], "--workers 0"),
        (["--tokenizer", "none.model"], "no tokenizer at none.model"),
    ],
)
def test_options_that_cannot_work(refused, jsonl, words, message):
    assert message in refused("--input", jsonl, *words)


@pytest.mark.parametrize(("vocab_size", "message"), [(9999, "use at most"), (100, "too small"), (0, "--vocab-size 0")])
def test_a_vocabulary_that_does_not_fit(refused, jsonl, vocab_size, message):
    assert message in refused("--input", jsonl, "--vocab-size", vocab_size, train=True)


def test_input_and_output_are_both_needed(prepare, jsonl, tmp_path):
    assert "--output is missing" in prepare("--input", jsonl).err
    assert "--input is missing" in prepare("--output", tmp_path / "data").err


def test_a_foreign_output_is_never_touched(refused, jsonl, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.tex").write_text("precious")
    for extra in ([], ["--overwrite"]):
        assert "is not a prepared folder" in refused("--input", jsonl, *extra)
    assert "is a file" in refused("--input", jsonl, output=jsonl)
    assert "lies inside the input" in refused("--input", tmp_path)


def test_an_empty_output_folder_is_used(prepare, jsonl, tmp_path):
    (tmp_path / "data").mkdir()
    assert prepare("--input", jsonl, "--output", tmp_path / "data").code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(refused, jsonl):
    jsonl.chmod(0)
    assert "permission denied" in refused("--input", jsonl)


@pytest.mark.parametrize("train", [False, True])
def test_too_little_space_is_said_before_the_work(refused, jsonl, monkeypatch, train):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setattr("data_pipeline.tasks.build.do_tasks", None)
    monkeypatch.setattr("data_pipeline.tasks.build.train_sentencepiece", None)
    message = refused("--input", jsonl, train=train)
    assert "0.1 MB are needed" in message and "0.0 MB free" in message


def test_a_disk_that_fills_up(refused, jsonl, monkeypatch):
    def full(self, tokens, lengths):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("data_pipeline.indexed.IndexedWriter.append", full)
    assert f"the disk of {jsonl.parent} is full" in refused("--input", jsonl)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB of memory."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_real_disk_that_fills_up(prepare, several_tasks, small_disk, monkeypatch, workers):
    monkeypatch.setattr("data_pipeline.tasks.build.ASSUMED_BYTES_PER_TOKEN", 10**9)
    result = prepare("--input", several_tasks, "--output", small_disk / "data", "--workers", workers)
    assert result.code == 2
    assert f"error: the disk of {small_disk} is full" in result.err and "Traceback" not in result.err
    assert not (small_disk / "data").exists()


def test_verify_finds_a_flipped_bit_that_the_quick_check_cannot(prepared, verify):
    assert "match the manifest" in verify(prepared).out
    data = bytearray((prepared / "train-00000.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (prepared / "train-00000.bin").write_bytes(data)
    check_files(prepared, load_manifest(prepared))
    result = verify(prepared)
    assert result.code == 2 and "train-00000.bin has changed" in result.err and "--overwrite" in result.err


@pytest.mark.parametrize("key", ["documents", "tokens", "rows", "dropped_tokens", "padded_tokens"])
def test_verify_compares_the_counts_of_the_manifest_with_the_files(prepared, key, verify):
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["splits"]["train"][key] += 1
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    result = verify(prepared)
    assert result.code == 2 and f" {key} in the train split, its files hold " in result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--verify", "DATA", "--overwrite"),
            "--overwrite cannot be combined with --verify, which takes no other option",
        ),
        (
            ("--repack", "DATA", "--seq-len", "64", "--strict"),
            "--strict cannot be combined with --repack, which takes --seq-len and --pack",
        ),
        (("--repack", "DATA", "--output", "elsewhere"), "--output cannot be combined with --repack"),
    ],
)
def test_options_that_would_be_ignored_are_refused(command, prepared, words, message):
    before = (prepared / "manifest.json").read_bytes()
    result = command(prepare_verb, [prepared if word == "DATA" else word for word in words])
    assert result.code == 2 and re.search(message, result.err)
    assert (prepared / "manifest.json").read_bytes() == before


def test_the_flags_of_prepare_are_the_verbs(command, prepared, verify, repack):
    assert command(prepare_verb, ["--verify", prepared]).out == verify(prepared).out != ""
    flag = command(prepare_verb, ["--repack", prepared, "--seq-len", 64])
    assert flag.code == 0 and load_manifest(prepared).seq_len == 64
    assert repack(prepared, "--seq-len", 64).out == flag.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--min-letters", "40"), "--min-letters 40: give a share from 0 to 1"),
        (("--max-repeated-lines", "-1"), "--max-repeated-lines -1: give a share from 0 to 1"),
        (
            ("--min-chars", "50", "--max-chars", "20"),
            "--max-chars 20: no document can be that short with --min-chars 50",
        ),
    ],
)
def test_limits_that_nothing_passes_are_refused(refused, jsonl, words, message):
    assert message in refused("--input", jsonl, *words)


def test_a_key_is_not_called_wrong_where_the_limits_dropped_the_text(refused, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "short"}\n{"other": "short"}\n')
    message = refused("--input", tmp_path / "x.jsonl", "--min-chars", "50")
    assert "no usable text" in message and "1 too short" in message and "1 key missing" in message


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train-00000.bin", lambda data: data[:-2], "bytes, the manifest says"),
        ("train-00000.bin", None, "is missing"),
        ("validation-00000.idx", lambda data: data[:-1] + b"\x7f", "has changed"),
        ("tokenizer.model", lambda data: data + b" ", "has changed"),
        ("tokenizer.model", None, "is missing"),
        ("train.pack.concat-32-shuffled.json", None, "is missing"),
    ],
)
def test_the_quick_check_finds_damage(prepared, name, damage, message, verify):
    path = prepared / name
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    for check in (lambda: check_files(prepared, load_manifest(prepared)), lambda: PackedDataset(prepared, "train")):
        with pytest.raises(DataError, match=message) as raised:
            check()
        assert name in str(raised.value)
    assert name in verify(prepared).err


def test_a_damaged_folder_is_not_called_up_to_date(prepare, prepared, jsonl):
    (prepared / "train-00000.bin").write_bytes(b"")
    result = prepare("--input", jsonl, "--output", prepared)
    assert result.code == 2 and "train-00000.bin has 0 bytes" in result.err


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda fields: fields.update(format_version=7), "has format version 7"),
        (lambda fields: fields.update(surprise=1), "surprise: Extra inputs"),
        (lambda fields: fields.pop("seq_len"), "seq_len: Field required"),
        (lambda fields: fields["tokenizer"].update(mask_id=3), "mask_id 3 is not the last id"),
        (lambda fields: fields["tokenizer"].update(eod_id=400), "eod_id and pad_id"),
    ],
)
def test_a_wrong_manifest_is_explained(prepared, edit, message):
    path = prepared / "manifest.json"
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(DataError, match=message):
        load_manifest(prepared)


def test_a_missing_or_broken_manifest_says_how_to_prepare(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"no prepared data folder at there \(from {re.escape(str(tmp_path))}\)"):
        load_manifest(Path("there"))
    with pytest.raises(DataError, match=r"no prepared data folder.*loopmdm prepare --input"):
        load_manifest(tmp_path / "nowhere")
    (prepared / "manifest.json").write_text('{"format_version": 1,')
    with pytest.raises(DataError, match="not valid JSON"):
        load_manifest(prepared)
    (prepared / "manifest.json").unlink()
    with pytest.raises(DataError, match="not a prepared data folder"):
        load_manifest(prepared)


def test_an_unknown_split_lists_the_known(prepared):
    with pytest.raises(DataError, match=r"no split 'test'; it has: train, validation"):
        PackedDataset(prepared, "test")


def test_a_single_document_says_what_to_do_about_validation(refused, tmp_path):
    (tmp_path / "one.txt").write_text("\n".join(make_texts(30)))
    assert "--validation-fraction 0 for no validation split" in refused("--input", tmp_path / "one.txt")
