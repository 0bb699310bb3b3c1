"""`--text-key a.b`: the key b of the object a, in every kind of input."""

import json

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from test_kinds import texts_of

from data_pipeline.manifest import load_manifest
from data_pipeline.readers import long_documents, readers, rows
from data_pipeline.readers.nested_keys import key_names, key_path

ROWS = [{"id": i, "content": {"text": f"nested {i}", "meta": {"lang": f"lang {i}"}}} for i in range(5)]
NULLS = [{"id": 5, "content": {"text": None, "meta": None}}, {"id": 6, "content": None}]


def as_lines(path, values):
    path.with_suffix(".jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    return path.with_suffix(".jsonl")


def as_parquet(path, values):
    parquet.write_table(pyarrow.Table.from_pylist(values), path.with_suffix(".parquet"), row_group_size=3)
    return path.with_suffix(".parquet")


def as_dataset(path, values):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(values).save_to_disk(path)
    return path


@pytest.mark.parametrize("write", [as_lines, as_parquet, as_dataset])
def test_a_text_inside_other_objects(tmp_path, monkeypatch, write):
    monkeypatch.setattr(rows, "ROWS_PER_BATCH", 2)
    path = write(tmp_path / "rows", [*ROWS, *NULLS, *ROWS])
    for key, name in (("content.text", "nested"), ("content.meta.lang", "lang")):
        found, counter = texts_of(path, key)
        assert found == [f"{name} {i}" for i in range(5)] * 2
        assert dict(counter.rejected) == {"empty text": 2}
    _, counter = texts_of(path, "content")
    (example, *_) = counter.examples
    assert "an object; name one of its keys with --text-key: 'content.text', 'content.meta.lang'" in example.why
    _, counter = texts_of(path, "content.body")
    assert counter.other_keys["content.text"] and "content.meta.lang" in counter.examples[0].why


@pytest.mark.parametrize("write", [as_lines, as_parquet, as_dataset])
def test_a_key_with_a_dot_in_it_comes_first(tmp_path, write):
    values = [{"a": {"b": "nested", "c.d": "inner dot"}, "a.b": "dotted"}, {"a": {"b": "n", "c.d": "i"}, "a.b": "d"}]
    path = write(tmp_path / "rows", values)
    assert texts_of(path, "a.b")[0] == ["dotted", "d"]
    assert texts_of(path, "a.c.d")[0] == ["inner dot", "i"]


@pytest.mark.parametrize("words", [(), ("--drop-ids", "drop.txt")])
def test_two_columns_of_one_name_are_named(prepare, tmp_path, monkeypatch, words):
    """Parquet allows it. Other columns may have one name, and those that are read may not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drop.txt").write_text("1\n")
    twice = "id" if words else "text"
    table = pyarrow.table([["a text"], ["b"], ["2"], ["2"], ["x"], ["y"]], ["text", twice, "id", "n", "other", "other"])
    parquet.write_table(table, "a.parquet")
    result = prepare("--input", "a.parquet", "--output", "out", "--tokenizer", "bytes", *words)
    assert result.code == 2 and f"a.parquet: has 2 columns named '{twice}'" in result.err, result.err
    parquet.write_table(pyarrow.table([["a text"], ["x"], ["y"]], ["text", "other", "other"]), "b.parquet")
    words = ("--seq-len", 2, "--validation-fraction", 0)
    assert prepare("--input", "b.parquet", "--output", "out", "--tokenizer", "bytes", *words).code == 0


def test_a_list_is_no_text(tmp_path):
    _, counter = texts_of(as_lines(tmp_path / "rows", [{"data": [{"text": "a"}]}]), "data")
    assert "a list; write its items as one object per line, for example with jq -c '.data[]'" in counter.examples[0].why
    # Strings alone would be no records.
    _, counter = texts_of(as_lines(tmp_path / "rows", [{"data": ["a", "b"]}]), "data")
    assert "for example with jq -c '.data[] | {text: .}'" in counter.examples[0].why


def test_the_message_for_a_wrong_nested_key_leads_to_the_right_one(prepare, tmp_path):
    words = ("--input", as_lines(tmp_path / "rows", ROWS), "--output", tmp_path / "data", "--validation-fraction", 0)
    wrong = prepare(*words, "--text-key", "content.txt")
    assert wrong.code == 2 and "did you mean --text-key content.text?" in wrong.err
    wrong = prepare(*words, "--text-key", "id.content")
    assert wrong.code == 2 and "did you mean --text-key id?" not in wrong.err
    assert prepare(*words, "--text-key", "content.text", "--seq-len", 2).code == 0
    assert load_manifest(tmp_path / "data").inputs[0].documents == 5


@pytest.mark.parametrize(
    ("a", "holds"),
    [
        ([{"b": "x"}], ("a list; write its items as one object per line", "values of type list<")),
        ("x", ("a text, which --text-key a reads", "values of type string")),
        (5, ("int", "values of type int64")),
        ({"c": {"d": "x"}}, ("an object; name one of its keys with --text-key: 'a.c.d'",) * 2),
    ],
)
@pytest.mark.parametrize("write", [as_lines, as_parquet])
def test_a_key_that_leads_through_another_value_says_what_that_holds(prepare, tmp_path, a, holds, write):
    good = as_lines(tmp_path / "good", [{"a": {"b": "text"}}] * 50)
    path = write(tmp_path / "rows", [{"a": a, "id": 1}] * 2)
    result = prepare("--input", good, path, "--output", tmp_path / "data", "--text-key", "a.b")
    assert result.code == 2 and f"no record of --input {path} has the key 'a.b'" in result.err
    assert "choose one of them" not in result.err
    assert f"'a' holds {holds[write is as_parquet]}" in result.err


def test_the_first_file_without_the_key_is_named(prepare, tmp_path):
    (tmp_path / "in").mkdir()
    for name, keys in (("a", ("title", "body")), ("b", ("body",))):
        as_lines(tmp_path / "in" / name, [dict.fromkeys(keys, "x")] * 2)
    result = prepare("--input", tmp_path / "in", "--output", tmp_path / "data")
    assert result.code == 2
    assert "the records have 'body', 'title': choose one" in result.err
    assert "\n    a.jsonl:1: no key 'text' among 'title', 'body'\n" in result.err


@pytest.mark.parametrize("wrong", [" text", "text ", "text.", ".text", "TEXT", "a.b.", "a. b", "A.B", "a..b", ".a.b"])
def test_a_slip_in_a_key_is_recognized(prepare, tmp_path, wrong):
    path = as_lines(tmp_path / "rows", [{"id": 1, "text": "one", "a": {"b": "two"}, "key with blanks": "x"}])
    result = prepare("--input", path, "--output", tmp_path / "data", "--text-key", wrong)
    right = "a.b" if "b" in wrong.lower() else "text"
    assert result.code == 2 and f"did you mean --text-key {right}?" in result.err


def test_a_key_with_blanks_is_suggested_in_quotation_marks(prepare, tmp_path):
    path = as_lines(tmp_path / "rows", [{"the text": "one"}])
    result = prepare("--input", path, "--output", tmp_path / "data", "--text-key", "the_text")
    assert "did you mean --text-key 'the text'?" in result.err


def test_a_long_nested_text_stays_in_its_file(tmp_path, monkeypatch):
    texts = ["short", "word " * 400, "\\\n\u00e9" * 300]
    path = as_lines(tmp_path / "long", [{"meta": "x" * 900, "a": {"b": text, "c": "y" * 900}} for text in texts])
    for module in (long_documents, readers):
        monkeypatch.setattr(module, "LONG_BYTES", 200)
    monkeypatch.setattr(long_documents, "KEPT_BYTES", 100)
    assert texts_of(path, "a.b")[0] == texts


KEYS = st.text(alphabet="ab.", min_size=1, max_size=3)
TREES = st.recursive(st.integers(), lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)


@settings(max_examples=50, deadline=None)
@given(tree=st.dictionaries(KEYS, TREES, max_size=4))
def test_every_name_that_is_listed_leads_to_a_value(tree):
    for name in key_names(tree):
        path = key_path(tree, name)
        assert path and ".".join(path) == name
        value = tree
        for key in path:
            value = value[key]


def test_no_path():
    assert key_path({"a": 1}, "a.b") is None and key_path({"a": {"b": 1}}, "a.c") is None and key_path({}, "a") is None
    assert key_path({"a": None}, "a.b") == ("a",)
