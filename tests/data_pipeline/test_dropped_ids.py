"""Documents that are left out by their ids: the output is that of the other documents alone."""

import gzip
import json
import pickle
import random

import pyarrow
import pytest
from conftest import make_texts, write_jsonl
from pyarrow import parquet

from data_pipeline import documents
from data_pipeline.documents import build_document
from data_pipeline.dropped_ids import DroppedIds, IdSet
from data_pipeline.filters import ActiveFilters
from data_pipeline.manifest import load_manifest
from data_pipeline.readers import long_documents, readers
from data_pipeline.readers.file_ranges import FileRange
from data_pipeline.readers.readers import read_range
from data_pipeline.rejects import RecordCounter
from data_pipeline.tasks.reading import task_documents
from data_pipeline.tasks.task import Task

TEXTS = make_texts(90)
DROPPED = sorted(random.Random(1).sample(range(90), 25))
KEPT = [text for i, text in enumerate(TEXTS) if i not in DROPPED]


def doc_id(i):
    return f"web/{i:02}/é"


def records(of=doc_id):
    return [{"text": text, "meta": {"id": of(i), "n": i}} for i, text in enumerate(TEXTS)]


def write_lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def write_corpus(kind, folder, rows):
    if kind == "lines":
        return write_lines(folder / "corpus.jsonl", rows)
    if kind == "gz":
        (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(write_lines(folder / "x", rows).read_bytes()))
        return folder / "corpus.jsonl.gz"
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "corpus.parquet", row_group_size=17)
        return folder / "corpus.parquet"
    pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(folder / "corpus")
    return folder / "corpus"


def write_list(kind, folder, ids):
    if kind == "dataset":
        pytest.importorskip("datasets").Dataset.from_list([{"key": each} for each in ids]).save_to_disk(folder / "list")
        return folder / "list"
    if kind == "parquet":
        parquet.write_table(pyarrow.table({"key": ids}), folder / "list.parquet")
        return folder / "list.parquet"
    if kind == "lines":
        return write_lines(folder / "list.jsonl", [{"key": each, "text": "a text"} for each in ids])
    lines = "".join(f"{each}\n\n" for each in ids).encode()
    name = f"list.txt{'.gz' if kind == 'gz' else ''}"
    (folder / name).write_bytes(gzip.compress(lines) if kind == "gz" else lines)
    return folder / name


def test_a_set_of_ids_is_a_set_also_in_other_processes():
    rng = random.Random(0)
    ids = [str(rng.randrange(10**6)) for _ in range(5000)]
    found, expected = IdSet(ids), set(ids)
    for each in (found, pickle.loads(pickle.dumps(found)), pickle.loads(pickle.dumps(found))):
        assert len(each) == len(expected) and each.digest == IdSet(reversed(ids)).digest
        assert all((str(i) in each) == (str(i) in expected) for i in range(0, 10**6, 97))
        assert all(each_id in each for each_id in ids)
    assert IdSet([*ids[:-1], "other"]).digest != found.digest
    assert "a" in IdSet("a") and "b" not in IdSet("a")


@pytest.mark.parametrize("corpus", ["lines", "gz", "parquet", "dataset"])
@pytest.mark.parametrize(
    ("kind", "of"), [("lines", doc_id), ("parquet", int), ("text", doc_id), ("gz", int), ("dataset", doc_id)]
)
def test_the_output_is_that_of_the_other_documents(prepare, tmp_path, corpus, kind, of):
    path = write_corpus(corpus, tmp_path, records(of))
    listed = write_list(kind, tmp_path, [of(i) for i in DROPPED])
    words = ("--input", path, "--output", tmp_path / "data", "--id-key", "meta.id", "--drop-ids", listed)
    result = prepare(*words, "--drop-ids-key", "key")
    assert result.code == 0, result.err
    alone = write_jsonl(tmp_path / "kept.jsonl", KEPT)
    assert prepare("--input", alone, "--output", tmp_path / "alone").code == 0
    for name in ("train-00000.bin", "train-00000.idx", "validation-00000.bin"):
        assert (tmp_path / "data" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    assert load_manifest(tmp_path / "data").records == {"id on a drop list": len(DROPPED)}
    assert f"left out, id on a drop list: {len(DROPPED)}\n" in result.out and repr(str(of(DROPPED[0]))) in result.out
    assert "warning" not in result.err


def test_worker_processes_have_the_ids(prepare, tmp_path):
    rows = [{"id": i, "text": f"{TEXTS[i % 90]} {i}" * 8} for i in range(1500)]
    path = write_lines(tmp_path / "corpus.jsonl", rows)
    listed = write_list("text", tmp_path, range(0, 1500, 3))
    outputs = [tmp_path / f"data{workers}" for workers in (1, 2)]
    for workers, output in zip((1, 2), outputs, strict=True):
        words = ("--input", path, "--output", output, "--drop-ids", listed, "--workers", workers)
        result = prepare(*words)
        assert result.code == 0, result.err
        assert load_manifest(output).records == {"id on a drop list": 500}
    for file in ("train-00000.bin", "train.places.parquet"):
        assert (outputs[0] / file).read_bytes() == (outputs[1] / file).read_bytes()
    assert "already prepared" in prepare(*words).out
    write_list("text", tmp_path, range(0, 1500, 2))
    assert "with dropped_ids" in prepare(*words).err and "--overwrite" in prepare(*words).err


def test_records_without_an_id_are_unreadable(prepare, tmp_path):
    rows = records()
    rows[3] = {"text": "x", "meta": {"n": 1}}
    rows[5]["meta"]["id"], rows[7]["meta"]["id"], rows[8]["meta"], rows[9]["meta"]["id"] = None, [1], None, ""
    path = write_lines(tmp_path / "corpus.jsonl", rows)
    listed = write_list("text", tmp_path, [doc_id(i) for i in DROPPED])
    words = ("--input", path, "--output", tmp_path / "data", "--id-key", "meta.id", "--drop-ids", listed)
    result = prepare(*words)
    assert result.code == 2 and "5 of 90 records (5.56%) are unreadable" in result.err, result.err
    assert "give another --id-key" in result.err and f"{path}:4: no key 'meta.id' among 'text', 'meta.n'" in result.err
    assert f"{path}:6: 'meta.id' holds null; a string or an integer is expected" in result.err
    result = prepare(*words, "--max-rejected", 0.06)
    assert result.code == 0 and load_manifest(tmp_path / "data").records["no id"] == 5
    result = prepare(*words, "--strict", "--output", tmp_path / "strict")
    assert result.code == 2 and "no id: no key 'meta.id'" in result.err


def test_a_wrong_key_of_ids_is_told_before_the_whole_corpus_is_read():
    rows = [{"text": f"text {i}", "url": i} for i in range(3000)]
    filters = ActiveFilters(added=(DroppedIds("uri", IdSet("a"), "a"),), id_key="uri")
    counter = RecordCounter(starts_corpus=True)

    def found(file_range, text_key, id_key):
        yield from (readers.missing_id(id_key, i, row) for i, row in enumerate(rows))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_pipeline.tasks.reading.read_range", found)
        with pytest.raises(Exception, match=r"has the key 'uri'.*did you mean --id-key url"):
            list(task_documents(Task(0, 0, (FileRange("lines", "x", "x", 1),), ""), counter, "text", filters))
    assert counter.rejected["no id"] == 1000


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("id", "meta.doc_id.id"), ("other.uid", "uid"), ("Meta.lang", "meta.lang"), ("meta.lnag", "meta.lang")],
)
def test_a_wrong_key_of_ids_of_few_records_is_told(prepare, tmp_path, wrong, right):
    """Where objects are inside others, the last part of the key says more than its similarity to another."""
    rows = [{"uid": i, "text": f"text {i}", "meta": {"doc_id": {"id": i}, "lang": "en"}} for i in range(5)]
    (tmp_path / "drop.txt").write_text("3\n")
    words = ("--output", tmp_path / "data", "--drop-ids", tmp_path / "drop.txt", "--id-key", wrong)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for path in (write_lines(tmp_path / "a.jsonl", rows), tmp_path / "a.parquet"):
        result = prepare("--input", path, *words)
        assert result.code == 2 and f"\n    did you mean --id-key {right}?" in result.err, result.err


def test_a_long_line_has_its_id(tmp_path, monkeypatch):
    rows = [{"id": "first", "text": "word " * 3000, "z": "y" * 5000}, {"id": 2, "text": "b"}]
    path = write_lines(tmp_path / "x.jsonl", rows)
    for module in (readers, long_documents, documents):
        monkeypatch.setattr(module, "LONG_BYTES", 4000)
    found = list(read_range(FileRange("lines", str(path), "x", 1), "text", "id"))
    assert [build_document(each, "text", "id").id for each in found] == ["first", "2"]


def test_ids_that_are_not_in_the_corpus_are_told(prepare, tmp_path):
    path = write_lines(tmp_path / "corpus.jsonl", records())
    listed = write_list("text", tmp_path, ["web/1"])
    words = ("--input", path, "--output", tmp_path / "data", "--id-key", "meta.id", "--drop-ids", listed)
    result = prepare(*words)
    assert result.code == 0
    assert "warning: no document has an id of --drop-ids, such as 'web/1'" in result.err
    write_list("text", tmp_path, ["web/1", doc_id(4)])
    result = prepare(*words, "--overwrite")
    assert result.code == 0 and "note: the 2 ids of --drop-ids left out 1 documents" in result.err


def test_lists_may_be_empty_if_one_is_not(prepare, tmp_path):
    """As of the parts of a job that removed nothing."""
    path = write_lines(tmp_path / "corpus.jsonl", [{"id": i, "text": text} for i, text in enumerate(TEXTS)])
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "0.jsonl").write_bytes(b"")
    write_lines(tmp_path / "lists" / "1.jsonl", [{"id": 5}])
    result = prepare("--input", path, "--output", tmp_path / "data", "--drop-ids", tmp_path / "lists")
    assert result.code == 0 and load_manifest(tmp_path / "data").records == {"id on a drop list": 1}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"id": 1}\n\n{"uid": 2}\n', "a.jsonl:3: key missing: no key 'id' among 'uid'; give the key"),
        ("a.jsonl", b'{"id": 1}\n{"id"\n', "a.jsonl:2: broken JSON"),
        ("a.jsonl", b'{"id": [1]}\n', "a.jsonl:1: 'id' holds list; a string or an integer is expected"),
        ("a.jsonl", b'{"id": true}\n', "holds bool"),
        ("a.txt", b"\n \n", "a.txt: no id in it"),
        ("a.txt", b"a\n\xff\n", "byte 0xff at position 2; if the file is in another encoding"),
        ("a.txt.gz", gzip.compress(b"a\n" * 9999, mtime=0)[:-9], "a.txt.gz: "),
        ("a.txt.gz", gzip.compress(b"a\n", mtime=0) + b"more", "what follows is no gzip"),
        ("list", b"a\n", "it has no suffix that says what it holds; rename it to .txt, .jsonl or .parquet"),
        ("a.parquet", b"PAR1", "a.parquet: broken or truncated file"),
        ("a.csv", b"id\n1\n", "a.csv: .csv files cannot be read"),
        (None, b"", "no such file or folder"),
    ],
)
def test_lists_that_cannot_be_used_are_named(prepare, tmp_path, name, content, said):
    path = write_lines(tmp_path / "corpus.jsonl", [{"id": i, "text": text} for i, text in enumerate(TEXTS)])
    listed = tmp_path / (name or "nothing.txt")
    if name:
        listed.write_bytes(content)
    result = prepare("--input", path, "--output", tmp_path / "data", "--drop-ids", listed)
    assert result.code == 2 and f"error: --drop-ids {tmp_path}" in result.err and said in result.err, result.err
    assert not (tmp_path / "data").exists()


def test_options_that_cannot_be_meant_are_refused(prepare, tmp_path):
    (tmp_path / "a.txt").write_text("a text")
    listed = write_list("text", tmp_path, ["a"])
    for value in (tmp_path / "a.txt", "stdlib:", "sudoku4:10"):
        result = prepare("--input", value, "--output", tmp_path / "data", "--drop-ids", listed)
        assert result.code == 2 and "--drop-ids: " in result.err and "id" in result.err, result.err
    words = ("--input", "stdlib:", "--output", tmp_path / "data", "--drop-ids", listed, "--against", "stdlib:")
    result = prepare(*words, "--duplicates", "exact")
    assert result.code == 2 and "--against and --drop-ids: the ids are those of --input" in result.err
    for option in ("--id-key", "--drop-ids-key"):
        result = prepare("--input", "stdlib:", "--output", tmp_path / "data", option, "k")
        assert result.code == 2 and f"{option} k: say which documents to leave out, with --drop-ids" in result.err
