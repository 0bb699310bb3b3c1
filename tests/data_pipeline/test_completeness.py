"""Broken files, inputs without documents and many unreadable records end the command, unless they are accepted."""

import bz2
import gzip
import json
import lzma

import pyarrow
import pytest
from conftest import make_texts, write_jsonl
from pyarrow import parquet

from data_pipeline.manifest import load_manifest

ACCEPT = "--accept-broken-files"


def zstd(content):
    return pyarrow.compress(content, "zstd", asbytes=True)


@pytest.fixture
def run(prepare, tmp_path):
    """Run `prepare` into one output, without tokenizing anything twice; checks what every failure has in common."""

    def call(*words):
        existed = (tmp_path / "data").exists()
        result = prepare("--output", tmp_path / "data", *words)
        if result.code:
            assert result.code == 2 and result.err.count("error: ") == 1 and "Traceback" not in result.err
            assert (tmp_path / "data").exists() == existed
        return result

    return call


def require_joined_at_once(result, tmp_path):
    """Nothing was read again: all tasks were done before."""
    assert result.code == 0, result.err
    assert "tokenizing: 0 documents" in result.err
    assert not (tmp_path / "data.work").exists()


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress), (".zst", zstd)]
)
def test_a_cut_archive_is_named_with_what_was_kept(run, tmp_path, jsonl, texts, suffix, pack):
    packed = pack(jsonl.read_bytes())
    path = tmp_path / f"cut.jsonl{suffix}"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    words = ("--input", jsonl, path)
    refused = run(*words)
    assert "- 1 file is broken" in refused.err and f"    {path}: the " in refused.err and ACCEPT in refused.err
    assert "missing: what would follow the end of the file" in refused.err
    accepted = run(*words, ACCEPT)
    require_joined_at_once(accepted, tmp_path)
    manifest = load_manifest(tmp_path / "data")
    kept = manifest.inputs[1].documents
    assert manifest.records == {"broken or truncated file": 1} and kept < len(texts)
    said = f"kept {kept:,} documents, up to line {kept:,};" if kept else "kept nothing;"
    assert said in refused.err and said in accepted.out and str(path) in accepted.out
    again = run(*words, ACCEPT)
    assert again.code == 0 and "nothing to do" in again.out


def test_a_finished_folder_is_no_answer_to_a_command_that_would_be_refused(prepare, tmp_path, jsonl):
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl.read_bytes())[:-100])
    words = ("--input", jsonl, path, "--output", tmp_path / "data")
    assert prepare(*words, ACCEPT).code == 0
    before = (tmp_path / "data" / "manifest.json").read_bytes()
    result = prepare(*words)
    assert (
        result.code == 2 and "already prepared, but with 1 broken files; give --accept-broken-files again" in result.err
    )
    assert (tmp_path / "data" / "manifest.json").read_bytes() == before


def test_a_parquet_file_that_breaks_in_the_middle(run, tmp_path, texts, monkeypatch):
    """In one task and in several; the rows of the others are kept."""
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=100)
    with parquet.ParquetFile(path) as file:
        column = file.metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset
    content[start + 40 : start + 2000] = bytes(1960)
    path.write_bytes(content)
    refused = run("--input", path)
    assert "kept 100 documents, up to row 99; missing: 200 of 300 rows" in refused.err
    monkeypatch.setattr("data_pipeline.tasks.task._task_size", lambda total: 1)
    accepted = run("--input", path, ACCEPT)
    assert accepted.code == 0 and "kept nothing; missing: 100 of 100 rows" in accepted.out
    assert load_manifest(tmp_path / "data").inputs[0].documents == 200


def test_a_parquet_file_with_fewer_rows_than_its_footer_says(tmp_path, texts, monkeypatch):
    from data_pipeline.readers.file_ranges import FileRange
    from data_pipeline.readers.readers import read_range
    from data_pipeline.rejects import Cause, Rejection

    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": texts}), path)
    whole = parquet.ParquetFile.iter_batches

    def cut(self, **options):
        return (batch.slice(0, batch.num_rows - 1) for batch in whole(self, **options))

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", cut)
    *_, last = read_range(FileRange("parquet", str(path), "x.parquet", 1), "text")
    assert isinstance(last, Rejection) and last.cause == Cause.BROKEN_FILE and "row group 0 ends before" in last.why


def test_all_broken_files_are_listed_up_to_a_limit(run, tmp_path, jsonl, monkeypatch):
    monkeypatch.setattr("data_pipeline.tasks.completeness.MAX_LISTED", 3)
    for i in range(5):
        (tmp_path / f"{i}.txt.gz").write_bytes(gzip.compress(b"text of a file" * 50)[:-5])
    result = run("--input", jsonl, *(tmp_path / f"{i}.txt.gz" for i in range(5)))
    assert "- 5 files are broken" in result.err and "    and 2 more" in result.err
    assert sum(f"{i}.txt.gz: the gzip stream" in result.err for i in range(5)) == 3
    assert sum(f"--input {tmp_path / f'{i}.txt.gz'} gives no document" in result.err for i in range(5)) == 5


@pytest.mark.parametrize("suffix", ["jsonl", "txt", "jsonl.gz", "jsonl.xz", "jsonl.bz2", "txt.zst"])
def test_an_empty_file_is_told_and_does_not_stop_the_rest(run, tmp_path, jsonl, suffix):
    empty = tmp_path / f"none.{suffix}"
    empty.touch()
    result = run("--input", jsonl, empty)
    assert result.code == 0 and f"note: empty, so without any document: {empty}\n" in result.err
    assert [info.documents for info in load_manifest(tmp_path / "data").inputs] == [300, 0]
    assert "nothing to do" in run("--input", jsonl, empty).out
    assert "the inputs hold no usable text" in run("--input", empty, "--overwrite").err


@pytest.mark.parametrize("content", ["\n", '{"text": null}\n{"text": " "}\n'])
def test_an_input_that_gives_no_document(run, tmp_path, jsonl, content):
    (tmp_path / "none.jsonl").write_text(content)
    words = ("--input", jsonl, tmp_path / "none.jsonl")
    found = "2 empty text" if content.strip() else "no records"
    refused = run(*words)
    assert f"- --input {tmp_path / 'none.jsonl'} gives no document ({found}); remove it, or accept" in refused.err
    require_joined_at_once(run(*words, ACCEPT), tmp_path)
    assert "already prepared, but without any document" in run(*words).err


def test_an_input_of_duplicates_has_given_its_documents(run, tmp_path, jsonl, texts):
    copy = write_jsonl(tmp_path / "copy.jsonl", texts[:50])
    words = ("--input", jsonl, copy, "--duplicates", "exact")
    assert run(*words).code == 0
    assert "nothing to do" in run(*words).out


@pytest.mark.parametrize("good_first", [True, False])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_input_whose_every_record_lacks_the_key(run, tmp_path, jsonl, good_first, kind):
    path = tmp_path / f"bad.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps({"texts": "a", "id": 1}) + "\n")
    else:
        parquet.write_table(pyarrow.table({"texts": ["a"], "id": [1]}), path)
    inputs = [jsonl, path] if good_first else [path, jsonl]
    for more in ([], [ACCEPT, "--max-rejected", 1]):
        result = run("--input", *inputs, *more)
        assert f"no record of --input {path} has the key 'text'; the records have 'texts', 'id'" in result.err
        assert "did you mean --text-key texts?" in result.err


def test_too_many_unreadable_records(run, tmp_path, texts):
    path = write_jsonl(tmp_path / "x.jsonl", texts)
    with path.open("ab") as file:
        file.write(b'{\n{"other": 1}\n{"text": 5}\n{"text": "\xff"}\n{"text": null}\n{"text": ""}\n')
    refused = run("--input", path)
    assert "- 4 of 306 records (1.31%) are unreadable, more than --max-rejected 0.01" in refused.err
    for cause in (
        "broken JSON: 1",
        "not UTF-8: 1",
        "key missing: 1; these records have 'other'",
        "text is not a string: 1",
    ):
        assert f"    {cause}\n        {path}:30" in refused.err
    assert "empty text" not in refused.err
    assert "more than --max-rejected 0.013;" in run("--input", path, "--max-rejected", 0.013).err
    require_joined_at_once(run("--input", path, "--max-rejected", 0.0131), tmp_path)
    assert "4 of 306 records unreadable; give a larger --max-rejected" in run("--input", path).err


def test_filters_and_duplicates_are_not_unreadable(run, tmp_path, texts):
    path = write_jsonl(tmp_path / "x.jsonl", [*texts, *texts[:200], *["short"] * 50])
    result = run("--input", path, "--duplicates", "exact", "--min-chars", 10, "--max-rejected", 0)
    assert result.code == 0, result.err


@pytest.mark.parametrize("share", ["-0.1", "1.1", "nan"])
def test_a_share_that_is_none(run, jsonl, share):
    assert f"--max-rejected {share}: give a share from 0 to 1" in run("--input", jsonl, f"--max-rejected={share}").err


def test_the_stages_agree(prepare, tmp_path, jsonl):
    """The tokens stage does everything; the join refuses or accepts."""
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in make_texts(100)).encode())[:-100])
    words = ("--input", jsonl, path, "--output", tmp_path / "data")
    assert prepare(*words, "--stage", "tokens").code == 0
    assert "- 1 file is broken" in prepare(*words, "--stage", "join").err
    assert prepare(*words, "--stage", "join", ACCEPT).code == 0


def test_empty_packed_files_are_treated_alike(run, tmp_path, jsonl):
    for suffix in ("", ".gz", ".xz", ".bz2", ".zst"):
        (tmp_path / f"empty.jsonl{suffix}").write_bytes(b"")
        (tmp_path / f"empty.txt{suffix}").write_bytes(b"")
    result = run("--input", jsonl, tmp_path / "empty.*", ACCEPT)
    assert result.code == 0 and load_manifest(tmp_path / "data").records == {"empty text": 5}


def test_many_bytes_after_the_end_of_a_gzip_file(run, tmp_path, jsonl):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl.read_bytes()) + b"garbage after the end" * 200)
    result = run("--input", path)
    assert result.code == 2 and "kept 300 documents, up to line 300" in result.err


@pytest.mark.parametrize("train", [False, True])
def test_inputs_without_text_name_a_file_of_each_cause(prepare, tmp_path, train):
    (tmp_path / "a.jsonl").write_text("{\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"text " * 100)[:-8])
    words = ("--input", tmp_path / "a.jsonl", tmp_path / "b.txt.gz", "--output", tmp_path / "data")
    result = prepare(*words, train=train)
    assert result.code == 2 and "no usable text (1 broken JSON, 1 broken or truncated file)" in result.err
    assert (
        f"    {tmp_path}/a.jsonl:1: " in result.err and f"    {tmp_path}/b.txt.gz: the gzip stream ends" in result.err
    )


def test_the_keys_of_records_that_lack_the_key_are_named(prepare, tmp_path, texts):
    """A file of another layout among good ones must not look like a share of broken records."""
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "a.jsonl", texts[:60])
    write_jsonl(tmp_path / "in" / "b.jsonl", texts[60:80], key="content")
    result = prepare("--input", tmp_path / "in", "--output", tmp_path / "data", "--validation-fraction", 0)
    assert result.code == 2 and "key missing: 20; these records have 'content'" in result.err


def test_a_sample_of_some_of_the_files_of_a_task(prepare, tmp_path):
    """The tokenizer has enough text before all files have been read."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i, text in enumerate(make_texts(300)):
        (folder / f"{i:03}.txt").write_text(text)
    words = ("--input", folder, "--output", tmp_path / "data", "--sample-bytes", "20kB", "--vocab-size", 300)
    result = prepare(*words, train=True)
    assert result.code == 0, result.err
    assert load_manifest(tmp_path / "data").inputs[0].documents == 300
