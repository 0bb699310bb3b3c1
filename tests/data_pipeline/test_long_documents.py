"""Documents that are read in chunks give the same as documents that are read whole."""

import bz2
import filecmp
import gzip
import json
import lzma
import random
import sys
from contextlib import contextmanager

import numpy as np
import pyarrow
import pytest
import tokenizers as tokenizers_library
from conftest import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import documents
from data_pipeline.errors import DataError
from data_pipeline.filters import ActiveFilters
from data_pipeline.indexed import IndexedWriter
from data_pipeline.readers import long_documents, readers
from data_pipeline.readers.file_ranges import FileRange
from data_pipeline.readers.long_documents import CONVERT
from data_pipeline.rejects import Cause, RecordCounter
from data_pipeline.tasks.reading import task_documents
from data_pipeline.tasks.task import Task
from data_pipeline.tokenizers.tokenizers import load_tokenizer
from data_pipeline.tokenizers.training import train_sentencepiece
from tests.launching import ROOT, run

PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
}
CHARACTERS = st.characters(exclude_categories=["Cs"]) | st.sampled_from('▁ \\"\n\té😀漢1.')
TEXTS = st.text(CHARACTERS, max_size=60)


@contextmanager
def small_limits():
    """Limits of a few bytes, so that nearly every text is long and every cut comes up."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (long_documents, readers, documents):
            patch.setattr(module, "LONG_BYTES", 4)
        patch.setattr(long_documents, "CHUNK_BYTES", 7)
        patch.setattr(long_documents, "KEPT_BYTES", 5)
        yield


def read(path, kind):
    counter = RecordCounter()
    task = Task(0, 0, (FileRange(kind, str(path), path.name, path.stat().st_size),), "")
    return list(task_documents(task, counter, "text", ActiveFilters())), counter


def outcome(path, kind):
    found, counter = read(path, kind)
    return [(d.text, d.num_bytes, d.digest) for d in found], counter.rejected, counter.lines


RECORDS = st.dictionaries(st.sampled_from(["text", "id", "other"]), TEXTS | st.lists(TEXTS, max_size=2) | st.none())
ODD_LINES = rb"""
[
{"text": "half
{"text": "a\
{"text": "a\u12
{"text": "\ud83d"}
{"text": "\ud83d\ude00"}
{"text": "\\ud83d\ude00 \\"}
{"text": "\ud83d\ud83d\ude00"}
{"text": "bad \x escape"}
{"text": "\u12G4 and more of it, and more"}
{"other": "a bad \q escape", "text": "good"}
{"text": "first", "text": "the second counts"}
"no object at all"
{"text": "tab	inside"}
"""
BYTES = sorted(set(range(0x20, 0x100)) - set(b'"\\'))
LINES = st.one_of(
    st.builds(lambda record, ascii_only: json.dumps(record, ensure_ascii=ascii_only).encode(), RECORDS, st.booleans()),
    # One fault at most: of two, either may be named.
    st.lists(st.sampled_from(BYTES), max_size=30).map(lambda text: b'{"text": "' + bytes(text) + b'"}'),
    st.sampled_from(ODD_LINES.split(b"\n")),
    st.just(b"   "),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("long")


@settings(max_examples=400, deadline=None)
@given(lines=st.lists(LINES, max_size=4), mark=st.booleans(), ends=st.booleans())
def test_json_lines_in_chunks_are_read_as_whole_ones(folder, lines, mark, ends):
    path = folder / "corpus.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" * mark + b"\n".join(lines) + b"\n" * ends)
    expected = outcome(path, "lines")
    with small_limits():
        assert outcome(path, "lines") == expected


@settings(max_examples=200, deadline=None)
@given(content=TEXTS.map(str.encode) | st.binary(max_size=30), mark=st.booleans(), packed=st.booleans())
def test_text_files_in_chunks_are_read_as_whole_ones(folder, content, mark, packed):
    path = folder / ("text.gz" if packed else "text.txt")
    content = b"\xef\xbb\xbf" * mark + content
    path.write_bytes(gzip.compress(content) if packed else content)
    expected = outcome(path, "text")
    with small_limits():
        assert outcome(path, "text") == expected


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_long_documents_are_read_from_files_packed_in_any_way(folder, kind, suffix):
    texts = ["a", "b\u00e9 \n" * 40, "漢 " * 30]
    content = ("".join(json.dumps({"text": t}) + "\n" for t in texts) if kind == "jsonl" else texts[1]).encode()
    path = folder / f"packed.{kind}{suffix}"
    path.write_bytes(PACKERS[suffix](content))
    with small_limits():
        found, counter = read(path, "lines" if kind == "jsonl" else "text")
        assert [d.text for d in found] == (texts if kind == "jsonl" else texts[1:2]) and not counter.rejected


@pytest.mark.parametrize(
    ("content", "cause", "why"),
    [
        (b"ok " * 9 + b"\xff more", Cause.NOT_UTF8, f"byte 0xff at position 27; {CONVERT}"),
        (b"ok " * 9 + b"\xe6\xbc", Cause.NOT_UTF8, f"byte 0xe6 at position 27; {CONVERT}"),
        (b" \n" * 20, Cause.EMPTY, "only white space"),
    ],
)
def test_a_long_text_that_is_wrong_says_where(folder, content, cause, why):
    path = folder / "wrong.txt"
    path.write_bytes(content)
    with small_limits():
        _, counter = read(path, "text")
    assert (counter.rejected, counter.examples[0].why) == ({cause: 1}, why)


def test_a_long_text_in_a_damaged_file_is_left_out(folder):
    path = folder / "cut.txt.gz"
    path.write_bytes(gzip.compress(random.Random(0).randbytes(2000).hex().encode())[:-200])
    with small_limits():
        found, counter = read(path, "text")
    assert not found and counter.rejected == {Cause.BROKEN_FILE: 1}


@pytest.fixture(scope="module")
def tokenizers(texts, tokenizer_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    train_sentencepiece(texts, 300, folder / "unigram.model", "unigram")
    (folder / "tokenizer.bytes").write_bytes(b"")
    whole = tokenizers_library.Tokenizer(tokenizers_library.models.BPE())
    whole.train_from_iterator(texts, tokenizers_library.trainers.BpeTrainer(vocab_size=300, show_progress=False))
    whole.save(str(folder / "tokenizer.json"))
    files = (tokenizer_file, folder / "unigram.model", folder / "tokenizer.bytes", folder / "tokenizer.json")
    return [load_tokenizer(file) for file in files]


@settings(max_examples=300, deadline=None)
@given(chunks=st.lists(st.text(CHARACTERS | st.sampled_from("the of loop"), max_size=12), max_size=8))
def test_ids_of_chunks_are_those_of_the_whole(tokenizers, chunks):
    for tokenizer in tokenizers:
        parts = list(tokenizer.encode_long(iter(chunks)))
        ids = np.concatenate([np.zeros(0, np.int32), *parts])
        assert np.array_equal(ids, tokenizer.encode_batch(["".join(chunks)])[0]), tokenizer.kind


def test_a_document_longer_than_the_index_can_count_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.indexed.MAX_LENGTH", 5)
    with IndexedWriter(tmp_path / "x", 100) as writer:
        assert writer.append_document(np.arange(4).reshape(2, 2)) == 4
        with pytest.raises(DataError, match=r"has 6 tokens, the index allows 5"):
            writer.append_document(np.arange(6).reshape(2, 3))


def test_long_documents_among_others_give_the_same_folder(prepare, tmp_path, texts):
    write_jsonl(tmp_path / "corpus.jsonl", [*texts[:20], "".join(texts[:60]), *texts[60:]])
    options = ("--input", tmp_path / "corpus.jsonl", "--seq-len", 32, "--workers", 1)
    prepare(*options, "--output", tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        for module in (long_documents, readers, documents):
            patch.setattr(module, "LONG_BYTES", 4000)
        patch.setattr(long_documents, "CHUNK_BYTES", 700)
        patch.setattr(long_documents, "KEPT_BYTES", 100)
        prepare(*options, "--output", tmp_path / "chunks")
    names = [path.name for path in sorted((tmp_path / "whole").iterdir())]
    assert filecmp.cmpfiles(tmp_path / "whole", tmp_path / "chunks", names, shallow=False)[0] == names


PEAK = """
import sys
from pathlib import Path
from pretrain.cli import main
sys.argv = ["loopmdm", "prepare", "--workers", "1", "--validation-fraction", "0", "--seq-len", "128", *sys.argv[1:]]
status = main()
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_memory_does_not_grow_with_the_document(tmp_path, tokenizer_file, kind):
    peaks = []
    for megabytes in (20, 60):
        text = "".join(f"the loop of stream {i % 1000} and wood\n" for i in range(megabytes * 32_000))
        path = tmp_path / f"big.{kind}"
        path.write_text(json.dumps({"text": text}) if kind == "jsonl" else text, encoding="utf-8")
        words = ["--input", path, "--tokenizer", tokenizer_file, "--output", tmp_path / f"out-{megabytes}"]
        done = run([sys.executable, "-c", PEAK, *words], PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stdout + done.stderr
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 8, peaks  # MiB, for 40 MB more of text
