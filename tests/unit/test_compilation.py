"""The compiled layer: one graph for all layers and passes, and the numbers of the plain one."""

import logging

import pytest
import torch
from torch._dynamo.utils import counters

from model.denoiser import LoopedDenoiser, positions_of
from pretrain.config.load import load_settings
from pretrain.errors import ConfigError
from pretrain.machine.compilation import compile_layers, missing_compiler
from pretrain.machine.kernels import choose_kernels
from tests.launching import ROOT

CPU = torch.device("cpu")


@pytest.mark.end_to_end
@pytest.mark.skipif(missing_compiler(CPU) is not None, reason="no C++ compiler")
def test_one_graph_serves_all_layers_and_every_number_of_loops(world, tiny, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch._dynamo"), "handlers", [caplog.handler])
    plain, compiled = LoopedDenoiser(tiny), LoopedDenoiser(tiny)
    for phase in (compiled.head, compiled.mid, compiled.tail):
        compile_layers(phase.layers)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, tiny.mask_id, (3, 16), generator=generator)
    positions = positions_of(torch.rand(3, 16, generator=generator) < 0.5)
    torch._dynamo.reset()
    counters.clear()
    for loops in (2, 1, 4):
        losses = [model(tokens, positions, loops)[:, : tiny.mask_id].logsumexp(-1).sum() for model in (plain, compiled)]
        for model, loss in zip((plain, compiled), losses, strict=True):
            model.zero_grad()
            loss.backward()
        assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
        for (name, expected), got in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            assert (got.grad - expected.grad).norm() < 1e-5 * expected.grad.norm(), name
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"], counters


def test_a_machine_without_a_compiler_says_so_and_uses_the_plain_layer(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler 'no-such-compiler'" in missing_compiler(CPU)
    _, layers = choose_kernels(CPU, compiled=True)
    assert not layers.implementation.startswith("torch.compile") and "no C++ compiler" in layers.reason
    monkeypatch.delenv("CXX")
    if missing_compiler(CPU) is None:
        assert choose_kernels(CPU, compiled=True)[1].implementation.startswith("torch.compile of ")


def test_zero3_cannot_be_compiled(corpus):
    words = [f"data.path={corpus}", "train.compile=true", "parallel.zero_stage=3"]
    with pytest.raises(ConfigError, match=r"train.compile=true: ZeRO-3 gathers the weights inside the layers"):
        load_settings(str(ROOT / "tests" / "tiny.yaml"), words)
