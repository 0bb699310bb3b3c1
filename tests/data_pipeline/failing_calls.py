"""Runs in a process of its own: the corpus job on one input after another, while single calls that read or write fail.

    LD_PRELOAD=failing_calls.so python failing_calls.py FOLDER

`failing_calls.c` makes the calls fail. FOLDER holds `inputs.json`, {name: words of the command line}. Each run is a forked child,
which spares the imports. Prints a JSON list of what happened, one object per fault: {name, fault, call, status, error, equal}.
"""

import argparse
import ctypes
import errno
import importlib
import json
import os
import pkgutil
import resource
import shutil
import sys
import traceback
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet

import data_pipeline
from data_pipeline import prepare

READ, WRITE = 1, 2
END, FLIP = -1, -2
FAULTS = {"EIO": errno.EIO, "end of file": END}
# Formats in which every changed bit is noticed.
WITH_CHECKSUMS = (".gz", ".xz", ".bz2")
ALL = 1 << 60
# Open files that the command may add: from none to more than it needs.
OPEN_FILES = (0, 1, 2, 4, 8)
FEW_OPEN_FILES = ("plain.jsonl", "rows.parquet", "saved", "writes")

calls = ctypes.CDLL(None)
calls.fail_calls.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_int]
calls.counted_calls.restype = ctypes.c_long


def run(words: list[str], log: Path, before=lambda: None) -> tuple[int, int]:
    """Run the command in a child; returns its exit status, negative for a signal, and the number of calls counted."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        status, counted = 99, 0
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(i), "w") for i in (1, 2))
            parser = argparse.ArgumentParser()
            prepare.add_arguments(parser)
            args = parser.parse_args(words)
            before()
            status = prepare.run(args)
        except BaseException:
            traceback.print_exc()
        finally:
            counted = calls.counted_calls()
            calls.fail_calls(0, b"", 0, 0, 0)
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(theirs, counted.to_bytes(8, "little"))
            os._exit(status)
    os.close(theirs)
    counted = os.read(ours, 8)
    os.close(ours)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int.from_bytes(counted or b"\0", "little")


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


class Situation:
    """An input with its command, and the bytes of an undisturbed run."""

    def __init__(self, folder: Path, name: str, words: list[str]) -> None:
        self.name = name
        self.output, self.log = folder / "out", folder / "log"
        self.words = [*words, "--output", str(self.output), "--workers", "1"]
        self.results = []
        self.clear()
        status, _ = run(self.words, self.log)
        assert status == 0, self.log.read_text()
        self.expected = folder_bytes(self.output)

    def disturb(self, fault: str, call: int, before) -> int:
        """Run with a fault, and again without; returns the number of calls."""
        self.clear()
        status, counted = run(self.words, self.log, before)
        said = self.log.read_text()
        disturbed = folder_bytes(self.output)
        again, _ = run(self.words, self.log)
        self.results.append(
            {
                "name": self.name,
                "fault": fault,
                "call": call,
                "status": status,
                "said": said,
                "right_if_done": status != 0 or disturbed == self.expected,
                "again": again,
                "equal": folder_bytes(self.output) == self.expected,
            }
        )
        return counted

    def clear(self) -> None:
        for path in (self.output, self.output.with_name("out.work")):
            shutil.rmtree(path, ignore_errors=True)

    def each_call(self, kind: int, part: str, fault: str, error: int, lasting: bool) -> None:
        """Let the first three calls fail, one in the middle, and the last, one in each run."""
        self.clear()
        _, count = run(self.words, self.log, lambda: calls.fail_calls(kind, part.encode(), ALL, ALL, error))
        assert count, (self.name, part)
        for i in sorted({1, 2, 3, (count + 1) // 2, count} & set(range(1, count + 1))):
            last = ALL if lasting else i
            self.disturb(fault, i, lambda i=i, last=last: calls.fail_calls(kind, part.encode(), i, last, error))


def limit_files(extra: int) -> None:
    """Allow only a few more open files than there are."""
    limit = max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 1 + extra
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    taken = []
    while True:
        try:
            taken.append(os.dup(0))
        except OSError:
            break
    for descriptor in taken[:extra]:
        os.close(descriptor)


def main() -> None:
    folder = Path(sys.argv[1])
    for module in pkgutil.walk_packages(data_pipeline.__path__, "data_pipeline."):  # before the forks
        importlib.import_module(module.name)
    datasets.disable_progress_bars()
    pyarrow.set_cpu_count(1)
    results = []
    for name, (part, words) in json.loads((folder / "inputs.json").read_text()).items():
        situation = Situation(folder, name, words)
        if name == "writes":
            output = str(situation.output)
            situation.each_call(WRITE, output, "ENOSPC", errno.ENOSPC, lasting=True)
            situation.each_call(WRITE, output, "EIO at a write", errno.EIO, lasting=False)
        else:
            faults = FAULTS | ({"flipped bit": FLIP} if name.endswith(WITH_CHECKSUMS) else {})
            for fault, error in faults.items():
                situation.each_call(READ, part, fault, error, lasting=False)
        for extra in OPEN_FILES if name in FEW_OPEN_FILES else ():
            situation.disturb("EMFILE", extra, lambda extra=extra: limit_files(extra))
        results += situation.results
    print(json.dumps(results))


if __name__ == "__main__":
    main()
