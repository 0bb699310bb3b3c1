"""Runs as a user starts, stops, resumes, evaluates and samples them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.dataset.blend import load_blend
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.manifest import load_manifest
from model.reference import reference_logits
from pretrain.checkpoints.folder import write_mark
from pretrain.cli import main as loopmdm
from pretrain.config.load import load_settings
from pretrain.config.run_folder import read_status
from pretrain.config.run_plan import make_run_plan
from pretrain.errors import UserError
from pretrain.evaluation.nelbo import freeze_noise
from pretrain.training.run_folder import owned_folder
from pretrain.training.start import run_training
from tests.checkpoints import tensors_of, weights_of
from tests.launching import ROOT, metrics, records, train

pytestmark = pytest.mark.end_to_end
RECIPE = ROOT / "tests" / "tiny.yaml"


@pytest.fixture
def train_here(world, corpus, tmp_path):
    """Train in this process; the run folder is `tmp_path / NAME`."""

    def start(name, *words, resume=True):
        settings = load_settings(
            str(RECIPE), [f"data.path={corpus}", f"run.dir={tmp_path}", f"run.name={name}", *words]
        )
        blend = load_blend(settings.data.path)
        status = run_training(make_run_plan(settings, blend.manifest, 1), blend, resume)
        return tmp_path / name, status

    return start


@pytest.fixture(scope="module")
def trained(world, corpus, tmp_path_factory):
    """A finished run with evaluation and TensorBoard on."""
    folder = tmp_path_factory.mktemp("trained")
    words = [
        f"data.path={corpus}",
        f"run.dir={folder}",
        "run.name=run",
        "eval.every=10",
        "eval.loops=1,3",
        "eval.rows=40",
    ]
    settings = load_settings(str(RECIPE), [*words, "log.tensorboard=true"])
    blend = load_blend(settings.data.path)
    assert run_training(make_run_plan(settings, blend.manifest, 1), blend, resume=True) == 0
    return folder / "run"


def numbers(run_folder: Path) -> list[tuple]:
    """What two runs must share: everything but clocks and memory."""
    keys = (
        "step",
        "samples",
        "tokens",
        "flops",
        "loss",
        "loops",
        "lr",
        "grad_norm",
        "loss_by_timestep",
        "loss_by_loops",
    )
    return [tuple(json.dumps(m[key]) for key in keys) for m in metrics(run_folder)]


def states(run_folder: Path, step: int = 20) -> dict[str, torch.Tensor]:
    folder = run_folder / "checkpoints" / f"step_{step}"
    return {f"{name}.{key}": value for name, tensors in tensors_of(folder).items() for key, value in tensors.items()}


def assert_same_bits(first: Path, second: Path) -> None:
    assert numbers(first) == numbers(second)
    one, other = states(first), states(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


BITWISE = {"zero0": 0, "zero1": 1, "zero2": 2, "zero3": 3}


@pytest.mark.parametrize("stage", BITWISE.values(), ids=BITWISE.keys())
def test_stop_and_resume_equal_an_uninterrupted_run_bit_for_bit(train_here, stage):
    zero = f"parallel.zero_stage={stage}"
    whole, _ = train_here("whole", zero)
    train_here("parts", zero, "run.stop_after=10")
    parts, _ = train_here("parts", zero)
    assert [m["step"] for m in metrics(parts)] == list(range(1, 21))
    assert_same_bits(whole, parts)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deterministic_kernels_exist_for_every_operation(train_here, precision):
    """torch raises an error where there is none. On a CPU the numbers are the same with and without."""
    words = (f"train.precision={precision}", "parallel.zero_stage=1")
    plain, _ = train_here("plain", *words)
    deterministic, _ = train_here("deterministic", *words, "train.deterministic=true")
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    assert_same_bits(plain, deterministic)


def test_resume_in_a_new_process_after_a_crash_is_bitwise_too(train_here, corpus, tmp_path):
    """Steps after the last checkpoint are lost in a crash and taken again, with the same numbers."""
    whole, _ = train_here("whole", "checkpoint.every=6")
    words = ["--config", RECIPE, f"data.path={corpus}", f"run.dir={tmp_path}", "run.name=parts", "checkpoint.every=6"]
    train(*words, "run.stop_after=14")
    parts = tmp_path / "parts"
    shutil.rmtree(parts / "checkpoints" / "step_14")  # as if the process had died before this save
    again = train(*words)
    assert f"resumed from {parts / 'checkpoints' / 'step_12'}, 0 tokens repeated" in again.stdout
    assert_same_bits(whole, parts)


def test_a_finished_run_has_nothing_to_do(train_here, capsys):
    train_here("run")
    _, status = train_here("run")
    assert status == 0
    out = capsys.readouterr().out
    assert "nothing to do" in out and "without effect" not in out
    _, status = train_here("run", "optim.lr=0.5")
    assert (
        status == 0
        and "\nchanged without effect: optim.lr: 0.001 -> 0.5; --no-resume trains anew" in capsys.readouterr().out
    )


def test_more_steps_go_on_from_the_end(train_here, capsys):
    folder, _ = train_here("run", "optim.schedule=constant")
    train_here("run", "optim.schedule=constant", "train.steps=24")
    assert [m["step"] for m in metrics(folder)] == list(range(1, 25))
    assert "changed since then: train.steps: 20 -> 24" in capsys.readouterr().out


def test_a_folder_in_use_is_refused(train_here, tmp_path):
    (tmp_path / "run").mkdir()
    with owned_folder(tmp_path / "run"), pytest.raises(UserError, match=r"another process is training here"):
        train_here("run")
    train_here("run", "run.stop_after=1")


def test_no_resume_moves_the_old_run_aside(train_here):
    folder, _ = train_here("run", "run.stop_after=2")
    train_here("run", "run.stop_after=3", resume=False)
    (aside,) = folder.parent.glob("run.old-*")
    assert [m["step"] for m in metrics(aside)] == [1, 2]
    assert [m["step"] for m in metrics(folder)] == [1, 2, 3]


CANNOT_RESUME = {
    "model.hidden_size=64": r"model.hidden_size was 32, now 64",
    "run.seed=1": r"run.seed was 0, now 1",
    "train.global_batch_size=4": r"train.global_batch_size was 8, now 4",
    "optim.ema_decay=0": r"optim.ema_decay was 0.9, now 0.0",
    "train.attention=document": r"train.attention was row, now document",
    "train.timesteps=bell": r"train.timesteps was uniform, now bell",
    "train.noise=document": r"train.noise was row, now document",
    "optim.name=muon": r"optim.name was adamw, now muon",
}


@pytest.mark.parametrize("word", CANNOT_RESUME)
def test_a_checkpoint_of_another_shape_is_refused_and_kept(train_here, word):
    folder, _ = train_here("run", "run.stop_after=2")

    def times():
        """Of everything but the log, the lock and the status, which tell of the refused start too."""
        files = (p for p in folder.rglob("*") if p.is_file() and p.parent.name != "logs")
        return {p: p.stat().st_mtime_ns for p in files if p.name not in (".lock", "status.json")}

    before = times()
    with pytest.raises(UserError, match=f"step_2: cannot resume: .*{CANNOT_RESUME[word]}"):
        train_here("run", word)
    assert times() == before
    assert "cannot resume" in (folder / "logs" / "rank_0.log").read_text()
    assert "cannot resume" in read_status(folder)["why"] and not read_status(folder)["diverged"]


def test_a_checkpoint_of_a_version_with_fewer_settings_can_be_resumed(train_here):
    """What it does not know had the defaults."""
    folder, _ = train_here("run", "run.stop_after=2")
    path = folder / "checkpoints" / "step_2" / "state.json"
    state = json.loads(path.read_text())
    for key in ("train.timesteps", "train.complementary_masks"):
        del state["settings"][key]
    path.write_text(json.dumps(state))
    (path.parent / "COMPLETE").unlink()
    write_mark(path.parent)
    train_here("run", "run.stop_after=1")
    assert [m["step"] for m in metrics(folder)] == [1, 2, 3]


def test_other_data_is_refused(train_here, corpus, tmp_path):
    train_here("run", "run.stop_after=2")
    text = tmp_path / "other.txt"
    text.write_text("entirely other words stand in this text\n" * 3000)
    tokenizer = corpus / load_manifest(corpus).tokenizer.file
    arguments = [
        "--input",
        str(text),
        "--output",
        str(tmp_path / "other"),
        "--tokenizer",
        str(tokenizer),
        "--seq-len",
        "32",
    ]
    assert loopmdm(["prepare", *arguments, "--validation-fraction", "0", "--workers", "1"]) == 0
    with pytest.raises(UserError, match="differs from the data of the run"):
        train_here("run", f"data.path={tmp_path / 'other'}")


def test_a_full_disk_leaves_the_older_checkpoint_whole(train_here, monkeypatch):
    folder, _ = train_here("run", "run.stop_after=2")
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(
        UserError,
        match=r"0.0 MiB free, a checkpoint needs about \d\.\d MiB; free some space and run the same command again",
    ):
        train_here("run", "run.stop_after=2")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_2"]


def test_a_validation_that_cannot_be_written_is_in_the_metrics(train_here, monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pretrain.training.hooks.validation.save_result", fail)
    folder, _ = train_here("run", "eval.every=10")
    out = capsys.readouterr().out
    assert "warning: " in out and "eval: train_step_10.json could not be written: [Errno 28] No space left" in out
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert [record["step"] for record in records if "validation" in record] == [10, 20]


def test_a_write_that_fails_half_way_leaves_nothing_that_counts(train_here, monkeypatch, tmp_path):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pretrain.checkpoints.tensor_file.TensorFile.write", fail)
    with pytest.raises(
        UserError, match=r"could not be written: .*No space left on device.*Older checkpoints are complete"
    ):
        train_here("run", "run.stop_after=2")
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_loss_that_is_no_number_stops_the_run_unsaved(train_here, tmp_path):
    with pytest.raises(UserError, match=r"gradient norm|loss"):
        train_here("run", "optim.lr=1e30", "optim.clip_norm=0", "optim.warmup_steps=0")
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_damaged_data_is_refused_before_training(train_here, corpus, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(corpus, damaged)
    (damaged / "train-00000.bin").write_bytes((damaged / "train-00000.bin").read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train-00000.bin"):
        train_here("run", f"data.path={damaged}")
    assert not (tmp_path / "run").exists()


def test_record_fields(trained):
    record = metrics(trained)[-1]
    assert list(record)[:13] == [
        "step", "samples", "tokens", "flops", "loss", "loops", "lr", "grad_norm", "tokens_per_second", "flops_per_second",
        "mfu", "memory_gib", "data_wait",
    ]  # fmt: skip
    assert (record["step"], record["samples"], record["tokens"], record["mfu"]) == (20, 160, 160 * 32, None)
    assert len(record["loss_by_timestep"]) == 10


def test_validation_is_in_the_metrics_file(trained):
    """The same figures as in eval/, with their place in the run, after the training record of that step."""
    validations = [record for record in records(trained) if "validation" in record]
    assert [record["step"] for record in validations] == [10, 20]
    during = json.loads((trained / "eval" / "train_step_20.json").read_text())
    assert validations[-1]["validation"]["loops"] == during["loops"]
    assert {key: validations[-1][key] for key in ("samples", "tokens", "flops", "elapsed")} == {
        key: metrics(trained)[-1][key] for key in ("samples", "tokens", "flops", "elapsed")
    }


def test_tensorboards_own_reader_reads_the_run(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    scalars = events.Scalars("train/loss")
    assert [s.step for s in scalars] == list(range(1, 21))
    assert [s.value for s in scalars] == pytest.approx([m["loss"] for m in metrics(trained)], rel=1e-6)
    tags = events.Tags()["scalars"]
    assert any(tag.startswith("loss_by_timestep/") for tag in tags)
    assert any(tag.startswith("loss_by_loops/") for tag in tags)
    during = json.loads((trained / "eval" / "train_step_20.json").read_text())["loops"]
    for figures in during:
        last = events.Scalars(f"validation_nats_per_token/loops_{figures['loops']}")[-1]
        assert (last.step, last.value) == (20, pytest.approx(figures["nats_per_token"], rel=1e-6))


def test_evaluate_equals_the_oracle_on_the_same_rows(trained, corpus, capsys):
    """The whole command against plain PyTorch: same rows, same frozen masks, mean -log p per masked token."""
    assert (
        loopmdm(["evaluate", str(trained), "--loops", "1,3", "--rows", "40", "--batch-size", "7", "--weights", "raw"])
        == 0
    )
    figures = json.loads((trained / "eval" / "step_20_raw_loops_1-3_rows_40.json").read_text())
    settings, dataset = load_settings(str(trained / "config.yaml")), PackedDataset(corpus, "validation")
    weights = weights_of(trained / "checkpoints" / "step_20")
    noise = freeze_noise(dataset, 40)
    clean, masked = torch.from_numpy(dataset.rows(noise.rows)), torch.from_numpy(noise.masks(slice(0, 40)))
    for row in figures["loops"]:
        logits = reference_logits(
            weights, settings.model, clean.masked_fill(masked, settings.model.mask_id), row["loops"]
        )
        nats = -logits.log_softmax(-1).gather(-1, clean[..., None]).squeeze(-1)
        per_row = (nats * masked).sum(dim=1) / masked.sum(dim=1)
        assert row["nats_per_token"] == pytest.approx(per_row.mean().item(), rel=1e-5)
    split = dataset.manifest.splits["validation"]
    expected = figures["loops"][0]["nats_per_token"] / np.log(2) * split.tokens / split.bytes
    assert figures["loops"][0]["bits_per_byte"] == pytest.approx(expected)
    assert "unigram" in capsys.readouterr().out


def test_the_log_holds_what_was_printed(trained):
    log = (trained / "logs" / "rank_0.log").read_text()
    assert log.startswith("run ")
    assert log.count("| loss ") == 20
    assert "done: 20 steps" in log


def test_validation_while_training_equals_the_command(trained):
    loopmdm(["evaluate", str(trained), "--loops", "1,3", "--rows", "40", "--weights", "raw"])
    after = json.loads((trained / "eval" / "step_20_raw_loops_1-3_rows_40.json").read_text())["loops"]
    during = json.loads((trained / "eval" / "train_step_20.json").read_text())["loops"]
    assert [r["nats_per_token"] for r in during] == pytest.approx([r["nats_per_token"] for r in after], rel=1e-5)


def test_validation_leaves_trainings_numbers_untouched(trained, train_here):
    without, _ = train_here("without")
    assert numbers(without) == numbers(trained)


def test_sample_writes_text_without_masks(trained, capsys):
    arguments = ["--loops", "2", "--steps", "8", "--num-samples", "3", "--prompt", "abc abd"]
    assert loopmdm(["sample", str(trained), *arguments]) == 0
    (path,) = (trained / "samples").glob("*.json")
    record = json.loads(path.read_text())
    mask_id = load_manifest(trained / "tokenizer").tokenizer.mask_id
    assert len(record["texts"]) == 3
    assert all(text.startswith("abc abd") for text in record["texts"])
    assert all(len(row) == 32 and mask_id not in row for row in record["tokens"])
    assert record["texts"][0] in capsys.readouterr().out
    assert loopmdm(["sample", str(trained), *arguments]) == 0
    assert json.loads(path.read_text())["tokens"] == record["tokens"]


MISUSES = {
    ("evaluate", "nowhere"): "nowhere: no such folder; give the folder of a run, such as runs/quickstart",
    ("sample", "README.md"): "README.md: is a file; give the folder of a run",
    ("sample", "tests"): "tests: not a run folder (it has no config.yaml)",
    ("evaluate", "RUN", "--rows", "1"): "--rows 1: a standard error needs at least 2 rows",
    ("evaluate", "RUN", "--split", "test"): "has no split 'test'",
    ("sample", "RUN", "--loops", "0"): "--loops 0: must be at least 1",
    ("sample", "RUN", "--prompt", "long " * 40): "leave no room in a sample of 32; shorten it or raise --length",
}


@pytest.mark.parametrize("words", MISUSES, ids=lambda words: " ".join(words)[:40])
def test_misuse_is_told_and_exits_2(trained, words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert loopmdm([str(trained) if word == "RUN" else word for word in words]) == 2
    assert MISUSES[words] in capsys.readouterr().err


def test_doctor_says_what_is_used(capsys):
    assert loopmdm(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "AdamW step" in output
    assert "apex is not installed" in output
    assert "ready to train" in output
