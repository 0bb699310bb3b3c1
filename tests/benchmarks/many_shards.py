"""Join, verify, inspect and read a corpus of many small tasks with few file descriptors, and print the times.

    python tests/benchmarks/many_shards.py [--tasks 20000] [--descriptors 256] [FOLDER]

Each task is a small input file, and each becomes a shard of its own. Nothing is flushed to the disk while the tasks are done,
which is not what is measured.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIRST_BATCH = """
import sys, time
begin = time.perf_counter()
import numpy as np
from pathlib import Path
from data_pipeline.dataset.blend import load_blend
from data_pipeline.dataset.samples import Samples
blend = load_blend(Path(sys.argv[1]))
blend.check(64)
samples = Samples.of(blend, 0)
rows, ids = samples.rows(np.arange(64)), samples.document_ids(np.arange(64))
import os, resource
print(f"{time.perf_counter() - begin:.2f} s, {len(os.listdir('/proc/self/fd'))} descriptors, "
      f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
"""


def do_tasks(folder: Path, tasks: int) -> list[str]:
    """Tokenize `tasks` small files; returns the words of the command that joins them."""
    from data_pipeline import prepare

    os.fsync = lambda descriptor: None
    (folder / "inputs").mkdir(parents=True)
    for i in range(tasks):
        text = f"file number {i} of many small ones, " * (1 + i % 7)
        (folder / "inputs" / f"{i:06}.txt").write_text(text)
    inputs = [str(path) for path in sorted((folder / "inputs").iterdir())]
    words = ["--output", str(folder / "data"), "--tokenizer", "bytes", "--seq-len", "64", "--shard-size", "1"]
    words += ["--workers", "2", "--input", *inputs]
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    assert prepare.run(parser.parse_args([*words, "--stage", "tokens"])) == 0
    return words


def timed(name: str, command: list[str], descriptors: int) -> None:
    """Run a command with a limit of open files, and print how long it took."""
    begin = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors)),
    )  # fmt: skip
    last = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""])[-1]
    print(f"{name}: {time.perf_counter() - begin:.1f} s, status {done.returncode}: {last[:150]}", flush=True)


def main() -> None:
    """Make the tasks, unless the folder has them, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--descriptors", type=int, default=256)
    parser.add_argument("folder", type=Path, nargs="?")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    begin = time.perf_counter()
    words = do_tasks(folder, arguments.tasks)
    print(f"tasks: {time.perf_counter() - begin:.1f} s")
    cli, data = [sys.executable, "-m", "pretrain.cli"], str(folder / "data")
    timed("join", [*cli, "prepare", *words, "--stage", "join"], arguments.descriptors)
    timed("verify", [*cli, "verify", data], arguments.descriptors)
    timed("inspect", [*cli, "inspect", data, "--rows", "1"], arguments.descriptors)
    timed("first batch", [sys.executable, "-c", FIRST_BATCH, data], arguments.descriptors)
    timed("repack", [*cli, "repack", data, "--pack", "best_fit"], arguments.descriptors)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
