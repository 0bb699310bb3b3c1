"""Figures of an evaluation as a dictionary, a line and a table."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from data_pipeline.dataset.blend import Blend
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.manifest import SplitInfo, TextLoss
from pretrain.evaluation.nelbo import FrozenNoise
from pretrain.evaluation.statistics import (
    TIMESTEP_BINS,
    Estimate,
    bits_per_byte,
    estimates_by_timestep,
    standard_error_of_mean,
)

NO_ERROR_BAR = "no error bar, which needs at least 2 rows"


def figures_of(
    dataset: PackedDataset, noise: FrozenNoise, estimates: Sequence[Estimate], entropy: float
) -> dict[str, Any]:
    """Figures of one split at every number of loops, and the unigram entropy of its text (nats per token) for comparison."""
    split, loss = dataset.manifest.splits[dataset.split], dataset.manifest.text_loss
    return {
        "split": dataset.split,
        "rows": len(noise.rows),
        "tokens": int(noise.lengths.sum()),
        "unigram_entropy": {"nats_per_token": entropy, "bits_per_byte": bits_per_byte(entropy, split)},
        "loops": [
            _figures_of_loops(e, estimates[0], split) | {"by_timestep": _figures_by_timestep(e, noise)}
            for e in estimates
        ],
        **({"text_loss": loss.model_dump()} if loss else {}),
    }


def evaluation_settings(blend: Blend, split: str, loops: Sequence[int], rows: int) -> dict[str, Any]:
    """What distinguishes an evaluation of a run from others: the data by its content, so that a moved folder stays the same."""
    facts = [str((c.weight, c.manifest.splits.get(split), c.manifest.tokenizer)) for c in blend.corpora]
    return {
        "split": split,
        "loops": list(loops),
        "rows": rows,
        "data_sha256": sha256("".join(facts).encode()).hexdigest(),
    }


def short_figures(figures: dict[str, Any]) -> str:
    """Nats per token at every S, in one line."""
    rows = figures["loops"]
    if any(row["nats_per_token_se"] is None for row in rows):
        return ", ".join(f"S={f['loops']} {f['nats_per_token']:.4f}" for f in rows) + f" ({NO_ERROR_BAR})"
    return ", ".join(f"S={f['loops']} {f['nats_per_token']:.4f}±{f['nats_per_token_se']:.4f}" for f in rows)


def format_table(figures: dict[str, Any]) -> str:
    """The figures of one set as a table, with the unigram entropy of the same text in its last row."""
    unigram = figures["unigram_entropy"]
    first = figures["loops"][0]["loops"]
    lines = [f"{'loops':<8}{'nats/token':>20}{'bits/byte':>20}{'vs unigram':>12}{f'vs S={first}, nats/token':>26}"]
    for row in figures["loops"]:
        change = (
            f"{row['change_from_first']:+.4f}{_error(row['change_from_first_se'])}" if row["loops"] != first else ""
        )
        ratio = row["bits_per_byte"] / unigram["bits_per_byte"] - 1
        lines.append(
            f"S={row['loops']:<6}{row['nats_per_token']:>11.4f}{_error(row['nats_per_token_se'])}"
            f"{row['bits_per_byte']:>11.4f}{_error(row['bits_per_byte_se'])}{ratio:>+12.1%}{change:>26}"
        )
    lines.append(f"{'unigram':<8}{unigram['nats_per_token']:>11.4f}{'':9}{unigram['bits_per_byte']:>11.4f}")
    if figures["loops"][0]["nats_per_token_se"] is None:
        lines.append(NO_ERROR_BAR)
    if loss := figures.get("text_loss"):
        lines.append(f"bits/byte count what the tokenizer loses as nothing: {TextLoss(**loss)}")
    return "\n".join(lines)


def format_timesteps(figures: dict[str, Any]) -> str:
    """Mean -log p of a masked token for each interval of t and every S, as a table."""
    rows = figures["loops"]
    lines = [f"{'t':<10}{'rows':>6}" + "".join(f"{'S=' + str(row['loops']):>20}" for row in rows)]
    for bins in zip(*(row["by_timestep"] for row in rows), strict=True):
        low, high = bins[0]["t"]
        cells = (
            f"{'':20}" if b["rows"] == 0 else f"{b['nats_per_token']:>11.4f}{_error(b['nats_per_token_se'])}"
            for b in bins
        )
        lines.append(f"{f'{low:g} to {high:g}':<10}{bins[0]['rows']:>6}" + "".join(cells).rstrip())
    return "\n".join(lines)


def _error(error: float | None) -> str:
    """A standard error of a table, or as much space."""
    return " " * 9 if error is None else f" ± {error:.4f}"


def _figures_of_loops(estimate: Estimate, first: Estimate, split: SplitInfo) -> dict[str, float | None]:
    difference, error = estimate.residuals - first.residuals, estimate.standard_error
    return {
        "loops": estimate.loops,
        "nats_per_token": estimate.nats_per_token,
        "nats_per_token_se": error,
        "bits_per_byte": bits_per_byte(estimate.nats_per_token, split),
        "bits_per_byte_se": None if error is None else bits_per_byte(error, split),
        # All S are evaluated on the same rows and masks, so their difference is known far better than either figure.
        "change_from_first": float(difference.mean()),
        "change_from_first_se": standard_error_of_mean(difference),
    }


def _figures_by_timestep(estimate: Estimate, noise: FrozenNoise) -> list[dict[str, Any]]:
    """Mean -log p of a masked token for each interval of t."""
    strata = noise.masked_counts / noise.lengths
    return [
        {
            "t": [number / TIMESTEP_BINS, (number + 1) / TIMESTEP_BINS],
            "rows": 0 if of_bin is None else len(of_bin.residuals),
            "nats_per_token": of_bin and of_bin.nats_per_token,
            "nats_per_token_se": of_bin and of_bin.standard_error,
        }
        for number, of_bin in enumerate(estimates_by_timestep(estimate, noise.weights, strata))
    ]
