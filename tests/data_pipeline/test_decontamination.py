"""Documents that share a run of words with evaluation texts, against plain Python, and what `prepare` does with them."""

import gzip
import json
import random
import re

import pyarrow
import pyarrow.parquet
import pytest
from conftest import make_texts, write_jsonl
from test_prepare import all_texts

from data_pipeline.decontamination import Decontamination, EvaluationTexts, words_of
from data_pipeline.documents import build_document
from data_pipeline.manifest import load_manifest
from data_pipeline.readers.values import TextValue

QUESTION = "Which of these rivers, if any, flows through the four countries that were named in the first question?"


def plain_runs(text, num_words):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + num_words]) for i in range(len(words) - num_words + 1)}


@pytest.mark.parametrize("num_words", [2, 3, 5])
def test_a_run_is_found_where_plain_python_finds_it(num_words):
    rng = random.Random(num_words)
    words = [f"w{i}" for i in range(8 - num_words)]
    evaluation = [" ".join(rng.choices(words, k=rng.randrange(1, 12))) for _ in range(8)]
    found = EvaluationTexts((("a.jsonl", text) for text in evaluation), num_words)
    runs = set().union(*(plain_runs(text, num_words) for text in evaluation))
    assert len(found) == len(runs) and found.texts == 8
    assert found.short == sum(len(text.split()) < num_words for text in evaluation)
    hits = 0
    for _ in range(300):
        text = ", ".join(rng.choices([*words, "other"], k=rng.randrange(30))).upper()
        shared = plain_runs(text, num_words) & runs
        result = found.find(text)
        assert (result is not None) == bool(shared)
        assert result is None or tuple(result[0].split()) in shared
        hits += result is not None
    assert 20 < hits < 280


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 3 o'clock -- SO late!", ["it", "s", "3", "o", "clock", "so", "late"]),
        ("漢字 and кот", ["漢", "字", "and", "кот"]),
        ("हिन्दी भाषा।", ["हिन्दी", "भाषा"]),
    ],
)
def test_words_of_any_script(text, words):
    assert words_of(text) == words


def test_a_run_across_the_chunks_of_a_long_document_is_found():
    evaluation = EvaluationTexts([("a", QUESTION)], 13)
    filters = Decontamination(evaluation)
    document = build_document(TextValue("x", 1), "text")
    for cut in range(1, len(QUESTION)):
        chunks = ("word " * 3000 + QUESTION[:cut], QUESTION[cut:] + " word" * 3000)
        assert filters.rejection(type(document)(chunks, 1, b"")) is not None, cut
    assert filters.rejection(type(document)(("word " * 3000, QUESTION[-60:]), 1, b"")) is None


def test_documents_with_evaluation_texts_are_left_out(prepare, tmp_path, texts):
    loud = QUESTION.upper().replace(" ", "  ").replace(",", " -")
    path = write_jsonl(tmp_path / "x.jsonl", [*texts, f"see: {loud}", QUESTION[30:], "\n".join([*texts[:3], QUESTION])])
    record = {"id": 7, "item": {"question": QUESTION, "choices": ["the Danube", "none"]}}
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.txt", "d.parquet")]
    files[0].write_text(json.dumps(record) + "\n\n")
    files[1].write_bytes(gzip.compress(files[0].read_bytes()))
    files[2].write_text(QUESTION)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), files[3])
    for i, file in enumerate(files):
        words = ("--input", path, "--output", tmp_path / f"data{i}", "--decontaminate", file, "--workers", 1 + i % 2)
        result = prepare(*words)
        assert result.code == 0, result.err
        assert f"left out, evaluation text: 2\n    {path}:301: 13 words of {file.name}: 'which of" in result.out
        assert all_texts(tmp_path / f"data{i}") == sorted([*texts, QUESTION[30:]])
        assert load_manifest(tmp_path / f"data{i}").records == {"evaluation text": 2}
    assert "already prepared" in prepare(*words).out
    assert "with decontaminate_words 13 instead of 5" in prepare(*words, "--decontaminate-words", 5).err
    assert "with decontaminate_words 13 instead of unset" in prepare(*words[:4]).err


def test_evaluation_texts_are_found_in_folders_and_by_globs(prepare, tmp_path, texts):
    path = write_jsonl(tmp_path / "x.jsonl", [*texts, QUESTION, QUESTION.replace("rivers", "lakes")])
    folder = tmp_path / "sets" / "inner"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text(QUESTION)
    (folder / "b.jsonl").write_text(json.dumps({"question": QUESTION.replace("rivers", "lakes")}))
    (folder / "README.md").write_text(texts[0])
    for value, left_out in ((tmp_path / "sets", 2), (tmp_path / "*" / "*" / "*.txt", 2), (folder / "a[.]txt", 2)):
        output = tmp_path / "data"
        result = prepare("--input", path, "--output", output, "--decontaminate", value, "--overwrite")
        assert result.code == 0, result.err
        assert load_manifest(output).records == {"evaluation text": left_out}
    for value, said in ((tmp_path / "*.none", "matches no file"), (tmp_path / "empty", "the folder holds no file")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        result = prepare("--input", path, "--output", tmp_path / "other", "--decontaminate", value)
        assert result.code == 2 and f"--decontaminate {value}: {said}" in result.err


def test_a_number_of_words_without_evaluation_texts_is_refused(prepare, tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", make_texts(5))
    result = prepare("--input", path, "--output", tmp_path / "data", "--decontaminate-words", 5)
    assert result.code == 2 and "--decontaminate-words: say which texts" in result.err


def test_evaluation_files_that_cannot_be_used_are_named(prepare, tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", make_texts(5))
    bad = tmp_path / "bad.jsonl"
    for content, more, said in (
        (None, (), "No such file"),
        ('{"a": 1}\n', (), "no text in it"),
        ('{"a": "b"}\n{"a"\n', (), "line 2 is not a JSON object"),
        ('{"a": "too short"}\n', (), "none of the 1 texts has 13 words; give a smaller --decontaminate-words"),
        ('{"a": "too short"}\n', ("--decontaminate-words", 0), "--decontaminate-words 0: give at least 2"),
    ):
        if content:
            bad.write_text(content)
        result = prepare("--input", path, "--output", tmp_path / "data", "--decontaminate", bad, *more)
        assert result.code == 2 and said in result.err and "--decontaminate" in result.err, result.err
