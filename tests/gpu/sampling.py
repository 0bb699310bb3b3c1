"""Tokens per second of the reverse process: in fp32 as `loopmdm sample` runs it, with TF32, and in bf16."""

import time

import torch
from torch import Tensor

from model.architecture import Architecture, LoopSplit
from model.denoiser import LoopedDenoiser
from model.sampling.generate import SamplingPlan, generate
from model.sampling.order import Ancestral
from model.sampling.query import Query
from pretrain.parallel.world import start_world
from tests.gpu.harness import Check
from tests.gpu.runs import release, synchronize

LOOPS = 4


def check_sampling(check: Check) -> None:
    """8 rows of 1,024 tokens in 64 denoising steps at S = 4, 12 layers of 768."""
    release()
    device = start_world((0, 1, 0)).device
    split = LoopSplit(head=1, mid=2, tail=9, max=12)
    size = {"hidden_size": 64, "num_heads": 2} if check.quick else {"hidden_size": 768, "num_heads": 12}
    vocabulary = 515 if check.quick else 32_769
    architecture = Architecture(num_layers=12, vocab_size=vocabulary, loop=split, **size)
    rows, length, denoising_steps = (1, 32, 4) if check.quick else (8, 1024, 64)
    model = LoopedDenoiser(architecture).to(device).eval().requires_grad_(False)
    noisy = torch.full((rows, length), architecture.mask_id, device=device)
    for name, precision, tf32 in (
        ("fp32", torch.float32, False), ("TF32", torch.float32, True), ("bf16", torch.bfloat16, False)
    ):  # fmt: skip
        with check.part(f"{name}, S={LOOPS}, {denoising_steps} denoising steps, {rows} rows of {length}") as figures:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            model.to(precision)
            sample(model, noisy, 2)
            figures["tokens/s"] = rows * length / sample(model, noisy, denoising_steps)
    torch.backends.cuda.matmul.allow_tf32 = False


def sample(model: LoopedDenoiser, noisy: Tensor, denoising_steps: int) -> float:
    """Seconds to fill all tokens."""

    def denoise(query: Query) -> Tensor:
        return model(query.tokens, query.positions, LOOPS).float()

    mask_id = model.architecture.mask_id
    samples = torch.arange(len(noisy), device=noisy.device)
    synchronize()
    begin = time.perf_counter()
    filled = generate(denoise, noisy, samples, SamplingPlan(Ancestral(), denoising_steps), mask_id, seed=0).tokens
    synchronize()
    seconds = time.perf_counter() - begin
    assert not (filled == mask_id).any()
    return seconds
