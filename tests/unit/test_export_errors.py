"""What `loopmdm export` and `loopmdm import` refuse: one line that names the file or option and the fix, and nothing left."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrain.checkpoints import folder as folders
from pretrain.cli import main
from tests.exports import add_checkpoint, call_verb, copy_run, make_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a byte tokenizer."""
    return make_run(tmp_path_factory.mktemp("runs") / "bytes", "bytes")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Its export."""
    folder = tmp_path_factory.mktemp("exports") / "bytes"
    assert main(["export", str(trained), str(folder)]) == 0
    return folder


@pytest.fixture
def call(capsys):
    """Run a verb; returns its status, output and errors."""
    return partial(call_verb, capsys)


def refused(result, *parts):
    status, out, error = result
    assert status == 2 and out == "" and error.startswith("error: ") and error.count("\n") == 1, (out, error)
    for part in parts:
        assert part in error, error


def test_export_refuses_what_it_cannot_do(trained, call, tmp_path):
    run = trained
    refused(
        call("export", tmp_path / "none", tmp_path / "x"), f"{tmp_path}/none: no such folder; give the folder of a run"
    )
    refused(call("export", tmp_path, tmp_path / "x"), "not a run folder (it has no config.yaml)")
    refused(call("export", run, tmp_path / "x", "--loops", "0"), "--loops 0: must be at least 1")
    refused(call("export", run, tmp_path / "x", "--loops", "124816"), "--loops 124816: must be at most 1,000")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    refused(call("export", run, tmp_path / "full"), "DIR", "exists and is not empty; name another folder")
    refused(call("export", run, tmp_path / "full" / "a"), "is not a folder; choose another name")
    refused(call("export", run, run), "exists and is not empty")
    refused(
        call("export", run, tmp_path / "full" / "a" / "x"), "cannot be written (Not a directory); choose another folder"
    )
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused(call("export", run, tmp_path / "link"), "is not a folder")
    empty = copy_run(run, tmp_path / "empty")
    (empty / "tokenizer" / "manifest.json").unlink()
    refused(call("export", empty, tmp_path / "x"), "manifest.json: is missing; copy the folder tokenizer/ again")
    shutil.rmtree(empty / "checkpoints")
    refused(call("export", empty, tmp_path / "x"), "no complete checkpoint in")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "full", "link"]


def test_a_folder_that_cannot_be_written(trained, call, tmp_path, monkeypatch):
    original = Path.mkdir

    def mkdir(path, *args, **kwargs):
        if path.name.startswith("x.partial"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    refused(
        call("export", trained, tmp_path / "x"),
        f"DIR {tmp_path}/x: cannot be written (Permission denied); choose another",
    )


def test_a_full_disk_leaves_nothing(trained, exported, call, tmp_path, monkeypatch):
    def write_text(path, *args, **kwargs):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", write_text)
    refused(call("export", trained, tmp_path / "x"), "cannot be written (No space left on device); free some space")
    refused(
        call("import", exported, tmp_path / "x"),
        f"RUN {tmp_path}/x: ",
        "(No space left on device); free some space",
    )
    assert not list(tmp_path.iterdir())


def test_weights_that_the_run_does_not_have(call, tmp_path):
    run = make_run(tmp_path / "run", "bytes", optim__ema_decay=0)
    assert call("export", run, tmp_path / "x")[0] == 0
    refused(
        call("export", run, tmp_path / "y", "--weights", "ema"), "ema.safetensors: does not exist;", "use --weights raw"
    )
    weights = run / "checkpoints" / "step_3" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(
        call("export", run, tmp_path / "y"), "weights.safetensors: cannot be read", "to use the previous checkpoint"
    )
    assert not (tmp_path / "y").exists()


def test_a_checkpoint_that_training_removes_meanwhile_is_replaced_by_the_next(trained, call, tmp_path, monkeypatch):
    run = copy_run(trained, tmp_path / "run")
    original = folders.read_state

    def read_state(folder):
        if folder.name == "step_3":
            add_checkpoint(run, 4)
            shutil.rmtree(folder)
        return original(folder)

    monkeypatch.setattr(folders, "read_state", read_state)
    status, out, _ = call("export", run, tmp_path / "x")
    assert status == 0 and "step 4, ema weights" in out


def damaged(exported, folder, name, change):
    """A copy of an export with one JSON file changed."""
    shutil.copytree(exported, folder)
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    return folder


def test_import_refuses_what_is_no_export(trained, exported, call, tmp_path):
    out = (tmp_path / "run",)
    refused(call("import", tmp_path / "none", *out), "no such folder; give a folder that `loopmdm export` wrote")
    refused(call("import", trained, *out), "it has no config.json; give a folder that `loopmdm export` wrote")
    refused(
        call("import", exported, tmp_path / "a b"),
        f"{tmp_path}/a b: ",
        "only letters, digits, '_', '-' and '.'",
    )
    llama = damaged(exported, tmp_path / "a", "config.json", lambda c: c.update(model_type="llama"))
    refused(
        call("import", llama, *out), "model_type is 'llama'; only folders that `loopmdm export` wrote can be imported"
    )
    other = damaged(exported, tmp_path / "b", "config.json", lambda c: c.update(hidden_size=64))
    refused(call("import", other, *out), "config.json: hidden_size is 64, but the run that was exported has 32")
    future = damaged(exported, tmp_path / "c", "loopmdm/run.json", lambda c: c.update(format=9))
    refused(call("import", future, *out), "run.json: has format 9, this version of loopmdm reads 1")
    unknown = damaged(
        exported, tmp_path / "d", "loopmdm/run.json", lambda c: c["state"]["settings"].update({"train.new": 1})
    )
    refused(call("import", unknown, *out), "run.json", "train.new")
    outside = damaged(
        exported, tmp_path / "e", "loopmdm/run.json", lambda c: c["evaluations"].update({"../x.json": {}})
    )
    refused(call("import", outside, *out), "'../x.json' is not the name of a file")
    (llama / "config.json").write_text("{")
    refused(call("import", llama, *out), "config.json: cannot be read")
    (future / "loopmdm" / "run.json").write_text("[]")
    refused(call("import", future, *out), "run.json: cannot be read")
    (outside / "loopmdm" / "manifest.json").unlink()
    refused(call("import", outside, *out), "manifest.json: is missing; copy the folder loopmdm/ again")
    shutil.rmtree(future / "loopmdm")
    refused(call("import", future, *out), "run.json: is missing; copy the folder `loopmdm` from the export")
    assert not (tmp_path / "run").exists()


def test_import_refuses_damaged_weights(exported, call, tmp_path):
    folder = Path(shutil.copytree(exported, tmp_path / "x"))
    file, out = folder / "model.safetensors", (tmp_path / "run",)
    whole = load_file(file)
    save_file({k: v for k, v in whole.items() if k != "norm.weight"}, file)
    refused(call("import", folder, *out), "model.safetensors: lacks weights: norm.weight;")
    save_file(whole | {"model.norm.weight": torch.ones(1)}, file)
    refused(call("import", folder, *out), "has unknown weights: model.norm.weight;")
    save_file(whole | {"norm.weight": torch.ones(31)}, file)
    refused(call("import", folder, *out), "norm.weight has the shape [31]", "describes [32]")
    save_file(whole | {"norm.weight": torch.full((32,), torch.nan)}, file)
    refused(call("import", folder, *out), "norm.weight has values that are not finite numbers; copy it again")
    file.write_bytes(file.read_bytes()[:5000])
    refused(call("import", folder, *out), "model.safetensors: cannot be read", "copy it again from the export")
    file.unlink()
    refused(call("import", folder, *out), "model.safetensors: is missing")
    (folder / "loopmdm" / "tokenizer.bytes").write_text("changed")
    refused(call("import", folder, *out), "tokenizer.bytes has changed")
