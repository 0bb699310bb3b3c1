"""A run that is killed, shared out or repeated gives the bytes of an undisturbed one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import make_texts, write_jsonl

from data_pipeline.manifest import load_manifest

pytestmark = pytest.mark.slow
KILLS = 10


@pytest.fixture
def parts(tmp_path):
    """Twelve files of distinct documents, each an input and so a task of its own; one has a broken line."""
    paths = [write_jsonl(tmp_path / f"part{i:02}.jsonl", make_texts(100, seed=i) * (1 + i % 3)) for i in range(12)]
    with paths[3].open("a") as file:
        file.write("{\n")
    return paths


def command(parts, output, *more):
    options = ("--vocab-size", 400, "--seq-len", 32, "--pack", "best_fit", "--workers", 2)
    words = ["--input", *parts, "--output", output, *options, *more]
    return [sys.executable, "-m", "data_pipeline.prepare", *map(str, words)]


def run(parts, output, *more):
    done = subprocess.run(command(parts, output, *more), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


def folder_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def kill_after(parts, output, seconds):
    """Kill the command and its workers; whether they were still at work."""
    process = subprocess.Popen(
        command(parts, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    return process.returncode == -signal.SIGKILL


@pytest.mark.end_to_end
@pytest.mark.timeout(480)
def test_kills_at_any_moment_change_nothing(parts, tmp_path):
    begin = time.monotonic()
    run(parts, tmp_path / "undisturbed")
    duration = time.monotonic() - begin
    expected = folder_bytes(tmp_path / "undisturbed")
    rng, kills, output = random.Random(0), 0, tmp_path / "data"
    while kills < KILLS:
        # The tasks that earlier runs finished make a run shorter: up to its whole duration, some get to their end.
        if kill_after(parts, output, rng.uniform(0.2, 1.0) * duration):
            kills += 1
        if output.exists():
            assert folder_bytes(output) == expected
            shutil.rmtree(output)
    run(parts, output)
    assert folder_bytes(output) == expected
    assert not (tmp_path / "data.work").exists()


def test_stages_give_what_one_run_gives(parts, tmp_path):
    run(parts, tmp_path / "alone")
    run(parts, tmp_path / "shared", "--stage", "start")
    done = [
        run(parts, tmp_path / "shared", "--stage", "tokens", "--task-index", index, "--task-count", 3)
        for index in (2, 0, 0)
    ]
    assert ["12 of them done before" in each.stderr for each in done] == [False, True, True]
    run(parts, tmp_path / "shared", "--stage", "join")
    assert folder_bytes(tmp_path / "shared") == folder_bytes(tmp_path / "alone")


@pytest.fixture
def shared(prepare, parts, tmp_path):
    """Run one stage of the corpus in this process, with the small tokenizer."""
    return lambda *more: prepare("--input", *parts, "--output", tmp_path / "data", *more)


def results(tmp_path):
    """The finished tasks, by address."""
    return {path.name: path for path in (tmp_path / "data.work" / "tokens").iterdir()}


def test_a_join_before_the_end_says_what_is_missing(shared, tmp_path):
    assert shared("--stage", "tokens").code == 0
    for path in list(results(tmp_path).values())[:6]:
        shutil.rmtree(path)
    result = shared("--stage", "join")
    assert result.code == 2
    assert "6 of 12 tasks are not done" in result.err and "(the first is task " in result.err
    assert shared("--stage", "tokens").code == 0
    assert shared("--stage", "join").code == 0


def test_only_what_changed_is_done_again(shared, parts, tmp_path):
    shared("--stage", "tokens")
    before = {name: path.stat().st_ino for name, path in results(tmp_path).items()}
    write_jsonl(parts[5], make_texts(10, seed=99))
    assert "11 of them done before" in shared("--stage", "tokens").err
    after = {name: path.stat().st_ino for name, path in results(tmp_path).items()}
    assert len(before) == 12 and len(after) == 13 and before.items() < after.items()
    damaged = next(iter(results(tmp_path).values())) / "train.bin"
    content = damaged.read_bytes()
    damaged.write_bytes(b"")
    assert "11 of them done before" in shared("--stage", "tokens").err
    assert damaged.read_bytes() == content
    assert "0 documents" in shared("--stage", "tokens").err
    assert "12 of 12 tasks" in shared("--stage", "tokens", "--validation-fraction", 0.5).err


def test_another_length_tokenises_nothing_again(shared, tmp_path):
    assert "fewer than one row" in shared("--seq-len", 10**7).err
    result = shared("--seq-len", 64)
    assert result.code == 0 and "12 of them done before" in result.err
    assert load_manifest(tmp_path / "data").seq_len == 64


def test_tokens_without_a_tokenizer_say_which_stage_comes_first(prepare, parts, tmp_path):
    result = prepare(
        "--input", *parts, "--output", tmp_path / "data", "--stage", "tokens", "--vocab-size", 400, train=True
    )
    assert result.code == 2 and "run --stage start first" in result.err


def test_the_line_of_a_broken_record_is_that_of_the_file(prepare, several_tasks, tmp_path):
    """Tasks begin in the middle of the file; each counts its lines from there."""
    lines = several_tasks.read_bytes().splitlines(keepends=True)
    for number in (10, len(lines) // 2, len(lines)):
        lines[number - 1] = b"{\n"
    several_tasks.write_bytes(b"".join(lines))
    result = prepare("--input", several_tasks, "--output", tmp_path / "data")
    assert result.code == 0, result.err
    for number in (10, len(lines) // 2, len(lines)):
        assert f"big.jsonl:{number}: " in result.out
    assert load_manifest(tmp_path / "data").inputs[0].documents == len(lines) - 3
    lines[9] = lines[8]
    several_tasks.write_bytes(b"".join(lines))
    strict = prepare("--input", several_tasks, "--output", tmp_path / "strict", "--strict")
    assert f"error: {several_tasks}:{len(lines) // 2}: broken JSON" in strict.err


def test_blank_lines_count_for_the_lines_of_later_tasks(prepare, tmp_path, texts, monkeypatch):
    monkeypatch.setattr("data_pipeline.tasks.task._task_size", lambda total: total // 3)
    path = write_jsonl(tmp_path / "x.jsonl", texts)
    lines = path.read_bytes().replace(b"\n", b"\n\n") + b"{\n"
    path.write_bytes(lines)
    result = prepare("--input", path, "--output", tmp_path / "data")
    assert result.code == 0 and f"x.jsonl:{lines.count(10)}: " in result.out, result.err


def test_a_share_that_does_not_exist(prepare, parts, tmp_path):
    words = ("--input", *parts, "--output", tmp_path / "data", "--task-count", 2)
    assert "only --stage tokens can be shared" in prepare(*words).err
    assert "give an index from 0 to below the count" in prepare(*words, "--stage", "tokens", "--task-index", 2).err
