"""Tokens per second that the data pipeline delivers, compared with those that the quickstart trains on with one process.

    python tests/benchmarks/serving.py [--rounds 5] [--data FOLDER] [--json FILE]

In every round, each source delivers the batches of consecutive steps of the quickstart on one thread, and training takes such
steps. The table shows medians over rounds, and the ratio within a round. `rows` is reading only; `batches` adds the noise, as
training receives it; `documents` are the document ids. `first` is the time from opening a folder to its first batch, `one` the time
for one sample anywhere in the run.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from data_pipeline.dataset.blend import load_blend  # noqa: E402
from data_pipeline.dataset.samples import Samples  # noqa: E402
from pretrain.cli import main as loopmdm  # noqa: E402
from pretrain.config.load import load_settings  # noqa: E402
from pretrain.config.run_plan import RunPlan, make_run_plan  # noqa: E402
from pretrain.machine.library_warnings import filter_library_warnings  # noqa: E402

STEPS = 40
TRAINED_STEPS = 8


def sources_of(data: Path, folder: Path) -> dict[str, Path]:
    """The folder as prepared, repacked with whole documents, and a blend of both."""
    shutil.copytree(data, folder / "concat")
    shutil.copytree(data, folder / "best_fit")
    if loopmdm(["repack", str(folder / "best_fit"), "--pack", "best_fit"]):
        sys.exit(1)
    blend = folder / "blend.yaml"
    blend.write_text("corpora: [{path: concat, weight: 0.7}, {path: best_fit, weight: 0.3}]")
    return {"concat": folder / "concat", "best_fit": folder / "best_fit", "blend": blend}


def plan_of(path: Path) -> RunPlan:
    """The quickstart's plan on one process."""
    settings = load_settings("quickstart", [f"data.path={path}"])
    return make_run_plan(settings, load_blend(path).manifest, 1)


def rate(serve: Callable[[int], object], tokens: int) -> float:
    """Tokens per second of `serve(step)`, a step having `tokens`."""
    begin = time.perf_counter()
    for step in range(STEPS):
        serve(step)
    return STEPS * tokens / (time.perf_counter() - begin)


def served(path: Path) -> dict[str, float]:
    """Speeds of one source."""
    import torch

    from pretrain.training.batches import Batches

    begin = time.perf_counter()
    plan = plan_of(path)
    batch = np.arange(plan.settings.train.global_batch_size)
    source = Samples.of(load_blend(path), plan.settings.run.seed)
    source.rows(batch)
    first = time.perf_counter() - begin
    batches = Batches(plan, source, 0, torch.device("cpu"))
    anywhere = np.random.default_rng(0).integers(0, 10**9, size=(200, 1))
    begin = time.perf_counter()
    for sample in anywhere:
        source.rows(sample)
    one = (time.perf_counter() - begin) / len(anywhere)
    return {
        "rows": rate(lambda step: source.rows(batch + step * len(batch)), plan.tokens_per_step),
        "documents": rate(lambda step: source.document_ids(batch + step * len(batch)), plan.tokens_per_step),
        "batches": rate(batches.__getitem__, plan.tokens_per_step),
        "first": first,
        "one": one,
    }


class Training:
    """The quickstart's model on one process; `speed` is in tokens per second of a median step."""

    def __init__(self, path: Path) -> None:
        from pretrain.parallel.world import start_world
        from pretrain.training.start import build_run

        self._plan = plan_of(path)
        self._world = start_world((0, 1, 0))
        self._run = build_run(self._plan, load_blend(path), self._world)
        self.speed()  # the first steps allocate

    def speed(self) -> float:
        """Take some steps, with the numbers of loops that the run draws."""
        from pretrain.training.step import train_step

        begin = time.perf_counter()
        for _ in range(TRAINED_STEPS):
            train_step(self._run, self._run.batches[self._run.progress.step])
            self._run.progress.step += 1
        return TRAINED_STEPS * self._plan.tokens_per_step / (time.perf_counter() - begin)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all sources [5]")
    parser.add_argument("--data", type=Path, help="prepared folder [a fresh one, as the quickstart's]")
    parser.add_argument("--json", type=Path, help="also write every round here")
    arguments = parser.parse_args()
    filter_library_warnings()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["--vocab-size", "2048", "--seq-len", "128", "--validation-fraction", "0.05"]
        if arguments.data is None and loopmdm(["prepare", "--input", "stdlib:", "--output", f"{name}/data", *words]):
            sys.exit(1)
        sources = sources_of(arguments.data or folder / "data", folder)
        training = Training(sources["concat"])
        rounds = []
        for _ in range(arguments.rounds):
            rounds.append({kind: served(path) for kind, path in sources.items()} | {"training": training.speed()})
    report(rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(rounds, indent=2) + "\n")


def report(rounds: list[dict]) -> None:
    """The table, a line per source."""
    median = statistics.median
    print(f"training: {median(r['training'] for r in rounds):,.0f} tokens/s on one process; {len(rounds)} rounds")
    print(
        "| source | rows, tokens/s | documents, tokens/s | batches, tokens/s | batches / training | first, ms | one, us |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind in [key for key in rounds[0] if key != "training"]:
        figure = {name: median(r[kind][name] for r in rounds) for name in rounds[0][kind]}
        ratios = [r[kind]["batches"] / r["training"] for r in rounds]
        speeds = " | ".join(f"{figure[name]:,.0f}" for name in ("rows", "documents", "batches"))
        ratio = f"{median(ratios):.0f} ({min(ratios):.0f}-{max(ratios):.0f})"
        print(f"| {kind} | {speeds} | {ratio} | {figure['first'] * 1e3:.1f} | {figure['one'] * 1e6:.0f} |")


if __name__ == "__main__":
    main()
