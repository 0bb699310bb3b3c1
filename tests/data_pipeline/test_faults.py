"""Calls that read or write fail: the job ends with an error that names the file, or its result is right, and a run without
faults gives the bytes of an undisturbed one."""

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from conftest import write_jsonl
from pyarrow import parquet

from data_pipeline import documents
from data_pipeline.errors import ReadError
from data_pipeline.filters import ActiveFilters
from data_pipeline.manifest import load_manifest
from data_pipeline.readers import compression, long_documents, readers
from data_pipeline.readers.file_ranges import FileRange
from data_pipeline.readers.inputs import resolve_input
from data_pipeline.rejects import RecordCounter
from data_pipeline.tasks.reading import task_documents
from data_pipeline.tasks.task import Task, cut_into_tasks
from tests.launching import ROOT, run

HERE = Path(__file__).parent
PACKERS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, texts):
    """Name -> (part of the name of its files, value of --input)."""
    folder = tmp_path_factory.mktemp("inputs")
    texts = [f"{text} {i}" for i, text in enumerate(texts)]
    plain = write_jsonl(folder / "plain.jsonl", texts)
    for suffix, pack in PACKERS.items():
        (folder / f"packed.jsonl.{suffix}").write_bytes(pack(plain.read_bytes()))
    (folder / "text.txt").write_text("\n".join(texts))
    (folder / "text.txt.gz").write_bytes(gzip.compress("\n".join(texts).encode()))
    parquet.write_table(pyarrow.table({"text": texts}), folder / "rows.parquet", row_group_size=60)
    found = {path.name: (str(path), path) for path in folder.iterdir()}
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(folder / "saved")
    return found | {"saved": (str(folder / "saved"), folder / "saved")}


@pytest.fixture(scope="module")
def results(inputs, tokenizer_file, tmp_path_factory):
    """What happened with each input and fault."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc to compile failing_calls.c with")
    folder = tmp_path_factory.mktemp("faults")
    library = folder / "failing_calls.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, HERE / "failing_calls.c", "-ldl"], check=True)
    options = ["--tokenizer", "bytes", "--seq-len", "32", "--validation-fraction", "0"]
    words = {name: (part, ["--input", str(path), *options]) for name, (part, path) in inputs.items()}
    path = inputs["plain.jsonl"][1]
    words["writes"] = (
        "",
        ["--input", str(path), "--tokenizer", str(tokenizer_file), "--seq-len", "32", "--duplicates", "near"],
    )
    (folder / "inputs.json").write_text(json.dumps(words))
    done = run([sys.executable, HERE / "failing_calls.py", folder], LD_PRELOAD=str(library), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.end_to_end
@pytest.mark.timeout(300)
def test_a_rerun_after_any_fault_gives_the_bytes_of_an_undisturbed_run(results, inputs):
    assert {each["name"] for each in results} == {*inputs, "writes"}
    for each in results:
        assert each["status"] in (0, 2) and "Traceback" not in each["said"], each
        assert each["said"].count("error: ") == (each["status"] == 2), each
        assert each["right_if_done"] and each["again"] == 0 and each["equal"], each


@pytest.mark.end_to_end
def test_a_read_that_fails_names_the_file(results, inputs):
    for each in results:
        if each["fault"] == "EIO":
            assert f"cannot read {inputs[each['name']][0]}" in each["said"], each
            assert "Input/output error" in each["said"], each
        elif each["fault"] in ("end of file", "flipped bit") and each["status"]:
            assert inputs[each["name"]][0] in each["said"] and "left out" not in each["said"], each
    noticed = {(each["name"], each["fault"]) for each in results if each["status"] or "cannot read" in each["said"]}
    assert noticed >= {(name, "end of file") for name in inputs}
    assert noticed >= {(f"packed.jsonl.{suffix}", "flipped bit") for suffix in ("gz", "xz", "bz2")}


@pytest.mark.end_to_end
def test_a_write_that_fails_says_that_the_disk_is_full(results):
    full = [each for each in results if each["fault"] == "ENOSPC"]
    assert len(full) == 5
    for each in full:
        assert each["status"] == 2 and ("is full" in each["said"] or "No space left on device" in each["said"]), each
    few = [each for each in results if each["fault"] == "EMFILE" and each["status"]]
    assert len(few) >= 8 and all("Too many open files" in each["said"] for each in few)


class FailingFile(io.FileIO):
    """A file of which one read, the `nth`, does not do what it should."""

    nth, action = 0, staticmethod(lambda content: content)
    reads = 0

    def readinto(self, buffer):
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def read(self, size=-1):
        FailingFile.reads += 1
        start, content = self.tell(), super().read(size)
        if FailingFile.reads == FailingFile.nth:
            content = FailingFile.action(content)
            self.seek(start + len(content))
        return content


def fail(number):
    def action(content):
        raise OSError(number, os.strerror(number))

    return action


@pytest.fixture
def failing(monkeypatch):
    """Let the nth read of an input fail, without gcc: Python's and Arrow's readers get a `FailingFile`."""
    real_open, real_parquet = Path.open, parquet.ParquetFile

    def opened(path, mode="r", *args, **kwargs):
        return io.BufferedReader(FailingFile(path)) if mode == "rb" else real_open(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(
        parquet, "ParquetFile", lambda path: real_parquet(pyarrow.PythonFile(FailingFile(path), mode="r"))
    )

    def set_up(nth, action):
        FailingFile.reads, FailingFile.nth, FailingFile.action = 0, nth, staticmethod(action)

    return set_up


def read(path):
    """Digests of the documents, and the causes of what is left out."""
    counter = RecordCounter()
    tasks = cut_into_tasks([resolve_input(str(path))])
    found = [document.digest for task in tasks for document in task_documents(task, counter, "text", ActiveFilters())]
    return found, counter.rejected


FILES = [*(f"packed.jsonl.{suffix}" for suffix in PACKERS), "plain.jsonl", "text.txt", "text.txt.gz", "rows.parquet"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ETIMEDOUT])
@pytest.mark.parametrize("name", FILES)
def test_what_the_system_reports_is_no_verdict(inputs, failing, name, number):
    path = inputs[name][1]
    expected = read(path)
    failing(0, fail(number))
    assert read(path) == expected  # the first time, more may be read to identify the file
    count = FailingFile.reads
    for nth in {1, 2, 3, count // 2, count} & set(range(1, count + 1)):
        failing(nth, fail(number))
        with pytest.raises(ReadError) as raised:
            read(path)
        assert (raised.value.errno, raised.value.filename) == (number, str(path))
        assert os.strerror(number) in str(raised.value) and f"cannot read {path}: " in str(raised.value)
    failing(0, fail(number))
    assert read(path) == expected


@pytest.mark.parametrize("name", FILES)
def test_a_read_that_ends_too_early_drops_nothing(inputs, failing, name):
    path = inputs[name][1]
    expected = read(path)
    failing(0, fail(0))
    assert read(path) == expected
    count = FailingFile.reads
    for nth in range(1, count + 1, max(1, count // 5)):
        failing(nth, lambda content: b"")
        try:
            assert read(path) == expected
        except ReadError as error:
            assert error.filename == str(path)


def test_a_broken_line_is_read_again(inputs, failing, tmp_path):
    """A byte that changes on its way is an error; one that is wrong in the file is a broken record."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(inputs["plain.jsonl"][1].read_bytes())
    assert not read(path)[1]
    failing(3, lambda content: content[:50] + b"\xff" + content[51:])
    with pytest.raises(ReadError, match=r"two reads gave different content \(at byte .*after line \d+; run the same"):
        read(path)
    path.write_bytes(path.read_bytes() + b'{"text": "\xff"}\n')
    failing(0, fail(0))
    assert read(path)[1] == {"not UTF-8": 1}


def test_no_memory_for_a_batch_is_no_verdict(inputs, monkeypatch):
    def fail(self, **options):
        raise pyarrow.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", fail)
    with pytest.raises(ReadError, match=r"Cannot allocate memory before the first row .* use fewer --workers"):
        read(inputs["rows.parquet"][1])


@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError(errno.EIO, "x"), ReadError), (MemoryError(), ReadError), (pyarrow.ArrowInvalid("bad offsets"), None)],
)
def test_a_dataset_that_fails_while_it_is_read(inputs, monkeypatch, error, expected):
    datasets = pytest.importorskip("datasets")
    path = inputs["saved"][1]

    def fail(self, batch_size):
        yield pyarrow.table({"text": ["one", "two"]})
        raise error

    monkeypatch.setattr(datasets.Dataset, "iter", fail)
    if expected:
        with pytest.raises(expected, match=f"cannot read {path}: .* after row 1;"):
            read(path)
    else:
        assert read(path)[1] == {"broken or truncated file": 1}


@pytest.mark.parametrize("type_name", ["string", "large_string"])
def test_a_mapped_file_that_cannot_be_read_is_an_error_and_no_signal(inputs, tmp_path, type_name):
    """Its end is cut off after it was opened, so that reading the pages behind it would raise SIGBUS."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value(type_name)})
    texts = [f"row {i} " * 50 for i in range(1000)]
    datasets.Dataset.from_dict({"text": texts}, features=features).save_to_disk(tmp_path / "saved")
    assert len(read(tmp_path / "saved")[0]) == 1000
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    os.truncate(arrow, arrow.stat().st_size // 2)
    child = os.fork()  # what fails here would end the tests
    if child == 0:
        counter, ranges = RecordCounter(), (FileRange("dataset", str(tmp_path / "saved"), "saved", 1),)
        status = 1
        try:
            list(task_documents(Task(0, 0, ranges, ""), counter, "text", ActiveFilters()))
        except ReadError as error:
            status = 0 if error.errno == errno.EIO and "after row" in str(error) else 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_footer_that_cannot_be_read_does_not_change_the_tasks(inputs, failing, monkeypatch):
    path = inputs["rows.parquet"][1]
    monkeypatch.setattr("data_pipeline.tasks.task._task_size", lambda total: 1)
    failing(0, fail(0))
    expected = cut_into_tasks([resolve_input(str(path))])
    assert len(expected) == 5
    failing(1, fail(errno.EIO))
    with pytest.raises(ReadError, match=f"cannot read {path}: Input/output error at its footer"):
        cut_into_tasks([resolve_input(str(path))])
    failing(1, lambda content: bytes(len(content)))  # passes, because a broken footer is read twice
    assert cut_into_tasks([resolve_input(str(path))]) == expected


@pytest.mark.parametrize("kind", ["jsonl", "txt", "txt.gz"])
def test_a_long_text_that_changes_between_two_reads(tmp_path, monkeypatch, kind):
    for module in (long_documents, readers, documents):
        monkeypatch.setattr(module, "LONG_BYTES", 100)
    monkeypatch.setattr(long_documents, "CHUNK_BYTES", 64)
    monkeypatch.setattr(long_documents, "KEPT_BYTES", 10)
    path = tmp_path / f"x.{kind}"

    def write(text):
        content = (json.dumps({"text": text}) if kind == "jsonl" else text).encode()
        path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)

    write("a long text " * 50)
    (task,) = cut_into_tasks([resolve_input(str(path))])
    (document,) = task_documents(task, RecordCounter(), "text", ActiveFilters())
    assert document.text == "a long text " * 50
    for other in ("another one " * 50, "shorter", "a long text " * 49 + "a lo\\x"):
        write(other)
        with pytest.raises(ReadError, match=f"cannot read {path}: two reads gave different content"):
            document.text  # noqa: B018
    path.unlink()
    with pytest.raises(ReadError, match="No such file"):
        document.text  # noqa: B018


def test_a_read_error_keeps_its_parts_between_processes():
    error = ReadError.of(OSError(errno.EIO, "x"), "a.jsonl", "after line 3")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.errno, again.filename, str(again)) == (ReadError, errno.EIO, "a.jsonl", str(error))


def test_memory_that_zlib_lacks_is_no_damage(tmp_path):
    import zlib

    error = compression._judged(Path("x.gz"), zlib.error("Error -4 while decompressing data"), 5, 10)
    assert isinstance(error, ReadError) and error.errno == errno.ENOMEM
    error = compression._judged(
        Path("x.zst"), OSError("ZSTD decompress failed: Allocation error : not enough memory"), 5, 10
    )
    assert isinstance(error, ReadError)
    error = compression._judged(Path("x.zst"), OSError("... Frame requires too much memory for decoding"), 5, 10)
    assert "a window of more than 128 MB" in str(error)


@pytest.mark.parametrize("change", ["other", "fewer", "more"])
def test_decisions_about_other_documents_are_noticed(prepare, tmp_path, texts, monkeypatch, change):
    """Duplicates are decided in one pass and left out in the next, which may read something else."""
    path = write_jsonl(tmp_path / "x.jsonl", [*texts, texts[7]])
    words = ("--input", path, "--duplicates", "exact", "--output", tmp_path / "data")
    assert prepare(*words, "--stage", "start").code == 0
    changed = {
        "other": [*texts[:40], "other", *texts[41:], texts[7]],
        "fewer": texts,
        "more": [*texts, texts[7], "more"],
    }
    other = write_jsonl(tmp_path / "other.jsonl", changed[change])
    line = {"other": 41, "fewer": 300, "more": 302}[change]
    real = long_documents.open_decompressed

    monkeypatch.setattr(readers, "open_decompressed", lambda path, start=0: real(other, start))
    result = prepare(*words, "--stage", "tokens")
    assert result.code == 2 and f"error: {path}:{line}: the duplicates were decided by other documents" in result.err
    assert "--stage start" in result.err

    def once(path, start=0):  # one pass reads the other file, those after it the right one
        monkeypatch.setattr(readers, "open_decompressed", real)
        return real(other, start)

    monkeypatch.setattr(readers, "open_decompressed", once)
    assert f"{path}: two reads gave different content (at {path}:{line})" in prepare(*words).err
    assert prepare(*words).code == 0
    assert load_manifest(tmp_path / "data").records == {"duplicate": 1}


def test_a_finished_folder_is_not_judged_by_a_read_that_fails(prepare, tmp_path, jsonl, monkeypatch):
    assert prepare("--input", jsonl, "--output", tmp_path / "data").code == 0
    os.utime(jsonl)

    def fail(*args):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(readers, "open_decompressed", fail)
    result = prepare("--input", jsonl, "--output", tmp_path / "data")
    assert result.code == 2 and f"cannot read {jsonl}: Stale file handle" in result.err
