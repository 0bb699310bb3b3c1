"""Throughput of 2 pipeline stages against one process, one thread each, same global batch.

    python tests/benchmarks/pipeline_throughput.py [--rounds 5] [--json FILE]

In every round each layout trains the same steps, one after the other on otherwise idle cores, S = 1, 4 and 12; the table shows the
median over rounds of tokens/s and of the ratio to the one process of the same round. Two data-parallel ranks stand beside
them: they have no bubble and no hop, so their ratio is what the machine gives two busy cores.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from tests.launching import BIN, free_port, run  # noqa: E402

LAYOUTS = {
    "1 process": (1, ("parallel.zero_stage=1",)),
    "looped pipeline": (2, ("parallel.pipeline=2",)),
    "contiguous pipeline": (2, ("parallel.pipeline=2", "parallel.pipeline_split=contiguous")),
    "data-parallel": (2, ("parallel.zero_stage=1",)),
}
LOOPS = (1, 4, 12)
MODEL = (
    "model.num_layers=12", "model.loop.head=1", "model.loop.mid=2", "model.loop.tail=9", "model.loop.max=12",
    "model.hidden_size=192", "model.num_heads=6", "model.num_kv_heads=6", "train.precision=fp32",
    "train.global_batch_size=16", "train.micro_batch_size=2", "train.steps=1000", "optim.warmup_steps=0", "optim.ema_decay=0",
)  # fmt: skip


def measure(words: list[str], steps: int) -> dict[int, float]:
    """Tokens per second at each S, on this rank: the median step, the first left out."""
    from data_pipeline.blend import load_blend
    from pretrain.configuring import load_settings
    from pretrain.derive import make_plan
    from pretrain.launcher import read_launcher
    from pretrain.quiet import quiet_libraries

    quiet_libraries()
    from pretrain.running import build_run
    from pretrain.step import train_step
    from pretrain.world import start_world

    speeds = {}
    for loops in LOOPS:
        settings = load_settings("quickstart", [*words, f"train.loops={loops}"])
        blend = load_blend(settings.data.path)
        plan = make_plan(settings, blend.manifest, read_launcher()[1])
        world = start_world(read_launcher(), plan.shape)
        built = build_run(plan, blend, world)
        seconds = []
        for step in range(steps + 1):
            batches = built.batches[step]
            world.barrier()
            begin = time.perf_counter()
            train_step(built.engine, world, plan, step, batches)
            seconds.append(time.perf_counter() - begin)
        speeds[loops] = plan.tokens_per_step / statistics.median(seconds[1:])
    return speeds


def start(layout: str, data: Path, steps: int) -> dict[int, float]:
    """Run one layout in processes of its own."""
    ranks, words = LAYOUTS[layout]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speeds.json"
        script = [__file__, "--worker", out, "--steps", steps, f"data.path={data}", *MODEL, *words]
        torchrun = [BIN / "torchrun", f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
        done = run([sys.executable, *script] if ranks == 1 else [*torchrun, *script], timeout=900)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return {int(loops): speed for loops, speed in json.loads(out.read_text()).items()}


def prepared_corpus(folder: Path) -> Path:
    """A small prepared corpus of the embedded text, rows of 128 tokens."""
    words = ["prepare", "--input", "stdlib:", "--vocab-size", "512", "--seq-len", "128", "--output", folder / "data"]
    done = run([sys.executable, "-m", "pretrain.cli", *words], timeout=900, PYTHONPATH=str(ROOT))
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return folder / "data"


def report(rounds: list[dict[str, dict[int, float]]]) -> list[dict[str, object]]:
    """A row per layout and S: medians over rounds."""
    rows = []
    for loops in LOOPS:
        for layout in LAYOUTS:
            ratios = [one[layout][loops] / one["1 process"][loops] for one in rounds]
            rows.append(
                {
                    "loops": loops,
                    "layout": layout,
                    "tokens_per_second": statistics.median(one[layout][loops] for one in rounds),
                    "ratio": statistics.median(ratios),
                    "ratio_range": [min(ratios), max(ratios)],
                }
            )
    return rows


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all layouts [5]")
    parser.add_argument("--steps", type=int, default=4, help="timed steps per S and round [4]")
    parser.add_argument("--data", type=Path, help="prepared folder [a fresh one from the embedded corpus]")
    parser.add_argument("--json", type=Path, help="also write the rows and every round here")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        speeds = measure(arguments.words, arguments.steps)
        if os.environ.get("RANK", "0") == "0":
            arguments.worker.write_text(json.dumps(speeds))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or prepared_corpus(Path(folder))
        rounds = []
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
            rounds.append({layout: start(layout, data, arguments.steps) for layout in LAYOUTS})
    rows = report(rounds)
    print("| S | layout | tokens/s | ratio to 1 process (range) |\n|---|---|---|---|")
    for row in rows:
        low, high = row["ratio_range"]
        print(
            f"| {row['loops']} | {row['layout']} | {row['tokens_per_second']:,.0f} | {row['ratio']:.2f} ({low:.2f}-{high:.2f}) |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "rounds": rounds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
