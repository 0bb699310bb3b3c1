"""Samplers compared on 6x6 Sudoku puzzles: exact solutions, tokens per second and work, with the weights of one model.

    python tests/benchmarks/sampling.py [--folder DIR] [--steps 1500] [--puzzles 256] [--rounds 3] [--json FILE]

Prepares boards, trains a model with S_max = 12 (with --folder, only if the folder has none yet), and gives each method the same
puzzles of the validation split, which have 16 given cells and one solution. The baseline is LLaDA's published procedure, written
out below: every step computes whole rows and the logits of all tokens, and the number of steps is fixed. All methods take the
likeliest token, and make S_max passes of the looped block unless their name says otherwise. In every round each method fills
all puzzles; the table shows medians over the rounds, and the ratio within a round. Seconds are those of CPU time on one thread,
which other programs on the machine disturb less. At the end follows the NELBO of the validation split with S_max passes and with
adaptive loops.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from data_pipeline.dataset.blend import load_blend  # noqa: E402
from data_pipeline.generators.names import find_generator  # noqa: E402
from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer  # noqa: E402
from model.denoiser import Inputs, LoopedDenoiser  # noqa: E402
from model.sampling.query import Query  # noqa: E402
from model.sampling.tally import Cost, Tally  # noqa: E402
from pretrain.cli import main as loopmdm  # noqa: E402
from pretrain.commands.load_run import LoadedRun, open_run  # noqa: E402
from pretrain.evaluation.compute_settings import THRESHOLDS, ComputeSettings  # noqa: E402
from pretrain.evaluation.nelbo import Evaluator  # noqa: E402
from pretrain.evaluation.sampler_settings import SamplerSettings  # noqa: E402
from pretrain.evaluation.sampling import fill_rows  # noqa: E402
from pretrain.evaluation.sets import evaluation_sets  # noqa: E402
from pretrain.evaluation.tasks.generated import HeldOut  # noqa: E402
from pretrain.machine.library_warnings import filter_library_warnings  # noqa: E402

S_MAX, CELLS, GIVEN, BATCH = 12, 36, 16, 64
PREPARE = ("--input", "sudoku6:100000", "--seq-len", str(CELLS + 1))
TRAIN = (f"model.loop.max={S_MAX}", "train.global_batch_size=64", "train.micro_batch_size=64", "eval.every=null")

LLADA = {
    "LLaDA, 20 steps": (20, S_MAX),
    "LLaDA, 10 steps": (10, S_MAX),
    "LLaDA, 5 steps": (5, S_MAX),
    "LLaDA, 20 steps, S = 4": (20, 4),
}
"""The baseline: name -> steps and S. The first is the one that others are compared with: one token per step."""

ADAPTIVE = {"loops": f"adaptive:1-{S_MAX}"}
SURE = {"sampler": "threshold", "threshold": 0.98}
CACHE = {"cache": "dual", "refresh": 2}
OURS: Mapping[str, Mapping[str, Any]] = {
    "one token per step": {},
    "one token per step, adaptive loops": ADAPTIVE,
    "threshold 0.9": {"sampler": "threshold"},
    "threshold 0.98": SURE,
    "threshold 0.98, loops 1-6-1": {**SURE, "loops": "1-6-1"},
    "threshold 0.98, adaptive loops": {**SURE, **ADAPTIVE},
    "threshold 0.98, adaptive loops, warm start": {**SURE, **ADAPTIVE, "warm_start": True},
    "threshold 0.98, adaptive loops, cache": {**SURE, **ADAPTIVE, **CACHE},
    "threshold 0.98, adaptive loops, cache of the last pass": {**SURE, **ADAPTIVE, **CACHE, "per_pass": False},
}
"""Name -> options of `loopmdm sample`, besides those of `by_ours`, and `per_pass` of `model.sampling.cache.Caching`."""


@dataclass(frozen=True)
class Puzzles:
    """Rows to fill, and the same rows solved, int64 [n, s]."""

    rows: Tensor
    solutions: Tensor


@dataclass(frozen=True)
class Outcome:
    """Of one method in one round: filled rows int64 [n, s], and what they cost."""

    tokens: Tensor
    cost: Cost


def num_transfer_tokens(masked: Tensor, steps: int) -> Tensor:
    """Tokens that each step reveals, int64 [b, steps]: equal shares, and what is left over in the first steps."""
    count = masked.sum(dim=1, keepdim=True)
    return count // steps + (torch.arange(steps) < count % steps).long()


@torch.no_grad()
def llada(model: LoopedDenoiser, rows: Tensor, mask_id: int, steps: int, loops: int) -> Tensor:
    """LLaDA's generation with low-confidence remasking at temperature 0, in one block (arXiv 2502.09992, `generate.py`)."""
    tokens, everywhere = rows.clone(), torch.arange(rows.numel())
    transfer = num_transfer_tokens(tokens == mask_id, steps)
    for step in range(steps):
        masked = tokens == mask_id
        logits = model(tokens, everywhere, loops).view(*tokens.shape, -1)
        likeliest = logits.argmax(dim=-1)
        probabilities = logits.double().softmax(dim=-1)
        confidence = probabilities.gather(-1, likeliest[..., None]).squeeze(-1).masked_fill(~masked, -torch.inf)
        for row in range(len(tokens)):
            chosen = confidence[row].topk(int(transfer[row, step])).indices
            tokens[row, chosen] = likeliest[row, chosen]
    return tokens


def by_llada(run: LoadedRun, puzzles: Puzzles, steps: int, loops: int) -> Outcome:
    """The baseline, with its work counted as ours is."""
    model, mask_id, tally = run.model, run.settings.model.mask_id, Tally()
    begin = time.process_time()
    filled = torch.cat([llada(model, rows, mask_id, steps, loops) for rows in puzzles.rows.split(BATCH)])
    seconds = time.process_time() - begin
    count, length = puzzles.rows.shape
    every = torch.full((count * steps,), length)
    tally.add(model.architecture, length, every, torch.full_like(every, loops), every, torch.ones_like(every))
    return Outcome(filled, Cost.of(tally.values(), int((puzzles.rows == mask_id).sum()), seconds))


def by_ours(run: LoadedRun, puzzles: Puzzles, options: Mapping[str, Any]) -> Outcome:
    """What `loopmdm sample` does."""
    given = {"sampler": "confidence", "loops": str(S_MAX), "temperature": 0.0, **options}
    compute, tally, mask_id = ComputeSettings.of(given).compute(BATCH), Tally(), run.settings.model.mask_id
    if compute.caching is not None:
        compute = replace(compute, caching=replace(compute.caching, per_pass=options.get("per_pass", True)))
    begin = time.process_time()
    plan = SamplerSettings.of(given).plan(lambda: run.denoiser(compute), run.manifest.tokenizer.eod_id)
    numbers = range(len(puzzles.rows))
    samples = fill_rows(
        run.world, run.denoiser(compute, tally), puzzles.rows.tolist(), numbers, plan, mask_id, 0, BATCH
    )
    seconds = time.process_time() - begin
    filled = torch.tensor([sample.tokens for sample in samples])
    return Outcome(filled, Cost.of(tally.values(), int((puzzles.rows == mask_id).sum()), seconds))


def trained(folder: Path, steps: int) -> LoadedRun:
    """A model of boards; trained if the folder has none."""
    data, run = folder / "data", folder / "run"
    if not data.exists() and loopmdm(["prepare", *PREPARE, "--output", str(data)]):
        sys.exit(1)
    words = (f"data.path={data}", f"run.dir={folder}", "run.name=run", f"train.steps={steps}", *TRAIN)
    if not list(run.glob(f"checkpoints/step_{steps}/COMPLETE")):
        subprocess.run(
            [sys.executable, "pretrain/main.py", "--config", "quickstart", *words, "--no-resume"], cwd=ROOT, check=True
        )
    return open_run(run, None)


def find_puzzles(run: LoadedRun, data: Path, count: int) -> Puzzles:
    """Boards of the validation split that `GIVEN` random cells determine."""
    boards, tokenizer = find_generator("sudoku6"), load_prepared_tokenizer(run.tokenizer_folder, run.manifest)
    (split,) = evaluation_sets(load_blend(data), "validation")
    texts = [tokenizer.decode(row[:CELLS]) for row in split.rows.rows(np.arange(split.rows.num_rows))]
    held_out, rows, solutions = HeldOut(texts, tokenizer), [], []
    for number, text in enumerate(texts):
        given = boards.puzzle(boards.board_of(text), GIVEN, 0, number)
        if len(given) == GIVEN and len(rows) < count:
            rows.append(held_out.hidden(number, given))
            solutions.append(held_out.rows[number])
    return Puzzles(torch.tensor(rows), torch.tensor(solutions))


def measured(run: LoadedRun, puzzles: Puzzles, rounds: int) -> dict[str, list[Outcome]]:
    """All rounds of all methods, after one that is not counted."""
    methods: dict[str, Callable[[], Outcome]] = {
        **{name: partial(by_llada, run, puzzles, *how) for name, how in LLADA.items()},
        **{name: partial(by_ours, run, puzzles, options) for name, options in OURS.items()},
    }
    seen: dict[str, list[Outcome]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            outcome = method()
            seen[name] += [outcome] if number else []
            print(f"round {number}, {name}: {outcome.cost.describe()}", file=sys.stderr, flush=True)
    return seen


def summary(seen: Mapping[str, Sequence[Outcome]], puzzles: Puzzles) -> list[dict[str, Any]]:
    """A record per method."""
    baseline = [outcome.cost.tokens_per_second for outcome in next(iter(seen.values()))]
    records = []
    for name, outcomes in seen.items():
        speeds = [outcome.cost.tokens_per_second for outcome in outcomes]
        ratios = sorted(speed / other for speed, other in zip(speeds, baseline, strict=True))
        exact = (outcomes[0].tokens == puzzles.solutions).all(dim=1).double()
        about = {"method": name, "exact": float(exact.mean()), "exact_se": float(exact.std() / len(exact) ** 0.5)}
        records.append(about | {"speeds": speeds, "ratios": ratios, "cost": outcomes[0].cost.record()})
    return records


def print_table(records: Sequence[Mapping[str, Any]]) -> None:
    """A line per method."""
    columns = (
        "method, exact, tokens/s, to the first, tokens per forward, loops, block passes per token, MFLOPs per token"
    )
    print(f"| {columns.replace(', ', ' | ')} |\n|{'---|' * 8}")
    for record in records:
        cost, ratios = record["cost"], record["ratios"]
        figures = (
            record["method"],
            f"{record['exact']:.3f} ± {record['exact_se']:.3f}",
            f"{statistics.median(record['speeds']):,.0f}",
            f"{statistics.median(ratios):.1f} ({ratios[0]:.1f}-{ratios[-1]:.1f})",
            f"{cost['tokens_per_forward']:.2f}",
            f"{cost['loops_per_forward']:.2f}",
            f"{cost['block_passes_per_token']:.2f}",
            f"{cost['flops_per_token'] / 1e6:.1f}",
        )
        print(f"| {' | '.join(figures)} |", flush=True)


def nelbo(run: LoadedRun, data: Path, options: Mapping[str, Any]) -> tuple[float, float]:
    """NELBO of the validation split in nats per token with what these options compute, and the mean S."""
    tally, mask_id = Tally(), run.settings.model.mask_id
    network = run.denoiser(ComputeSettings.of(options).compute(BATCH), tally)

    def forward(inputs: Sequence[Inputs], _: int) -> list[Tensor]:
        return [network(query_of(one.tokens, one.logit_positions)) for one in inputs]

    def query_of(tokens: Tensor, positions: Tensor) -> Query:
        time_of_rows = (tokens == mask_id).double().mean(dim=1)
        return Query(tokens, positions, torch.arange(len(tokens)), time_of_rows)

    (split,) = evaluation_sets(load_blend(data), "validation")
    (estimate,) = Evaluator(forward, run.world, "row", 1024, BATCH).estimates(split.rows, [S_MAX])
    return estimate.nats_per_token, tally.loops / tally.forwards


def main() -> None:
    """Train, measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where data and run are kept [a temporary folder]")
    parser.add_argument("--steps", type=int, default=1500, help="training steps [1500]")
    parser.add_argument("--puzzles", type=int, default=256, help="puzzles to solve [256]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all methods [3]")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    filter_library_warnings()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)).absolute()
        run = trained(folder, arguments.steps)
        puzzles = find_puzzles(run, folder / "data", arguments.puzzles)
        print(f"{len(puzzles.rows)} puzzles of {CELLS - GIVEN} cells to fill, {arguments.rounds} rounds")
        records = summary(measured(run, puzzles, arguments.rounds), puzzles)
        print_table(records)
        most, _ = nelbo(run, folder / "data", {"loops": str(S_MAX)})
        print(f"NELBO with S = {S_MAX}: {most:.4f} nats per token")
        for criterion in THRESHOLDS:
            nats, loops = nelbo(run, folder / "data", ADAPTIVE | {"loop_criterion": criterion})
            print(
                f"with adaptive loops by {criterion}: {nats:.4f} ({nats / most - 1:+.2%}), {loops:.2f} loops on average"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
