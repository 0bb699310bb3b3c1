"""Which files are read, and as what: suffixes, `--as`, files beside the data, links, patterns."""

import json
import os
import sys
from pathlib import Path

import pyarrow
import pytest
from conftest import write_jsonl
from pyarrow import parquet

from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.errors import DataError
from data_pipeline.filters import ActiveFilters
from data_pipeline.manifest import load_manifest
from data_pipeline.readers.finding import files_of_folder, files_of_pattern
from data_pipeline.readers.inputs import require_known_kinds, resolve_input
from data_pipeline.readers.kinds import describes_data, file_kind
from data_pipeline.rejects import RecordCounter
from data_pipeline.tasks.reading import task_documents
from data_pipeline.tasks.task import cut_into_tasks
from pretrain.cli import main as inspect
from pretrain.config.load import load_settings
from tests.launching import ROOT


def texts_of(value, text_key="text", read_as=None):
    """The texts that an input gives, and the counter of what was left out."""
    inputs, counter = [resolve_input(str(value), read_as)], RecordCounter()
    require_known_kinds(inputs)
    tasks = cut_into_tasks(inputs)
    return [d.text for task in tasks for d in task_documents(task, counter, text_key, ActiveFilters())], counter


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text"), ("a.PY", "text"), ("a.md.XZ", "text"), ("A.JSONL.GZ", "lines"), ("a.ndjson.zst", "lines"),
        ("a.Parquet", "parquet"), ("LICENSE", "text"),
    ],
)  # fmt: skip
def test_known_suffixes(tmp_path, name, kind):
    assert file_kind(tmp_path / name) == kind


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((f"a{s}", f"{s} files cannot be read; unpack") for s in (".tar.gz", ".tgz", ".zip", ".7z", ".tar.ZST")),
        *((f"a{s}", f"{s} files cannot be read; extract the texts") for s in (".warc.gz", ".warc", ".wet.gz")),
        *((f"a{s}", f"{s} files cannot be read; convert the table") for s in (".csv", ".tsv.gz", ".xlsx")),
        *((f"a{s}", f"{s} files cannot be read; extract its text") for s in (".pdf", ".docx", ".PDF.gz")),
        ("a.arrow", "Dataset.save_to_disk"),
        ("a.jsonl.lz4", ".lz4 files cannot be read; decompress it"),
        ("a.parquet.gz", "Parquet files inside .gz cannot be read; decompress it"),
        ("a.dat", "the suffix .dat does not say what it holds; give it by path or by a pattern, with --as text"),
        ("a.gz", "the suffix .gz does not say what it holds"),
        ("a.2024.gz", "the suffix .2024.gz does not say"),
        ("part-00000", "it has no suffix that says what it holds; give it by path"),
    ],
)  # fmt: skip
def test_other_files_are_refused_with_the_reason_and_the_fix(tmp_path, name, message):
    with pytest.raises(DataError) as error:
        file_kind(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ") and message in str(error.value)


def test_the_user_may_say_what_a_file_is(prepare, tmp_path, texts):
    """By name and by pattern. Not of files of records, of archives, and of what a folder holds."""
    (tmp_path / "in").mkdir()
    path = write_jsonl(tmp_path / "in" / "part-00000", texts)
    words = ("--output", tmp_path / "data", "--tokenizer", "bytes", "--validation-fraction", 0)
    assert "has no suffix" in prepare("--input", path, *words).err
    result = prepare("--input", path, "--as", "jsonl", *words)
    assert result.code == 0 and load_manifest(tmp_path / "data").inputs[0].documents == len(texts), result.err
    assert "already prepared, nothing to do" in prepare("--input", path, "--as", "jsonl", *words).out
    other = prepare("--input", path, "--as", "text", *words)
    assert other.code == 2 and "with as jsonl instead of text" in other.err
    assert texts_of(f"{tmp_path}/in/part-*", read_as="text")[0] == [path.read_text()]
    assert texts_of(path.rename(tmp_path / "in" / "x.txt"), read_as="jsonl")[0] == texts
    assert len(texts_of(tmp_path / "in", read_as="jsonl")[0]) == 1
    records = write_jsonl(tmp_path / "a.jsonl", texts)
    assert texts_of(records, read_as="text")[0] == texts  # in a command with other files, which --as is for
    alone = prepare("--input", records, "--as", "text", "--output", tmp_path / "new")
    assert alone.code == 2 and "a.jsonl and all other files are read as their suffixes say" in alone.err
    refused = prepare("--input", tmp_path / "in", "--as", "jsonl", "--output", tmp_path / "new")
    assert refused.code == 2 and "--as jsonl: no --input names files" in refused.err
    with pytest.raises(DataError, match="unpack the archive"):
        file_kind(tmp_path / "a.tar.gz", "text")
    with pytest.raises(DataError, match=r"Parquet files inside \.gz"):
        file_kind(tmp_path / "a.gz", "parquet")


BESIDE_DATA = (
    "README.md",
    "LICENSE",
    "LICENSE-MIT.txt",
    "SHA256SUMS",
    "sha256sum.txt",
    "MD5SUM",
    "checksums.txt",
    "a.txt.md5",
    "dataset_infos.json",
    "sub/_SUCCESS",
)


@pytest.fixture
def corpus(tmp_path):
    """A folder with two texts and what usually stands beside data."""
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("text a")
    (folder / "sub" / "b.txt").write_text("text b")
    for name in BESIDE_DATA:
        (folder / name).write_text(json.dumps({"text": name}))
    (folder / ".DS_Store").write_text("hidden")
    return folder


def test_files_beside_the_data_are_listed_and_not_read(prepare, corpus, tmp_path):
    (corpus / "dead.txt").symlink_to("gone.txt")
    result = prepare("--input", corpus, "--output", tmp_path / "data", "--validation-fraction", 0, "--seq-len", 2)
    assert result.code == 0 and load_manifest(tmp_path / "data").inputs[0].documents == 2, result.err
    for name in BESIDE_DATA:
        assert f"{corpus}/{name}" in result.err
    assert "dead.txt (a link to nothing)" in result.err and ".DS_Store" not in result.err
    assert texts_of(f"{corpus}/**")[0] == texts_of(f"{corpus}/**/*.txt")[0] == ["text a", "text b"]
    # Given by name they are read.
    assert len(texts_of(corpus / "LICENSE")[0]) == len(texts_of(f"{corpus}/READ*")[0]) == 1


@pytest.mark.parametrize(
    "name",
    [
        "license_texts.jsonl",
        "readme.parquet",
        "notices.txt",
        "about-licenses.md",
        "success.txt",
        "md5_explained.md",
        "sha.txt",
    ],
)
def test_data_with_similar_names_is_data(name):
    assert not describes_data(name)


def test_a_file_of_another_kind_in_a_folder_is_refused(corpus):
    (corpus / "sub" / "table.csv").write_text("a,b\n")
    (corpus / "sub" / "model.bin").write_text("?")
    with pytest.raises(DataError) as error:
        texts_of(corpus)
    assert "sub/model.bin: the suffix .bin does not say" in str(error.value) and f"(nor can {corpus}/" in str(
        error.value
    )
    assert f"or give what to read by patterns, such as '{corpus}/**/*.txt'" in str(error.value)


def test_saved_datasets_in_a_folder_are_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "many" / "one")
    for value in (tmp_path / "many", next((tmp_path / "many" / "one").glob("*.arrow"))):
        with pytest.raises(DataError, match="many/one is a saved dataset; give that folder as an --input"):
            texts_of(value)


def test_linked_folders_are_read_once_by_folders_and_patterns_alike(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    (root / "a.txt").write_text("a")
    (root / "sub" / "b.txt").write_text("b")
    (elsewhere / "c.txt").write_text("c")
    (root / "more").symlink_to(elsewhere)
    (root / "again").symlink_to(elsewhere)  # a second way to the same folder
    (root / "loop").symlink_to(".")
    (root / "sub" / "up").symlink_to("..")
    (elsewhere / "back").symlink_to(root)
    (root / "self.txt").symlink_to("self.txt")
    wanted = ["a.txt", "again/c.txt", "sub/b.txt"]
    for found in (files_of_folder(root), files_of_pattern(f"{root}/**/*.txt"), files_of_pattern(f"{root}/**")):
        assert [str(path.relative_to(root)) for path in found.files] == wanted
        assert found.unread == (root / "self.txt",)
    assert files_of_pattern(f"{root}/**/more/*.txt").files == (root / "more" / "c.txt",)


def test_a_file_that_links_lead_to_is_read_once_and_that_is_told(prepare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("root/a.txt", "root/b.txt", "other/c.txt", "outside.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(f"the text of {name}")
    links = {
        "root/more": "../other",
        "other/a.txt": "../root/a.txt",
        "root/0.txt": "b.txt",
        "root/x.txt": "../outside.txt",
    }
    for name, target in (links | {"root/y.txt": "x.txt"}).items():
        Path(name).symlink_to(target)
    for value in ("root", "root/**/*.txt"):
        assert sorted(texts_of(value)[0]) == [
            f"the text of {n}" for n in ("other/c.txt", "outside.txt", "root/a.txt", "root/b.txt")
        ]
        result = prepare("--input", value, "--output", f"data{len(value)}", "--validation-fraction", 0, "--seq-len", 2)
        assert result.code == 0, result.err
        assert (
            "note: links to the same files, which are read once: root/more/a.txt is root/a.txt, root/0.txt is root/b.txt, "
            "root/y.txt is root/x.txt\n"
        ) in result.err


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["a.txt", "new\nline.txt", "part[0].txt"]),
        ("part[[]0].txt", ["part[0].txt"]),
        ("**/*.txt", ["a.txt", "d/b.txt", "d/e/c.txt", "new\nline.txt", "part[0].txt"]),
        ("**/e/**", ["d/e/c.txt"]),
        ("d/**/c.txt", ["d/e/c.txt"]),
        ("?/*.txt", ["d/b.txt"]),
        ("**/.hidden/*", [".hidden/h.txt"]),
    ],
)  # fmt: skip
def test_patterns_below_a_folder_with_brackets_in_its_name(tmp_path, monkeypatch, pattern, names):
    root = tmp_path / "set [v2]"
    for name in ("a.txt", "part[0].txt", "new\nline.txt", "d/b.txt", "d/e/c.txt", ".hidden/h.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    assert [str(path.relative_to(root)) for path in files_of_pattern(f"{root}/{pattern}").files] == names
    monkeypatch.chdir(root)
    assert [str(path) for path in files_of_pattern(pattern).files] == names


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("-", "standard input cannot be read; write its content to a file"),
        ("/dev/stdin", "not a regular file; write its content to a file"),
        ("{}/x[12]/*.txt", "matches no file; [ begins a set of characters"),
    ],
)
def test_inputs_that_are_no_files(tmp_path, monkeypatch, value, message):
    (tmp_path / "a.jsonl").write_text('{"text": "piped"}\n')
    with (tmp_path / "a.jsonl").open() as file, pytest.raises(DataError) as error:
        saved = os.dup(0)
        os.dup2(file.fileno(), 0)
        try:
            texts_of(value.format(tmp_path))
        finally:
            os.dup2(saved, 0)
            os.close(saved)
    assert message in str(error.value)


def test_names_that_are_not_utf_8_work_to_the_end(prepare, verify, tmp_path, texts):
    """Of files, folders, patterns and the output. The manifest has them in a form that JSON can hold."""
    sys.stdout.reconfigure(errors="backslashreplace")  # as every entry point does
    folder, output = (tmp_path / os.fsdecode(name) for name in (b"in\xe9", b"out\xe9"))
    folder.mkdir()
    write_jsonl(folder / os.fsdecode(b"a\xff.jsonl"), [*texts[:200], 5])
    table = pyarrow.table({"text": texts[200:]})
    with (folder / os.fsdecode(b"b\xe9.parquet")).open("wb") as file:
        parquet.write_table(table, file)
    words = ("--input", folder, f"{folder}/*.jsonl", "--output", output)
    result = prepare(*words)
    assert result.code == 0 and r"a\xff.jsonl:201: " in result.out, result.err
    manifest = load_manifest(output)
    assert [each.input for each in manifest.inputs] == [rf"{tmp_path}/in\xe9", rf"{tmp_path}/in\xe9/*.jsonl"]
    assert [each.documents for each in manifest.inputs] == [300, 200]
    assert "nothing to do" in prepare(*words).out and verify(output).code == 0
    assert inspect(["inspect", str(output), "--rows", "1"]) == 0
    settings = load_settings(str(ROOT / "tests" / "tiny.yaml"), [f"data.path={output}", f"run.dir={tmp_path}"])
    assert len(PackedDataset(settings.data.path, "train")) == manifest.splits["train"].rows
    other = prepare(*words[:3], "--output", tmp_path / "plain", "--tokenizer", output)
    assert other.code == 0 and load_manifest(tmp_path / "plain").splits["train"].documents > 0


@pytest.mark.parametrize("name", ["a.parquet", "a.pq", "a.rows"])
def test_a_row_may_be_longer_than_a_parquet_file(prepare, tmp_path, name):
    """Its columns are compressed, also under other names."""
    parquet.write_table(pyarrow.table({"text": ["a text that repeats itself " * 200] * 1000}), tmp_path / name)
    words = ("--tokenizer", "bytes", "--validation-fraction", 0, "--seq-len", 1 << 20)
    words += ("--as", "parquet") if name == "a.rows" else ()
    result = prepare("--input", tmp_path / name, "--output", tmp_path / "data", *words)
    assert 16 * (tmp_path / name).stat().st_size < 1 << 20
    assert result.code == 0 and load_manifest(tmp_path / "data").splits["train"].rows == 5, result.err
