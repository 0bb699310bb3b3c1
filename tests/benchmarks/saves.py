"""Saves of data-parallel ranks, two by default: how long training stands still, steps beside a save, bytes on the disk per weight.

    python tests/benchmarks/saves.py [--folder DIR] [--hidden-size 768] [--rounds 5] [--rows 4] [--zero-stage 1] [--ranks 2]

16 layers, one thread per rank; the defaults make a model of 114M weights, with AdamW and a moving average. In every round the
ways to save take turns:

    DeepSpeed      `save_checkpoint` of DeepSpeed, as in our older format; it does not force its files to the disk
    synchronous    `checkpoint.asynchronous=false`: copy, write, force to the disk, index and mark
    asynchronous   the same by another process, while training goes on

`still` is the time until the next step may begin, `whole` until the checkpoint counts. `beside` divides steps that began while it
was writing by the median of the steps before that save; the goal is at most 1.3. The table has medians (ranges) over rounds.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from tests.benchmarks.pipeline_throughput import prepared_corpus  # noqa: E402
from tests.launching import BIN, environment, free_port  # noqa: E402

if TYPE_CHECKING:
    from pretrain.checkpoints.saver import Saver
    from pretrain.training.state import TrainingRun

METHODS = ("DeepSpeed", "synchronous", "asynchronous")
NORMAL_STEPS = 3
"""Steps before each save that the steps beside it are compared with."""

Figures = dict[str, Any]


def measure(words: Sequence[str], folder: Path, rounds: int) -> None:
    """One rank: measure, print the table on the first."""
    from data_pipeline.dataset.blend import load_blend
    from pretrain.config.load import load_settings
    from pretrain.config.run_plan import make_run_plan
    from pretrain.machine.library_warnings import filter_library_warnings
    from pretrain.parallel.launcher import read_launcher

    filter_library_warnings()
    from pretrain.checkpoints.saver import Saver
    from pretrain.checkpoints.states import Held
    from pretrain.parallel.world import leave_world, start_world
    from pretrain.training.start import build_run

    settings = load_settings("quickstart", words)
    blend = load_blend(settings.data.path)
    plan = make_run_plan(settings, blend.manifest, read_launcher()[1])
    run = build_run(plan, blend, start_world(read_launcher(), plan.shape))
    run.folder = folder
    seconds_of_a_step(run)  # allocates the optimizer's states
    saver = Saver(Held(run.engine, plan.settings.model, run.world), run.world, lambda _: None)
    one_save(run, "synchronous", saver)  # the first one of a start has to find the memory for its copy
    found: dict[str, list[Figures]] = {name: [] for name in METHODS}
    for number in range(rounds):
        for name in METHODS:
            found[name].append(one_save(run, name, saver))
        if run.world.is_main:
            print(f"round {number + 1} of {rounds}", flush=True)
    if run.world.is_main:
        print_table(run, found)
    leave_world()


def seconds_of_a_step(run: "TrainingRun") -> float:
    """Take the next step. Ranks wait for each other in it."""
    from pretrain.training.step import train_step

    batches = run.batches[run.progress.step]
    begin = time.perf_counter()
    train_step(run, batches)
    run.progress.step += 1
    return time.perf_counter() - begin


def one_save(run: "TrainingRun", name: str, saver: "Saver") -> Figures:
    """Some normal steps, then a save, which is removed again. Collective."""
    from pretrain.training.checkpoint import start_save

    os.sync()  # what the save before has left to the system
    run.world.barrier()
    normal = statistics.median(seconds_of_a_step(run) for _ in range(NORMAL_STEPS))
    beside: list[float] = []
    if name == "DeepSpeed":
        saved = run.folder / "deepspeed"
        still = whole = timed(run, lambda: run.engine._engine.save_checkpoint(str(saved), "one", save_latest=False))
    else:
        saved = run.folder / "checkpoints"
        begin = time.perf_counter()
        still = timed(run, lambda: start_save(run, saver))
        if name == "asynchronous":
            while saver.is_writing:
                seconds = seconds_of_a_step(run)
                saver.poll()
                beside.append(seconds / normal)
        saver.wait()
        whole = time.perf_counter() - begin
        still = still if name == "asynchronous" else whole
    run.world.barrier()
    size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
    run.world.barrier()
    if run.world.is_main:
        shutil.rmtree(saved)
    return {"normal": normal, "still": still, "whole": whole, "beside": beside, "bytes": float(size)}


def timed(run: "TrainingRun", save: Callable[[], None]) -> float:
    """Seconds until all ranks have done it."""
    begin = time.perf_counter()
    save()
    run.world.barrier()
    return time.perf_counter() - begin


def print_table(run: "TrainingRun", found: dict[str, list[Figures]]) -> None:
    """Medians (ranges) over rounds."""
    weights = sum(run.plan.settings.model.parameter_count().values())
    print(
        f"\n{weights / 1e6:.1f}M weights, {run.world.size} ranks, a step takes {spread(column(found['synchronous'], 'normal'))} s"
    )
    print("| save | still, s | whole, s | steps beside / normal | bytes per weight |\n|---|---|---|---|---|")
    for name, saves in found.items():
        beside = [ratio for save in saves for ratio in save["beside"]]
        size = statistics.median(column(saves, "bytes")) / weights
        still, whole = (spread(column(saves, key)) for key in ("still", "whole"))
        print(f"| {name} | {still} | {whole} | {spread(beside)} | {size:.2f} |", flush=True)


def column(saves: Sequence[Figures], key: str) -> list[float]:
    """One figure of every round."""
    return [save[key] for save in saves]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (smallest-largest)`."""
    if not values:
        return ""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; needs 4 GB [a temporary folder]")
    parser.add_argument("--hidden-size", type=int, default=768, help="width of the 16 layers, a multiple of 64 [768]")
    parser.add_argument("--rounds", type=int, default=5, help="saves of each kind [5]")
    parser.add_argument("--rows", type=int, default=4, help="rows of 128 tokens per step [4]")
    parser.add_argument("--zero-stage", type=int, default=1, help="of the ranks [1]")
    parser.add_argument(
        "--ranks", type=int, default=2, help="fewer than cores leave one free for the writing process [2]"
    )
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        measure(arguments.words, arguments.rank, arguments.rounds)
        return
    heads = arguments.hidden_size // 64
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        words = [
            "model.num_layers=16", "model.loop.head=2", "model.loop.mid=2", "model.loop.tail=12", "train.loops=1",
            f"model.hidden_size={arguments.hidden_size}", f"model.num_heads={heads}", f"model.num_kv_heads={heads}",
            f"data.path={prepared_corpus(Path(scratch))}", f"parallel.zero_stage={arguments.zero_stage}",
            "train.precision=fp32", f"train.global_batch_size={arguments.rows}",
            f"train.micro_batch_size={arguments.rows // arguments.ranks}",
            "train.steps=100000", "optim.name=adamw", "optim.ema_decay=0.999",
        ]  # fmt: skip
        torchrun = [
            str(BIN / "torchrun"),
            f"--nproc-per-node={arguments.ranks}",
            f"--master-port={free_port()}",
            __file__,
        ]
        own = ["--rank", scratch, "--rounds", str(arguments.rounds), *words]
        done = subprocess.run([*torchrun, *own], env=environment() | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
