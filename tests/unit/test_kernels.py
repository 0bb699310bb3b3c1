"""Optional accelerations are found by what they offer."""

import sys
import types

import pytest
import torch

from pretrain.machine.kernels import find_accelerations, find_fused_adam

CPU = torch.device("cpu")


@pytest.fixture
def wrong_apex(tmp_path, monkeypatch):
    """A package named apex that is another project, as on PyPI: importing its optimizers fails loudly."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise RuntimeError('this is a web framework')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "apex", raising=False)


def test_no_apex():
    choice = find_fused_adam(CPU)
    assert choice.found.used == "torch.optim.AdamW"
    assert "apex not installed" in choice.found.reason
    assert isinstance(choice.build([torch.nn.Parameter(torch.zeros(1))], lr=1.0), torch.optim.AdamW)


def test_the_wrong_apex_is_named_and_not_used(wrong_apex):
    found = find_fused_adam(CPU).found
    assert found.used == "torch.optim.AdamW"
    assert "the PyPI package of that name is another project" in found.reason


def test_apex_without_its_kernels(monkeypatch, tmp_path):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "apex.optimizers", types.SimpleNamespace(FusedAdam=object))
    assert "without its CUDA extensions" in find_fused_adam(CPU).found.reason


def test_every_capability_says_what_is_used_and_why():
    assert all(found.used and found.reason for found in find_accelerations(CPU))
