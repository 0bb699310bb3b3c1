"""Remote inputs give the bytes of local ones, also after a kill, and a store that fails is told from broken content."""

import argparse
import bz2
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pytest
from conftest import make_texts, write_jsonl
from object_store import endpoint, store  # noqa: F401 (fixtures)
from pyarrow import parquet

from data_pipeline import prepare as prepare_verb
from data_pipeline import verify as verify_verb
from data_pipeline.errors import DataError, ReadError
from data_pipeline.filters import ActiveFilters
from data_pipeline.provenance import SOURCES_NAME
from data_pipeline.readers import remote
from data_pipeline.readers.inputs import resolve_input
from data_pipeline.rejects import RecordCounter
from data_pipeline.tasks.addresses import PROBE_BYTES
from data_pipeline.tasks.reading import task_documents
from data_pipeline.tasks.task import cut_into_tasks, require_unmodified
from data_pipeline.typed_words import path_of

pytestmark = pytest.mark.slow
KILLS = 4


@pytest.fixture
def folder(texts, tmp_path):
    """Files of all kinds: some cut into several tasks, some too long for memory, with lines that are broken."""
    root = tmp_path / "corpus"
    (root / "deep" / "er").mkdir(parents=True)
    write_jsonl(root / "big.jsonl", [f"{text} {i}" for i in range(40) for text in texts])
    packed = write_jsonl(tmp_path / "packed.jsonl", make_texts(150, seed=1)).read_bytes() + b'{"text": \n'
    (root / "a.jsonl.gz").write_bytes(gzip.compress(packed[:9999]) + gzip.compress(packed[9999:]))
    (root / "b.jsonl.bz2").write_bytes(bz2.compress(packed))
    with pyarrow.CompressedOutputStream(str(root / "deep" / "c.jsonl.zst"), "zstd") as file:
        file.write(packed)
    rows = [f"{text} row {i}" for i in range(12) for text in texts]
    parquet.write_table(pyarrow.table({"text": rows}), root / "p.parquet", row_group_size=500, compression="none")
    (root / "deep" / "er" / "long.txt").write_text(" ".join(random.Random(0).choices(texts, k=18000)), "utf-8")
    (root / "notes [1].md").write_text("\n".join(texts[:3]), "utf-8")
    (root / "empty.txt").write_bytes(b"")
    for unread in ("README.md", ".hidden.txt", "deep/SHA256SUMS"):
        (root / unread).write_text("not data")
    return root


def output_bytes(output):
    """The files of a prepared folder, without the names and versions of its inputs."""
    named = ("manifest.json", SOURCES_NAME)
    files = {path.name: path.read_bytes() for path in output.iterdir() if path.name not in named}
    manifest = json.loads((output / "manifest.json").read_text())
    del manifest["provenance"][SOURCES_NAME]
    for info in [*manifest["inputs"], *manifest["against"]]:
        info.pop("input"), info.pop("versions", None)
    sources = parquet.read_table(output / SOURCES_NAME).to_pylist()
    names = [(Path(source["name"]).name, source["kind"]) for source in sources]
    return files | {"manifest.json": manifest, SOURCES_NAME: names}


@pytest.mark.parametrize("pattern", ["", "/**/*.jsonl*", "/*"])
def test_remote_inputs_give_the_bytes_of_local_ones(prepare, store, folder, tmp_path, pattern):  # noqa: F811
    url = store.upload(folder, "data")
    store.put("data/deep/", b"")  # how consoles mark a folder
    for given, output in ((f"{folder}{pattern}", "local"), (f"{url}{pattern}", "remote")):
        options = ("--max-rejected", 0.5, "--accept-broken-files", "--vocab-size", 400)
        result = prepare("--input", given, "--output", tmp_path / output, *options, train=True)
        assert result.code == 0, result.err
    assert output_bytes(tmp_path / "remote") == output_bytes(tmp_path / "local")
    assert len(cut_into_tasks([resolve_input(f"{url}{pattern}")])) >= 4


def test_texts_to_compare_with_may_be_remote(prepare, store, texts, tmp_path):  # noqa: F811
    (tmp_path / "other").mkdir()
    other = write_jsonl(tmp_path / "other" / "b.jsonl", texts[:20])
    url = f"{store.upload(other.parent, 'other')}/b.jsonl"
    corpus = write_jsonl(tmp_path / "a.jsonl", texts)
    for given, output in ((other, "local"), (url, "remote")):
        options = ("--duplicates", "exact", "--against", given, "--tokenizer", "bytes", "--seq-len", 32)
        result = prepare("--input", corpus, "--output", tmp_path / output, *options, train=True)
        assert result.code == 0, result.err
    found = output_bytes(tmp_path / "remote")
    assert found == output_bytes(tmp_path / "local")
    assert found["manifest.json"]["inputs"][0]["rejected"]["duplicate"] >= 20
    again = prepare("--input", corpus, "--output", tmp_path / "remote", *options, train=True)
    assert again.code == 0 and "already prepared" in again.out
    store.put("other/b.jsonl", other.read_bytes() + b'{"text": "more"}\n')
    again = prepare("--input", corpus, "--output", tmp_path / "remote", *options, train=True)
    assert again.code == 2 and "has changed since" in again.err


def command(url, output, tokenizer):
    words = ["--input", url, "--output", output, "--tokenizer", tokenizer, "--seq-len", 32, "--workers", 2]
    return [sys.executable, "-m", "data_pipeline.prepare", *map(str, words)]


@pytest.mark.end_to_end
@pytest.mark.timeout(480)
def test_kills_change_nothing(store, folder, tokenizer_file, tmp_path):  # noqa: F811
    (folder / "a.jsonl.gz").unlink()
    (folder / "b.jsonl.bz2").unlink()
    url = store.upload(folder, "data")
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "data"
    begin = time.monotonic()
    subprocess.run(command(url, undisturbed, tokenizer_file), check=True, capture_output=True, timeout=120)
    duration = time.monotonic() - begin
    rng, kills = random.Random(0), 0
    while kills < KILLS:
        process = subprocess.Popen(
            command(url, output, tokenizer_file), stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(timeout=rng.uniform(0.3, 1.0) * duration)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait(timeout=30)
        if output.exists():  # the tasks that earlier runs finished make a run shorter
            assert output_bytes(output) == output_bytes(undisturbed)
            shutil.rmtree(output)
    subprocess.run(command(url, output, tokenizer_file), check=True, capture_output=True, timeout=120)
    assert output_bytes(output) == output_bytes(undisturbed)


def documents(task):
    return task_documents(task, RecordCounter(), "text", ActiveFilters(()))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_an_object_that_changed_is_refused_by_name(store, several_tasks, suffix, monkeypatch):  # noqa: F811
    def packed(content):
        return gzip.compress(content) if suffix.endswith(".gz") else content

    monkeypatch.setattr(remote, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(remote, "BUFFER_BYTES", 1 << 10)
    content = several_tasks.read_bytes()
    url = store.put(f"x{suffix}", packed(content))
    task = cut_into_tasks([resolve_input(url)])[-1]
    started = documents(task)
    next(started)
    store.put(f"x{suffix}", packed(content[::-1][:-1] + b"\n"))
    for read in (documents(task), started):
        with pytest.raises(DataError, match=rf"{url} was modified while it was read; run the command again"):
            list(read)
    with pytest.raises(DataError, match=url):
        require_unmodified(task)
    store.remove(f"x{suffix}")
    with pytest.raises(ReadError, match=f"cannot read {url}: no such file"):
        list(documents(task))


def test_a_finished_output_is_compared_by_versions(prepare, store, jsonl, tmp_path, monkeypatch):  # noqa: F811
    url = store.put("x.jsonl", jsonl.read_bytes())
    words = ("--input", url, "--output", tmp_path / "data")
    assert prepare(*words).code == 0
    with monkeypatch.context() as patch:
        patch.setattr(remote, "RemoteReader", None)  # nothing is opened
        assert "already prepared" in prepare(*words).out
    store.put("x.jsonl", jsonl.read_bytes() + b"\n")
    assert "has changed since" in prepare(*words).err


MISSING = {
    "s3://nowhere/data": "no such file, folder or bucket",
    "s3://corpus/none.jsonl": "no such file, folder or bucket",
    "s3://corpus/*.jsonl": "matches no file",
    "s3://corp*/x.jsonl": "a pattern cannot stand for a bucket",
    "s3://corpus/kept": "copy its folder here",
    "s3://corpus/x.bin": "the suffix .bin does not say what it holds",
    "foo://x/y": "fsspec does not know this protocol",
    "simplecache::s3://corpus/x.jsonl": "no such file or folder",
}


@pytest.mark.parametrize("url", MISSING)
def test_what_is_not_there_is_told(prepare, store, tmp_path, url):  # noqa: F811
    store.put("kept/state.json", b"{}")
    store.put("x.bin", b"x")
    result = prepare("--input", url, "--output", tmp_path / "data")
    assert result.code == 2 and MISSING[url] in result.err and url.partition("*")[0] in result.err


def test_missing_credentials_are_told(prepare, store, tmp_path, monkeypatch):  # noqa: F811
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    result = prepare("--input", "s3://corpus/x.jsonl", "--output", tmp_path / "data")
    assert result.code == 2 and "no usable credentials" in result.err and "AWS_ACCESS_KEY_ID" in result.err


def test_a_server_that_is_away_is_told(prepare, store, tmp_path, monkeypatch):  # noqa: F811
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    result = prepare("--input", "s3://corpus/x.jsonl", "--output", tmp_path / "data")
    assert result.code == 2 and "127.0.0.1:9" in result.err and "check the network" in result.err


@pytest.mark.parametrize(("url", "module", "package"), [("s3://b/x", "s3fs", "s3fs"), ("gs://b/x", "gcsfs", "gcsfs")])
def test_a_missing_driver_is_named(prepare, tmp_path, monkeypatch, url, module, package):
    for protocol in ("s3", "gs"):  # of packages that were imported before
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    result = prepare("--input", url, "--output", tmp_path / "data")
    assert result.code == 2 and f"pip install {package}" in result.err


def test_a_store_that_fails_in_the_middle_is_not_broken_content(prepare, store, several_tasks, tmp_path, monkeypatch):  # noqa: F811
    import s3fs

    url = store.put("x.jsonl.gz", gzip.compress(several_tasks.read_bytes(), 1))
    words = ("--input", url, "--output", tmp_path / "data")

    real = s3fs.S3File._fetch_range

    def fail(file, start, end):
        if end - start > PROBE_BYTES:
            raise ValueError("the connection was lost")
        return real(file, start, end)

    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3File, "_fetch_range", fail)
        result = prepare(*words)
    assert result.code == 2 and f"cannot read {url}: ValueError: the connection was lost" in result.err
    assert "broken" not in result.err and "all that are finished are kept" in result.err
    assert prepare(*words).code == 0


def test_a_file_url_is_a_path(prepare, jsonl, tmp_path):
    assert prepare("--input", f"file://{jsonl}", "--output", tmp_path / "data").code == 0
    assert resolve_input(f"file://{jsonl.parent}/*.jsonl").files == (jsonl,)


@pytest.mark.parametrize("words", [["--output"], ["--decontaminate"], []])
def test_other_options_refuse_urls(words, capsys):
    parser = argparse.ArgumentParser()
    (prepare_verb if words else verify_verb).add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([*words, "s3://bucket/data"])
    assert "s3://bucket/data: URLs are taken only by --input and --against of" in capsys.readouterr().err


def test_blends_and_configurations_refuse_urls():
    with pytest.raises(ValueError, match="aws s3 sync"):
        path_of("s3://bucket/data")
    assert path_of("file:///data/mine") == Path("/data/mine")
