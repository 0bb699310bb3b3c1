"""Forward pass, loss and every gradient against plain PyTorch in fp64 on the CPU (`model/reference.py`)."""

from itertools import product
from typing import Any

import torch
from torch import Tensor

from model.architecture import Architecture, LoopSplit, Recompute
from model.denoiser import LoopedDenoiser, positions_of
from model.objective import token_weights
from model.reference import reference_logits, reference_loss
from pretrain.parallel.world import start_world
from tests.gpu.harness import Check

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest relative deviation. The logits are compared by the norm of the difference."""

ROWS, LENGTH, LOOPS = 4, 128, 3


def check_oracle(check: Check) -> None:
    """Both precisions, attention over the row and within documents, every recompute mode, and grouped queries."""
    torch.backends.cuda.matmul.allow_tf32 = False
    device = start_world((0, 1, 0)).device
    shape = {"hidden_size": 64, "num_heads": 2} if check.quick else {"hidden_size": 256, "num_heads": 4}
    split = LoopSplit(head=1, mid=2, tail=1, max=4)
    cases = product((None, 1), ("row", "document"), LIMITS, ("none", "full", "loop"))
    for kv_heads, attention, precision, recompute in cases:
        if check.quick and kv_heads and recompute != "none":
            continue
        architecture = Architecture(num_layers=4, vocab_size=515, loop=split, num_kv_heads=kv_heads, **shape)
        name = (
            f"{str(precision).removeprefix('torch.')}, {attention}, recompute {recompute}, kv heads {kv_heads or 'all'}"
        )
        with check.part(name) as figures:
            figures.update(compare(architecture, attention, precision, recompute, device))
            worst = max(figures["logits"], figures["loss"], figures["gradient"])
            check.expect(worst < LIMITS[precision], f"deviation {worst:.2g}, limit {LIMITS[precision]:g}")


def compare(
    architecture: Architecture, attention: str, precision: torch.dtype, recompute: Recompute, device: torch.device
) -> dict[str, Any]:
    """Relative deviations of logits and loss, and of the gradient that deviates most."""
    model = LoopedDenoiser(architecture, seed=3, recompute=recompute)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model = model.to(precision)
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    clean, masked, t, documents = rows_of(architecture, generator)
    documents = documents if attention == "document" else None
    noisy = clean.masked_fill(masked, architecture.mask_id)
    expected_logits = reference_logits(weights, architecture, noisy, LOOPS, documents)[masked].detach()
    expected = reference_loss(weights, architecture, clean, masked, t, LOOPS, documents)
    expected.backward()

    model = model.to(device)
    clean, masked, t, noisy = (x.to(device) for x in (clean, masked, t, noisy))
    inputs = (noisy, positions_of(masked), LOOPS, None if documents is None else documents.to(device))
    found = model(*inputs).detach()[:, : architecture.mask_id]
    loss, _ = model(*inputs, targets=clean[masked], loss_weights=token_weights(t[masked], 0.0, clean.numel()))
    loss.backward()
    gradients = {name: relative(parameter.grad, weights[name].grad) for name, parameter in model.named_parameters()}
    worst = max(gradients, key=lambda name: float("inf") if gradients[name] != gradients[name] else gradients[name])
    return {
        "logits": relative(found, expected_logits),
        "loss": abs(loss.item() / expected.item() - 1),
        "gradient": gradients[worst],
        "weight with the largest deviation": worst,
    }


def rows_of(architecture: Architecture, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(clean, masked, t, document ids) of a batch; its last row ends with padding."""
    clean = torch.randint(0, architecture.mask_id, (ROWS, LENGTH), generator=generator)
    t = torch.tensor([0.2, 0.5, 0.7, 0.9], dtype=torch.float64)[:, None].expand(ROWS, LENGTH)
    masked = torch.rand(ROWS, LENGTH, generator=generator) < t
    documents = (torch.arange(LENGTH) // 37).expand(ROWS, LENGTH).clone()
    documents[-1, 100:] = -1
    return clean, masked, t, documents


def relative(value: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to the expected norm."""
    return ((value.cpu().double() - expected).norm() / expected.norm()).item()
