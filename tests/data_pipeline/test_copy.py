"""Prepared folders in object stores: copies are whole or have no manifest, whenever the command is killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import make_texts, write_jsonl
from object_store import endpoint, store  # noqa: F401 (fixtures)

from data_pipeline.copy_folder import UNFINISHED_NAME, StoredFolder, copy_folder
from data_pipeline.errors import DataError
from data_pipeline.verify import verify

pytestmark = pytest.mark.slow
URL = "s3://corpus/data"
KILLS = 3


def command(source, target):
    return [sys.executable, "-m", "pretrain.cli", "copy", str(source), str(target)]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def data(prepare, jsonl, tmp_path):
    """A prepared folder of several shards."""
    output = tmp_path / "prepared"
    options = ("--tokenizer", "bytes", "--seq-len", 32, "--shard-size", "20KB", "--duplicates", "exact")
    assert prepare("--input", jsonl, "--output", output, *options, train=True).code == 0
    return output


def test_there_and_back(data, store, tmp_path):  # noqa: F811
    assert "files written" in copy_folder(str(data), f"{URL}/")
    assert copy_folder(str(data), URL) == f"{URL}: already there"
    assert set(StoredFolder(URL).sizes()) == set(contents(data))
    back = tmp_path / "deep" / "back"
    assert "all as in the manifest" in copy_folder(URL, f"file://{back}")
    assert contents(back) == contents(data)
    verify(back)
    assert copy_folder(URL, str(back)) == f"{back}: already there"
    assert [path.name for path in back.parent.iterdir()] == ["back"]


@pytest.mark.end_to_end
@pytest.mark.timeout(400)
def test_kills_leave_no_manifest_and_are_made_up_for(data, store, tmp_path):  # noqa: F811
    sizes = {name: len(content) for name, content in contents(data).items()}

    def is_whole(target):
        found = StoredFolder(target).sizes() if target == URL else {p.name: p.stat().st_size for p in target.iterdir()}
        return found == sizes

    back, rng = tmp_path / "back", random.Random(0)
    for source, target in ((data, URL), (URL, back)):
        begin = time.monotonic()
        subprocess.run(command(source, f"{target}.undisturbed"), check=True, timeout=120)
        duration, kills = time.monotonic() - begin, 0
        while kills < KILLS:
            process = subprocess.Popen(command(source, target), start_new_session=True)
            try:
                process.wait(timeout=rng.uniform(0.5, 1.0) * duration)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)
            kills += process.returncode == -signal.SIGKILL
            if target == URL and "manifest.json" in StoredFolder(URL).sizes():
                assert sizes.items() <= StoredFolder(URL).sizes().items()
                store.empty("data")
            elif target == back and back.exists():
                assert is_whole(back)
                shutil.rmtree(back)
        subprocess.run(command(source, target), check=True, timeout=120)
        assert is_whole(target)
    assert contents(back) == contents(data)


@pytest.mark.parametrize("at", ["_fetch", "move_into_place"])
def test_a_copy_that_was_stopped_anywhere_goes_on(data, store, tmp_path, monkeypatch, at):  # noqa: F811
    def stop(*_):
        raise KeyboardInterrupt

    copy_folder(str(data), URL)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"data_pipeline.copy_folder.{at}", stop)
        copy_folder(URL, str(tmp_path / "back"))
    (tmp_path / "back.copying" / f"{UNFINISHED_NAME}.partial-1").write_text("{")
    copy_folder(URL, str(tmp_path / "back"))
    assert contents(tmp_path / "back") == contents(data)


def test_an_unfinished_copy_goes_on(data, store, tmp_path, monkeypatch):  # noqa: F811
    names = sorted(contents(data).keys() - {"manifest.json"})
    calls = []

    def interrupted(method, at):
        def call(folder, *args):
            calls.append(args)
            if len(calls) == at:
                raise KeyboardInterrupt
            return method(folder, *args)

        return call

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoredFolder, "upload", interrupted(StoredFolder.upload, 4))
        copy_folder(str(data), URL)
    assert UNFINISHED_NAME in StoredFolder(URL).sizes()
    with pytest.raises(DataError, match="unfinished copy; run the command that writes it again"):
        copy_folder(URL, str(tmp_path / "back"))
    assert copy_folder(str(data), URL) == f"{URL}: {len(names) - 3} of {len(names)} files written"
    calls.clear()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoredFolder, "blocks", interrupted(StoredFolder.blocks, 4))
        copy_folder(URL, str(tmp_path / "back"))
    assert not (tmp_path / "back").exists()
    copy_folder(URL, str(tmp_path / "back"))
    assert contents(tmp_path / "back") == contents(data)


def test_what_is_there_is_not_replaced(data, store, prepare, tmp_path):  # noqa: F811
    other = tmp_path / "other"
    texts = write_jsonl(tmp_path / "more.jsonl", make_texts(300, seed=1))
    assert prepare("--input", texts, "--output", other, "--tokenizer", "bytes", "--seq-len", 32, train=True).code == 0
    copy_folder(str(data), URL)
    with pytest.raises(DataError, match="s3://corpus/data has other data"):
        copy_folder(str(other), URL)
    with pytest.raises(DataError, match="other has something else"):
        copy_folder(URL, str(other))
    store.put("texts/a.txt", b"text")
    with pytest.raises(DataError, match=r"s3://corpus/texts is not empty: it has a.txt"):
        copy_folder(str(data), "s3://corpus/texts")
    (tmp_path / "back.copying").mkdir()
    (tmp_path / "back.copying" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"back\.copying has something else"):
        copy_folder(URL, str(tmp_path / "back"))


def test_damage_is_found(data, store, tmp_path):  # noqa: F811
    copy_folder(str(data), URL)
    content = bytearray((data / "train-00000.bin").read_bytes())
    content[100] ^= 1
    store.put("data/train-00000.bin", bytes(content))
    with pytest.raises(DataError, match=r"s3://corpus/data/train-00000.bin is not what the manifest says"):
        copy_folder(URL, str(tmp_path / "back"))
    store.put("data/train-00000.bin", b"short")
    assert "1 of " in copy_folder(str(data), URL)
    copy_folder(URL, str(tmp_path / "back"))
    assert contents(tmp_path / "back") == contents(data)


def test_what_cannot_be_meant(data, store, tmp_path):  # noqa: F811
    for words, problem in (
        (
            (data, tmp_path / "b"),
            f"cp -r {data} {tmp_path / 'b'} && loopmdm verify {tmp_path / 'b'}; loopmdm copy is for",
        ),
        (("s3://corpus/a", "s3://corpus/b"), "are both URLs; copy to a folder, and from there"),
        (("s3://corpus/none", tmp_path / "b"), "s3://corpus/none holds no prepared data"),
        (("s3://nobucket/none", tmp_path / "b"), "nobucket"),
        ((tmp_path / "none", URL), "no prepared data folder at"),
        ((data, "s3://"), "s3://: names no bucket or host"),
        ((data, "nothing://x/y"), "fsspec does not know this protocol"),
    ):
        with pytest.raises(DataError, match=problem):
            copy_folder(*map(str, words))
    foreign = json.loads((data / "manifest.json").read_text())
    foreign["splits"]["train"]["files"]["../evil"] = {"bytes": 1, "sha256": ""}
    store.put("foreign/manifest.json", json.dumps(foreign).encode())
    with pytest.raises(DataError, match=r"'../evil', which is not the name of a file in its folder"):
        copy_folder("s3://corpus/foreign", str(tmp_path / "b"))
    assert not list(tmp_path.glob("b*"))
