"""Duplicates across the corpora of a mixture: documents that repeat texts of another corpus are left out."""

import json
import os
import shutil

import pyarrow.parquet
import pytest
from conftest import make_texts, write_jsonl
from test_prepare import all_texts, documents_of, folder_bytes

from data_pipeline.manifest import load_manifest
from data_pipeline.tasks import addresses


@pytest.fixture
def corpora(tmp_path):
    """Two corpora that share texts 40 to 59; the second also repeats one of its own."""
    texts = make_texts(120)
    web = write_jsonl(tmp_path / "web.jsonl", texts[:60])
    code = write_jsonl(tmp_path / "code.jsonl", [*texts[40:], texts[110]])
    return texts, web, code


@pytest.mark.parametrize("workers", [1, 2])
def test_what_another_corpus_has_is_left_out(prepare, verify, corpora, tmp_path, workers):
    texts, web, code = corpora
    output = tmp_path / "data"
    words = ("--input", code, "--output", output, "--duplicates", "exact", "--against", web, "--workers", workers)
    result = prepare(*words)
    assert result.code == 0, result.err
    assert all_texts(output) == sorted(texts[60:])
    manifest = load_manifest(output)
    assert manifest.records == {"duplicate": 21} and [each.input for each in manifest.against] == [str(web)]
    assert "duplicates: 21 documents have the text of one of 21 earlier ones" in result.out
    assert f"{code}:1: repeats {web}, byte" in result.out
    table = pyarrow.parquet.read_table(output / "duplicates.parquet").to_pylist()
    names = pyarrow.parquet.read_table(output / "sources.parquet")["name"].to_pylist()
    assert names == [str(code), str(web)]
    for row, text in zip(table, [*texts[40:60], texts[110]], strict=True):
        with open(names[row["first_source"]], "rb") as file:  # noqa: PTH123
            file.seek(row["first_place"])
            assert json.loads(file.readline())["text"] == text
    assert "already prepared, nothing to do" in prepare(*words).out and verify(output).code == 0
    alone = prepare(*words[:6])
    assert alone.code == 2 and f"from the texts to compare with {web}" in alone.err


def test_a_changed_corpus_is_compared_with_again(prepare, corpora, tmp_path):
    texts, web, code = corpora
    words = ("--input", code, "--output", tmp_path / "data", "--duplicates", "exact", "--against", web)
    assert prepare(*words).code == 0
    os.utime(web)
    assert "nothing to do" in prepare(*words).out  # touched only
    write_jsonl(web, [*texts[:59], texts[70]])
    changed = prepare(*words)
    assert changed.code == 2 and f"the input {web} has changed since" in changed.err
    assert prepare(*words, "--overwrite").code == 0
    assert all_texts(tmp_path / "data") == sorted([texts[59], *texts[60:70], *texts[71:]])


@pytest.mark.parametrize("same_time", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_corpus_that_looks_like_the_input_is_another_one(prepare, tmp_path, same_time, workers):
    """Same size, beginning and end, so that the two files look the same to what tasks are identified by."""
    texts = make_texts(600)
    web, code = tmp_path / "web.jsonl", tmp_path / "code.jsonl"
    write_jsonl(web, texts)
    changed = [text.replace("lattice", "LATTICE").replace("river", "RIVER") for text in texts[150:450]]
    write_jsonl(code, [*texts[:150], *changed, *texts[450:]])
    assert web.stat().st_size == code.stat().st_size
    assert web.read_bytes()[: addresses.PROBE_BYTES] == code.read_bytes()[: addresses.PROBE_BYTES]
    assert web.read_bytes()[-addresses.PROBE_BYTES :] == code.read_bytes()[-addresses.PROBE_BYTES :]
    if same_time:
        shutil.copystat(web, code)
    words = ("--input", code, "--duplicates", "exact", "--against", web, "--workers", workers)
    assert prepare(*words, "--output", tmp_path / "data").code == 0
    assert all_texts(tmp_path / "data") == sorted(changed)


def test_near_copies_in_two_corpora_are_in_one_split(prepare, tmp_path):
    pytest.importorskip("rensa")
    texts = make_texts(150)
    first = write_jsonl(tmp_path / "first.jsonl", texts)
    second = write_jsonl(tmp_path / "second.jsonl", [f"{text} \n" for text in texts])
    shares = ("--validation-fraction", 0.3, "--duplicates", "together")
    assert prepare("--input", first, "--output", tmp_path / "a", *shares).code == 0
    assert prepare("--input", second, "--output", tmp_path / "b", *shares, "--against", first).code == 0
    found = [documents_of(tmp_path / name) for name in ("a", "b")]
    for split in ("train", "validation"):
        assert sorted(found[0][split]) == sorted(text.removesuffix(" \n") for text in found[1][split])


def test_in_phases_the_bytes_are_the_same(prepare, corpora, tmp_path):
    _, web, code = corpora
    words = ("--input", code, "--duplicates", "exact", "--against", web)
    assert prepare(*words, "--output", tmp_path / "at_once").code == 0
    for stage in ("start", "tokens", "join"):
        assert prepare(*words, "--output", tmp_path / "data", "--stage", stage).code == 0
    assert folder_bytes(tmp_path / "data") == folder_bytes(tmp_path / "at_once")


def test_the_same_files_in_other_roles_are_decided_about_again(prepare, tmp_path):
    """In one work folder: two inputs first, then the first of them only to compare with, and the other way round."""
    texts = make_texts(60)
    web = write_jsonl(tmp_path / "web.jsonl", texts[:40])
    code = write_jsonl(tmp_path / "code.jsonl", texts[20:])
    more = ("--duplicates", "exact", "--validation-fraction", 0)
    both, against = ("--input", web, code, *more), ("--input", code, "--against", web, *more)
    for order in ((both, against), (against, both)):
        output = tmp_path / f"data-{order[0] is both}"
        for given in order:
            for stage in ("start", "tokens"):
                result = prepare(*given, "--output", output, "--stage", stage)
                assert result.code == 0, result.err
        assert prepare(*order[1], "--output", output, "--stage", "join").code == 0
        assert all_texts(output) == sorted(texts[40:] if order[1] is against else texts)


def test_what_cannot_be_compared_with_is_refused(prepare, prepared, corpora, tmp_path):
    _, web, code = corpora
    other = write_jsonl(tmp_path / "other.jsonl", make_texts(3), key="body")
    words = ("--input", code, "--output", tmp_path / "new", "--against")
    for value, more, said in (
        (web, (), "--against: say which documents count as duplicates"),
        (other, ("--duplicates", "exact"), f"--against {other} gives no document"),
        (prepared, ("--duplicates", "exact"), "which holds tokens instead of text"),
    ):
        result = prepare(*words, value, *more)
        assert result.code == 2 and said in result.err, result.err
