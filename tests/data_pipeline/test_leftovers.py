"""What killed processes left of results is removed, and looking for it does not cost more with every task."""

from pathlib import Path

import pytest
from test_claims import claimed_by

from data_pipeline.readers.file_ranges import FileRange
from data_pipeline.tasks.sharing import do_tasks
from data_pipeline.tasks.task import Task
from data_pipeline.tasks.work import TOKENS, open_work

TASKS = 30


class MakesFolders:
    """A job whose result is a folder; `during` is called with the number of each task."""

    def __init__(self, work, during=lambda number: None):
        self._work, self._during = work, during

    def path(self, task):
        return self._work / TOKENS / task.identity

    def is_done(self, task):
        return self.path(task).is_dir()

    def __call__(self, task, report):
        self._during(task.number)
        self.path(task).mkdir()


@pytest.fixture
def tasks():
    return [Task(i, 0, (FileRange("text", f"{i}.txt", f"{i}.txt", 1),), f"{i:032}") for i in range(TASKS)]


def test_the_folder_of_results_is_listed_once_for_all_tasks(tasks, tmp_path, monkeypatch):
    listed = []
    real = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, *rest: listed.append(path.name) or real(path, *rest))
    with open_work(tmp_path / "data", "tokens") as work:
        do_tasks(work, MakesFolders(work.folder), tasks, TASKS, 1, "testing")
        assert all(MakesFolders(work.folder).is_done(task) for task in tasks)
        assert listed.count(TOKENS) == 1


def test_what_a_process_left_that_was_killed_meanwhile_is_removed(tasks, tmp_path):
    """Before the run, and during it by a process of this machine that had claimed a task and is gone."""
    with open_work(tmp_path / "data", "tokens") as work:
        results = work.folder / TOKENS

        def leave(number):
            left = results / f"{tasks[number].identity}.partial-node-1-ab"
            left.mkdir()
            (left / "train.bin").write_bytes(b"half")

        def kill_another(number):
            if number == 3:
                leave(7)
                claimed_by(work.folder / "claims", f"{TOKENS}-{tasks[7].identity}", "elsewhere~1~2", 12, -1)

        leave(5)
        do_tasks(work, MakesFolders(work.folder, kill_another), tasks, TASKS, 1, "testing")
        assert sorted(path.name for path in results.iterdir()) == [task.identity for task in tasks]
