"""`loopmdm status` of a run that runs, stopped, finished, failed or was killed."""

import json
import os
import socket
import subprocess

import pytest

from data_pipeline.dataset.blend import load_blend
from pretrain.cli import main
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.errors import UserError
from pretrain.training import loop
from pretrain.training.start import run_training
from tests.launching import ROOT

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def start(corpus, world, tmp_path):
    def started(*words):
        common = [f"data.path={corpus}", f"run.dir={tmp_path}", "run.name=run", "train.steps=6", "optim.warmup_steps=1"]
        settings = load_settings(str(ROOT / "tests" / "tiny.yaml"), [*common, *words])
        blend = load_blend(settings.data.path)
        return run_training(make_run_plan(settings, blend.manifest, 1), blend, resume=True)

    return started


@pytest.fixture
def status(tmp_path, capsys):
    """(exit status, the JSON of the verb, its lines)."""

    def shown():
        capsys.readouterr()
        code = main(["status", str(tmp_path / "run"), "--json"])
        found = json.loads(capsys.readouterr().out)
        assert main(["status", str(tmp_path / "run")]) == code
        return code, found, capsys.readouterr().out

    return shown


def test_a_run_from_start_to_end(start, status, monkeypatch):
    during = []
    original = loop.train_step

    def step(run, *rest):
        if run.progress.step == 3:
            during.append(status())
        return original(run, *rest)

    monkeypatch.setattr(loop, "train_step", step)
    start("run.stop_after=5", "eval.every=2", "eval.loops=1,3", "eval.rows=8")
    code, found, lines = during[0]
    assert (code, found["state"], found["step"], found["total_steps"], found["starts"]) == (0, "running", 3, 6, 1)
    assert (found["host"], found["process"], found["ranks"]) == (socket.gethostname(), os.getpid(), 1)
    assert found["validation"]["step"] == 2 and set(found["validation"]["nats_per_token"]) == {"1", "3"}
    assert "running since " in lines and "3 of 6 in " in lines and ", eta " in lines and "S=3 " in lines
    code, found, lines = status()
    assert (code, found["state"], found["why"], found["checkpoints"]) == (0, "stopped", "run.stop_after", ["step_5"])
    assert "stopped (run.stop_after) since " in lines
    start()
    assert status()[1]["state"] == "finished" and status()[1]["starts"] == 2


def test_a_failed_run(start, status):
    with pytest.raises(UserError):
        start("optim.lr=1e30", "optim.warmup_steps=0", "train.max_skipped=1")
    code, found, lines = status()
    assert code == 2 and found["state"] == "failed" and "skipped updates in a row" in found["why"]
    assert found["skipped"] and "failed (step " in lines


def test_json_holds_no_nan_whatever_wrote_the_records(start, tmp_path, capsys):
    start("run.stop_after=2")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": NaN, "grad_norm": Infinity, "elapsed": 1.0}\n')
    capsys.readouterr()
    assert main(["status", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"holds {word}"))
    assert (found["step"], found["loss"], found["grad_norm"]) == (3, None, None)


def test_a_killed_run_and_one_whose_job_waits(start, status, tmp_path, monkeypatch):
    start("run.stop_after=2")
    path = tmp_path / "run" / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "running", "slurm_job": "7"}))
    assert status()[0] == 2 and status()[1]["state"] == "killed"

    def squeue(command, **_):
        assert command[0] == "squeue" and "--jobs=7" in command
        return subprocess.CompletedProcess(command, 0, "PENDING\n")

    monkeypatch.setattr("pretrain.commands.status.subprocess.run", squeue)
    assert status()[0] == 0 and status()[1]["state"] == "waiting"


def test_a_run_on_another_host_whose_lock_is_not_seen_here(start, status, tmp_path):
    start("run.stop_after=2")
    path, metrics = tmp_path / "run" / "status.json", tmp_path / "run" / "metrics.jsonl"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "running", "host": "another"}))
    assert status()[1]["state"] == "running" and ", last record " in status()[2]
    os.utime(metrics, (metrics.stat().st_atime, metrics.stat().st_mtime - 601))
    assert status()[1]["state"] == "killed"


def test_requeues_without_progress_end(start, status, monkeypatch, tmp_path):
    """Five starts by SLURM without a new checkpoint are enough; one by hand, or a checkpoint, begins a new count."""

    def fail(*_):
        raise OSError("the network is down")

    def fail_in(times):
        with monkeypatch.context() as broken:
            broken.setattr(loop, "train_step", fail)
            for _ in range(times):
                with pytest.raises(OSError, match="the network is down"):
                    start()

    fail_in(1)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    fail_in(4)
    expected = r"run: the last 5 starts of this job left no new checkpoint \(the last one: the network is down\).*submit the job"
    with pytest.raises(UserError, match=expected):
        start()
    assert status()[1]["starts"] == 5
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    fail_in(1)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    fail_in(3)
    start("run.stop_after=2")
    fail_in(4)
    start()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["starts_without_progress"] == 5


def test_a_restart_count_that_is_no_number_is_no_error(start, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "x")
    assert start() == 0
