"""Tasks that fail and workers that die: named, tried again, set aside, and the rest is done."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import make_texts, write_jsonl

from data_pipeline.errors import DataError
from data_pipeline.tasks.encode import TokenJob
from data_pipeline.tasks.processes import Failure, run_tasks
from data_pipeline.tasks.sharing import RETRIES
from data_pipeline.tasks.task import Task


@pytest.fixture
def parts(tmp_path):
    """Six files, each an input and so a task of its own."""
    return [write_jsonl(tmp_path / f"part{i}.jsonl", make_texts(60, seed=i)) for i in range(6)]


@pytest.fixture
def broken(monkeypatch):
    """Tasks that fail, in this process: number -> errors, raised one after the other; the number of times each was tried."""
    errors, tried = {}, {}
    original = TokenJob._write

    def write(self, task, folder, report):
        tried[task.number] = tried.get(task.number, 0) + 1
        (folder / "unfinished").touch()
        if errors.get(task.number):
            raise errors[task.number].pop(0)
        return original(self, task, folder, report)

    monkeypatch.setattr(TokenJob, "_write", write)
    return errors, tried


def input_output_error():
    return OSError(errno.EIO, "Input/output error", "part.jsonl")


def folder_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_failing_tasks_are_retried_and_set_aside(prepare, parts, tmp_path, broken):
    errors, tried = broken
    words = ("--input", *parts, "--output")
    assert prepare(*words, tmp_path / "undisturbed").code == 0
    tried.clear()
    errors[1] = [MemoryError()] * (RETRIES + 1)
    errors[2] = [input_output_error()]
    errors[4] = [input_output_error() for _ in range(RETRIES + 1)]
    result = prepare(*words, tmp_path / "data")
    assert result.code == 2 and not (tmp_path / "data").exists()
    assert tried == {0: 1, 1: 3, 2: 2, 3: 1, 4: 3, 5: 1}
    assert result.err.count("\nerror: ") == 1
    assert "error: 2 tasks could not be done; all that are finished are kept. Run the same command again" in result.err
    assert f"task 1 ({parts[1]}), 3 times: out of memory; use fewer --workers\n" in result.err
    assert f"task 4 ({parts[4]}), 3 times: [Errno 5] Input/output error: 'part.jsonl'\n" in result.err
    assert f"task 2 ({parts[2]}): [Errno 5] Input/output error: 'part.jsonl'; trying again (1 of 2)\n" in result.err
    assert "4 of 6 tasks" in result.err
    assert not list((tmp_path / "data.work").rglob("*.partial-*"))
    tried.clear()
    again = prepare(*words, tmp_path / "data")
    assert again.code == 0, again.err
    assert tried == {1: 1, 4: 1}  # what failed before this start does not count
    assert folder_bytes(tmp_path / "data") == folder_bytes(tmp_path / "undisturbed")


def test_attempts_of_all_jobs_count_together(prepare, parts, tmp_path, broken):
    """A task that another job tried too often since this one started is not tried again."""
    errors, tried = broken
    words = ("--input", *parts, "--output", tmp_path / "data", "--stage", "tokens")
    errors[1] = [input_output_error()] * 9
    results = []
    errors_of_outer = errors[0] = [None]

    def other_job(self, task, folder, report, original=TokenJob._write):
        if errors_of_outer and task.number == 0:
            errors_of_outer.clear()
            results.append(prepare(*words))
        return original(self, task, folder, report)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenJob, "_write", other_job)
        patch.setattr("data_pipeline.tasks.sharing._Queue._say_waiting", _release_first)
        results.append(prepare(*words))
    assert [result.code for result in results] == [2, 2]
    assert tried[1] == RETRIES + 1
    assert all(f"task 1 ({parts[1]}), 3 times" in result.err for result in results)


def _release_first(queue):
    """End the wait for a task that the process itself holds, further up."""
    queue._of_others.clear()


def test_a_full_disk_and_a_wrong_key_stop_at_once(prepare, parts, tmp_path, broken):
    errors, tried = broken
    for error in (OSError(errno.EDQUOT, "Disk quota exceeded"), DataError("no record has the key")):
        tried.clear()
        errors[1] = [error]
        result = prepare("--input", *parts, "--output", tmp_path / "data")
        assert result.code == 2 and list(tried)[-1] == 1 and tried[1] == 1
        assert "is full" in result.err or "no record has the key" in result.err


def test_a_hopeless_job_stops(prepare, tmp_path, broken):
    """Where nothing works, not every task is tried three times."""
    errors, tried = broken
    paths = [write_jsonl(tmp_path / f"p{i:02}.jsonl", make_texts(2, seed=i)) for i in range(15)]
    errors.update({i: [input_output_error()] * 9 for i in range(15)})
    result = prepare("--input", *paths, "--output", tmp_path / "data")
    assert result.code == 2 and "10 tasks could not be done" in result.err and len(tried) == 10
    assert not (tmp_path / "data.work").exists()


class Tasks:
    """Tasks 0 to 5; those that fail are given again, three times in all."""

    def __init__(self):
        self.left = [Task(number, 0, (), str(number)) for number in range(6)]
        self.outcomes = {task.number: [] for task in self.left}

    def take(self):
        return self.left.pop(0) if self.left else None

    @property
    def is_empty(self):
        return not self.left


def fall_ill(folder, task, report):
    """What each task does, by its number: 0 works, 1 to 4 fail at the first or every try, 5 waits to be killed."""
    tries = Path(folder) / str(task.number)
    first = not tries.exists()
    tries.touch()
    report(1, 10, 0)
    if task.number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if task.number == 2:
        raise MemoryError
    if task.number == 3 and first:
        raise OSError(errno.ESTALE, "Stale file handle", "x.jsonl")
    if task.number == 4 and first:
        os._exit(7)
    if task.number == 5 and first:
        (Path(folder) / "pid").write_text(str(os.getpid()))
        time.sleep(60)
    return f"done {task.number}"


def test_a_worker_that_dies_costs_only_its_task(tmp_path):
    """In every way, with two workers; nothing else is lost."""
    from functools import partial
    from threading import Thread

    def kill():
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    Thread(target=kill, daemon=True).start()
    tasks, reports = Tasks(), []
    for task, result in run_tasks(partial(fall_ill, str(tmp_path)), tasks, 2, lambda *counts: reports.append(counts)):
        found = tasks.outcomes[task.number]
        found.append(result.why if isinstance(result, Failure) else result)
        if isinstance(result, Failure) and len(found) < 3:
            tasks.left.append(task)
    assert tasks.outcomes == {
        0: ["done 0"],
        1: ["its worker process was killed by SIGSEGV"] * 3,
        2: ["out of memory; use fewer --workers"] * 3,
        3: ["[Errno 116] Stale file handle: 'x.jsonl'", "done 3"],
        4: ["its worker process ended with exit code 7", "done 4"],
        5: [
            "its worker process was killed by SIGKILL, most likely for lack of memory; use fewer --workers",
            "done 5",
        ],
    }
    assert len(reports) >= 6


@pytest.mark.slow
def test_a_killed_worker_of_the_command(prepare, several_tasks, tokenizer_file, tmp_path):
    words = ["--input", several_tasks, "--tokenizer", tokenizer_file, "--seq-len", 32, "--workers", 2, "--output"]
    command = [sys.executable, "-m", "data_pipeline.prepare", *map(str, words), str(tmp_path / "data")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("data.work/tokens/*.partial-*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    number = int(re.search(r"-(\d+)-[0-9a-f]+$", next(tmp_path.glob("data.work/tokens/*.partial-*")).name)[1])
    assert number in {child.pid for child in psutil.Process(process.pid).children()}
    os.kill(number, signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "its worker process was killed by SIGKILL" in err and "trying again (1 of 2)" in err
    assert prepare("--input", several_tasks, "--output", tmp_path / "undisturbed").code == 0
    assert folder_bytes(tmp_path / "data") == folder_bytes(tmp_path / "undisturbed")
