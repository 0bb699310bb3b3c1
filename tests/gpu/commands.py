"""The commands as a user gives them, under the machine's own environment."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.harness import Check
from tests.gpu.runs import read_records

ROOT = Path(__file__).resolve().parents[2]


def check_start(check: Check) -> None:
    """`python pretrain/main.py --config smoke train.precision=bf16`: seconds to the first step and to the end."""
    with check.part("train smoke in bf16") as figures:
        folder = check.scratch / "runs" / "start"
        words = [f"data.path={check.scratch / 'data' / 'small'}", f"run.dir={folder.parent}", f"run.name={folder.name}"]
        words += ["train.steps=6", "eval.every=null"] if check.quick else []
        begin = time.time()
        figures["seconds in total"], _ = command(
            ["pretrain/main.py", "--config", "smoke", "train.precision=bf16", *words]
        )
        records = read_records(folder)
        created = (folder / "config.yaml").stat().st_mtime
        figures["seconds to the banner"] = created - begin
        figures["seconds of the first step"] = records[0]["elapsed"]
        figures["seconds of the other steps"] = records[-1]["elapsed"] - records[0]["elapsed"]
        figures["steps"] = records[-1]["step"]
        figures["losses"] = [record["loss"] for record in records]
        check.expect(check.quick or records[-1]["loss"] < records[0]["loss"], "the loss did not fall")


def check_commands(check: Check) -> None:
    """`loopmdm evaluate`, `loopmdm sample` on the run that `start` trained, and `loopmdm doctor`."""
    folder, loops = str(check.scratch / "runs" / "start"), "1" if check.quick else "1,2,4"
    with check.part("loopmdm evaluate") as figures:
        figures["seconds in total"], figures["output"] = command(
            ["-m", "pretrain.cli", "evaluate", folder, "--loops", loops]
        )
    with check.part("loopmdm sample") as figures:
        figures["seconds in total"], figures["output"] = command(["-m", "pretrain.cli", "sample", folder])
    with check.part("loopmdm doctor") as figures:
        # Status 1 means that a package is missing; the checks need fewer packages than `prepare` does.
        figures["seconds in total"], figures["output"] = command(["-m", "pretrain.cli", "doctor"], allowed=(0, 1))


def command(words: Sequence[str], allowed: Sequence[int] = (0,)) -> tuple[float, str]:
    """Run a command with this Python; (seconds, output). Raises RuntimeError with the end of the output if it fails."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=os.environ, timeout=170, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    print(f"$ python {' '.join(words)}\n{done.stdout}", flush=True)
    if done.returncode not in allowed:
        raise RuntimeError(f"status {done.returncode}: {done.stdout[-3000:]}")
    return time.perf_counter() - begin, done.stdout
