"""A lack of memory, on a GPU or a CPU, in a step or before."""

import re

import pytest
import torch

from pretrain.main import main
from tests.launching import ROOT

pytestmark = pytest.mark.end_to_end
RECIPE = ROOT / "tests" / "tiny.yaml"


def test_out_of_memory_says_where_and_what_to_try(corpus, world, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr("pretrain.training.loop.train_step", fail)
    words = ["--config", RECIPE, f"data.path={corpus}", f"run.dir={tmp_path}", "run.name=run"]
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert re.search(
        r"error: rank 0 ran out of memory in step 1 at \d loops: tried to allocate 20 GiB\. Run the same", error
    )
    assert re.search(r"The planner estimates 0\.0 GiB .*: .*train\.micro_batch_size=1 \(0\.0 GiB\)", error)


def too_much(*_):
    torch.empty(10**15)


def too_much_for_numpy(*_):
    raise MemoryError


@pytest.mark.parametrize(
    "place, when, fail, what",
    [
        ("loop.train_step", r"in step 1 at \d loops", too_much, r".*DefaultCPUAllocator: can't allocate memory"),
        ("loop.train_step", r"in step 1 at \d loops", too_much_for_numpy, "MemoryError"),
        ("start.build_run", "before the first step", too_much, r".*DefaultCPUAllocator: can't allocate memory"),
        ("start.restore", "before the first step", too_much_for_numpy, "MemoryError"),
    ],
)
def test_a_lack_of_memory_on_a_cpu_is_told_alike(corpus, world, tmp_path, monkeypatch, capsys, place, when, fail, what):
    monkeypatch.setattr(f"pretrain.training.{place}", fail)
    words = ["--config", RECIPE, f"data.path={corpus}", f"run.dir={tmp_path}", "run.name=run"]
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert re.search(rf"error: rank 0 ran out of memory {when}: {what}.*\. Run the same command again", error)
    assert "train.micro_batch_size=1 (" in error


def test_another_error_of_torch_is_not_taken_for_it(corpus, world, tmp_path, monkeypatch):
    def fail(*_):
        torch.empty(2) @ torch.empty(3)

    monkeypatch.setattr("pretrain.training.loop.train_step", fail)
    words = ["--config", RECIPE, f"data.path={corpus}", f"run.dir={tmp_path}", "run.name=run"]
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        main([str(word) for word in words])
