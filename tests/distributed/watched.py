"""One rank of a toy run under the watchdog, started by test_watchdog.py without a launcher: `python watched.py FOLDER PLAN`.

PLAN is JSON: `steps`, `collective_timeout` and `heartbeat_timeout` (seconds), and optionally `runs` (number of consecutive
trainings), `late` (how many seconds rank 3 finishes after the others), and what `rank` does in `step`: `act` is "hang",
"raise" or "wait" (all ranks stop calling collectives).
"""

import json
import os
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from pretrain.errors import RankError, UserError
from pretrain.parallel.watchdog import Watchdog, watch
from pretrain.training.stop_request import StopRequest


def train(watchdog: Watchdog, rank: int, plan: dict, folder: Path) -> None:
    for step in range(plan["steps"]):
        watchdog.enter_phase("forward and backward", step)
        (folder / f"step_{rank}").write_text(str(step))
        if step == plan.get("step"):
            act(plan, rank)
        time.sleep(plan.get("sleep", 0.05))
        watchdog.enter_phase("gradient reduction and update", step)
        dist.all_reduce(torch.ones(1000))


def act(plan: dict, rank: int) -> None:
    if plan["act"] == "wait":
        time.sleep(600)
    if rank == plan["rank"]:
        if plan["act"] == "raise":
            raise UserError("the disk of this test is full")
        time.sleep(600)


def main(folder: Path, plan: dict) -> int:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
    try:
        for _ in range(plan.get("runs", 1)):
            with StopRequest(), ExitStack() as stack:  # a SIGTERM from the launcher must not interrupt the explanation
                limits = (plan["collective_timeout"], plan["heartbeat_timeout"])
                watchdog = stack.enter_context(watch(rank, size, *limits, log=folder / f"log_{rank}"))
                train(watchdog, rank, plan, folder)
                time.sleep(plan.get("late", 0) if rank == 3 else 0)
    except UserError as error:
        if rank == 0 or isinstance(error, RankError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
