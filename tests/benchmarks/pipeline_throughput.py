"""Throughput of 2 pipeline stages relative to one process: one thread each, the same global batch of 8 micro-batches.

    python tests/benchmarks/pipeline_throughput.py [--rounds 5] [--hidden-size 768] [--json FILE]

The processes of all layouts are started once. Then the layouts take turns: each runs two steps at S = 1, 4 and 12 while the
others wait, and the second step is timed, because the system may have paged out processes that waited for minutes. Each ratio
compares steps about a minute apart; the table shows medians over rounds. Two data-parallel ranks are timed for comparison:
they have no bubble and no hop, so their ratio shows what the machine allows.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from tests.launching import environment, free_port, run  # noqa: E402

LAYOUTS = {
    "1 process": (1, ("parallel.zero_stage=1",)),
    "looped pipeline": (2, ("parallel.pipeline=2",)),
    "contiguous pipeline": (2, ("parallel.pipeline=2", "parallel.pipeline_split=contiguous")),
    "data-parallel": (2, ("parallel.zero_stage=1",)),
}
LOOPS = (1, 4, 12)
MODEL = (
    "model.num_layers=12", "model.loop.head=1", "model.loop.mid=2", "model.loop.tail=9", "model.loop.max=12",
    "train.precision=fp32", "train.global_batch_size=16", "train.micro_batch_size=2", "train.steps=1000",
    "optim.warmup_steps=0", "optim.ema_decay=0",
)  # fmt: skip


def serve_steps(overrides: list[str]) -> None:
    """One rank: read S from standard input, run a step, print its seconds; until the input ends."""
    from data_pipeline.dataset.blend import load_blend
    from pretrain.config.load import load_settings
    from pretrain.config.run_plan import make_run_plan
    from pretrain.machine.library_warnings import filter_library_warnings
    from pretrain.parallel.launcher import read_launcher

    filter_library_warnings()
    from pretrain.parallel.world import start_world
    from pretrain.training.start import build_run
    from pretrain.training.step import train_step

    settings = load_settings("quickstart", overrides)
    blend = load_blend(settings.data.path)
    plan = make_run_plan(settings, blend.manifest, read_launcher()[1])
    world = start_world(read_launcher(), plan.shape)
    built = build_run(plan, blend, world)
    for step, line in enumerate(sys.stdin):
        at = replace(plan, settings=replace(plan.settings, train=replace(plan.settings.train, loops=int(line))))
        built.progress.step = step
        batches = built.batches[step]
        world.barrier()
        begin = time.perf_counter()
        train_step(replace(built, plan=at), batches)
        print(f"seconds {time.perf_counter() - begin}", flush=True)


class Ranks:
    """The waiting processes of one layout."""

    def __init__(self, layout: str, data: Path, hidden_size: int) -> None:
        size, overrides = LAYOUTS[layout]
        heads = hidden_size // 64
        width = (f"model.hidden_size={hidden_size}", f"model.num_heads={heads}", f"model.num_kv_heads={heads}")
        common = environment() | {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        command = [sys.executable, __file__, "--rank", f"data.path={data}", *MODEL, *width, *overrides]
        self._processes = [
            subprocess.Popen(
                command, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True, cwd=ROOT,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )
            for rank in range(size)
        ]  # fmt: skip

    def seconds_of_a_step(self, loops: int) -> float:
        """Seconds of the second of two steps at S = `loops`, on the first rank."""
        self._step(loops)
        return self._step(loops)

    def _step(self, loops: int) -> float:
        for process in self._processes:
            process.stdin.write(f"{loops}\n")
            process.stdin.flush()
        seconds = [self._reply(process) for process in self._processes]
        return seconds[0]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.wait()

    @staticmethod
    def _reply(process: subprocess.Popen) -> float:
        for line in process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        sys.exit(
            f"a process ended with status {process.wait()}; run it on its own to see why: {' '.join(process.args)}"
        )


def prepared_corpus(folder: Path) -> Path:
    """A small prepared corpus of the standard library's sources, rows of 128 tokens."""
    words = ["prepare", "--input", "stdlib:", "--vocab-size", "512", "--seq-len", "128", "--output", folder / "data"]
    done = run([sys.executable, "-m", "pretrain.cli", *words], timeout=900, PYTHONPATH=str(ROOT))
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return folder / "data"


def measure(data: Path, rounds: int, hidden_size: int) -> list[dict[int, dict[str, float]]]:
    """Per round: S -> layout -> tokens per second."""
    tokens, ranks = 16 * 128, {layout: Ranks(layout, data, hidden_size) for layout in LAYOUTS}
    try:
        measured = []
        for number in range(1, rounds + 1):
            measured.append({s: {name: tokens / ranks[name].seconds_of_a_step(s) for name in LAYOUTS} for s in LOOPS})
            print(f"round {number} of {rounds}", flush=True)
        return measured
    finally:
        for one in ranks.values():
            one.close()


def report(rounds: list[dict[int, dict[str, float]]]) -> list[dict[str, object]]:
    """One row per S and layout: medians over rounds."""
    rows = []
    for loops in LOOPS:
        for layout in LAYOUTS:
            ratios = [one[loops][layout] / one[loops]["1 process"] for one in rounds]
            speed = statistics.median(one[loops][layout] for one in rounds)
            rows.append(
                {
                    "loops": loops,
                    "layout": layout,
                    "tokens_per_second": speed,
                    "ratio": statistics.median(ratios),
                    "ratio_range": [min(ratios), max(ratios)],
                }
            )
    return rows


def main() -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all layouts [5]")
    parser.add_argument("--hidden-size", type=int, default=768, help="width of the 12 layers, a multiple of 64 [768]")
    parser.add_argument(
        "--data", type=Path, help="prepared folder with rows of 128 tokens [default: prepare one from stdlib:]"
    )
    parser.add_argument("--json", type=Path, help="also write the rows and all rounds to this file")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        serve_steps(arguments.overrides)
        return
    with tempfile.TemporaryDirectory() as folder:
        rounds = measure(arguments.data or prepared_corpus(Path(folder)), arguments.rounds, arguments.hidden_size)
    rows = report(rounds)
    print("| S | layout | tokens/s | ratio to 1 process (range) |\n|---|---|---|---|")
    for row in rows:
        low, high = row["ratio_range"]
        speed = f"{row['tokens_per_second']:,.0f}"
        print(f"| {row['loops']} | {row['layout']} | {speed} | {row['ratio']:.2f} ({low:.2f}-{high:.2f}) |")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"hidden_size": arguments.hidden_size, "rows": rows, "rounds": rounds}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
