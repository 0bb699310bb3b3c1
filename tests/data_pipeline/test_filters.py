import random

import pytest
from conftest import make_texts, write_jsonl

from data_pipeline import filters
from data_pipeline.filters import FILTERS, Filter, share_of_letters, share_of_repeated_lines
from data_pipeline.manifest import load_manifest


def read_back(folder):
    from test_prepare import all_texts

    return all_texts(folder)


@pytest.mark.parametrize(
    ("words", "left_out", "cause"),
    [
        (["--min-chars", 20], "short", "too short: 1"),
        (["--max-chars", 5000], "x y " * 2000, "too long: 1"),
        (["--min-letters", 0.5], "1 2 3 4 5 = 6 7 8 9 0 + - * /", "few letters: 1"),
        (["--max-repeated-lines", 0.5], "same line of text\n" * 40, "repeated lines: 1"),
        (["--duplicates", "exact"], None, "duplicate: 1"),
    ],
)
def test_each_rule_leaves_out_what_it_names(prepare, tmp_path, texts, words, left_out, cause):
    path = write_jsonl(tmp_path / "x.jsonl", [*texts, left_out or texts[7]])
    result = prepare("--input", path, "--output", tmp_path / "data", *words)
    assert result.code == 0, result.err
    assert f"left out, {cause}" in result.out and "x.jsonl:301: " in result.out
    assert read_back(tmp_path / "data") == sorted(texts)
    manifest = load_manifest(tmp_path / "data")
    assert manifest.records == {cause.split(":")[0]: 1} and manifest.inputs[0].documents == len(texts)
    assert prepare("--input", path, "--output", tmp_path / "kept").code == 0
    assert load_manifest(tmp_path / "kept").records == {}


def test_a_new_filter_is_one_entry(prepare, tmp_path, texts, monkeypatch):
    """Its option, the check of the option, the manifest and the cause follow; off, it leaves no trace in the manifest."""

    def problem(limit, limits):
        return "give a number of lines" if limit < 0 else None

    def objection(document, limit):
        lines = document.text.count("\n") + 1
        return f"{lines} lines" if lines < limit else None

    path = write_jsonl(tmp_path / "x.jsonl", [*texts, "one line"])
    assert prepare("--input", path, "--output", tmp_path / "before").code == 0
    new = Filter("min_lines", "few lines", 0, "N", "fewest lines", objection, problem)
    monkeypatch.setattr(filters, "FILTERS", (*FILTERS, new))
    assert prepare("--input", path, "--output", tmp_path / "off").code == 0
    before, off = (tmp_path / name / "manifest.json" for name in ("before", "off"))
    assert before.read_bytes() == off.read_bytes()
    result = prepare("--input", path, "--output", tmp_path / "on", "--min-lines", 2)
    assert "left out, few lines: 1" in result.out and "x.jsonl:301: 1 lines" in result.out
    manifest = load_manifest(tmp_path / "on")
    assert manifest.records == {"few lines": 1} and manifest.options["min_lines"] == 2
    assert read_back(tmp_path / "on") == sorted(texts)
    assert "--min-lines -1: give a number of lines" in prepare("--input", path, "--output", "x", "--min-lines", -1).err
    assert (
        "with min_lines unset instead of 2" in prepare("--input", path, "--output", before.parent, "--min-lines", 2).err
    )


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("ab 12", 0.5),
        ("漢字 кот", 1),
        ("== 1", 0),
        ("हिन्दी में लिखा", 1),
        ("தமிழில் எழுதப்பட்ட", 1),
        ("ภาษาไทยเขียนติดกัน", 1),
        ("e\u0301 1 2", 0.5),
    ],
)
def test_letters_of_any_script_count(text, share):
    assert share_of_letters(text) == share


@pytest.mark.parametrize(("text", "share"), [("", 0), ("a\n\nb\n", 0), ("a\n a\na\nb", 0.5)])
def test_repeated_lines_are_counted_from_the_second(text, share):
    assert share_of_repeated_lines(text) == share


def test_under_strict_what_a_rule_leaves_out_is_no_error(prepare, tmp_path, texts):
    path = write_jsonl(tmp_path / "x.jsonl", [*texts, "short", texts[7], "1 2 3 4 5 = 6 7 8 9 0 + - * / ="])
    rules = ("--min-chars", 20, "--min-letters", 0.2, "--duplicates", "exact", "--strict")
    result = prepare("--input", path, "--output", tmp_path / "data", *rules)
    assert result.code == 0, result.err
    assert load_manifest(tmp_path / "data").records == {"duplicate": 1, "few letters": 1, "too short": 1}
    assert "nothing to do" in prepare("--input", path, "--output", tmp_path / "data", *rules).out


def test_strict_at_the_join_names_a_record_that_was_not_read(prepare, tmp_path, texts):
    """The tasks were done without it."""
    path = write_jsonl(tmp_path / "x.jsonl", ["short", *texts, 5])
    words = ("--input", path, "--output", tmp_path / "data", "--min-chars", 20)
    assert prepare(*words, "--stage", "tokens").code == 0
    result = prepare(*words, "--stage", "join", "--strict")
    assert result.code == 2 and "x.jsonl:302: 'text' holds int (text is not a string" in result.err


def nearly(text, rng):
    """The text with one word in a hundred replaced."""
    words = text.split(" ")
    for i in range(0, len(words), 100):
        words[rng.randrange(i, min(i + 100, len(words)))] = "replaced"
    return " ".join(words)


def test_near_duplicates_go_and_others_stay(prepare, tmp_path):
    pytest.importorskip("rensa")
    rng = random.Random(0)
    vocabulary = [f"word{i}" for i in range(2000)]
    texts = [" ".join(rng.choices(vocabulary, k=400)) for _ in range(60)]
    texts += ["".join(chr(rng.randrange(0x4E00, 0x6000)) for _ in range(600)) for _ in range(5)]
    path = write_jsonl(tmp_path / "x.jsonl", [*texts, *(nearly(text, rng) for text in texts[:20]), texts[62][:-3]])
    result = prepare("--input", path, "--output", tmp_path / "data", "--duplicates", "near", "--validation-fraction", 0)
    assert result.code == 0, result.err
    assert load_manifest(tmp_path / "data").records == {"near duplicate": 21}
    assert read_back(tmp_path / "data") == sorted(texts)


@pytest.mark.parametrize("duplicates", ["exact", "near"])
def test_duplicates_are_the_same_for_any_number_of_workers(prepare, tmp_path, duplicates):
    parts = [write_jsonl(tmp_path / f"{i}.jsonl", make_texts(60, seed=i % 3)) for i in range(5)]
    found = []
    for workers in (1, 2):
        output = tmp_path / f"data{workers}"
        words = ("--input", *parts, "--output", output, "--duplicates", duplicates, "--workers", workers)
        assert prepare(*words).code == 0
        found.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert found[0] == found[1]
    assert load_manifest(tmp_path / "data1").records == {"duplicate": 120}
    manifest = load_manifest(tmp_path / "data1")
    assert [info.documents for info in manifest.inputs] == [60, 60, 60, 0, 0]
    assert [bool(info.tokens) for info in manifest.inputs] == [True, True, True, False, False]
    assert sum(info.tokens for info in manifest.inputs) == sum(split.tokens for split in manifest.splits.values())
