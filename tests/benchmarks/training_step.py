"""Tokens per second of a training step, beside a plain PyTorch trainer of the same model that this script contains.

    python tests/benchmarks/training_step.py [--widths 256 768] [--loops 1 6] [--rounds 5] [--json FILE]

12 layers, rows of 128 tokens, batch of 32 in micro-batches of 8. The plain trainer runs head, S passes of mid, and tail in a loop,
computes the logits of all positions, and has no framework around it; in bf16 it uses autocast. In every round each trainer takes
steps in turn; the table shows the median over rounds, and the ratio to the plain trainer within a round.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from model.architecture import Architecture  # noqa: E402
from pretrain.cli import main as loopmdm  # noqa: E402
from pretrain.machine.library_warnings import filter_library_warnings  # noqa: E402

STEPS = 2
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


def tokens_per_second(step: Callable[[], None]) -> float:
    """Over STEPS steps."""
    begin = time.perf_counter()
    for _ in range(STEPS):
        step()
    return STEPS * BATCH * SEQ_LEN / (time.perf_counter() - begin)


def measured(data: Path, width: int, precision: str, loops: int, rounds: int) -> dict[str, list[float]]:
    """Tokens per second in every round, by trainer."""
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
            seen[name].append(tokens_per_second(step))
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 768])
    parser.add_argument("--loops", type=int, nargs="+", default=[1, 6])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    filter_library_warnings()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        prepare = ["prepare", "--input", "stdlib:", "--output", str(data), "--vocab-size", "8191"]
        if loopmdm([*prepare, "--seq-len", str(SEQ_LEN)]):
            sys.exit(1)
        print(
            f"{'width':>5} {'S':>3} {'precision':<9} {'trainer':<20} {'tokens/s':>9} {'to plain PyTorch':>22}",
            flush=True,
        )
        cases = [(w, s, p) for w in arguments.widths for s in arguments.loops for p in arguments.precisions]
        for width, loops, precision in cases:
            seen = measured(data, width, precision, loops, arguments.rounds)
            for name, values in seen.items():
                ratios = sorted(one / plain for one, plain in zip(values, seen["plain PyTorch"], strict=True))
                rate, ratio = statistics.median(values), statistics.median(ratios)
                shown = f"{ratio:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
                print(f"{width:>5} {loops:>3} {precision:<9} {name:<20} {rate:>9,.0f} {shown:>22}", flush=True)
                rows.append(
                    {
                        "width": width,
                        "loops": loops,
                        "precision": precision,
                        "trainer": name,
                        "tokens_per_second": values,
                    }
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
