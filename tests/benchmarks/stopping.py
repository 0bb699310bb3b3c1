"""Criteria of adaptive loops compared: loops and FLOPs against quality, with one model that was trained with S_max = 12.

    python tests/benchmarks/stopping.py [--folder DIR] [--steps 1500] [--rows 1024] [--puzzles 256]

Trains the model of `sampling.py` (with --folder, only if the folder has none yet). All passes of every row are computed once,
with the masks of the validation NELBO, and what each criterion says after each pass is kept. So the table shows, for every
criterion, the threshold with the fewest loops whose NELBO is at most so much above that of S_max passes. Thresholds are chosen
on half of the rows and measured on the others. FLOPs include what a criterion computes. The last columns are puzzles solved
with the threshold sampler and the same thresholds.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from data_pipeline.dataset.blend import load_blend  # noqa: E402
from model.attention import AttentionInputs  # noqa: E402
from model.denoiser import positions_of  # noqa: E402
from model.rope import rotation  # noqa: E402
from model.sampling.passes import OF_PREDICTIONS, Criterion, Judge, Settling, run_passes  # noqa: E402
from model.sampling.tally import Tally  # noqa: E402
from pretrain.commands.load_run import LoadedRun  # noqa: E402
from pretrain.evaluation.nelbo import freeze_noise  # noqa: E402
from pretrain.evaluation.sets import evaluation_sets  # noqa: E402
from pretrain.machine.library_warnings import filter_library_warnings  # noqa: E402
from tests.benchmarks.sampling import S_MAX, Puzzles, by_ours, find_puzzles, trained  # noqa: E402

CRITERIA: Sequence[Criterion] = get_args(Criterion)
LOSSES = (0.005, 0.01, 0.02)
"""Permitted relative losses of NELBO."""


@dataclass(frozen=True)
class Passes:
    """All passes of all rows.

    Attributes:
        nats: mean -log p of a row's masked tokens after each pass, float64 [n, S_max].
        changes: what each criterion says after each pass, float64 [n, S_max].
        masked: masked tokens of each row, int64 [n].
    """

    nats: Tensor
    changes: Mapping[str, Tensor]
    masked: Tensor

    def of(self, rows: slice) -> "Passes":
        """Some of the rows."""
        changes = {name: change[rows] for name, change in self.changes.items()}
        return Passes(self.nats[rows], changes, self.masked[rows])

    def loops(self, criterion: str, threshold: float) -> Tensor:
        """S of each row with this criterion, int64 [n]."""
        settled = self.changes[criterion] < threshold
        settled[:, -1] = True
        return settled.int().argmax(dim=1) + 1

    def loss(self, loops: Tensor) -> float:
        """NELBO with these S, relative to that of S_max passes, minus 1."""
        return float(self.nats.gather(1, loops[:, None] - 1).mean() / self.nats[:, -1].mean()) - 1

    def threshold(self, criterion: str, permitted: float) -> float:
        """The largest threshold whose loss is permitted, as those below it are."""
        chosen = 0.0
        for threshold in np.geomspace(1e-4, 3.0, 500).tolist():
            if self.loss(self.loops(criterion, threshold)) > permitted:
                break
            chosen = threshold
        return chosen


@torch.no_grad()
def all_passes(run: LoadedRun, data: Path, count: int) -> Passes:
    """S_max passes of rows of the validation split, with the masks of its NELBO."""
    model, architecture = run.model, run.settings.model
    (split,) = evaluation_sets(load_blend(data), "validation")
    noise = freeze_noise(split.rows, count)
    clean, masked = torch.from_numpy(split.rows.rows(noise.rows)), torch.from_numpy(noise.masks(slice(None)))
    inputs = AttentionInputs(
        rotation(clean.shape[1], architecture.head_dim, architecture.rope_base, run.world.device, torch.float32)
    )
    masked_of_rows = masked.sum(dim=1)
    nats, changes = [], {name: [] for name in CRITERIA}

    def logits(states: Tensor, _: Tensor) -> Tensor:
        return model.output(states, positions_of(masked)).float()

    def predict(states: Tensor, rows: Tensor) -> Tensor:
        return logits(model.run_tail(states, inputs), rows)

    judges = {
        name: Judge(Settling(0.0, name), masked.t(), predict if name == "prediction" else logits, lambda agreed: agreed)
        for name in CRITERIA
    }

    def observe(before: Tensor, after: Tensor, number: int, rows: Tensor) -> Tensor:
        log_p = predict(after, rows).double().log_softmax(dim=-1).gather(1, clean[masked][:, None])
        per_token = torch.zeros(masked.shape, dtype=torch.float64).masked_scatter_(masked, -log_p)
        nats.append(per_token.sum(dim=1) / masked_of_rows)
        for name, judge in judges.items():
            changes[name].append(judge.change(before, after, number, rows))
        return torch.zeros_like(rows, dtype=torch.bool)

    head = model.embed_and_head(clean.masked_fill(masked, architecture.mask_id), inputs)
    limits = torch.full_like(masked_of_rows, S_MAX + 1)  # after the last pass, settling is not asked for
    run_passes(lambda states, *_: model.one_pass(states, inputs), head, limits, observe)
    stacked = {name: torch.stack(change, dim=1) for name, change in changes.items()}
    return Passes(torch.stack(nats, dim=1), stacked, masked_of_rows)


def flops(run: LoadedRun, passes: Passes, loops: Tensor, criterion: str | None) -> float:
    """FLOPs of all rows, with those of the criterion."""
    tally, seq_len = Tally(), run.settings.data.seq_len
    heads = loops + (loops < S_MAX) if criterion in OF_PREDICTIONS else torch.ones_like(loops)
    tails = heads if criterion == "prediction" else torch.ones_like(loops)
    tally.add(run.model.architecture, seq_len, torch.full_like(loops, seq_len), loops, heads * passes.masked, tails)
    return tally.flops


def print_row(
    run: LoadedRun, passes: Passes, puzzles: Puzzles, name: str, threshold: float | None, loops: Tensor
) -> None:
    """A line of the table. Without a threshold, `loops` is the same number for all rows."""
    most = flops(run, passes, torch.full_like(loops, S_MAX), None)
    spent = flops(run, passes, loops, None if threshold is None else name) / most
    options = {"loops": str(int(loops[0]))}
    if threshold is not None:
        options = {"loops": f"adaptive:1-{S_MAX}", "loop_criterion": name, "loop_threshold": threshold}
    outcome = by_ours(run, puzzles, {"sampler": "threshold", **options})
    exact, cost = float((outcome.tokens == puzzles.solutions).all(dim=1).double().mean()), outcome.cost
    figures = (
        name, "" if threshold is None else f"{threshold:.4f}", f"{float(loops.double().mean()):.2f}", f"{spent:.2f}",
        f"{passes.loss(loops):+.2%}", f"{exact:.3f}", f"{cost.loops_per_forward:.2f}", f"{cost.flops_per_token / 1e6:.2f}",
    )  # fmt: skip
    print(f"| {' | '.join(figures)} |", flush=True)


def main() -> None:
    """Train, compute all passes, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where data and run are kept [a temporary folder]")
    parser.add_argument("--steps", type=int, default=1500, help="training steps [1500]")
    parser.add_argument("--rows", type=int, default=1024, help="rows of the validation split [1024]")
    parser.add_argument("--puzzles", type=int, default=256, help="puzzles to solve [256]")
    arguments = parser.parse_args()
    filter_library_warnings()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)).absolute()
        run = trained(folder, arguments.steps)
        puzzles = find_puzzles(run, folder / "data", arguments.puzzles)
        passes = all_passes(run, folder / "data", arguments.rows)
    chosen_on, measured_on = passes.of(slice(0, None, 2)), passes.of(slice(1, None, 2))
    columns = "criterion, threshold, loops, FLOPs to S_max, NELBO, exact, loops, MFLOPs per token"
    print(f"| {columns.replace(', ', ' | ')} |\n|{'---|' * 8}")
    for loops in range(2, S_MAX + 1):
        everywhere = torch.full_like(measured_on.masked, loops)
        print_row(run, measured_on, puzzles, f"S = {loops}", None, everywhere)
    for permitted in LOSSES:
        for criterion in CRITERIA:
            threshold = chosen_on.threshold(criterion, permitted)
            loops = measured_on.loops(criterion, threshold)
            print_row(run, measured_on, puzzles, criterion, threshold, loops)


if __name__ == "__main__":
    main()
