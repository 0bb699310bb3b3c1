"""Tokens per second of a training step, beside a plain PyTorch trainer of the same model that this script contains.

    python tests/benchmarks/training_step.py [--widths 256 768] [--loops 1 6] [--rounds 5] [--steps 2] [--json FILE]

12 layers, rows of 128 tokens, batch of 32 in micro-batches of 8. The plain trainer runs head, S passes of mid, and tail in a loop,
computes the logits of all positions, and has no framework around it; in bf16 it uses autocast. In every round each trainer takes
steps in turn; the table shows the median over rounds, the ratio to the plain trainer within a round, and how much of the speed of a
large matrix product on this device the model FLOPs (model/flops.py) reach. A second table shows where the time of our step goes.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from model.architecture import Architecture  # noqa: E402
from model.flops import FlopsModel  # noqa: E402
from pretrain.cli import main as loopmdm  # noqa: E402
from pretrain.machine.library_warnings import filter_library_warnings  # noqa: E402
from tests.benchmarks.step_profile import PARTS, matmul_flops, step_parts  # noqa: E402

SEQ_LEN, BATCH, MICRO_BATCH = 128, 32, 8


class PlainLayer(nn.Module):
    """Pre-norm attention with RoPE, and SwiGLU."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * ffn, bias=False), nn.Linear(ffn, width, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, width = hidden.shape
        heads = self.qkv(self.norms[0](hidden)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v)
        hidden = hidden + self.out(attended.transpose(1, 2).reshape(rows, length, width))
        gate, up = self.up(self.norms[1](hidden)).chunk(2, dim=-1)
        return hidden + self.down(F.silu(gate) * up)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE by halves."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class PlainModel(nn.Module):
    """The looped denoiser in plain PyTorch."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.loop, vocab = a.loop, a.padded_vocab_size
        self.embedding, self.head = nn.Embedding(vocab, a.hidden_size), nn.Linear(a.hidden_size, vocab, bias=False)
        self.layers = nn.ModuleList(PlainLayer(a.hidden_size, a.num_heads, a.ffn_size) for _ in range(a.num_layers))
        self.norm = nn.RMSNorm(a.hidden_size)
        angles = torch.outer(torch.arange(SEQ_LEN), a.rope_base ** -(torch.arange(0, a.head_dim, 2) / a.head_dim))
        self.cos, self.sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def forward(self, tokens: Tensor, loops: int) -> Tensor:
        head, mid = self.loop.head, self.loop.head + self.loop.mid
        cos, sin = self.cos.to(self.embedding.weight.dtype), self.sin.to(self.embedding.weight.dtype)
        hidden = self.embedding(tokens)
        for layer in [*self.layers[:head], *[*self.layers[head:mid]] * loops, *self.layers[mid:]]:
            hidden = layer(hidden, cos, sin)
        return self.head(self.norm(hidden))


def plain_trainer(architecture: Architecture, precision: str, loops: int) -> Callable[[], None]:
    """A step of the plain trainer on random tokens."""
    model = PlainModel(architecture)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        for _ in range(BATCH // MICRO_BATCH):
            clean = torch.randint(0, architecture.mask_id, (MICRO_BATCH, SEQ_LEN))
            t = torch.rand(MICRO_BATCH, 1).clamp_min(1e-3)
            masked = torch.rand(clean.shape) < t
            with autocast:
                logits = model(clean.masked_fill(masked, architecture.mask_id), loops)
            nats = F.cross_entropy(logits.flatten(0, 1).float(), clean.flatten(), reduction="none").view(clean.shape)
            (nats * masked / t).sum().div(BATCH * SEQ_LEN).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_trainer(data: Path, words: list[str]) -> tuple[Callable[[], None], Architecture]:
    """A step of the product in one process, and the model's shape."""
    from data_pipeline.dataset.blend import load_blend
    from pretrain.config.load import load_settings
    from pretrain.config.run_plan import make_run_plan
    from pretrain.parallel.world import start_world
    from pretrain.training.start import build_run
    from pretrain.training.step import train_step

    settings, blend = load_settings("smoke", [f"data.path={data}", *words]), load_blend(data)
    plan = make_run_plan(settings, blend.manifest, 1)
    run = build_run(plan, blend, start_world((0, 1, 0), plan.shape))
    batches = run.batches.from_step(0)

    def step() -> None:
        train_step(run, next(batches))
        run.progress.step += 1

    return step, plan.settings.model


def words_of(width: int, precision: str, loops: int) -> list[str]:
    """The overrides of a case."""
    return [
        "model.num_layers=12", f"model.hidden_size={width}", f"model.num_heads={width // 64}", "model.num_kv_heads=null",
        "model.ffn_hidden_size=null", "model.loop.head=1", "model.loop.mid=2", "model.loop.tail=9", "model.loop.max=12",
        f"train.global_batch_size={BATCH}", f"train.micro_batch_size={MICRO_BATCH}", f"train.precision={precision}",
        f"train.loops={loops}", "train.steps=100000", f"parallel.zero_stage={int(precision == 'bf16')}",
        "optim.ema_decay=0", "eval.every=null",
    ]  # fmt: skip


def tokens_per_second(step: Callable[[], None], steps: int) -> float:
    """Over some steps."""
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * BATCH * SEQ_LEN / (time.perf_counter() - begin)


def measured(data: Path, width: int, precision: str, loops: int, rounds: int, steps: int) -> dict[str, Any]:
    """Tokens per second of each trainer in every round, and where the time of our step goes."""
    words = words_of(width, precision, loops)
    ours, architecture = our_trainer(data, words)
    trainers = {
        "plain PyTorch": plain_trainer(architecture, precision, loops),
        "ours": ours,
        "ours, train.compile": our_trainer(data, [*words, "train.compile=true"])[0],
    }
    for step in trainers.values():
        step()
    seen: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(rounds):
        for name, step in trainers.items():
            seen[name].append(tokens_per_second(step, steps))
    mean_timestep = 0.5
    return {
        "width": width,
        "loops": loops,
        "precision": precision,
        "tokens_per_second": seen,
        "flops_per_token": FlopsModel(architecture, SEQ_LEN, mean_timestep).training(loops),
        "matmul_flops": matmul_flops(precision),
        "parts": step_parts(ours, architecture),
    }


def print_speeds(case: Mapping[str, Any]) -> None:
    """A line per trainer."""
    for name, values in case["tokens_per_second"].items():
        ratios = sorted(a / b for a, b in zip(values, case["tokens_per_second"]["plain PyTorch"], strict=True))
        rate = statistics.median(values)
        peak = rate * case["flops_per_token"] / case["matmul_flops"]
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        print(f"{_label(case)} | {name} | {rate:,.0f} | {ratio} | {peak:.0%} |", flush=True)


def print_parts(cases: Sequence[Mapping[str, Any]]) -> None:
    """Where the time of our step, not compiled, goes: a line per case."""
    print(f"\n| width | S | precision | {' | '.join(PARTS)} |\n|{'---|' * (3 + len(PARTS))}")
    for case in cases:
        shares = [f"{case['parts'][part]:.0%}" for part in PARTS]
        print(f"{_label(case)} | {' | '.join(shares)} |")


def _label(case: Mapping[str, Any]) -> str:
    return f"| {case['width']} | {case['loops']} | {case['precision']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 768])
    parser.add_argument("--loops", type=int, nargs="+", default=[1, 6])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps of a trainer in its turn [2]")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    filter_library_warnings()
    cases = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        prepare = ["prepare", "--input", "stdlib:", "--output", str(data), "--vocab-size", "8191"]
        if loopmdm([*prepare, "--seq-len", str(SEQ_LEN)]):
            sys.exit(1)
        print("| width | S | precision | trainer | tokens/s | to plain PyTorch | of matmul peak |\n|" + "---|" * 7)
        for width, loops, precision in product(arguments.widths, arguments.loops, arguments.precisions):
            cases.append(measured(data, width, precision, loops, arguments.rounds, arguments.steps))
            print_speeds(cases[-1])
    print_parts(cases)
    if arguments.json:
        arguments.json.write_text(json.dumps(cases, indent=2) + "\n")


if __name__ == "__main__":
    main()
