"""`loopmdm checkpoints` on a run with three checkpoints."""

import json
import shutil

import pytest

from pretrain.checkpoints.folder import remove, step_of, write_mark
from pretrain.cli import main
from pretrain.commands import checkpoints as verb
from pretrain.training.run_folder import owned_folder
from tests.launching import ROOT, train

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("listed")
    words = [
        f"data.path={corpus}",
        f"run.dir={folder}",
        "run.name=run",
        "train.steps=6",
        "checkpoint.every=2",
        "checkpoint.keep=9",
    ]
    train("--config", ROOT / "tests" / "tiny.yaml", *words, "eval.every=4", "eval.loops=1,3", "eval.rows=8")
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def test_the_table(run, capsys):
    assert main(["checkpoints", str(run)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["step", "GiB", "state", "layout", "validation,", "nats/token"]
    assert [line.split()[0] for line in lines] == ["2", "4", "6"]
    assert all("whole" in line and "1 rank, ZeRO-1, fp32" in line for line in lines)
    assert "S=1 " in lines[1] and "S=3 " in lines[1] and "S=" not in lines[0]
    assert main(["checkpoints", str(run), "--verify", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [one["verified"] for one in records] == [True] * 3 and all(one["bytes"] > 1000 for one in records)


@pytest.mark.parametrize("words", [[], ["--verify"]])
def test_what_training_replaces_meanwhile_is_not_called_damaged(run, capsys, monkeypatch, words):
    def removed(checkpoint, verify):
        if checkpoint.name == "step_2":
            remove(checkpoint)
        return describe(checkpoint, verify)

    def replaced(checkpoint, verify):
        checkpoint.rename(checkpoint.with_name(f"step_{step_of(checkpoint) + 10}"))
        return describe(checkpoint, verify)

    describe = verb.describe
    monkeypatch.setattr(verb, "describe", removed)
    assert main(["checkpoints", str(run), *words]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["step", "4", "6"]
    monkeypatch.setattr(verb, "describe", replaced)
    assert main(["checkpoints", str(run), *words]) == 0
    assert (
        capsys.readouterr().out
        == f"{run}: no complete checkpoint, but training has replaced some while they were read\n"
    )


def test_pruning_beside_training_says_whose_task_it_is(run, capsys):
    with owned_folder(run):
        assert main(["checkpoints", str(run), "--prune", "1"]) == 2
    assert "wait for it; it keeps checkpoint.keep checkpoints itself" in capsys.readouterr().err


def test_an_older_checkpoint_is_evaluated_sampled_and_exported(run, capsys):
    words = ["--rows", "8", "--loops", "1", "--weights", "raw"]
    assert main(["evaluate", str(run), "--checkpoint", "4", *words, "--output", str(run / "own.json")]) == 0
    own = json.loads((run / "own.json").read_text())
    trained = json.loads((run / "eval/train_step_4.json").read_text())
    assert own["step"] == 4 and own["loops"][0]["nats_per_token"] == pytest.approx(
        trained["loops"][0]["nats_per_token"], rel=1e-5
    )
    assert main(["sample", str(run), "--checkpoint", "2", "--steps", "2", "--num-samples", "1", "--length", "8"]) == 0
    assert main(["export", str(run), str(run / "exported"), "--checkpoint", "2"]) == 0
    assert f"wrote {run / 'exported'}: {run}, step 2, " in capsys.readouterr().out
    assert main(["sample", str(run), "--checkpoint", "3"]) == 2
    assert f"error: {run}: no complete checkpoint of step 3; there are: 2, 4, 6\n" in capsys.readouterr().err


def test_rows_of_another_length_are_told(run, corpus, capsys):
    """And a run folder is not taken for prepared data."""
    shutil.copytree(corpus, run.parent / "data")
    assert main(["repack", str(run.parent / "data"), "--seq-len", "16"]) == 0
    words = ["evaluate", str(run), "--rows", "8", "--loops", "1"]
    assert main(words) == 0 and "was trained on rows of" not in capsys.readouterr().err
    assert main([*words, "--data", str(run.parent / "data")]) == 0
    assert f"data has rows of 16 tokens, but {run} was trained on rows of 32\n" in capsys.readouterr().err
    assert main(["verify", str(run)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {run} is the folder of a run; give a prepared folder")


def test_a_changed_byte_is_found_by_verify_only_and_kept_by_prune(run, capsys):
    path = run / "checkpoints" / "step_4" / "rank_00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 64
    path.write_bytes(content)
    assert main(["checkpoints", str(run)]) == 0
    capsys.readouterr()
    assert main(["checkpoints", str(run), "--verify", "--prune", "1"]) == 2
    out = capsys.readouterr().out
    assert "rank_00000.safetensors: the checksum of" in out and out.endswith("removed step_2\n")
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_4", "step_6"]


def rewrite(path, change):
    """Change a JSON file of a checkpoint as if it had been written so."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    (path.parent / "COMPLETE").unlink()
    write_mark(path.parent)


def test_small_files_that_are_lost_or_incomplete_are_damage_also_for_the_table(run, capsys):
    folders = {step: run / "checkpoints" / f"step_{step}" for step in (2, 4, 6)}
    (folders[2] / "index.json").unlink()
    rewrite(folders[4] / "state.json", lambda state: state.pop("settings"))
    rewrite(folders[6] / "index.json", lambda index: index["entries"].pop())
    assert main(["checkpoints", str(run), "--verify"]) == 2
    lines = capsys.readouterr().out.splitlines()[1:]
    problems = ["index.json is missing", "state.json: cannot be read (KeyError: 'settings')", "numbers are missing ("]
    for problem, line in zip(problems, lines, strict=True):
        assert problem in line and "whole" not in line and "as written" not in line


def test_a_checkpoint_of_a_later_version_is_not_called_damaged(run, capsys):
    rewrite(run / "checkpoints" / "step_4" / "index.json", lambda index: index.update(format=2))
    assert main(["checkpoints", str(run)]) == 2
    line = capsys.readouterr().out.splitlines()[2]
    assert "index.json: format 2, this version reads 1; use the version of LoopMDM that has saved it" in line


def test_a_checkpoint_of_the_older_format_is_not_called_verified(run, capsys):
    """It has no checksums, like what `loopmdm import` writes."""
    (run / "checkpoints" / "step_4" / "index.json").unlink()
    (run / "checkpoints" / "step_4" / "COMPLETE").write_text("This checkpoint is whole.\n")
    assert main(["checkpoints", str(run), "--verify"]) == 0
    states = ["every byte as written", "whole, without checksums", "every byte as written"]
    for state, line in zip(states, capsys.readouterr().out.splitlines()[1:], strict=True):
        assert f"  {state}  " in line
    assert main(["checkpoints", str(run), "--verify", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [(one["checksums"], one["verified"]) for one in records] == [(True, True), (False, False), (True, True)]


def test_odd_requests(run, tmp_path, capsys):
    assert main(["checkpoints", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert main(["checkpoints", str(run), "--prune", "0"]) == 2
    assert "--prune 0: must be at least 1" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")
    assert main(["checkpoints", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}: no complete checkpoint\n"
