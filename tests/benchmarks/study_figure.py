"""The figure of the README of studies: NELBO against training FLOPs, and valid boards against S, of `sudoku_flops`.

    python tests/benchmarks/study_figure.py [RESULT.json] [--output FILE.png|FILE.svg]

Reads a `result.json` of the study, by default the committed one. Needs matplotlib, which is in the `dev` extra.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from tests.benchmarks.figure_style import ACCENT, MUTED, TEXT, new_figure  # noqa: E402

FLOOR = math.log(28_200_960) / 37
"""Nats per token: no model can be better on boards drawn uniformly. A row has 36 cells and the end of the document."""
ARMS = {
    "plain": ("plain", MUTED, "--"),
    "deeper": ("deeper, equal FLOPs per step", "#3b7dbd", "--"),
    "looped": ("looped", "#e5a465", "-"),
    "looped-norm": ("looped, Muon, norm between passes", ACCENT, "-"),
}
"""Arm -> label, colour and line."""


def main() -> None:
    """Read a result and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "pretrain/studies/results/sudoku_flops.json"
    parser.add_argument("result", nargs="?", type=Path, default=default, help="of the study [the committed one]")
    parser.add_argument("--output", type=Path, default=ROOT / "pretrain/figures/sudoku_flops.png", metavar="FILE")
    arguments = parser.parse_args()
    try:
        result = json.loads(arguments.result.read_text(encoding="utf-8"))
    except OSError as error:
        sys.exit(f"error: {arguments.result}: {error.strerror}")
    if result.get("study") != "sudoku_flops":
        sys.exit(f"error: {arguments.result}: not a result of loopmdm study sudoku_flops")
    figure = new_figure()
    left, right = figure.subplots(1, 2)
    draw_curves(left, result)
    draw_boards(right, result)
    figure.savefig(arguments.output, dpi=200)
    print(f"wrote {arguments.output}")


def nelbo(record: dict[str, Any]) -> float:
    """NELBO of a validation, in nats per token, at the S_max of its arm: 6, or 1 without loops."""
    loops = record["loops"]
    return loops["6" if "6" in loops else "1"]["nats_per_token"]


def over_seeds(seeds: Sequence[list[Any]], of: Callable[[Any], float]) -> tuple[list[float], list[float], list[float]]:
    """Mean, smallest and largest value of each place of the seeds' lists."""
    values = [[of(each) for each in place] for place in zip(*seeds, strict=True)]
    return [mean(v) for v in values], [min(v) for v in values], [max(v) for v in values]


def draw_curves(axes: Any, result: dict[str, Any]) -> None:
    """NELBO along training, and how many times sooner the best arm is where the plain one ends."""
    for arm, (label, color, line) in ARMS.items():
        seeds = [training["validations"] for training in result["arms"][arm]]
        flops = over_seeds(seeds, lambda record: record["flops"])[0]
        middle, low, high = over_seeds(seeds, nelbo)
        axes.fill_between(flops, low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(flops, middle, color=color, linestyle=line, linewidth=1.8, label=label)
    plain = [training["validations"][-1] for training in result["arms"]["plain"]]
    end, level = mean(record["flops"] for record in plain), mean(map(nelbo, plain))
    ratio = result["flops_to_tie"]["looped-norm"]
    axes.annotate("", (end / ratio["value"], level), xytext=(end, level),
                  arrowprops={"arrowstyle": "->", "color": TEXT, "linewidth": 1})  # fmt: skip
    axes.annotate(f"{ratio['value']:.1f} ({ratio['low']:.1f} to {ratio['high']:.1f}) times\nfewer FLOPs than plain",
                  (end / ratio["value"], level), xytext=(-7, 3), textcoords="offset points", ha="right", va="top",
                  fontsize=8, color=TEXT)  # fmt: skip
    axes.axhline(FLOOR, color=TEXT, linestyle=":", linewidth=1)
    axes.annotate(
        "entropy of the boards", (1.02e12, FLOOR), xytext=(0, 3), textcoords="offset points", color=TEXT, fontsize=8
    )
    axes.set(title="6x6 Sudoku: NELBO at S_max", xlabel="training FLOPs", ylabel="nats per token", xscale="log",
             xlim=(1e12, 1.05e13), ylim=(0.45, 0.78))  # fmt: skip
    axes.legend(loc="upper right", fontsize=8)


def draw_boards(axes: Any, result: dict[str, Any]) -> None:
    """Share of valid boards at each S."""
    for arm, (_, color, line) in ARMS.items():
        seeds = [training["measured"]["boards"][""]["loops"] for training in result["arms"][arm]]
        loops = [row["loops"] for row in seeds[0]]
        metric = result["arms"][arm][0]["measured"]["boards"][""]["metric"]
        middle, low, high = over_seeds(seeds, lambda row, metric=metric: 100 * row[metric])
        if len(loops) == 1:
            axes.axhline(middle[0], color=color, linestyle=line, linewidth=1.5)
            axes.axhspan(low[0], high[0], color=color, alpha=0.12, linewidth=0)
            continue
        errors = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
        axes.errorbar(loops, middle, yerr=errors, color=color, marker="o", markersize=4.5, linewidth=1.8, capsize=3)
    axes.axvline(6, color=MUTED, linestyle=":", linewidth=1)
    axes.annotate("S_max in training", (6, 0.02), xycoords=("data", "axes fraction"), xytext=(-3, 0), ha="right",
                  textcoords="offset points", fontsize=8, color=MUTED)  # fmt: skip
    axes.set(
        title="Valid boards after training",
        xlabel="S, passes of the looped block",
        ylabel="%",
        xscale="log",
        ylim=(0, 60),
    )
    axes.minorticks_off()
    axes.set_xticks([1, 2, 4, 6, 12], ["1", "2", "4", "6", "12"])


if __name__ == "__main__":
    main()
