"""Optional kernels are recognized by what they offer, not by their name."""

import sys
import types

import pytest
import torch

from pretrain.machine import kernels
from pretrain.machine.kernels import choose_adamw, choose_document_attention, choose_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def apex(tmp_path, monkeypatch):
    """A function that writes the __init__.py of a package named apex, which can then be imported."""
    (tmp_path / "apex").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "apex", raising=False)
    yield (tmp_path / "apex" / "__init__.py").write_text
    sys.modules.pop("apex", None)


def test_a_cpu_takes_torchs_adamw():
    choice = choose_adamw(CPU)
    assert choice.implementation == "torch.optim.AdamW"
    assert "apex is not installed" in choice.reason
    optimizer = choice.build([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert isinstance(optimizer, torch.optim.AdamW) and not optimizer.defaults["fused"]


def test_a_gpu_without_apex_takes_torchs_fused_adamw():
    choice = choose_adamw(CUDA)
    assert choice.implementation == "torch.optim.AdamW(fused=True)"
    optimizer = choice.build([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]


@pytest.mark.parametrize("device", [CPU, CUDA], ids=["cpu", "cuda"])
def test_another_package_named_apex_is_reported_and_not_used(apex, device):
    """As on PyPI: importing its optimizers fails with an error of its own."""
    apex("raise RuntimeError('this is a web framework')")
    choice = choose_adamw(device)
    assert choice.implementation.startswith("torch.optim.AdamW")
    assert "the installed apex is not NVIDIA's" in choice.reason


def test_apex_without_its_extensions_is_not_used(apex, monkeypatch):
    apex("")
    monkeypatch.setitem(sys.modules, "apex.optimizers", types.SimpleNamespace(FusedAdam=object))
    choice = choose_adamw(CUDA)
    assert choice.implementation == "torch.optim.AdamW(fused=True)"
    assert "without its CUDA extensions" in choice.reason


def test_apex_with_its_extensions_is_used_on_a_gpu_alone(apex, monkeypatch):
    apex("")
    monkeypatch.setitem(sys.modules, "apex.optimizers", types.SimpleNamespace(FusedAdam=lambda groups, **kw: kw))
    monkeypatch.setitem(sys.modules, "amp_C", types.SimpleNamespace(multi_tensor_adam=print))
    choice = choose_adamw(CUDA)
    assert choice.implementation == "apex.optimizers.FusedAdam"
    assert choice.build([], lr=1.0) == {"adam_w_mode": True, "lr": 1.0}
    assert choose_adamw(CUDA, zero_stage=2).implementation == "apex.optimizers.FusedAdam"
    # ZeRO-3 would call it once for each part of a group, and it counts every call as a step.
    assert choose_adamw(CUDA, zero_stage=3).implementation == "torch.optim.AdamW(fused=True)"
    assert choose_adamw(CPU).implementation == "torch.optim.AdamW"
    assert (
        choose_adamw(CUDA, offloaded=True).implementation == "torch.optim.AdamW"
    )  # a CUDA kernel cannot step CPU tensors


def test_the_kernel_for_documents_is_the_one_that_the_model_uses(monkeypatch):
    choice = choose_document_attention(CPU, torch.bfloat16, 64)
    assert choice.implementation.startswith("torch SDPA with a mask") and "no CUDA device" in choice.reason
    assert "no fp32" in choose_document_attention(CUDA, torch.float32, 64).reason
    monkeypatch.setattr(kernels, "missing_varlen", lambda device, dtype, head_dim: None)
    assert choose_document_attention(CUDA, torch.bfloat16, 64).implementation == "torch's varlen flash attention"


def test_the_banner_names_muon_before_adamw():
    assert [choice.operation for choice in choose_kernels(CPU, muon=True)][:2] == ["Muon step", "AdamW step"]


def test_every_choice_has_a_reason():
    assert all(choice.implementation and choice.reason for choice in choose_kernels(CPU))
