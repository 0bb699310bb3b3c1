"""Files of checkpoints, written without the system's cache as far as the file system can."""

import errno
import fcntl
import mmap
import os
import random
import zlib
from pathlib import Path

import pytest

from pretrain.checkpoints.writer_process import CHUNK_BYTES, write

PAGE = mmap.PAGESIZE
WRITE, SET = os.write, fcntl.fcntl


@pytest.fixture
def content():
    return random.Random(0).randbytes(CHUNK_BYTES + 3 * PAGE + 5)


def written(path: Path, content: bytes) -> bytes:
    """What `write` makes of a memory with this content; its checksums are compared on the way."""
    memory = os.memfd_create("test")
    WRITE(memory, content)
    parts = [[8, len(content) // 2], [len(content) // 2, len(content)]]
    with path.open("wb") as file:
        checksums = write(memory, file.fileno(), parts)
        assert not is_direct(file.fileno())
    os.close(memory)
    assert checksums == [zlib.crc32(content[begin:end]) for begin, end in parts]
    return path.read_bytes()


def is_direct(file: int) -> bool:
    return bool(SET(file, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.fixture(params=["disk", "memory"])
def path(request, tmp_path):
    """A file on the disk of the tests, and one in a file system in memory."""
    if request.param == "disk":
        yield tmp_path / "file"
        return
    path = Path("/dev/shm") / f"loopmdm-test-{os.getpid()}"
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("size", [17, PAGE - 1, PAGE, PAGE + 1, CHUNK_BYTES, CHUNK_BYTES + 3 * PAGE + 5])
def test_any_size_on_any_file_system(path, content, size):
    assert written(path, content[:size]) == content[:size]


def can_write_directly(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "tried", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_whole_pages_go_past_the_cache(tmp_path, content, monkeypatch):
    if not can_write_directly(tmp_path):
        pytest.skip("the file system of the tests has no O_DIRECT")
    direct = []
    monkeypatch.setattr(
        os, "write", lambda file, data: direct.append((is_direct(file), len(data))) or WRITE(file, data)
    )
    assert written(tmp_path / "file", content) == content
    assert direct == [(True, CHUNK_BYTES), (True, 3 * PAGE), (False, 5)]


def test_a_file_system_that_cannot_do_it_gets_other_writes(tmp_path, content, monkeypatch):
    def refused(file, command, *flags):
        if flags and flags[0] & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return SET(file, command, *flags)

    monkeypatch.setattr(fcntl, "fcntl", refused)
    assert written(tmp_path / "file", content) == content


def test_what_follows_a_write_that_ended_early_is_written_all_the_same(tmp_path, content, monkeypatch):
    if not can_write_directly(tmp_path):
        pytest.skip("the file system of the tests has no O_DIRECT")

    def short(file, data):
        if not is_direct(file) or lengths:
            return WRITE(file, data)
        lengths.append(len(data))
        flags = SET(file, fcntl.F_GETFL)
        SET(file, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        done = WRITE(file, data[:1000])
        SET(file, fcntl.F_SETFL, flags)
        return done

    lengths: list[int] = []
    monkeypatch.setattr(os, "write", short)
    assert written(tmp_path / "file", content) == content and lengths


def test_other_errors_are_those_of_the_save(tmp_path, content, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path / "file", content)
