"""The figure of the README: training loss by S, and validation NELBO against S, of a finished run.

    python tests/benchmarks/quickstart_figure.py [RUN] [--evaluation FILE.json] [--output FILE.png|FILE.svg]

Reads `metrics.jsonl`, `config.yaml` and the newest `eval/step_N_*.json` of a run folder, which `loopmdm evaluate` writes.
Needs matplotlib, which is in the `dev` extra: pip install -c launchers/pins.txt matplotlib
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from tests.benchmarks.figure_style import ACCENT, MUTED, TEXT, new_figure  # noqa: E402


def main() -> None:
    """Read a run folder and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", nargs="?", type=Path, default=Path("runs/quickstart"), help="run folder [runs/quickstart]"
    )
    parser.add_argument("--evaluation", type=Path, metavar="FILE.json", help="the newest of RUN/eval/step_N_*.json")
    parser.add_argument("--output", type=Path, default=ROOT / "pretrain/figures/quickstart.png", metavar="FILE")
    arguments = parser.parse_args()
    records, evaluation = read_training(arguments.run), read_evaluation(arguments.run, arguments.evaluation)
    trained = yaml.safe_load((arguments.run / "config.yaml").read_text())["model"]["loop"]["max"]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    draw(records, evaluation, trained, arguments.output)
    print(f"wrote {arguments.output}")


def read_training(run: Path) -> list[dict[str, Any]]:
    """The training records of `metrics.jsonl`; validation has records of its own there."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        sys.exit(f"error: {path}: no such file; give the folder of a finished run, such as runs/quickstart")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [record for record in records if "loss" in record]


def read_evaluation(run: Path, path: Path | None) -> dict[str, Any]:
    """The given evaluation, or the one with the most steps that `loopmdm evaluate` wrote for the run."""
    found = sorted((run / "eval").glob("step_*.json"), key=lambda p: (int(p.stem.split("_")[1]), p.stem))
    if path is None and not found:
        sys.exit(f"error: {run / 'eval'}: no step_N_*.json; run loopmdm evaluate {run} first")
    figures = json.loads((path or found[-1]).read_text(encoding="utf-8"))
    if "unigram_entropy" not in figures:
        sys.exit(
            f"error: {path or found[-1]}: the figures of a mixture have no bits per byte; give those of one corpus"
        )
    return figures


def draw(records: list[dict[str, Any]], evaluation: dict[str, Any], trained: int, output: Path) -> None:
    """Both panels."""
    figure = new_figure()
    grid = figure.add_gridspec(5, 2)
    draw_training(figure.add_subplot(grid[:, 0]), records)
    upper = figure.add_subplot(grid[0, 1])
    lower = figure.add_subplot(grid[1:, 1], sharex=upper)
    draw_evaluation(upper, lower, evaluation, trained)
    figure.savefig(output, dpi=200)


def draw_training(axes: Any, records: list[dict[str, Any]]) -> None:
    """Mean loss of each logging window, and of the steps in it that ran each S."""
    from matplotlib import colormaps

    loops = sorted({int(s) for record in records for s in record["loss_by_loops"]})
    for index, s in enumerate(loops):
        some = [record for record in records if str(s) in record["loss_by_loops"]]
        color = colormaps["viridis"](0.85 * index / max(1, len(loops) - 1))
        steps, losses = [r["step"] for r in some], [r["loss_by_loops"][str(s)] for r in some]
        axes.plot(steps, losses, color=color, linewidth=1, alpha=0.75, label=f"steps with S={s}")
    axes.plot([r["step"] for r in records], [r["loss"] for r in records], color=ACCENT, linewidth=2, label="all steps")
    axes.set(title="Training loss", xlabel="step", ylabel="nats per token", xlim=(0, records[-1]["step"]))
    axes.legend(loc="upper right", ncols=1 + len(loops) // 6)


def draw_evaluation(upper: Any, lower: Any, evaluation: dict[str, Any], trained: int) -> None:
    """NELBO with standard errors below a break of the axis, the unigram entropy above it."""
    rows, unigram = evaluation["loops"], evaluation["unigram_entropy"]["bits_per_byte"]
    loops, bits = [row["loops"] for row in rows], [row["bits_per_byte"] for row in rows]
    errors = [row["bits_per_byte_se"] for row in rows]
    upper.axhline(unigram, color=MUTED, linestyle="--", linewidth=1.2)
    upper.annotate(f"unigram entropy {unigram:.2f}", (0.99, unigram), xycoords=("axes fraction", "data"), xytext=(0, 4),
                   textcoords="offset points", ha="right", color=MUTED)  # fmt: skip
    lower.errorbar(loops, bits, yerr=errors, color=ACCENT, marker="o", markersize=5, linewidth=1.5, capsize=4)
    for s, value, error in zip(loops, bits, errors, strict=True):
        lower.annotate(
            f"{value:.3f}", (s, value + error), xytext=(0, 5), textcoords="offset points", ha="center", color=TEXT
        )
    margin = max(max(bits) - min(bits), 4 * max(errors))
    lower.set(ylabel="bits per byte", xlabel="S, passes of the looped block", xscale="log",
              ylim=(min(bits) - 0.6 * margin, max(bits) + 0.7 * margin))  # fmt: skip
    limits = (loops[0] / 1.3, loops[-1] * 1.3)
    for axes in (upper, lower):
        axes.axvspan(limits[0], min(trained + 0.5, limits[1]), color="#f1f5fa", zorder=0)
    lower.annotate(f"S drawn in training: 1 to {trained}", (limits[0] * 1.03, 0.04), xycoords=("data", "axes fraction"),
                   color=MUTED)  # fmt: skip
    style_break(upper, lower, unigram, limits)
    upper.set_xticks(loops, [str(s) for s in loops])
    upper.set_title(f"Validation NELBO at step {evaluation['step']:,} ({evaluation['weights']} weights)")


def style_break(upper: Any, lower: Any, unigram: float, limits: tuple[float, float]) -> None:
    """Two axes that read as one with a break: no inner spines, a slash where they are cut."""
    upper.set(ylim=(unigram - 0.1, unigram + 0.2), yticks=[], xlim=limits)
    upper.grid(False)
    upper.spines["bottom"].set_visible(False)
    upper.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
    lower.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    lower.grid(False, axis="x")
    slash = {"marker": [(-1, -0.6), (1, 0.6)], "markersize": 9, "linestyle": "none", "color": MUTED, "clip_on": False}
    upper.plot([0], [0], transform=upper.transAxes, **slash)
    lower.plot([0], [1], transform=lower.transAxes, **slash)


if __name__ == "__main__":
    main()
