"""The FLOPs formulas equal the count of torch's FlopCounterMode on the real model."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.architecture import Architecture, LoopSplit
from model.denoiser import LoopedDenoiser
from model.flops import FlopsModel
from model.objective import masked_cross_entropy


@pytest.mark.parametrize("loops", [1, 3])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_training_flops_equal_torchs_counter(world, loops, kv_heads):
    split = LoopSplit(head=1, mid=2, tail=1, max=4)
    architecture = Architecture(
        num_layers=4, hidden_size=64, num_heads=4, num_kv_heads=kv_heads, vocab_size=200, loop=split
    )
    model = LoopedDenoiser(architecture)
    rows, length, masked_tokens = 2, 32, 24
    tokens = torch.zeros(rows, length, dtype=torch.long)
    logit_positions = torch.arange(masked_tokens)
    formula = FlopsModel(architecture, length, masked_fraction=masked_tokens / (rows * length))
    # The counter has no formula for the fused attention on CPUs; the unfused one consists of matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        loss = masked_cross_entropy(model(tokens, logit_positions, loops), tokens.flatten()[logit_positions]).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert forward.get_total_flops() == formula.forward(loops) * tokens.numel()
    assert forward.get_total_flops() + backward.get_total_flops() == formula.training(loops) * tokens.numel()


def test_a_pass_costs_the_mid_block(world):
    architecture = Architecture(vocab_size=50258)
    flops = FlopsModel(architecture, 1024, masked_fraction=0.5)
    assert flops.training(5) - flops.training(4) == 3 * 2 * flops.layer()


def test_paper_setting_matches_the_published_arithmetic():
    """F(S) / F(1) with the LM head on all tokens, d = 768, L = 1024, V = 50258 and 24 d^2 + 4 L d FLOPs per layer."""
    flops = FlopsModel(Architecture(vocab_size=50258), 1024, masked_fraction=1.0)
    assert flops.forward(6) / flops.forward(1) == pytest.approx(1.61, abs=0.01)
    assert flops.forward(12) / flops.forward(1) == pytest.approx(2.34, abs=0.01)
