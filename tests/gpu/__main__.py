"""Runs the checks: `bash tests/gpu/check.sh --help`.

Checks run in processes of their own, so that a crash or a full GPU ends only one of them. Those that measure no time run side by
side on a GPU; the others run alone.
"""

import argparse
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pretrain.machine.library_warnings import filter_library_warnings
from pretrain.machine.versions import package_version
from tests.gpu.corpus import make_data
from tests.gpu.harness import Check, read_results, write_results


@dataclass(frozen=True)
class Entry:
    """A line of the table of checks.

    Attributes:
        function: "module.function" in this folder.
        alone: it measures time, so nothing else may run.
        seconds: time limit.
    """

    function: str
    alone: bool
    seconds: int


CHECKS = {
    "start": Entry("commands.check_start", True, 180),
    "oracle": Entry("oracle.check_oracle", False, 120),
    "attention": Entry("attention.check_attention", True, 60),
    "fp32": Entry("zero_stages.check_fp32", False, 150),
    "bf16": Entry("zero_stages.check_bf16", False, 150),
    "resume": Entry("resume.check_resume", False, 150),
    "commands": Entry("commands.check_commands", False, 120),
    "throughput": Entry("throughput.check_throughput", True, 120),
    "step_parts": Entry("step_parts.check_step_parts", True, 60),
    "sampling": Entry("sampling.check_sampling", True, 40),
}
"""In order. `commands` uses the run that `start` trained."""

SIDE_BY_SIDE = 5
"""Processes that share the GPU when no time is measured."""


def groups_of(names: Sequence[str], quick: bool) -> list[list[list[str]]]:
    """Batches of processes, one batch after the other; the checks of one process share its imports.

    Under --quick, where imports take most of the time, one process runs the commands and one everything else.
    """
    if quick:
        commands = [name for name in names if name in ("start", "commands")]
        others = [name for name in names if name not in commands]
        return [[group for group in (commands, others) if group]]
    batches: list[list[list[str]]] = []
    for alone, following in groupby(names, key=lambda name: CHECKS[name].alone):
        group = list(following)
        batches.append([group] if alone else [[name] for name in group])
    return batches


def run_here(arguments: argparse.Namespace) -> None:
    """Run checks in this process, one after the other; a failure or a timeout ends only one."""

    def stop(*_: Any) -> None:
        raise TimeoutError("the check exceeded its time limit")

    signal.signal(signal.SIGALRM, stop)
    filter_library_warnings()
    for name in arguments.here.split(","):
        check = Check(name, arguments.output, arguments.scratch, arguments.device, arguments.quick)
        module, function = CHECKS[name].function.split(".")
        signal.alarm(CHECKS[name].seconds)
        try:
            getattr(importlib.import_module(f"tests.gpu.{module}"), function)(check)
        except BaseException as error:
            traceback.print_exc()
            record_end(check, f"{type(error).__name__}: {error}")
        signal.alarm(0)


def record_end(check: Check, problem: str) -> None:
    """Add a failed part that says why the check ended early."""
    check.parts.append(
        {"check": check.name, "part": "end", "ok": False, "seconds": 0.0, "problems": [problem], "figures": {}}
    )
    check.write()


def run_process(arguments: argparse.Namespace, names: Sequence[str], deadline: float) -> None:
    """Run checks in a child process; kill it and its children at the time limit."""
    command = [sys.executable, "-m", "tests.gpu", "--output", arguments.output, "--scratch", arguments.scratch]
    command += ["--device", arguments.device, "--here", ",".join(names), *(["--quick"] if arguments.quick else [])]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if not any(CHECKS[name].alone for name in names):  # side by side
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // SIDE_BY_SIDE)))
    if arguments.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    limit = min(sum(CHECKS[name].seconds for name in names) + 30, max(0.0, deadline - time.monotonic()))
    with (arguments.output / "log.txt").open("a") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            child.wait(limit)
            why = f"the process ended with status {child.returncode}; see log.txt"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            why = f"the process was stopped after {limit:.0f} s"
    if child.returncode:
        record_missing(arguments, names, why)


def record_missing(arguments: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Fail the checks of a process that ended early and that did not finish."""
    done: dict[str, list[dict[str, Any]]] = {}
    for part in read_results(arguments.scratch):
        done.setdefault(part["check"], []).append(part)
    last = max((names.index(name) for name in done if name in names), default=0)
    for name in names[last:]:
        record_end(
            Check(name, arguments.output, arguments.scratch, arguments.device, arguments.quick, done.get(name, [])), why
        )


def machine_facts(device: str) -> dict[str, str]:
    """What ran the checks, for the head of the table."""
    script = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    name = f"{os.cpu_count()} CPU cores"
    if device == "cuda":
        name = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        ).stdout.strip()
        if not name:
            raise SystemExit("error: torch sees no CUDA device; try --device cpu --quick")
    versions = {package: str(package_version(package)) for package in ("torch", "deepspeed", "megatron-core")}
    return {"device": name, "Python": platform.python_version(), **versions}


def run_all(arguments: argparse.Namespace) -> int:
    """All checks; 1 if a part failed or a check has no result."""
    begin = time.monotonic()
    names, scratch = arguments.checks.split(","), arguments.scratch
    for name, content in (("order", names), ("machine", machine_facts(arguments.device))):
        (scratch / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (scratch / "parts").mkdir()
    make_data(scratch / "data", arguments.quick)
    for batch in groups_of(names, arguments.quick):
        with ThreadPoolExecutor(2 if arguments.device == "cpu" else SIDE_BY_SIDE) as pool:
            list(pool.map(lambda group: run_process(arguments, group, begin + arguments.stop_after), batch))
    write_results(arguments.output, scratch)
    results = read_results(scratch)
    print((arguments.output / "results.md").read_text(encoding="utf-8"))
    failed = sum(not part["ok"] for part in results)
    print(f"{len(results)} parts, {failed} failed, {time.monotonic() - begin:.0f} s; {arguments.output}/results.json")
    return int(failed > 0 or {part["check"] for part in results} != set(names))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tests/gpu/check.sh", description="Check the training system on one GPU.")
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json, results.md and log.txt")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="[cuda]")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes that run every check")
    parser.add_argument("--checks", default=",".join(CHECKS), help="some of: %(default)s")
    parser.add_argument(
        "--stop-after", type=float, default=480, metavar="SECONDS", help="stop and keep the results so far [480]"
    )
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--here", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.output = arguments.output.resolve()
    arguments.output.mkdir(parents=True, exist_ok=True)
    unknown = set(arguments.checks.split(",")) - set(CHECKS)
    if unknown:
        parser.error(f"unknown checks: {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    if arguments.here:
        run_here(arguments)
        return 0
    arguments.scratch = Path(tempfile.mkdtemp(prefix="gpu_check_"))
    try:
        return run_all(arguments)
    finally:
        shutil.rmtree(arguments.scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
