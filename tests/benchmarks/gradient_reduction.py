"""Error of summing gradients over data-parallel ranks in bf16 and in fp32, simulated with gradients of a real model.

    python tests/benchmarks/gradient_reduction.py [--data data/stdlib] [--ranks 2 4 256] [--steps 50] [--json FILE]

Trains the quickstart's model for some steps in fp32, then computes in bf16 the gradient of one micro-batch per rank, which
accumulates in fp32. The gradients are added as a ring all-reduce adds them: every rank owns one part of the flat gradient, and the
partial sum of a part visits the other ranks in turn, rounded to the dtype that is sent at every hop. The error is that of the
whole gradient, |sum - exact| / |exact|, where the exact sum is in fp64.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from data_pipeline.dataset.blend import load_blend  # noqa: E402
from data_pipeline.dataset.samples import Samples  # noqa: E402
from pretrain.config.load import load_settings  # noqa: E402
from pretrain.config.run_plan import RunPlan, make_run_plan  # noqa: E402
from pretrain.machine.library_warnings import filter_library_warnings  # noqa: E402

filter_library_warnings()
from model.denoiser import LoopedDenoiser  # noqa: E402
from model.objective import masked_cross_entropy  # noqa: E402
from pretrain.parallel.engine import use_bf16_weights  # noqa: E402
from pretrain.parallel.world import start_world  # noqa: E402
from pretrain.training.batches import Batches, MicroBatch  # noqa: E402

ROWS = 4
"""Rows of a rank's micro-batch."""


def plan_for(data: Path, ranks: int) -> RunPlan:
    """A run of one process whose steps have one micro-batch per simulated rank."""
    words = [f"data.path={data}", f"train.micro_batch_size={ROWS}", f"train.global_batch_size={ROWS * ranks}"]
    settings = load_settings("quickstart", [*words, "train.precision=bf16"])
    return make_run_plan(settings, load_blend(data).manifest, 1)


def gradient(model: LoopedDenoiser, batch: MicroBatch, loops: int) -> Tensor:
    """Adds the gradient of one micro-batch to the weights, and returns it as one fp32 vector."""
    inputs = batch.inputs
    logits = model(inputs.tokens, inputs.logit_positions, loops, inputs.document_ids)
    model.zero_grad()
    torch.dot(inputs.loss_weights, masked_cross_entropy(logits, inputs.targets)).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


def trained(plan: RunPlan, batches: Batches, steps: int) -> LoopedDenoiser:
    """A model after some steps of AdamW, each on the first micro-batch of a step, with bf16 weights and fp32 gradients."""
    model = LoopedDenoiser(plan.settings.model, plan.settings.run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.settings.optim.lr)
    for step in range(steps):
        gradient(model, batches[step][0], plan.loops(step))
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.settings.optim.clip_norm)
        optimizer.step()
    model.zero_grad()
    use_bf16_weights(model)
    return model


def ring_sum(shares: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The sum of one vector per rank as a ring reduce-scatter computes it, sent in `dtype`."""
    size, total = len(shares), []
    parts = [share.to(dtype).tensor_split(size) for share in shares]
    for owner in range(size):
        partial = parts[(owner + 1) % size][owner]
        for hop in range(2, size + 1):
            partial = partial + parts[(owner + hop) % size][owner]  # the sum is rounded to `dtype`
        total.append(partial)
    return torch.cat(total)


def errors(shares: Sequence[Tensor]) -> dict[str, float]:
    """Relative error of the sum by how it is sent; the last rounds every rank's share to bf16 and then adds in fp32."""
    exact = torch.stack([share.double() for share in shares]).sum(0)
    sums = {
        "bf16": ring_sum(shares, torch.bfloat16),
        "fp32": ring_sum(shares, torch.float32),
        "bf16 shares, fp32 sum": ring_sum([share.bfloat16() for share in shares], torch.float32),
    }
    return {name: ((total.double() - exact).norm() / exact.norm()).item() for name, total in sums.items()}


def main() -> None:
    """Compute the gradients of the most ranks once, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/stdlib"), help="prepared data [data/stdlib]")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 256], help="data-parallel ranks [2 4 256]")
    parser.add_argument("--steps", type=int, default=50, help="steps of training before [50]")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    start_world((0, 1, 0))
    plan = plan_for(arguments.data, max(arguments.ranks))
    batches = Batches(plan, Samples.of(load_blend(arguments.data), plan.settings.run.seed), 0, torch.device("cpu"))
    model = trained(plan, batches, arguments.steps)
    loops = plan.loops(arguments.steps)
    shares = [gradient(model, batch, loops) for batch in batches[arguments.steps]]
    print(f"{shares[0].numel():,} weights, after {arguments.steps} steps")
    print("| ranks | bf16 | fp32 | bf16 shares, fp32 sum |\n|---|---|---|---|")
    rows = []
    for ranks in arguments.ranks:
        found = errors(shares[:ranks])
        rows.append({"ranks": ranks} | found)
        print(f"| {ranks} | {' | '.join(f'{value:.1e}' for value in found.values())} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
