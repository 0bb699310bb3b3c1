"""Every document of a prepared folder is found again at the place that is recorded for it."""

import gzip
import json
import re
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import make_texts, write_jsonl
from test_prepare import documents_of, folder_bytes

from data_pipeline import provenance as module
from data_pipeline.errors import DataError
from data_pipeline.generators.names import parse_generated
from data_pipeline.manifest import load_manifest
from data_pipeline.provenance import PLACES, Provenance, TableWriter
from data_pipeline.tasks import task as task_module
from tests.launching import ROOT

pytestmark = pytest.mark.slow
QUESTION = "Which of these rivers, if any, flows through the four countries that were named in the first question?"


def text_at(source, folder):
    """The text that is at a place of the inputs: read from there, without this package."""
    path = folder / source.name
    if source.kind == "parquet":
        return pyarrow.parquet.read_table(path)["text"][source.place].as_py()
    if source.kind == "generated":
        generated = parse_generated(source.input)
        return generated.generator.text(generated.seed, source.place)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        file.seek(source.place)
        return json.loads(file.readline())["text"] if source.kind == "lines" else file.read().decode("utf-8-sig")


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Inputs of every kind, in many tasks; some texts come several times, or are left out for other reasons."""
    monkeypatch.setattr(task_module, "SMALLEST_TASK", 1 << 14)
    texts = make_texts(400)
    texts[7::50] = [f"{text} {QUESTION}" for text in texts[7::50]]
    lines = [json.dumps({"id": i, "text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts[:200])]
    lines[20:20] = ["", "{broken", '{"text": ""}', json.dumps({"text": "short"})]
    lines[60] = "\ufeff" + lines[60]
    (tmp_path / "a.jsonl").write_text("\r\n".join(lines), encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(write_jsonl(tmp_path / "b", texts[150:250]).read_bytes()))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[230:330]}), tmp_path / "c.parquet", row_group_size=17)
    (tmp_path / "notes").mkdir()
    for i, text in enumerate(texts[320:]):
        (tmp_path / "notes" / f"{i:03} é.txt").write_text("\ufeff" * (i % 2) + text, encoding="utf-8", newline="")
    (tmp_path / "questions.txt").write_text(QUESTION)
    return [*(tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "notes")), "lookup2:40@3"]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--duplicates", "exact", "--min-chars", 8, "--decontaminate", "questions.txt", "--pack", "best_fit"),
        ("--duplicates", "exact", "--no-shuffle", "--shard-size", "3kB", "--validation-fraction", 0.3, "--workers", 2),
    ],
)
def test_the_text_at_the_recorded_place_has_the_tokens_of_the_document(prepare, verify, inputs, tmp_path, options):
    options = [tmp_path / word if word == "questions.txt" else word for word in options]
    output = tmp_path / "out" / "data"
    words = ("--input", *inputs, "--output", output, "--max-rejected", 0.1, *options)
    result = prepare(*words)
    assert result.code == 0, result.err
    manifest, kinds = load_manifest(output), set()
    for split, texts in documents_of(output).items():
        found = Provenance(output, split)
        assert len(found) == manifest.splits[split].documents == len(texts)
        for i, text in enumerate(texts):
            source = found.of_document(i)
            folder = tmp_path / "notes" if source.input.endswith("notes") else tmp_path
            assert text_at(source, folder) == text, source
            kinds.add(source.kind)
    assert kinds == {"lines", "parquet", "text", "generated"}
    assert verify(output).code == 0
    before = folder_bytes(output)
    assert prepare(*words, "--overwrite", "--workers", 1).code == 0
    assert folder_bytes(output) == before


def test_what_is_left_out_is_counted_by_input(prepare, inputs, tmp_path):
    filters = ("--min-chars", 8, "--decontaminate", tmp_path / "questions.txt", "--duplicates", "exact")
    output = tmp_path / "out" / "data"
    assert prepare("--input", *inputs, "--output", output, "--max-rejected", 0.1, *filters).code == 0
    manifest = load_manifest(output)
    of_a, *_, of_notes, _ = (each.rejected for each in manifest.inputs)
    assert of_a == {"broken JSON": 1, "empty text": 1, "evaluation text": 4, "too short": 1}, of_a
    assert of_notes == {"duplicate": 10, "evaluation text": 1}, of_notes
    totals = {}
    for each in manifest.inputs:
        for cause, count in each.rejected.items():
            totals[cause] = totals.get(cause, 0) + count
    assert totals == manifest.records
    records = [204 - 1, 100, 100, 80, 40]  # without the blank line
    assert [each.documents + sum(each.rejected.values()) for each in manifest.inputs] == records
    assert set(manifest.versions) >= {"python", "loopmdm", "pyarrow", "tokenizers", "sentencepiece", "duckdb"}


def test_a_duplicate_names_the_document_that_it_repeats(prepare, inputs, tmp_path):
    output = tmp_path / "out" / "data"
    result = prepare("--input", *inputs, "--output", output, "--max-rejected", 0.1, "--duplicates", "exact")
    assert result.code == 0, result.err
    table = pyarrow.parquet.read_table(output / "duplicates.parquet").to_pylist()
    sources = pyarrow.parquet.read_table(output / "sources.parquet").to_pylist()
    assert len(table) == load_manifest(output).records["duplicate"] == 80
    assert "duplicates: 80 documents have the text of one of 80 earlier ones" in result.out
    for row in table:
        texts = []
        for prefix in ("", "first_"):
            source = module.DocumentSource(**sources[row[f"{prefix}source"]], place=row[f"{prefix}place"])
            texts.append(text_at(source, tmp_path / "notes" if source.kind == "text" else tmp_path))
        assert texts[0] == texts[1] and row["is_exact"]
    lines = (tmp_path / "a.jsonl").read_bytes().split(b"\n")
    at = sum(len(line) + 1 for line in lines[: 150 + 4])
    example = re.search(r"b\.jsonl\.gz:1: repeats (.*), byte ([\d,]+) \(digest", result.out)
    assert example[1] == str(tmp_path / "a.jsonl") and int(example[2].replace(",", "")) == at


def test_together_says_what_it_found(prepare, tmp_path):
    pytest.importorskip("rensa")
    path = write_jsonl(tmp_path / "x.jsonl", [each for text in make_texts(50) for each in (text, text + " ", text)])
    words = ("--input", path, "--output", tmp_path / "data", "--duplicates", "together")
    for stage in ("start", "all"):
        said = prepare(*words, "--stage", stage).out
        assert "100 documents have the text of, or nearly the text of, one of 50 earlier ones; all are kept" in said
    found = pyarrow.parquet.read_table(tmp_path / "data" / "duplicates.parquet")
    assert found.num_rows == 100 and sum(found["is_exact"].to_pylist()) == 50


@pytest.mark.parametrize("sizes", [[], [0, 3, 0], [8], [5, 5, 5, 5], [1] * 17, [40, 1]])
def test_row_groups_have_equal_sizes_however_rows_are_added(tmp_path, monkeypatch, sizes):
    monkeypatch.setattr(module, "ROWS_PER_GROUP", 8)
    path, total = tmp_path / "x.parquet", sum(sizes)
    with TableWriter(path, PLACES) as table:
        for begin, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
            table.append(np.arange(begin, begin + size) // 7, np.arange(begin, begin + size) * 3)
    assert pyarrow.parquet.read_table(path)["place"].to_pylist() == [3 * i for i in range(total)]
    metadata = pyarrow.parquet.read_metadata(path)
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [8] * (total // 8) + [total % 8] * bool(total % 8)


def test_a_folder_without_places_can_be_used(prepared, verify, repack):
    """As one of an older version."""
    manifest = json.loads((prepared / "manifest.json").read_text())
    for name in manifest.pop("provenance"):
        (prepared / name).unlink()
    del manifest["versions"], manifest["inputs"][0]["rejected"]
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    assert verify(prepared).code == 0 and repack(prepared, "--seq-len", 16).code == 0
    assert load_manifest(prepared).provenance == {}


def test_a_changed_place_is_noticed(prepared, verify):
    path = prepared / "train.places.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    result = verify(prepared)
    assert result.code == 2 and "train.places.parquet has changed" in result.err
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"train\.places\.parquet: .*; prepare the data again"):
        Provenance(prepared, "train").of_document(0)


def test_writing_places_does_not_import_pandas(tmp_path):
    """Every process would wait half a second for it."""
    lines = [
        "import pathlib, sys, numpy",
        "from data_pipeline.provenance import PLACES, TableWriter",
        f"with TableWriter(pathlib.Path({str(tmp_path / 'x')!r}), PLACES) as writer:",
        "    writer.append(*numpy.arange(6).reshape(3, 2).T)",
        "assert 'pandas' not in sys.modules",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, check=True, timeout=60)
    assert pyarrow.parquet.read_table(tmp_path / "x").to_pydict() == {"source": [0, 2, 4], "place": [1, 3, 5]}


def test_a_number_that_does_not_fit_is_an_error(tmp_path):
    with pytest.raises(OverflowError, match="does not fit into uint32"), TableWriter(tmp_path / "x", PLACES) as writer:
        writer.append(np.array([-1]), np.array([0]))
