"""How the units of a study run: several at a time, their share of the machine, failures and signals, and what they wait for."""

import json
import os
import re
import signal
import threading
from argparse import ArgumentParser
from types import SimpleNamespace

import pytest

from data_pipeline.stop_signals import Stopped, raise_stopped
from pretrain.errors import UserError
from pretrain.studies import command, processes
from pretrain.studies.data import corpus_folder, prepare_data
from pretrain.studies.definition import Corpus
from pretrain.studies.processes import Subprocesses
from pretrain.studies.side_by_side import side_by_side
from pretrain.studies.unit import BusyError, Workplace, owned, run_unit
from tests.study_runs import Stoppable


def named(*names):
    return [SimpleNamespace(name=name) for name in names]


def test_after_a_failure_those_that_run_are_finished_and_no_other_starts():
    shown, ended = threading.Event(), []

    def work(trial, slot):
        if trial.name == "bad":
            raise OSError("the disk is full")
        assert trial.name == "good" and shown.wait(10), "the failure is shown while this one runs"
        ended.append(trial.name)

    def show(line):
        said.append(line)
        shown.set()

    said = []
    with pytest.raises(OSError, match="the disk is full"):
        side_by_side(work, named("bad", "good", "waits", "waits too"), Stoppable(), 2, show)
    assert ended == ["good"] and said == ["the disk is full\nfinishing those that run: good"]


def test_a_signal_after_a_failure_ends_those_that_run():
    runner, began, ended = Stoppable(), threading.Event(), []

    def work(trial, slot):
        if trial.name == "bad":
            assert began.wait(10)
            raise UserError("bad: ended with status 2")
        began.set()
        ended.append(runner.asked.wait(10))

    def show(line):
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()

    with pytest.raises(Stopped), raise_stopped():
        side_by_side(work, named("bad", "good"), runner, 2, show)
    assert ended == [True], "asked to save and end"


@pytest.mark.parametrize(
    ("ranks", "devices", "given"),
    [
        (1, "456", ["4", "5", "6", "4"]),
        (2, "01234", ["0,1", "2,3", "0,1", "2,3"]),
        (2, "", [None, None, None, None]),
    ],
)
def test_jobs_have_other_gpus(ranks, devices, given, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    runner = Subprocesses(4, list(devices), ranks)
    environments = [runner._environment(slot, ranks) for slot in range(4)]
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in environments] == given
    alone = [runner._environment(slot, 1).get("CUDA_VISIBLE_DEVICES") for slot in range(4)]
    assert alone == [each and each[0] for each in given], "a measurement has the first of them"


@pytest.mark.parametrize(
    ("devices", "names", "where"),
    [([], [], r"\d+ cores of \S.*, 3 at a time"), (["0", "1"], ["Card 80GB"] * 2, "2 x Card 80GB, 3 at a time"),
     (["5"], [], "1 x GPU, 3 at a time")],
)  # fmt: skip
def test_where_seconds_were_measured(devices, names, where, monkeypatch):
    monkeypatch.setattr(processes, "_of_every_gpu", lambda field: names)
    assert re.fullmatch(where, Subprocesses(3, devices, 1).where)


@pytest.mark.parametrize(
    ("words", "jobs"), [([], 4), (["--jobs", "3"], 3), (["--unit", "0"], 1), (["--unit", "0", "--jobs", "3"], 1)]
)
def test_a_unit_alone_has_the_whole_machine(words, jobs, monkeypatch):
    found = []
    monkeypatch.setattr(command, "visible_gpus", lambda: list("01234567"))
    monkeypatch.setattr(command, "Subprocesses", lambda *arguments: found.append(arguments))
    monkeypatch.setattr(command, "run_study", lambda arguments, runner, jobs: found.append(jobs))
    parser = ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args(["speedrun", "--scale", "desk", *words]))
    assert found == [(jobs, list("01234567"), 2), jobs]


def test_data_is_prepared_once_and_a_failure_shows_its_log(tmp_path):
    calls, said = [], []

    def run(words, log, slot, ranks=1):
        calls.append(words)
        log.write_text("the reason\n")
        return 2

    corpus = Corpus(input=("sudoku4:60",), seq_len=17)
    with pytest.raises(UserError, match=r"preparing sudoku4:60: ended with status 2(.|\n)*the reason"):
        prepare_data(corpus, tmp_path, run, said.append)
    assert calls[0][:3] == ["prepare", "--input", "sudoku4:60"] and "--seq-len" in calls[0]
    folder = corpus_folder(corpus, tmp_path)
    assert said == [f"preparing the data, sudoku4:60; log: {folder}.log"], "before it takes its time"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({}))
    assert prepare_data(corpus, tmp_path, run, said.append) == folder and len(calls) == len(said) == 1
    assert corpus_folder(corpus.model_copy(update={"seq_len": 34}), tmp_path) != folder


def test_a_unit_waits_for_another_process_that_works_on_it(tmp_path):
    waits = []
    first = owned(tmp_path / "unit", wait=lambda: False)
    first.__enter__()
    with pytest.raises(BusyError, match="another process works on this"), owned(tmp_path / "unit", wait=lambda: False):
        pass

    def sleep(seconds):
        waits.append(seconds)
        first.__exit__(None, None, None)

    with owned(tmp_path / "unit", wait=lambda: True, sleep=sleep):
        assert waits == [1.0]


def test_a_signal_ends_a_unit_that_waits_for_another_study(tmp_path):
    runner, unit = Stoppable(), SimpleNamespace(name="waits", folder=tmp_path)
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGTERM]).start()
    with owned(Workplace(unit).folder, wait=lambda: False), pytest.raises(Stopped), raise_stopped():
        side_by_side(lambda trial, slot: run_unit(None, trial, runner, slot), [unit], runner, 1, print)
