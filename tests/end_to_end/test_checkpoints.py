"""Saves and resumes of a run: beside training, after damage, and from checkpoints of the older format."""

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from data_pipeline.dataset.blend import load_blend
from pretrain.checkpoints import saver, states
from pretrain.checkpoints.folder import MARK, list_checkpoints, write_mark
from pretrain.cli import main
from pretrain.config.keys import flatten
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.errors import UserError
from pretrain.training import loop
from pretrain.training.checkpoint import SHARDS, _layout
from pretrain.training.start import build_run, run_training
from pretrain.training.step import train_step
from tests.checkpoints import tensors_of
from tests.launching import ROOT, metrics, train

pytestmark = pytest.mark.end_to_end
RECIPE = str(ROOT / "tests" / "tiny.yaml")


@pytest.fixture
def start(corpus, world, tmp_path):
    """One start of `train.steps=6` in this process; returns the run folder."""

    def started(*words, name="run", status=0):
        common = [
            f"data.path={corpus}",
            f"run.dir={tmp_path}",
            f"run.name={name}",
            "train.steps=6",
            "checkpoint.keep=9",
        ]
        settings = load_settings(RECIPE, [*common, "checkpoint.every=2", *words])
        blend = load_blend(settings.data.path)
        assert run_training(make_run_plan(settings, blend.manifest, 1), blend, resume=True) == status
        return tmp_path / name

    return started


def steps_logged(folder):
    """Also while the last line is being written."""
    return (folder / "metrics.jsonl").read_text().count("\n")


def same_tensors(one, other):
    expected, got = tensors_of(one), tensors_of(other)
    return all(torch.equal(v, got[w][t]) for w, tensors in expected.items() for t, v in tensors.items())


def losses(folder):
    return [record["loss"] for record in metrics(folder)]


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("layout", ["parallel.zero_stage=0", "parallel.zero_stage=3"])
def test_saving_beside_training_saves_the_step_at_which_it_began(start, monkeypatch, layout):
    """The thread writes step 2 only when another step has changed every tensor."""
    whole = start(layout, "checkpoint.asynchronous=false", name="whole")
    original, late = saver.write_part, []

    def write_when_training_has_gone_on(save, rank):
        while save.final.name == "step_2" and steps_logged(whole.parent / "beside") < 3:
            time.sleep(0.01)
        late.append(steps_logged(whole.parent / "beside"))
        return original(save, rank)

    monkeypatch.setattr(saver, "write_part", write_when_training_has_gone_on)
    beside = start(layout, name="beside")
    assert losses(beside) == losses(whole)
    for step in (2, 4, 6):
        assert same_tensors(*(run / "checkpoints" / f"step_{step}" for run in (whole, beside)))
    assert late[0] >= 3, "the first save was written before later steps"


def test_all_saves_of_a_start_share_the_memory_of_their_copy(start, monkeypatch):
    made, original = [], states.TensorFile

    def make(shapes):
        made.append(shapes)
        return original(shapes)

    monkeypatch.setattr(states, "TensorFile", make)
    folder = start()
    assert [path.name for path in list_checkpoints(folder)] == ["step_2", "step_4", "step_6"]
    assert len(made) == 1


def test_a_save_without_memory_for_its_copy_is_told_and_the_next_one_counts(start, monkeypatch, capsys):
    original, errors = os.memfd_create, [OSError(12, "Cannot allocate memory")]

    def make(name):
        if errors:
            raise errors.pop()
        return original(name)

    monkeypatch.setattr(os, "memfd_create", make)
    folder = start()
    out = capsys.readouterr().out
    assert (
        "warning: no memory for the copy that a save needs: [Errno 12] Cannot allocate memory. Older checkpoints" in out
    )
    assert [path.name for path in list_checkpoints(folder)] == ["step_4", "step_6"]


def test_a_save_that_fails_beside_training_is_told_and_the_next_one_counts(start, monkeypatch, capsys):
    original = saver.write_part

    def fail_once(save, rank):
        if save.final.name == "step_2":
            raise OSError(28, "No space left on device")
        return original(save, rank)

    monkeypatch.setattr(saver, "write_part", fail_once)
    folder = start()
    out = capsys.readouterr().out
    assert "warning: " in out and "step_2.partial could not be written: [Errno 28] No space left on device" in out
    assert "Training goes on until the next save" in out
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_4", "step_6"]


@pytest.mark.parametrize("status", [0, 75], ids=["run.stop_after", "SIGTERM"])
def test_a_save_that_fails_while_the_run_ends_does_not_cost_the_last_step(start, monkeypatch, capsys, status):
    """Step 4 is still being written when step 5 is the last."""
    original, ended = saver.write_part, threading.Event()

    def fail_in_the_end(save, rank):
        if save.final.name == "step_4":
            assert ended.wait(60)
            raise OSError(5, "Input/output error")
        return original(save, rank)

    def end_at_step_5(run, *rest):
        if run.progress.step == 3 and status == 75:
            signal.raise_signal(signal.SIGTERM)  # of which the next step reports
        elif run.progress.step == 4:
            threading.Timer(0.5, ended.set).start()
        return train_step(run, *rest)

    monkeypatch.setattr(saver, "write_part", fail_in_the_end)
    monkeypatch.setattr(loop, "train_step", end_at_step_5)
    folder = start("checkpoint.every=4", *([] if status else ["run.stop_after=5"]), status=status)
    out = capsys.readouterr().out
    assert "step_4.partial could not be written: [Errno 5] Input/output error. Older checkpoints are complete" in out
    assert "The last step is saved now" in out
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_5"]


def test_a_loss_that_is_no_number_does_not_cost_the_save_on_its_way(start, monkeypatch, tmp_path):
    """Step 3 fails while step 2 is still being written."""
    original = saver.write_part

    def write_slowly(save, rank):
        time.sleep(1.0)
        return original(save, rank)

    def fail_in_step_3(run, *rest):
        if run.progress.step == 2:
            return replace(train_step(run, *rest), skipped="the loss is nan")
        return train_step(run, *rest)

    monkeypatch.setattr(saver, "write_part", write_slowly)
    monkeypatch.setattr(loop, "train_step", fail_in_step_3)
    with pytest.raises(UserError, match=r"step 3: the loss is nan at \d loops, the last of 1 skipped"):
        start("train.max_skipped=0")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step_2"]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.unlink(), "rank_00000.safetensors is missing"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1000]),
            r"rank_00000.safetensors has [\d,]+ bytes, not [\d,]+",
        ),
        (flip, "rank_00000.safetensors: the checksum of .* differs"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(start, capsys, damage, message):
    whole = start(name="whole")
    folder = start("run.stop_after=4")
    damage(folder / "checkpoints" / "step_4" / "rank_00000.safetensors")
    with pytest.raises(UserError, match=rf"step_4: {message}; set checkpoint.on_damage=previous to use an older one"):
        start("checkpoint.on_damage=stop")
    capsys.readouterr()
    start()
    out = capsys.readouterr().out
    assert "warning: " in out and "moved to step_4.damaged, using the checkpoint before it" in out
    assert f"resumed from {folder / 'checkpoints' / 'step_2'}" in out
    assert same_tensors(folder / "checkpoints" / "step_6", whole / "checkpoints" / "step_6")
    assert losses(folder) == losses(whole)


def test_a_save_whose_files_have_vanished_is_none_and_the_older_checkpoint_stays(start, monkeypatch, capsys):
    """Somebody cleans up while a rank writes. The mark would list what is left."""
    original = saver.write_part

    def write_and_lose(save, rank):
        part = original(save, rank)
        if save.final.name == "step_4":
            shutil.rmtree(save.partial)
        return part

    monkeypatch.setattr(saver, "write_part", write_and_lose)
    folder = start("run.stop_after=5", "checkpoint.keep=1", "checkpoint.asynchronous=false")
    out = capsys.readouterr().out
    assert f"warning: {folder / 'checkpoints' / 'step_4.partial'} could not be written: [Errno 2] No such file" in out
    assert "saved " + str(folder / "checkpoints" / "step_4") not in out
    assert [path.name for path in list_checkpoints(folder)] == ["step_5"]


def test_an_error_of_the_system_in_a_save_names_the_checkpoint(start, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, "No space left on device")  # as a write has it: without a name

    monkeypatch.setattr("pretrain.checkpoints.save.write_atomic", full)
    with pytest.raises(
        UserError, match=r"step_6.partial could not be written: \[Errno 28\] .* Older checkpoints are complete"
    ):
        start()
    assert "step_2.partial could not be written: [Errno 28] No space left on device. Older" in capsys.readouterr().out


def test_a_limit_of_the_size_of_files_is_not_called_a_lack_of_memory(start, monkeypatch):
    def too_large(*_):
        raise OSError(27, "File too large")

    monkeypatch.setattr(states.Held, "snapshot", too_large)
    with pytest.raises(
        UserError, match=r"files may not become large enough \(ulimit -f\) for the copy that a save needs"
    ):
        start()


def test_a_lost_index_is_damage_not_the_older_format(start, capsys):
    folder = start("run.stop_after=4")
    (folder / "checkpoints" / "step_4" / "index.json").unlink()
    start()
    out = capsys.readouterr().out
    assert "step_4: index.json is missing; moved to step_4.damaged, using the checkpoint before it" in out
    assert f"resumed from {folder / 'checkpoints' / 'step_2'}" in out


def test_a_checkpoint_of_a_later_version_stays_and_is_refused(start):
    folder = start("run.stop_after=4")
    newest = folder / "checkpoints" / "step_4"
    for name, change, message in (
        ("index.json", {"format": 2}, "index.json: format 2, this version reads 1; use the version of LoopMDM"),
        (
            "state.json",
            {"progress": {"step": 4, "moons": 1}},
            "state.json: its progress is not what .*moons.* use the version",
        ),
    ):
        original = {path: path.read_bytes() for path in newest.iterdir()}
        (newest / name).write_text(json.dumps(json.loads((newest / name).read_text()) | change))
        (newest / MARK).unlink()
        write_mark(newest)
        with pytest.raises(UserError, match=message):
            start()
        assert newest.is_dir()
        for path, content in original.items():
            path.write_bytes(content)


def test_what_has_the_name_of_a_checkpoint_but_is_none_does_not_prevent_a_save(start, tmp_path, capsys):
    """A file, and a link to a disk that is not there. Neither is lost."""
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "step_4").symlink_to("/no/such/disk")
    (checkpoints / "step_6").write_text("notes")
    start()
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step_2", "step_4", "step_6"]
    link, file = sorted(checkpoints.glob("*.found-*"))
    assert (str(link.readlink()), file.read_text()) == ("/no/such/disk", "notes")
    assert f"warning: {checkpoints / 'step_6'} was not a checkpoint; renamed to {file.name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: path.symlink_to("/no/such/disk"), "checkpoints: a link to /no/such/disk, where no folder is"),
        (lambda path: path.write_text("notes"), "checkpoints: not a folder"),
    ],
)
def test_a_place_where_nothing_could_be_saved_is_refused_at_the_start(start, tmp_path, make, message):
    (tmp_path / "run").mkdir()
    make(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match=f"{message}; .* restore or remove it"):
        start()


@pytest.mark.parametrize("spoilt", [b"\xff\xfe\n", b"[1]\n3\n", b'{"step": "four"}\n', b"\0\0\0\n"])
def test_spoilt_lines_of_the_figures_do_not_prevent_a_resume(start, spoilt, capsys):
    folder = start("run.stop_after=2")
    path = folder / "metrics.jsonl"
    path.write_bytes(spoilt + path.read_bytes())
    assert main(["status", str(folder)]) == 0
    assert "2 of 6" in capsys.readouterr().out
    start()
    assert [record["step"] for record in metrics(folder)] == [1, 2, 3, 4, 5, 6]


def test_a_spoilt_status_does_not_prevent_a_resume(start):
    folder = start("run.stop_after=2")
    (folder / "status.json").write_text("[3]")
    assert main(["status", str(folder)]) == 0
    start()
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"


def test_the_only_checkpoint_is_damaged(start):
    folder = start("run.stop_after=2")
    flip(folder / "checkpoints" / "step_2" / "rank_00000.safetensors")
    with pytest.raises(UserError, match=r"step_2: rank_00000.safetensors: the checksum of .* there is no older one"):
        start()
    assert (folder / "checkpoints" / "step_2" / MARK).is_file()


class Harmful:
    """Its pickle makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_checkpoint_of_the_older_format_still_loads_on_its_layout(start, corpus, world, tmp_path, stage):
    """Written as it was before: DeepSpeed's shards, and a mark without a list. No code in them is run."""
    words = [f"parallel.zero_stage={stage}"]
    whole = start(*words, name="whole")
    common = [f"data.path={corpus}", f"run.dir={tmp_path}", "run.name=run", "train.steps=6", "checkpoint.every=2"]
    settings = load_settings(RECIPE, [*common, *words])
    blend = load_blend(settings.data.path)
    run = build_run(make_run_plan(settings, blend.manifest, 1), blend, world)
    for step in range(2):
        train_step(run, run.batches[step])
        run.progress.flops += run.plan.step_flops(step)
        run.progress.step += 1
    folder = tmp_path / "run" / "checkpoints" / "step_2"
    folder.mkdir(parents=True)
    run.engine._engine.save_checkpoint(str(folder), tag=SHARDS, save_latest=False)
    state = {"progress": asdict(run.progress), "layout": asdict(_layout(run)), "data": blend.identity()}
    (folder / "state.json").write_text(json.dumps(state | {"settings": flatten(run.plan.settings)}))
    (folder / MARK).write_text("This checkpoint is whole.\n")
    other = "parallel.zero_stage=2" if stage != 2 else "parallel.zero_stage=1"
    with pytest.raises(UserError, match=rf"cannot resume: zero_stage was {stage}, now 2"):
        start(other)
    file, *_ = sorted((folder / SHARDS).glob("*.pt"))
    file.rename(tmp_path / "sound.pt")
    torch.save({"module": Harmful(tmp_path / "harmed")}, file)
    with pytest.raises(
        UserError,
        match=r"step_2: a file with shards holds .*\.system, which is not plain data .* do not use the folder",
    ):
        start(*words)
    assert not (tmp_path / "harmed").exists()
    (tmp_path / "sound.pt").rename(file)
    start(*words)
    assert losses(tmp_path / "run") == losses(whole)[2:]
    assert same_tensors(whole / "checkpoints" / "step_6", tmp_path / "run" / "checkpoints" / "step_6")


def test_a_run_goes_on_with_other_ranks_zero_stage_and_precision(start):
    """On the command line: a change of the layout is told, like other changed settings."""
    folder = start("run.stop_after=2")
    words = ["--config", RECIPE, f"data.path={load_settings(str(folder / 'config.yaml')).data.path}", "run.name=run"]
    words += [
        f"run.dir={folder.parent}",
        "train.steps=6",
        "checkpoint.every=2",
        "parallel.zero_stage=3",
        "train.precision=bf16",
    ]
    out = train(*words).stdout
    assert "changed since then: parallel.zero_stage: 1 -> 3" in out
    assert "changed since then: train.precision: fp32 -> bf16" in out
    shutil.rmtree(folder)
