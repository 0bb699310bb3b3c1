"""Several jobs in one work folder: killed, stopped, started again and on several machines, they lose and delete nothing."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import make_texts, write_jsonl
from test_claims import claimed_by

from data_pipeline.readers.inputs import resolve_input
from data_pipeline.tasks.encode import TokenJob
from data_pipeline.tasks.task import cut_into_tasks
from data_pipeline.tasks.work import open_work, result_folder

pytestmark = pytest.mark.slow
KILLS = 6
# Another host name, and claims that expire soon.
START = """
import socket, sys
from data_pipeline.tasks import claims, sharing
host, lifetime = sys.argv[1:3]
socket.gethostname = lambda: host
claims.LIFETIME, sharing.LOOK_SECONDS = float(lifetime), 0.2
del sys.argv[1:3]
from data_pipeline import prepare
sys.exit(prepare.main())
"""


@pytest.fixture
def parts(tmp_path):
    """Twelve files of distinct documents, each an input and so a task of its own; the first is given twice."""
    paths = [write_jsonl(tmp_path / f"part{i:02}.jsonl", make_texts(150, seed=i) * (1 + i % 3)) for i in range(12)]
    return [*paths, paths[0]]


@pytest.fixture
def words(parts, tokenizer_file):
    return ["--input", *parts, "--tokenizer", tokenizer_file, "--seq-len", 32, "--pack", "best_fit", "--workers", 1]


@pytest.fixture
def begin(tmp_path, words):
    """Start a job; those that are left are killed at the end."""
    started = []

    def call(*more, host="node-a", lifetime=60):
        command = [sys.executable, "-c", START, host, lifetime, *words, "--output", tmp_path / "data", *more]
        pipe = subprocess.PIPE
        process = subprocess.Popen(list(map(str, command)), stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finished(process, code=0):
    """What a job printed, once it has ended with a status."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out + err


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


def folder_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def expected(prepare, words, tmp_path):
    """The bytes of an undisturbed run."""
    assert prepare(*words, "--output", tmp_path / "undisturbed").code == 0
    return folder_bytes(tmp_path / "undisturbed")


@pytest.mark.end_to_end
@pytest.mark.timeout(480)
def test_jobs_that_overlap_and_are_killed_and_started_again(begin, prepare, words, expected, tmp_path):
    """Overlapping shares, the same one twice, two machines; a killed job is started again."""
    rng = random.Random(0)
    work = tmp_path / "data.work"
    shares = [(0, 1, "node-a"), (1, 4, "node-b"), (1, 4, "node-a"), (3, 4, "node-b")]

    def job(i):
        index, count, host = shares[i]
        return begin("--stage", "tokens", "--task-index", index, "--task-count", count, host=host, lifetime=3)

    jobs, seen = [job(i) for i in range(4)], set()
    wait_for(lambda: list(work.glob("tokens/*")), jobs[0])
    for _ in range(KILLS):
        time.sleep(rng.uniform(0.0, 0.4))
        i = rng.randrange(4)
        if jobs[i].poll() is None:
            os.killpg(jobs[i].pid, signal.SIGKILL)
            jobs[i].communicate()
            jobs[i] = job(i)
        done = {path.name for path in work.glob("tokens/*") if len(path.name) == 32}
        assert seen <= done
        seen = done
    printed = [finished(each) for each in jobs]
    assert all("stage tokens is done for all 13 tasks" in each for each in printed)
    assert len(list(work.glob(f"tokens/{'?' * 32}"))) == 12
    assert prepare(*words, "--output", tmp_path / "data", "--stage", "join").code == 0
    assert folder_bytes(tmp_path / "data") == expected
    assert not list(tmp_path.glob("data.*"))


@pytest.mark.end_to_end
@pytest.mark.timeout(300)
def test_a_job_that_stops_answering_is_taken_over(begin, expected, tmp_path):
    """Its tasks go to another machine, the shards are joined, and when it wakes up it ends well."""
    asleep = begin("--stage", "tokens", lifetime=2)
    wait_for(lambda: list(tmp_path.glob("data.work/tokens/*.partial-*")), asleep)
    os.killpg(asleep.pid, signal.SIGSTOP)
    assert list(tmp_path.glob("data.work/claims/tokens-*.lock"))
    finished(begin(host="node-b"))
    assert folder_bytes(tmp_path / "data") == expected
    assert not (tmp_path / "data.work").exists()
    os.killpg(asleep.pid, signal.SIGCONT)
    assert "data: prepared, joined by another process" in finished(asleep)
    assert folder_bytes(tmp_path / "data") == expected
    assert not list(tmp_path.glob("data.*"))


@pytest.fixture
def at_work(begin, tmp_path):
    """A job of all stages on node-a that is stopped before its first task is finished; `go_on` ends it."""
    process = begin("--workers", 1)
    wait_for(lambda: list(tmp_path.glob("data.work/claims/tokens-*.lock")), process)
    os.killpg(process.pid, signal.SIGSTOP)
    before = {path for path in (tmp_path / "data.work").rglob("*") if "processes" not in path.parts}

    def go_on(expected):
        assert before <= set((tmp_path / "data.work").rglob("*"))
        os.killpg(process.pid, signal.SIGCONT)
        finished(process)
        assert folder_bytes(tmp_path / "data") == expected

    return go_on


@pytest.mark.end_to_end
def test_other_processes_delete_nothing(at_work, prepare, words, parts, expected, tmp_path):
    """One that is refused, one that has nothing to do, and one that fails early, while the first has no result yet."""
    output = ("--output", tmp_path / "data")
    refused = prepare(*words, *output)
    assert refused.code == 2 and "on node-a (--stage all, since 20" in refused.err
    assert "stop it" in refused.err and "run the command again in" in refused.err
    assert prepare(*words, *output, "--stage", "join").code == 2
    failing = prepare("--input", parts[0], "--text-key", "nothing", "--strict", *output, "--stage", "tokens")
    assert failing.code == 2 and "key missing" in failing.err
    few = prepare("--input", parts[1], *output, "--stage", "tokens", "--task-index", 3, "--task-count", 4)
    assert few.code == 0
    at_work(expected)


def test_tasks_of_other_machines_are_waited_for(prepare, words, tmp_path, monkeypatch):
    """Until their claims expire."""
    monkeypatch.setattr("data_pipeline.tasks.sharing.LOOK_SECONDS", 0.2)
    original = TokenJob.__call__

    def claim_the_next(self, task, report):
        if task.number == 0:
            (next_task,) = cut_into_tasks([resolve_input(str(words[2]))])
            claimed_by(tmp_path / "data.work" / "claims", f"tokens-{self.address(next_task)}", "node-c~1~2", 12, 3)
        return original(self, task, report)

    monkeypatch.setattr(TokenJob, "__call__", claim_the_next)
    begin = time.monotonic()
    result = prepare(*words, "--output", tmp_path / "data")
    assert result.code == 0 and time.monotonic() - begin > 2
    assert "waiting for other processes to finish 1 of the tasks: process 12 on node-c does task 1\n" in result.err


def test_only_who_created_an_unused_work_folder_removes_it(tmp_path):
    output = tmp_path / "data"
    with open_work(output, "tokens") as first:
        with open_work(output, "tokens"):
            pass
        assert first.folder.is_dir()
        second = open_work(output, "tokens")
        second.__enter__()
    assert first.folder.is_dir()  # the second uses it
    second.__exit__(None, None, None)
    assert first.folder.is_dir()  # the second has not created it
    with open_work(output, "all"):
        pass
    assert first.folder.is_dir()


def test_a_work_folder_with_results_stays(tmp_path):
    with open_work(tmp_path / "data", "all") as work:
        (work.folder / "samples" / ("0" * 32)).mkdir()
    assert work.folder.is_dir()


@pytest.mark.parametrize("is_whole", [True, False])
def test_of_two_equal_results_the_first_stays(tmp_path, is_whole):
    """Unless it is damaged."""
    final = tmp_path / "tokens" / "1234"
    tmp_path.joinpath("tokens").mkdir()
    with result_folder(final, lambda: is_whole) as slower:
        (slower / "text").write_text("slower")
        with result_folder(final, lambda: is_whole) as faster:
            (faster / "text").write_text("faster")
    assert (final / "text").read_text() == ("faster" if is_whole else "slower")
    with pytest.raises(KeyError), result_folder(final, lambda: False) as failing:
        (failing / "text").write_text("failing")
        raise KeyError
    assert (final / "text").read_text() != "failing"
    assert list(final.parent.iterdir()) == [final]


def test_what_killed_processes_left_of_a_task_is_removed_with_its_claim(prepare, words, tmp_path):
    assert prepare(*words, "--output", tmp_path / "data", "--stage", "tokens").code == 0
    tokens = tmp_path / "data.work" / "tokens"
    done, other = sorted(tokens.iterdir())[:2]
    (other / "mark.json").unlink()
    left = [path.with_name(f"{path.name}.partial-node-c-1-2") for path in (done, other)]
    for path in left:
        path.mkdir()
    assert prepare(*words, "--output", tmp_path / "data", "--stage", "tokens").code == 0
    assert list(tokens.glob("*.*")) == left[:1]  # nobody has claimed the finished task


def test_what_a_join_that_was_killed_left_is_removed(prepare, words, tmp_path, monkeypatch):
    output = ("--output", tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.tasks.work.remove_work", lambda output: None)
        assert prepare(*words, *output).code == 0
    assert (tmp_path / "data.work").is_dir()
    assert "nothing to do" in prepare(*words, *output).out
    assert not (tmp_path / "data.work").exists()
    assert prepare(*words, *output, "--overwrite", "--stage", "tokens").code == 0
    assert "nothing to do" in prepare(*words, *output).out
    assert (tmp_path / "data.work").is_dir()  # work that is not joined yet


def test_shares_begin_at_different_tasks():
    from data_pipeline.tasks.build import Share

    tasks = list(range(12))
    orders = [Share(i, 5).in_order(tasks) for i in range(5)]
    assert [order[0] for order in orders] == [0, 2, 4, 7, 9]
    assert all(sorted(order) == tasks for order in orders)
