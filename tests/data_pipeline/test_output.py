"""The output folder: what is noticed before the work, and what a kill or another process can do to it."""

import ctypes
import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_jsonl

from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.errors import DataError
from data_pipeline.manifest import load_manifest


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def refused(prepare, tmp_path):
    """Run a command that must be refused before its work; returns the message."""

    def call(*words):
        result = prepare(*words)
        assert result.code == 2 and result.out == "", result.out
        assert result.err.count("error: ") == 1 and "Traceback" not in result.err
        assert not list(tmp_path.rglob("tokens/0*"))  # no task was begun
        return result.err

    return call


# Readers


def test_a_folder_in_use_is_not_replaced_and_its_rows_stay(prepare, refused, prepared, jsonl):
    dataset = PackedDataset(prepared, "train")
    rows = dataset.rows(np.arange(dataset.num_rows))
    message = refused("--input", jsonl, "--output", prepared, "--overwrite", "--seq-len", 64)
    assert f"{prepared} is in use by process {os.getpid()} on {os.uname().nodename}" in message
    assert "wait until it has ended, or choose another --output" in message
    assert np.array_equal(PackedDataset(prepared, "train").rows(np.arange(dataset.num_rows)), rows)
    del dataset
    assert prepare("--input", jsonl, "--output", prepared, "--overwrite", "--seq-len", 64).code == 0
    assert load_manifest(prepared).seq_len == 64


def test_a_reader_that_comes_during_the_work_keeps_the_folder(prepare, prepared, jsonl, monkeypatch):
    held = []

    def open_late(*args):
        held.append(PackedDataset(prepared, "train"))
        return write_manifest(*args)

    from data_pipeline.manifest import write_manifest

    before = files_of(prepared)
    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.tasks.join.write_manifest", open_late)
        result = prepare("--input", jsonl, "--output", prepared, "--overwrite", "--seq-len", 64)
    assert result.code == 2 and "is in use by process" in result.err and "finished tasks are kept" in result.err
    assert files_of(prepared) == before
    held.clear()
    again = prepare("--input", jsonl, "--output", prepared, "--overwrite", "--seq-len", 64)
    assert again.code == 0 and "1 of them done before" in again.err


def test_a_folder_replaced_between_two_looks_is_noticed(prepared, repack, monkeypatch):
    manifest = load_manifest(prepared)
    repack(prepared, "--seq-len", 16)
    with pytest.raises(DataError, match="was prepared again or repacked while this command started; run it again"):
        PackedDataset(prepared, "train", manifest)
    descriptor = os.open(prepared / manifest.tokenizer.file, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    monkeypatch.setattr("data_pipeline.in_use.PAUSE", 0.01)
    with pytest.raises(DataError, match="is being replaced or repacked; run the command again when that has finished"):
        PackedDataset(prepared, "train")
    os.close(descriptor)
    PackedDataset(prepared, "train")


def test_without_locks_a_folder_can_be_read_and_replaced(prepare, prepared, jsonl, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    dataset = PackedDataset(prepared, "train")
    rows = dataset.rows(np.arange(dataset.num_rows))
    assert prepare("--input", jsonl, "--output", prepared, "--overwrite", "--seq-len", 64).code == 0
    assert np.array_equal(dataset.rows(np.arange(dataset.num_rows)), rows)


# Kills


class Killed(BaseException):
    """Ends the command as SIGKILL would: no handler of the code catches it."""


def no_exchange(*_):
    return False


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_replacement_killed_at_any_rename_is_completed_by_the_next_run(
    prepare, prepared, jsonl, tmp_path, monkeypatch, verify, exchange, moment
):
    words = ("--input", jsonl, "--output", prepared, "--overwrite", "--seq-len", 64)
    assert prepare(*words[:3], tmp_path / "expected", *words[4:]).code == 0
    old, expected = files_of(prepared), files_of(tmp_path / "expected")
    with monkeypatch.context() as patch:
        if not exchange:
            patch.setattr("data_pipeline.replace._exchange", no_exchange)
        if moment == "before":
            patch.setattr("data_pipeline.replace._replace", lambda *_: (_ for _ in ()).throw(Killed))
        elif moment == "between":
            patch.setattr("data_pipeline.replace.move_into_place", lambda *_: (_ for _ in ()).throw(Killed))
        else:
            patch.setattr("data_pipeline.replace.shutil.rmtree", remove_all_but_the_folders_of_a_replacement)
        if moment != "between" or not exchange:
            with pytest.raises(Killed):
                prepare(*words)
    if moment == "between" and not exchange:
        assert not prepared.exists()
        result = verify(prepared)
        assert result.code == 2 and "was interrupted while it replaced it: run that command again" in result.err
    else:
        assert files_of(prepared) == (expected if moment == "after" else old)
    assert prepare(*words).code == 0
    assert files_of(prepared) == expected
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("data")] == ["data"]


def remove_all_but_the_folders_of_a_replacement(path, ignore_errors=False):
    """`shutil.rmtree` until the new folder is in place, where the process dies."""
    if Path(path).name.startswith(("joined", "replaced")) and (Path(path) / "manifest.json").exists():
        raise Killed
    original_rmtree(path, ignore_errors=ignore_errors)


original_rmtree = shutil.rmtree


def test_an_interrupted_replacement_loses_nothing_when_the_next_run_wants_something_else(
    prepare, prepared, jsonl, verify
):
    before = files_of(prepared)
    prepared.rename(prepared.with_name("data.replaced-4711"))  # as versions before left it
    assert "move" in verify(prepared).err and "data.replaced-4711 back to" in verify(prepared).err
    result = prepare("--input", jsonl, "--output", prepared, "--validation-fraction", 0.5)
    assert result.code == 2 and "is already prepared, but with validation_fraction" in result.err
    assert files_of(prepared) == before


def test_a_rename_that_fails_keeps_the_old_folder(prepare, prepared, jsonl, monkeypatch, tmp_path):
    before = files_of(prepared)

    def fail(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.replace._exchange", no_exchange)
        patch.setattr("data_pipeline.replace.move_into_place", fail)
        result = prepare("--input", jsonl, "--output", prepared, "--overwrite", "--seq-len", 64)
    assert result.code == 2 and "cannot move the finished folder to" in result.err and files_of(prepared) == before


def test_two_folders_are_exchanged_in_one_step(tmp_path):
    from data_pipeline.replace import _exchange

    if not hasattr(ctypes.CDLL(None), "renameat2"):
        pytest.skip("this system cannot exchange two folders")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    assert _exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").is_file() and (tmp_path / "b" / "a").is_file()
    assert not _exchange(tmp_path / "a", tmp_path / "missing")


# The output among the inputs


def test_the_output_among_the_inputs(prepare, refused, prepared, jsonl, tmp_path):
    """As a folder, a glob, a file inside it, a link; its work folder; and the folders of other commands."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    shutil.copy(jsonl, corpus / "a.jsonl")
    (tmp_path / "link").symlink_to(corpus)
    inside = corpus / "out"
    for found, output in (
        (corpus, inside),
        (tmp_path / "link", inside),
        (corpus, tmp_path / "link" / "out"),
        (corpus, corpus),
    ):
        assert "lies inside the input" in refused("--input", found, "--output", output)
    for pattern in (f"{corpus}/**", f"{corpus}/*/*.json", f"{tmp_path}/link/**/*", f"{corpus}/**/*.bin"):
        (corpus / "sub").mkdir(exist_ok=True)
        (corpus / "sub" / "b.json").write_text('{"text": "b"}\n')
        (corpus / "sub" / "b.bin").write_text("b")
        assert "also finds the files of" in refused("--input", pattern, "--output", inside), pattern
    for file in (prepared / "manifest.json", prepared / "train-00000.bin"):
        assert "lies inside" in refused("--input", file, jsonl, "--output", prepared, "--overwrite")
        assert "belongs to a prepared folder" in refused("--input", file, "--output", tmp_path / "new")
    (tmp_path / "tokens.txt").symlink_to(prepared / "train-00000.bin")
    assert "lies inside" in refused("--input", tmp_path / "tokens.txt", "--output", prepared, "--overwrite")
    assert "belongs to a prepared folder" in refused("--input", prepared, "--output", tmp_path / "new")
    assert prepare("--input", f"{corpus}/*.jsonl", "--output", inside).code == 0  # finds nothing that is written


def test_the_work_folder_of_a_command_among_the_inputs(prepare, refused, jsonl, tmp_path, monkeypatch):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    shutil.copy(jsonl, corpus / "a.jsonl")
    assert prepare("--input", jsonl, "--output", corpus / "half", "--stage", "tokens").code == 0
    monkeypatch.setattr(Path, "rglob", rglob_but_tokens(Path.rglob))
    for value in (corpus, f"{corpus}/**/*.json*"):
        assert "half.work, the work folder of an unfinished" in refused("--input", value, "--output", tmp_path / "new")


def rglob_but_tokens(rglob):
    """`refused` looks for tasks that were begun; those of the half-finished command were begun by the test."""
    return lambda self, pattern: iter(()) if pattern == "tokens/0*" else rglob(self, pattern)


# Other places that cannot be written


def test_a_mount_point_is_refused_before_the_work(jsonl, tokenizer_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "other").mkdir()
    words = [
        "--input",
        jsonl,
        "--output",
        tmp_path / "out",
        "--tokenizer",
        tokenizer_file,
        "--seq-len",
        "32",
        "--workers",
        "1",
    ]
    script = f'mount --bind "{tmp_path}/other" "{tmp_path}/out" || exit 9; exec "$@"'
    command = [sys.executable, "-m", "data_pipeline.prepare", *map(str, words)]
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True, timeout=30).returncode:
        pytest.skip("mounting is not allowed here")
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "bash", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 9:
        pytest.skip("mounting is not allowed here")
    assert (
        done.returncode == 2 and "is a mount point" in done.stderr and f"such as {tmp_path}/out/prepared" in done.stderr
    )
    assert not (tmp_path / "out.work").exists()


def test_mount_points_with_spaces_and_line_separators_are_found(tmp_path, monkeypatch):
    from data_pipeline import output_checks

    names = ("my\\040d\\303\\241ta", "a\u2028b\u00a0c")
    lines = "".join(f"36 35 98:0 / {tmp_path}/{name} rw,noatime - ext4 /dev/sda rw\n" for name in names).encode()
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda p: lines if str(p) == "/proc/self/mountinfo" else original(p))
    assert output_checks._is_mount_point(tmp_path / "my dáta")
    assert output_checks._is_mount_point(tmp_path / "a\u2028b\u00a0c")
    assert not output_checks._is_mount_point(tmp_path / "my")


def test_outputs_that_cannot_be_replaced(refused, prepare, prepared, jsonl, tmp_path, monkeypatch):
    words = ("--input", jsonl, "--overwrite", "--seq-len", 64, "--output")
    before = files_of(prepared)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        assert f"--output {prepared} cannot be replaced: permission denied" in refused(*words, prepared)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        tmp_path.chmod(0o1777)
        assert ("permission denied" in refused(*words, prepared)) == (os.getuid() != 12345)
        tmp_path.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.chdir(prepared)
        assert "holds the working folder" in refused(*words, ".")
    (prepared / "notes.txt").write_text("mine")
    assert "also holds notes.txt, which --overwrite would remove; move it elsewhere first" in refused(*words, prepared)
    (prepared / "notes.txt").unlink()
    assert f"lies inside {prepared}" in refused(*words, prepared / "inner")
    assert "is the root folder" in refused(*words, "/")
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be followed" in refused(*words, tmp_path / "loop")
    (tmp_path / "mix.yaml").write_text("corpora: []\n")
    assert "is a file; choose another name" in refused(*words, tmp_path / "mix.yaml")
    with pytest.raises(DataError, match=r"mix.yaml is a file; give the folder"):
        load_manifest(tmp_path / "mix.yaml")
    assert "Not a directory" in refused(*words, tmp_path / "mix.yaml" / "out")
    (tmp_path / "new.work").write_text("")
    assert "new.work is a file" in refused(*words, tmp_path / "new")
    assert files_of(prepared) == before


def test_an_output_through_a_link_is_written_where_it_points(prepare, jsonl, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert prepare("--input", jsonl, "--output", tmp_path / "link").code == 0
    assert (tmp_path / "link").is_symlink() and load_manifest(tmp_path / "target")
    assert prepare("--input", jsonl, "--output", tmp_path / "link", "--overwrite", "--seq-len", 64).code == 0
    assert (tmp_path / "link").is_symlink() and load_manifest(tmp_path / "target").seq_len == 64


# The home folder


def test_a_tilde_is_the_home_folder_everywhere(
    prepare, verify, repack, texts, tokenizer_file, tmp_path, monkeypatch, capsys
):
    from data_pipeline.dataset.blend import load_blend
    from pretrain.cli import main

    home = tmp_path / "hóme [1] of me"
    (home / "corpus").mkdir(parents=True)
    (tmp_path / "cwd").mkdir()
    write_jsonl(home / "corpus" / "a.jsonl", texts)
    shutil.copy(tokenizer_file, home / "t.model")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "cwd")
    for number, value in enumerate(("~/corpus", "~/corpus/a.jsonl", "~/corpus/*.jsonl")):
        result = prepare("--input", value, f"--output=~/out{number}", "--tokenizer", "~/t.model")
        assert result.code == 0, result.err
    assert verify("~/out0").code == 0 and repack("~/out0", "--seq-len", 16).code == 0
    (tmp_path / "mix.yaml").write_text('corpora: [{path: "~/out1", weight: 1}, {path: "~/out2", weight: 1}]\n')
    assert [corpus.path for corpus in load_blend(tmp_path / "mix.yaml").corpora] == [home / "out1", home / "out2"]
    assert main(["inspect", "~/out0", "--html", "~/page.html"]) == 0 and (home / "page.html").is_file()
    assert list((tmp_path / "cwd").iterdir()) == []
    capsys.readouterr()
    assert main(["inspect", "~/out0", "--html", "~/t.model/page.html"]) == 2
    assert "t.model/page.html: cannot be written (" in capsys.readouterr().err
    for words in (["prepare", "--input", "x", "--output", "~nobody-here/x"], ["verify", ""]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        message = capsys.readouterr().err
        assert ended.value.code == 2 and (
            "~nobody-here is not the home of a user" in message or "the path is empty" in message
        )


def test_names_that_begin_with_a_tilde(prepare, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("~", "~.txt", "plain.txt"):
        Path(name).write_text(f"the file {name}")
    words = ("--validation-fraction", 0, "--seq-len", 2, "--as", "text")
    for value, number in (("./~", 1), ("./~.txt", 1), ("./~*", 2)):
        output = f"./~ of {number} {len(value)}"
        assert prepare("--input", value, "--output", output, *words).code == 0
        assert load_manifest(tmp_path / output).inputs[0].documents == number
    for value, why in (
        ("~.txt", "~.txt is not the home of a user; write the path out, or ./~.txt for the file of this name"),
        ("~", f"~: is the home folder, and there is a file of this name here; write ./~ or {tmp_path / 'home'}"),
    ):
        with pytest.raises(SystemExit):
            prepare("--input", value, "--output", "out", *words)
        assert why in capsys.readouterr().err
