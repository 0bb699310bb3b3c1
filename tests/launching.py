"""Starting the project's own commands from tests: free ports, one thread per rank, always a timeout."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def environment() -> dict[str, str]:
    """This process's environment without traces of a launcher, one thread per process."""
    left_out = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    return kept | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}


def free_port() -> int:
    """A port that nobody listens on now, below those that the system gives to connections: none of them takes it before its use."""
    lowest_of_connections = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(10_000, max(lowest_of_connections, 20_000))
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port


def run(
    command: Sequence[str | Path], timeout: int = 240, cwd: Path = ROOT, **extra: str
) -> subprocess.CompletedProcess:
    """Run a command to its end and capture what it prints."""
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=cwd, env=environment() | extra, capture_output=True, text=True, timeout=timeout, check=False
    )


def training_command(*words: str | Path, ranks: int = 1) -> list[str | Path]:
    """`python pretrain/main.py ...`, or the same under torchrun."""
    script = ["pretrain/main.py", *words]
    if ranks == 1:
        return [sys.executable, *script]
    return [BIN / "torchrun", f"--nproc-per-node={ranks}", f"--master-port={free_port()}", *script]


def train(*words: str | Path, ranks: int = 1, timeout: int = 240) -> subprocess.CompletedProcess:
    """Train to the end and fail with the output when it did not end well."""
    done = run(training_command(*words, ranks=ranks), timeout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done


def shape_of(words: Sequence[str]) -> list[str]:
    """The overrides that divide the ranks, as a key to sort jobs by.

    Ranks that go on to a job of another shape keep the process groups of the one before, and three threads of gloo for each group.
    """
    return sorted(word for word in words if word.startswith(("parallel.tensor=", "parallel.pipeline=")))


def metrics(run_folder: Path) -> list[dict]:
    """Training records of metrics.jsonl."""
    return [record for record in records(run_folder) if "loss" in record]


def records(run_folder: Path) -> list[dict]:
    """All lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
