"""Who does a task: one process at a time, and another one when the first is gone."""

import errno
import os
import subprocess
import sys
import time

import pytest
from flufl.lock import Lock

from data_pipeline.tasks import claims as claims_module
from data_pipeline.tasks.claims import Claims, this_machine
from data_pipeline.tasks.work import Work, open_work


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "claims").mkdir()
    return tmp_path / "claims"


def claimed_by(folder, name, machine, pid, seconds=60):
    """What a process that claimed `name` leaves."""
    path = folder / f"{name}.lock"
    claim = folder / f"{name}.lock|{machine}|{pid}|123"
    claim.write_text(str(claim))
    os.utime(claim, (time.time() + seconds, time.time() + seconds))
    path.hardlink_to(claim)


@pytest.fixture(scope="module")
def ended():
    """The number of a process that has ended."""
    return subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("machine", "is_running", "seconds", "is_taken"),
    [
        ("here", True, 60, False),
        ("here", True, -1, True),
        ("here", False, 60, True),
        ("node-b~1~2", False, 60, False),  # its process numbers mean nothing here
        ("node-b~1~2", False, -1, True),
    ],
)
def test_a_claim_is_taken_over_when_its_process_is_gone(folder, ended, machine, is_running, seconds, is_taken):
    machine = this_machine() if machine == "here" else machine
    claimed_by(folder, "a", machine, os.getppid() if is_running else int(ended), seconds)
    with Claims(folder) as claims:
        owner = claims.take("a")
        assert (owner is None) == is_taken
        if owner:
            assert owner.host == machine.split("~")[0] and str(owner.pid) in str(owner)
        else:
            assert len(list(folder.iterdir())) == 2  # the old claim is gone
    assert (folder / "a.lock").exists() != is_taken


def test_machines_of_one_name_are_told_apart(monkeypatch):
    """By the boot and the namespace: containers have process numbers of their own."""
    name = this_machine()
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[4711]")
    assert this_machine.__wrapped__() != name


def test_claims_are_kept_fresh_and_given_back(folder, monkeypatch):
    monkeypatch.setattr(claims_module, "LIFETIME", 3.0)
    with Claims(folder) as claims, Claims(folder) as others:
        assert claims.take("a") is None and claims.take("b") is None
        assert others.take("a").pid == os.getpid()
        claims.release("b")
        assert others.take("b") is None
        time.sleep(3.5)
        assert others.take("a") is not None
    assert list(folder.iterdir()) == []


def test_a_claim_that_was_taken_over_is_lost_quietly(folder, monkeypatch):
    monkeypatch.setattr(claims_module, "LIFETIME", 0.6)
    monkeypatch.setattr(Claims, "_keep_fresh", lambda self: None)
    with Claims(folder) as claims:
        assert claims.take("a") is None
        time.sleep(0.7)
        with Claims(folder) as others:
            assert others.take("a") is None
            content = (folder / "a.lock").read_text()
            claims._refresh("a")
            claims.release("a")
            assert (folder / "a.lock").read_text() == content
            others._refresh("a")
            assert "a" in others._held


def test_a_lock_that_another_process_replaced_is_put_back(folder, ended):
    claimed_by(folder, "a", this_machine(), int(ended))
    owner = claims_module._owner(folder / "a.lock")
    for path in folder.iterdir():
        path.unlink()
    claimed_by(folder, "a", "node-b", 1)
    content = (folder / "a.lock").read_text()
    claims_module._break(folder / "a.lock", owner)
    assert (folder / "a.lock").read_text() == content
    assert sorted(path.name for path in folder.iterdir()) == ["a.lock", "a.lock|node-b|1|123"]


def test_a_file_system_without_hard_links_is_mentioned_once(folder, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with Claims(folder) as claims, Claims(folder) as others:
        assert [claims.take("a"), claims.take("b"), others.take("a")] == [None, None, None]
        claims.release("a")
    assert capsys.readouterr().err.count("without hard links (Operation not permitted)") == 2
    assert list(folder.iterdir()) == []


def test_a_folder_with_a_name_that_is_not_text(folder, capsys):
    odd = folder / os.fsdecode(b"\xff")
    odd.mkdir()
    with Claims(odd) as claims:
        assert claims.take("a") is None
    assert "has a name that is not text" in capsys.readouterr().err
    assert list(odd.iterdir()) == []


def test_the_clocks_going_back_do_not_matter(folder, monkeypatch):
    """The library computes in local time, which is ambiguous in the hour after they went back."""
    monkeypatch.setattr(Lock, "_touch", lambda self, filename=None: os.utime(filename or self.claimfile, (0, 0)))
    with Claims(folder) as claims, Claims(folder) as others:
        assert claims.take("a") is None
        assert others.take("a") is not None
        claims._refresh("a")
        assert others.take("a") is not None


def test_a_second_process_is_told_who_is_at_work(tmp_path, ended):
    with open_work(tmp_path / "data", "all") as work:
        assert isinstance(work, Work)
        with (
            pytest.raises(Exception, match="another process is preparing") as refused,
            open_work(tmp_path / "data", "start"),
        ):
            pass
        assert f"process {os.getpid()} on " in str(refused.value)
        assert f"--stage all, since {time.strftime('%Y-%m-%d')}" in str(refused.value)
        with open_work(tmp_path / "data", "tokens"):
            pass
        assert work.folder.is_dir()
    assert not work.folder.exists()
    with open_work(tmp_path / "data", "join") as work:
        assert work.folder.is_dir()
