"""Commands of this project as child processes that end together. Imports no torch."""

import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from data_pipeline.json_text import lines_of
from pretrain.errors import UserError

LAST_LINES = 15
"""Lines of a log that are shown when a command fails."""

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the packages, which child processes import too."""


class Runner(Protocol):
    """Runs `loopmdm WORDS...` to its end and returns the exit status; what it prints is appended to `log`."""

    where: str
    """On what its commands run, and how many at a time: what seconds depend on."""

    def __call__(self, words: Sequence[str], log: Path, slot: int, ranks: int = 1) -> int:
        """`slot`: number of the job, below the number of jobs, which decides its GPUs."""

    def stop(self) -> None:
        """Ask all commands that are running to save and end, and run no further ones."""

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""


class Subprocesses:
    """A `Runner` whose processes share the cores of this machine.

    Args:
        jobs: commands that run at the same time.
        devices: GPUs of this machine by their numbers in CUDA_VISIBLE_DEVICES; `ranks` for each job. Jobs share them only if
            there are too few.
        ranks: of a training, the most processes of a command.
    """

    def __init__(self, jobs: int, devices: Sequence[str], ranks: int) -> None:
        self.where = f"{_devices(len(devices))}, {jobs} at a time"
        self._threads = max(1, len(os.sched_getaffinity(0)) // jobs)
        self._groups = [devices[first : first + ranks] for first in range(0, len(devices) - ranks + 1, ranks)]
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False
        self._lock = threading.Lock()

    def __call__(self, words: Sequence[str], log: Path, slot: int, ranks: int = 1) -> int:
        """See `Runner`."""
        launch = [sys.executable]
        if ranks > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [*launch, "-m", "pretrain.cli", *words]
        if words[0] == "train":
            command = [*launch, "-m", "pretrain.main", *words[1:]]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ loopmdm {' '.join(words)}\n".encode())
            file.flush()
            with self._lock:
                if self._stopping:
                    return 1
                # Ctrl-C reaches this process alone, which asks the children to stop.
                child = subprocess.Popen(
                    command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                    env=self._environment(slot, ranks), start_new_session=True,
                )  # fmt: skip
                self._running.add(child)
            try:
                return child.wait()
            except BaseException:  # a signal in the main thread: end with the child
                child.terminate()
                child.wait()
                raise
            finally:
                with self._lock:
                    self._running.discard(child)

    def stop(self) -> None:
        """See `Runner`."""
        with self._lock:
            self._stopping = True
            for child in self._running:
                child.terminate()

    @property
    def stopping(self) -> bool:
        """See `Runner`."""
        return self._stopping

    def _environment(self, slot: int, ranks: int) -> dict[str, str]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = str(max(1, self._threads // ranks))
        # PYTHONSAFEPATH: a `pretrain.py` in the working folder must not take the place of ours.
        own = {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        }
        if self._groups:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(self._groups[slot % len(self._groups)][:ranks])
        return os.environ | own


def visible_gpus() -> list[str]:
    """Numbers of the GPUs of this machine that may be used; none without nvidia-smi."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in given.split(",") if name]
    return _of_every_gpu("index")


def _of_every_gpu(field: str) -> list[str]:
    """What nvidia-smi says; nothing without it."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return lines_of(listed.stdout)


def _devices(gpus: int) -> str:
    """`2 x NVIDIA H100 80GB HBM3` or `2 cores of AMD EPYC`."""
    if gpus:
        return f"{gpus} x {', '.join(sorted(set(_of_every_gpu('name')))) or 'GPU'}"
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        described = ""
    name = re.search(r"^model name\s*: (.+)$", described, re.MULTILINE)
    return f"{len(os.sched_getaffinity(0))} cores of {name[1].strip() if name else platform.machine()}"


def require_success(status: int, what: str, log: Path) -> None:
    """Raise UserError with the end of the log if a command has failed."""
    if status:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        raise UserError(f"{what}: ended with status {status}; the end of {log}:\n" + "\n".join(lines))
