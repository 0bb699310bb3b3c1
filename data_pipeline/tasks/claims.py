"""Claims of processes on tasks: lock files that say who is at work, kept fresh by a thread.

Claims save double work and guard what is removed; no result depends on them. They are lock files of the library flufl.lock,
which are safe on NFS because they use hard links. A claim whose process has ended, or that was not refreshed for `LIFETIME`
seconds, is taken over.
"""

import errno
import os
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Self

import psutil
from flufl.lock import Lock, LockError, NotLockedError, TimeOutError

# Seconds; long enough for a network file system that does not answer for a while.
LIFETIME = 120.0
REFRESHES_PER_LIFETIME = 6
# What link(2) reports on file systems without hard links.
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)
SEPARATOR = "|"


@dataclass(frozen=True)
class Owner:
    """The process that a lock file names.

    Attributes:
        machine: its machine, see `this_machine`.
        content: what the lock file holds.
        expires: time until which the claim is valid, in seconds since 1970.
    """

    machine: str
    pid: int
    content: str
    expires: float

    @property
    def host(self) -> str:
        """Name of its machine."""
        return self.machine.partition("~")[0]

    @property
    def seconds_left(self) -> float:
        """Time until the claim expires, if its process does not refresh it."""
        return self.expires - time.time()

    @property
    def is_gone(self) -> bool:
        """Whether the claim has expired, or the process was one of this machine and has ended."""
        return self.seconds_left < 0 or (self.machine == this_machine() and not _is_running(self.pid))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "another process"


@cache
def this_machine() -> str:
    """Host name, boot and process namespace, in the characters of file names: where a process id has one meaning.

    Host names alone do not tell: containers share them, and some machines are all called localhost.
    """
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
    identity = []
    with suppress(OSError):
        identity.append(Path("/proc/sys/kernel/random/boot_id").read_text()[:8])
    with suppress(OSError):
        identity.append(re.sub(r"\D", "", os.readlink("/proc/self/ns/pid")))  # noqa: PTH115 (not a path)
    return "~".join([host, *identity])


def process_name() -> str:
    """A name of this process that no other process has now, on any machine."""
    return f"{this_machine()}-{os.getpid()}"


class Claims:
    """The claims that this process holds, in one folder; a context manager that keeps them fresh and gives them back.

    Attributes:
        taken_over: names whose claims were those of processes that are gone.
    """

    def __init__(self, folder: Path) -> None:
        self.taken_over: set[str] = set()
        self._folder = folder
        self._lifetime = LIFETIME
        self._held: dict[str, Lock] = {}
        self._mutex = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, name="claims", daemon=True)
        self._has_locks = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)

    def take(self, name: str) -> Owner | None:
        """Claim `name`; returns None when this process holds it now, else the process that does.

        Raises:
            OSError: the lock file cannot be written.
        """
        path = self._path(name)
        if owner := _owner(path):
            if not owner.is_gone:
                return owner
            _break(path, owner)
            self.taken_over.add(name)
        lock = _MachineLock(str(path), max(1, int(self._lifetime)), SEPARATOR)
        try:
            lock.lock(timeout=0)
        except TimeOutError:
            return _owner(path) or Owner("", 0, "", 0.0)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            self._say_no_locks(f"is on a file system without hard links ({error.strerror})")
            return None
        except UnicodeEncodeError:
            Path(lock.claimfile).unlink(missing_ok=True)
            self._say_no_locks("has a name that is not text")
            return None
        self._extend(lock)
        with self._mutex:
            self._held[name] = lock
        return None

    def release(self, name: str) -> None:
        """Give a claim back. Nothing happens when another process has taken it over."""
        with self._mutex:
            lock = self._held.pop(name, None)
            if lock:
                with suppress(OSError, LockError):
                    lock.unlock(unconditionally=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.lock"

    def _keep_fresh(self) -> None:
        while not self._is_over.wait(self._lifetime / REFRESHES_PER_LIFETIME):
            for name in list(self._held):
                with self._mutex:
                    if name in self._held:
                        self._refresh(name)

    def _refresh(self, name: str) -> None:
        try:
            self._held[name].refresh()
            self._extend(self._held[name])
        except NotLockedError:  # taken over while this process was stopped: its results are still good
            del self._held[name]
        except OSError:
            pass  # tried again

    def _extend(self, lock: Lock) -> None:
        """Set when the claim expires: the library does it in local time, which is ambiguous when the clocks go back."""
        expires = time.time() + self._lifetime
        with suppress(FileNotFoundError):
            os.utime(lock.claimfile, (expires, expires))

    def _say_no_locks(self, why: str) -> None:
        if self._has_locks:
            folder = os.fsencode(self._folder).decode("utf-8", "backslashreplace")
            print(
                f"note: {folder} {why}, so processes cannot see what others are doing and may do the same tasks; the result "
                "is the same",
                file=sys.stderr,
            )
        self._has_locks = False


class _MachineLock(Lock):
    """A lock that names the machine such that a process id has one meaning on it."""

    @property
    def hostname(self) -> str:
        return this_machine()


def _owner(path: Path) -> Owner | None:
    """The process that a lock file names, None if there is no such file."""
    try:
        content = os.fsdecode(path.read_bytes())
        expires = path.stat().st_mtime
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ESTALE:
            return None
        raise
    try:
        _, machine, pid, _ = content.rsplit(SEPARATOR, 3)
        return Owner(machine, int(pid), content, expires)
    except ValueError:
        return Owner("", 0, content, expires)


def _break(path: Path, owner: Owner) -> None:
    """Remove a lock file of a process that is gone, and only that one: another process may have replaced it meanwhile."""
    aside = path.with_name(f"{path.name}.broken-{token_hex(8)}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if os.fsdecode(aside.read_bytes()) == owner.content:
        claim = owner.content.rpartition("/")[2]
        (path.parent / claim).unlink(missing_ok=True)
    else:
        with suppress(FileExistsError):
            path.hardlink_to(aside)
    aside.unlink()


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
