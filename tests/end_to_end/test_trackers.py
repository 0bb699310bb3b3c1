"""Figures through wandb (offline) and trackio, where their libraries are installed, and the message where not."""

import html
import importlib.util
import json
import sqlite3
from textwrap import indent

import pytest

from tests.launching import ROOT, metrics, records, run, training_command

pytestmark = pytest.mark.end_to_end
HAVE = {name: importlib.util.find_spec(name) is not None for name in ("wandb", "trackio")}


@pytest.fixture
def start(corpus, tmp_path):
    """One start of the run; `run.stop_after` makes it several."""

    def started(*words):
        common = [
            "--config",
            ROOT / "tests" / "tiny.yaml",
            f"data.path={corpus}",
            f"run.dir={tmp_path}",
            "run.name=run",
        ]
        common += ["train.steps=8", "optim.warmup_steps=1", "eval.every=4", "eval.loops=1,3", "eval.rows=8"]
        variables = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(tmp_path / "trackio")}
        return run(training_command(*common, *words), **variables)

    return started


@pytest.mark.parametrize("name", HAVE)
def test_a_missing_library_is_named(start, name):
    if HAVE[name]:
        pytest.skip(f"{name} is installed")
    done = start(f"log.{name}=true")
    assert done.returncode == 2
    assert f"log.{name}=true: No module named '{name}'; pip install \"loopmdm[{name}]\"" in done.stderr


@pytest.mark.skipif(not HAVE["trackio"], reason="needs trackio")
def test_trackio_has_every_step_once_after_a_crash(start, tmp_path):
    assert start("log.trackio=true", "checkpoint.every=3", "run.stop_after=5").returncode == 0
    for folder in (tmp_path / "run" / "checkpoints").glob("step_5*"):
        folder.rename(tmp_path / "gone")  # as if the run had been killed before this save
    done = start("log.trackio=true", "log.parts=true", "log.texts_every=8")
    assert done.returncode == 0 and "resumed from " in done.stdout, done.stderr
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics order by step").fetchall()
    assert [step for step, _ in rows] == list(range(1, 9))
    expected = {record["step"]: record["loss"] for record in metrics(tmp_path / "run")}
    assert {step: json.loads(text)["train/loss"] for step, text in rows} == pytest.approx(expected)
    assert "validation_nats_per_token/loops_3" in json.loads(rows[3][1])
    (texts,) = (record["texts"]["drawn"] for record in records(tmp_path / "run") if "texts" in record)
    last = json.loads(rows[7][1])
    assert last["texts/1"]["_value"] == indent(texts[0], "    ", lambda line: True)
    assert last["grad_norm_by_part/mid"] == metrics(tmp_path / "run")[-1]["parts"]["mid"]["grad_norm"]


@pytest.mark.skipif(not HAVE["wandb"], reason="needs wandb")
def test_wandb_offline_keeps_one_run_over_two_starts(start, tmp_path):
    for words in (("run.stop_after=5",), ("log.texts_every=8",)):
        done = start("log.wandb=true", *words)
        assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and len({folder.name.rsplit("-", 1)[1] for folder in folders}) == 1
    steps = [step for folder in folders for step in logged_steps(folder)]
    assert steps == list(range(1, 9))
    (texts,) = (record["texts"]["drawn"] for record in records(tmp_path / "run") if "texts" in record)
    (page,) = folders[1].rglob("texts/1_*.html")
    assert f"<pre>{html.escape(texts[0])}</pre>" in page.read_text(encoding="utf-8")


def logged_steps(folder):
    """Steps with a loss in the file that wandb would send."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    steps = []
    for data in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        names = {item.key or "/".join(item.nested_key) for item in record.history.item}
        if "train/loss" in names:
            steps.append(record.history.step.num)
    return steps


def leveldb_records(content):
    """The records of a log in LevelDB's format: blocks of 32 KiB, in which a record has 7 bytes of header and may be in parts."""
    place, whole = 7, b""  # wandb's own header
    while place + 7 <= len(content):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""
