"""Saves and loads checkpoints on layouts: [torchrun ...] elastic.py JOBS.json

JOBS.json is a list of {"words": overrides of tests/tiny.yaml, "source": folder of another job or null, "out": folder}. A job
without a source takes three steps and saves. A job with a source loads what that job has saved, and saves it again as
`again/step_3`. Both then take two more steps and write their losses to `losses.json`.
"""

import gc
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from data_pipeline.dataset.blend import load_blend
from pretrain.checkpoints.saver import Saver
from pretrain.checkpoints.states import Held
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.machine.library_warnings import filter_library_warnings
from pretrain.parallel.launcher import read_launcher
from pretrain.parallel.world import leave_world, start_world
from pretrain.training.checkpoint import restore, saver_of, start_save
from pretrain.training.start import build_run
from pretrain.training.state import TrainingRun
from pretrain.training.step import train_step
from tests.launching import shape_of

SAVED, MORE = 3, 2


def take_steps(run: TrainingRun, count: int) -> list[float]:
    """Losses of the next steps."""
    losses = []
    for _ in range(count):
        losses.append(train_step(run, run.batches[run.progress.step]).loss)
        run.progress.step += 1
    return losses


def built(job: dict[str, Any]) -> TrainingRun:
    """A run with the overrides `words` of tests/tiny.yaml, in the folder `out`."""
    settings = load_settings(str(Path(__file__).parents[1] / "tiny.yaml"), job["words"])
    blend, ranks = load_blend(settings.data.path), read_launcher()
    plan = make_run_plan(settings, blend.manifest, ranks[1])
    run = build_run(plan, blend, start_world(ranks, plan.shape))
    run.folder = Path(job["out"])
    return run


def do(job: dict[str, Any]) -> None:
    """One job, in this process and the others."""
    run = built(job)
    plan, world, out = run.plan, run.world, run.folder
    if job["source"] is None:
        take_steps(run, SAVED)
        saver = saver_of(run)
        start_save(run, saver)
        saver.wait()
    else:
        if world.is_main:
            shutil.copytree(Path(job["source"]) / "checkpoints", out / "checkpoints")
        world.barrier()
        assert restore(run) is not None
        saver = Saver(Held(run.engine, plan.settings.model, world), world, lambda _: None)
        saver.start(out / "again" / f"step_{SAVED}", "{}\n")
        saver.wait()
    losses = take_steps(run, MORE)
    if world.is_main:
        (out / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    filter_library_warnings()
    gc.freeze()  # DeepSpeed collects garbage for each ZeRO-3 engine: not among the libraries' objects, which is slow
    for job in sorted(json.loads(Path(sys.argv[1]).read_text()), key=lambda job: shape_of(job["words"])):
        do(job)
    leave_world()
