"""Figures of an evaluation as a dictionary, a line, a table and a JSON file."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.atomic_files import write_atomic
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.manifest import SplitInfo
from pretrain.evaluation.nelbo import FrozenNoise
from pretrain.evaluation.statistics import Estimate, bits_per_byte, unigram_entropy


def figures_of(dataset: PackedDataset, noise: FrozenNoise, estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Figures of one split at every number of loops, and the unigram entropy of its text for comparison."""
    split, entropy = dataset.manifest.splits[dataset.split], unigram_entropy(dataset)
    return {
        "split": dataset.split,
        "rows": len(noise.rows),
        "tokens": int(noise.lengths.sum()),
        "unigram_entropy": {"nats_per_token": entropy, "bits_per_byte": bits_per_byte(entropy, split)},
        "loops": [_figures_of_loops(e, estimates[0], split) for e in estimates],
    }


def short_figures(figures: dict[str, Any]) -> str:
    """Nats per token at every S, in one line."""
    return ", ".join(f"S={f['loops']} {f['nats_per_token']:.4f}±{f['nats_per_token_se']:.4f}" for f in figures["loops"])


def format_table(figures: dict[str, Any]) -> str:
    """The figures of one set as a table, with the unigram entropy of the same text in its last row."""
    unigram = figures["unigram_entropy"]
    first = figures["loops"][0]["loops"]
    lines = [f"{'loops':<8}{'nats/token':>20}{'bits/byte':>20}{'vs unigram':>12}{f'vs S={first}, nats/token':>26}"]
    for row in figures["loops"]:
        change = f"{row['change_from_first']:+.4f} ± {row['change_from_first_se']:.4f}" if row["loops"] != first else ""
        ratio = row["bits_per_byte"] / unigram["bits_per_byte"] - 1
        lines.append(
            f"S={row['loops']:<6}{row['nats_per_token']:>11.4f} ± {row['nats_per_token_se']:.4f}"
            f"{row['bits_per_byte']:>11.4f} ± {row['bits_per_byte_se']:.4f}{ratio:>+12.1%}{change:>26}"
        )
    lines.append(f"{'unigram':<8}{unigram['nats_per_token']:>11.4f}{'':9}{unigram['bits_per_byte']:>11.4f}")
    return "\n".join(lines)


def write_figures(run_folder: Path, stem: str, figures: dict[str, Any]) -> Path:
    """Write `eval/STEM[_NAME].json` of a run folder and return its path."""
    content = dict(figures)
    name = content.pop("name")
    path = run_folder / "eval" / f"{stem}{name and '_' + name}.json"
    write_atomic(path, json.dumps(content, indent=2) + "\n")
    return path


def _figures_of_loops(estimate: Estimate, first: Estimate, split: SplitInfo) -> dict[str, float]:
    difference = estimate.residuals - first.residuals
    return {
        "loops": estimate.loops,
        "nats_per_token": estimate.nats_per_token,
        "nats_per_token_se": estimate.standard_error,
        "bits_per_byte": bits_per_byte(estimate.nats_per_token, split),
        "bits_per_byte_se": bits_per_byte(estimate.standard_error, split),
        # All S are evaluated on the same rows and masks, so their difference is known far better than either figure.
        "change_from_first": float(difference.mean()),
        "change_from_first_se": float(difference.std(ddof=1) / math.sqrt(len(difference))),
    }
