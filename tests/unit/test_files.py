"""Checkpoint folders, metrics files, the console line, ranks from launchers and signals, without training."""

import json
import resource
import shutil
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from pretrain.checkpoints.folder import MARK, latest_checkpoint, list_checkpoints, prune, read_state
from pretrain.checkpoints.weights import load_into
from pretrain.config.run_folder import has_record, whole_records
from pretrain.durations import format_duration
from pretrain.errors import UserError
from pretrain.inspection.run_facts import read_run
from pretrain.training.hooks.sinks import Console, MetricsFile
from pretrain.training.run_folder import require_shared_folder
from pretrain.training.stop_request import StopRequest


def checkpoint(run, step, complete=True, suffix=""):
    folder = run / "checkpoints" / f"step_{step}{suffix}"
    folder.mkdir(parents=True)
    if complete:
        (folder / MARK).touch()
    return folder


def test_complete_checkpoints_are_listed_in_order_of_steps(tmp_path):
    for step in (5, 100, 20):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 200, complete=False)
    checkpoint(tmp_path, 300, suffix=".partial")
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_5", "step_20", "step_100"]
    assert latest_checkpoint(tmp_path).name == "step_100"


def test_prune_removes_other_steps_and_partial_folders(tmp_path):
    for step in (5, 100, 20):
        checkpoint(tmp_path, step)
    partial = checkpoint(tmp_path, 30, suffix=".partial")
    prune(tmp_path, keep={20, 100})
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_20", "step_100"]
    assert not partial.exists()


@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_a_checkpoint_that_cannot_be_removed_is_told_and_is_none_any_more(tmp_path, monkeypatch, capsys, suffix):
    for step in (5, 100):
        checkpoint(tmp_path, step)
    stuck, remove_tree = checkpoint(tmp_path, 20, suffix=suffix), shutil.rmtree

    def not_empty(folder):
        if folder == stuck:
            raise OSError(39, "Directory not empty", str(folder))
        remove_tree(folder)

    monkeypatch.setattr(shutil, "rmtree", not_empty)
    prune(tmp_path, keep={100})
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_100"]
    assert f"warning: {stuck} could not be removed: [Errno 39] Directory not empty" in capsys.readouterr().out
    assert stuck.exists() and not (tmp_path / "checkpoints" / "step_5").exists()


def test_a_run_without_checkpoint_says_so(tmp_path):
    with pytest.raises(UserError, match="no complete checkpoint in"):
        latest_checkpoint(tmp_path)


def test_unreadable_state_names_the_file_and_the_fix(tmp_path):
    folder = checkpoint(tmp_path, 5)
    (folder / "state.json").write_text('{"progress": ')
    with pytest.raises(
        UserError, match=r"state.json: cannot be read .* remove the folder to use the previous checkpoint"
    ):
        read_state(folder)


def test_settings_that_a_checkpoint_does_not_have_get_their_defaults(tmp_path):
    folder = checkpoint(tmp_path, 5)
    (folder / "state.json").write_text(json.dumps({"settings": {"run.seed": 3}}))
    settings = read_state(folder)["settings"]
    assert (settings["run.seed"], settings["train.attention"], settings["train.noise"]) == (3, "row", "row")


def test_missing_and_broken_weights(tmp_path):
    folder = checkpoint(tmp_path, 5)
    model = torch.nn.Linear(10, 10, bias=False)
    save_file({"weight": torch.zeros(10, 10)}, folder / "weights.safetensors")
    load = partial(load_into, checkpoint=folder, architecture=None, rank=0, size=1, averaged=False)
    load(model)
    assert not model.weight.any()
    with pytest.raises(UserError, match=r"ema.safetensors: does not exist; .* use --weights raw"):
        load(model, averaged=True)
    with pytest.raises(UserError, match=r"weight has the shape \[10, 10\], the run's config.yaml describes \[5, 10\]"):
        load(torch.nn.Linear(10, 5, bias=False))
    with pytest.raises(UserError, match=r"weights.safetensors: cannot be read"):
        load(torch.nn.Linear(10, 10))  # the file has no bias
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"weights.safetensors: cannot be read"):
        load(model)


def test_metrics_file_drops_steps_that_will_be_repeated(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 8)) + '{"step": 8, "lo')
    sink = MetricsFile()
    sink.open(SimpleNamespace(folder=tmp_path, progress=SimpleNamespace(step=5)))
    sink.write_training({"step": 6, "loss": 1.0})
    sink.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_texts_of_metrics_may_have_line_separators(tmp_path):
    """Characters at which `str.splitlines` splits, though not the lines of a file."""
    sink = MetricsFile()
    (tmp_path / "config.yaml").write_text("model: {}\ntrain: {}\n")
    records = [{"step": 1, "texts": {"drawn": ["a\u2028b\u2029c\x85d"]}}, {"step": 2, "loss": 1.0}]
    for start in range(2):
        sink.open(SimpleNamespace(folder=tmp_path, progress=SimpleNamespace(step=start)))
        sink.write_training(records[start])
        sink.close()
    assert whole_records(tmp_path) == records and has_record(tmp_path, "texts", 1)
    assert read_run(tmp_path, "a").steps == records[1:]


@pytest.fixture
def full_disk():
    """Files of this process may have this number of bytes; further ones are refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_line_of_metrics_is_lost_or_torn_while_the_disk_is_full(tmp_path, full_disk, capsys):
    path, sink = tmp_path / "metrics.jsonl", MetricsFile()
    sink.open(SimpleNamespace(folder=tmp_path, progress=SimpleNamespace(step=0)))
    sink.write_training({"step": 1})
    full_disk(path.stat().st_size + 5)
    for step in (2, 3):
        sink.write_training({"step": step, "texts": "x" * 100_000})
    full_disk(None)
    sink.write_training({"step": 4})
    sink.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    assert capsys.readouterr().out.count(f"warning: {path} could not be written: [Errno 27] File too large") == 1


def test_figures_that_a_full_disk_costs_are_told(tmp_path, full_disk, capsys):
    sink = MetricsFile()
    sink.open(SimpleNamespace(folder=tmp_path, progress=SimpleNamespace(step=0)))
    full_disk(5)
    sink.write_training({"step": 1})
    sink.close()
    full_disk(None)  # the log of the tests may be a file, too
    assert f"Figures are lost: {len(json.dumps({'step': 1}) + chr(10)) - 5} bytes" in capsys.readouterr().out


def test_console_line(capsys):
    sink = Console()
    sink.open(SimpleNamespace(plan=SimpleNamespace(total_steps=1000), world=SimpleNamespace(size=1)))
    record = {
        "step": 20, "loss": 3.41234, "loops": 6.1, "grad_norm": 0.8249, "lr": 2.9e-4, "tokens_per_second": 41234.5,
        "flops_per_second": 4.02e14, "mfu": 0.406, "memory_gib": 61.3, "data_wait": 0.004, "eta": 33120,
    }  # fmt: skip
    sink.write_training(record)
    sink.write_training(record | {"mfu": None})
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "step   20/1000 | loss 3.4123 nats/token | loops 6.1 | grad_norm 0.825 | lr 2.90e-04 | 41,234 tokens/s | "
        "402 TFLOP/s | mfu 40.6% | memory 61.30 GiB | data wait 0.4% | eta 9h12m"
    )
    assert "mfu n/a" in second


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m"), (356_400, "4d03h")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_signals_become_a_stop_request_and_handlers_are_restored():
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        assert stop.reason == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("seen", [True, False])
def test_a_run_folder_that_another_node_does_not_see_is_refused(tmp_path, seen):
    """The other node has a folder of that name on its own disk."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    own.mkdir()

    def from_main(_):
        (shared / ".shared-1").touch()
        return ".shared-1"

    def raise_on_all_ranks(error):
        if error is not None:
            raise error

    other = SimpleNamespace(is_main=False, from_main=from_main, raise_on_all_ranks=raise_on_all_ranks)
    with nullcontext() if seen else pytest.raises(UserError, match=r"not the folder that rank 0 uses; set run.dir"):
        require_shared_folder(shared if seen else own, other, patience=0.3)


def test_the_check_of_the_run_folder_leaves_nothing_behind(tmp_path):
    alone = SimpleNamespace(is_main=True, from_main=lambda value: value, raise_on_all_ranks=lambda error: None)
    require_shared_folder(tmp_path, alone, patience=0.0)
    assert not list(tmp_path.iterdir())


def test_folders_beside_the_checkpoints_are_left_alone(tmp_path):
    for name in ("step_5", "step_10.good", "step_900_best", "step_900_1", "step_7.partial", "steps", "step_005"):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / MARK).touch()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_5"]


def test_only_remains_of_saves_are_pruned(tmp_path, capsys):
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 6, suffix=".partial")
    kept = [checkpoint(tmp_path, 7, suffix=".good.partial"), tmp_path / "checkpoints" / "step_8.partial"]
    kept[1].write_text("a file")
    prune(tmp_path, {5})
    assert sorted((tmp_path / "checkpoints").iterdir()) == [tmp_path / "checkpoints" / "step_5", *kept]
    assert not capsys.readouterr().out
