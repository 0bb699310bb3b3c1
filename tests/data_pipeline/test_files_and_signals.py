"""Files that are complete or absent, locks, and what a stop signal does."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from data_pipeline.atomic_files import locked, move_into_place, write_atomic, write_output
from data_pipeline.errors import DataError
from data_pipeline.exit_status import exit_status
from data_pipeline.stop_signals import Stopped, defer_stop_signals, raise_stopped, signal_handler
from tests.launching import ROOT


def test_a_write_creates_folders_replaces_and_sets_the_time(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomic(path, "é\n")
    write_atomic(path, b"second", modified_ns=10**18)
    assert path.read_bytes() == b"second" and path.stat().st_mtime_ns == 10**18
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_write_to_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/file'"):
        write_atomic(tmp_path / "file", "new")


def test_an_output_into_a_pipe_or_a_device_does_not_replace_it(tmp_path):
    """As `--html /dev/null`, which a file of that name would break for all programs of the machine."""
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_output("--html", pipe, "é")
    reader.join(timeout=10)
    assert pipe.is_fifo() and read == ["é".encode()]
    with pytest.raises(DataError, match=r"--html .*: cannot be written \(Is a directory\)"):
        write_output("--html", tmp_path, "page")


def test_an_output_to_a_redirected_console_keeps_what_was_printed(tmp_path):
    write = "a.write_output('--json', a.STREAMS[0], '{}')"
    code = f"import data_pipeline.atomic_files as a; print('table', flush=True); {write}; print('end')"
    with (tmp_path / "log").open("ab") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, cwd=ROOT, check=True, timeout=60)
    assert (tmp_path / "log").read_text() == "table\n{}end\n"


def test_an_output_through_a_link_replaces_the_file_behind_it(tmp_path):
    for name in ("there", "nowhere"):
        (tmp_path / f"to_{name}").symlink_to(tmp_path / "other" / name)
    write_output("--html", tmp_path / "other" / "there", "old")
    for name in ("there", "nowhere"):
        write_output("--html", tmp_path / f"to_{name}", "new")
        assert (tmp_path / f"to_{name}").is_symlink() and (tmp_path / "other" / name).read_text() == "new"


def test_a_folder_is_not_moved_over_one_with_content(tmp_path):
    for name in ("partial", "final"):
        write_atomic(tmp_path / name / "file", name)
    with pytest.raises(OSError, match="not empty"):
        move_into_place(tmp_path / "partial", tmp_path / "final")
    (tmp_path / "final" / "file").unlink()
    move_into_place(tmp_path / "partial", tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "partial" and not (tmp_path / "partial").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_is_held_once_and_released(tmp_path, kind):
    path = tmp_path / "file" if kind == "file" else tmp_path
    with locked(path, DataError("outer")), pytest.raises(DataError, match="inner"), locked(path, DataError("inner")):
        pass
    with locked(path, DataError("again")):
        pass


@pytest.fixture
def handlers():
    """Handlers of the stop signals before, to compare with those after."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield lambda: [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_stop_signal_raises_once(handlers):
    before = handlers()
    with pytest.raises(Stopped, match="SIGTERM") as raised, raise_stopped():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)  # must not interrupt the clean-up
    assert raised.value.signal_number == signal.SIGTERM and handlers() == before


def test_deferred_signals_arrive_at_the_end(handlers):
    before, done = handlers(), []
    with raise_stopped(), pytest.raises(Stopped, match="SIGHUP"), defer_stop_signals():
        signal.raise_signal(signal.SIGHUP)
        done.append("step")
    assert done == ["step"] and handlers() == before


def test_ignored_signals_stay_ignored_unless_asked(handlers):
    seen = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signal_handler(lambda number, _: seen.append(number)):
        signal.raise_signal(signal.SIGHUP)
    with signal_handler(lambda number, _: seen.append(number), replace_ignored=True):
        signal.raise_signal(signal.SIGHUP)
    assert seen == [signal.SIGHUP] and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_exit_statuses(capsys, handlers):
    def fail():
        raise DataError("no such thing")

    calls = []
    assert exit_status(lambda: None, lambda: calls.append("after")) == 0 and not calls
    assert exit_status(fail, lambda: calls.append("after")) == 2 and calls == ["after"]
    assert exit_status(lambda: signal.raise_signal(signal.SIGTERM)) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "error: no such thing\nstopped by SIGTERM\n"
