"""Checkpoints: a folder that is valid only if it contains its completion mark.

checkpoints/step_N/
    COMPLETE              the mark, written last
    state.json            progress, layout, versions and the settings that made it
    weights.safetensors   full fp32 weights, for evaluation, sampling and export
    ema.safetensors       their moving average, if the run keeps one
    deepspeed/            this layout's shards of weights, optimizer states and average, for a bit-identical resume
"""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_pipeline.json_text import json_text
from model.denoiser import LoopedDenoiser
from model.weights import fill_weights
from pretrain.config.keys import flatten
from pretrain.config.settings import Settings
from pretrain.errors import RankError, UserError
from pretrain.optimizer.ema import averaged_weights
from pretrain.parallel.world import World
from pretrain.training.state import Progress, TrainingRun

MARK = "COMPLETE"
SHARDS = "deepspeed"
STEP = re.compile(r"step_[0-9]+")
IDENTITY = (
    "run.seed",
    "data.seq_len",
    "train.global_batch_size",
    "train.min_timestep",
    "train.timesteps",
    "train.complementary_masks",
    "train.attention",
    "train.noise",
    "optim.name",
)
"""Settings beside model.* that decide what a step is computed on, or which states it has. A resume must not change them."""


@dataclass(frozen=True)
class Layout:
    """How a checkpoint's shards are divided. A resume needs the same layout."""

    world_size: int
    tensor: int
    pipeline: int
    pipeline_split: str
    mid_replicas: int
    zero_stage: int
    precision: str


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [p for p in (run_folder / "checkpoints").glob("step_*") if STEP.fullmatch(p.name) and (p / MARK).is_file()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step_")))


def latest_checkpoint(run_folder: Path) -> Path:
    """The newest complete checkpoint. Raises UserError when there is none."""
    found = list_checkpoints(run_folder)
    if not found:
        raise UserError(
            f"{run_folder}: no complete checkpoint in {run_folder / 'checkpoints'}; give the folder of a run that has saved one"
        )
    return found[-1]


def save_checkpoint(run: TrainingRun) -> Path:
    """Write a checkpoint of the current step, completely or not at all. Collective.

    Raises:
        UserError: a rank could not write (disk full, no permission). Older checkpoints are unchanged.
    """
    final = run.folder / "checkpoints" / f"step_{run.progress.step}"
    if (final / MARK).is_file():
        return final
    partial = final.with_name(final.name + ".partial")
    run.world.raise_on_all_ranks(_prepare_folder(run, partial))
    try:
        _write(run, partial)
    except (OSError, RuntimeError, SafetensorError) as error:
        # The other ranks may be inside a collective. This rank exits, the launcher ends the others, and the folder stays
        # without a mark.
        if run.world.size == 1:
            shutil.rmtree(partial, ignore_errors=True)
        raise RankError(
            f"rank {run.world.rank} could not write {partial}: {error}. Older checkpoints are complete"
        ) from error
    run.world.barrier()
    if run.world.local_rank == 0:  # what this node has written is in its own memory until it is flushed
        _flush(partial)
    run.world.barrier()
    if run.world.is_main:
        _complete(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(final.parent)
    run.world.barrier()
    return final


def restore(run: TrainingRun) -> Path | None:
    """Load the newest complete checkpoint of the run's folder and return it, or None if there is none. Collective.

    Raises:
        UserError: it was made with another layout, model, seed or data.
    """
    error, chosen, state = None, None, {}
    if run.world.is_main:  # it decides for all: on a network file system, other nodes may not see the newest one yet
        try:
            chosen, state = _newest(run)
        except UserError as caught:
            error = caught
    run.world.raise_on_all_ranks(error)
    chosen, state = run.world.from_main((chosen, state))
    if chosen is None:
        return None
    run.engine.load(chosen, SHARDS)
    run.progress = Progress(**state["progress"])
    run.plan = run.plan.resumed(run.progress.step, run.progress.flops)
    return chosen


def _newest(run: TrainingRun) -> tuple[Path | None, dict[str, Any]]:
    """The newest complete checkpoint, if there is one, and its state. Raises UserError if this run cannot resume from it."""
    found = list_checkpoints(run.folder)
    if not found:
        return None, {}
    if not (found[-1] / SHARDS).is_dir():
        raise UserError(
            f"{found[-1]}: has only weights, as `loopmdm import` writes them, without the optimizer states in {SHARDS}/ that "
            "training continues from; start a new run with another run.name"
        )
    state = read_state(found[-1])
    _require_same(found[-1], state, run)
    return found[-1], state


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint. Raises UserError if it cannot be read.

    A setting that did not exist when the checkpoint was made gets its default, which reproduces the behavior of that time.
    """
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        return state | {"settings": flatten(Settings()) | state["settings"]}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{checkpoint / 'state.json'}: cannot be read ({error}); remove the folder to use the previous checkpoint"
        ) from None


def load_into(model: LoopedDenoiser, checkpoint: Path, world: World, averaged: bool) -> None:
    """Fill a model, or this rank's part of it, from the full fp32 weights of a checkpoint. Reads only the weights it needs.

    Raises:
        UserError: the file is missing or damaged, or does not fit the model.
    """
    path = checkpoint / ("ema.safetensors" if averaged else "weights.safetensors")
    if not path.is_file():
        raise UserError(
            f"{path}: does not exist because the run does not keep these weights; use --weights {'raw' if averaged else 'ema'}"
        )
    try:
        with safe_open(path, "pt") as file:

            def source(name: str, shape: torch.Size) -> Tensor:
                full = file.get_tensor(name)
                if full.shape != shape:
                    raise UserError(
                        f"{path}: {name} has the shape {list(full.shape)}, the run's config.yaml describes {list(shape)}"
                    )
                return full

            fill_weights(model, source, world.tensor_rank, world.shape.tensor)
    except SafetensorError as error:
        raise UserError(
            f"{path}: cannot be read ({error}); remove {checkpoint} to use the previous checkpoint"
        ) from None


def prune(run_folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints, and the remains of interrupted saves."""
    for old in list_checkpoints(run_folder)[:-keep]:
        (old / MARK).unlink()  # the mark goes first, so that a half-removed folder is never taken for a checkpoint
        shutil.rmtree(old)
    for partial in (run_folder / "checkpoints").glob("step_*.partial"):
        shutil.rmtree(partial)


def changed_settings(checkpoint: Path, run: TrainingRun) -> list[str]:
    """`key: old -> new` of every setting that differs from the checkpoint's."""
    old, new = _settings_of(read_state(checkpoint)), flatten(run.plan.settings)
    return [f"{key}: {old.get(key)} -> {new[key]}" for key in new if old.get(key) != new[key]]


def _settings_of(state: dict[str, Any]) -> dict[str, Any]:
    """Settings of a checkpoint by dotted key; keys that its version did not have get the defaults, which change nothing."""
    return flatten(Settings()) | state["settings"]


def _write(run: TrainingRun, folder: Path) -> None:
    run.engine.save(folder, SHARDS)
    _save_gathered(run, folder / "weights.safetensors")
    if run.plan.settings.optim.ema_decay:
        with averaged_weights(run.engine.optimizer):
            _save_gathered(run, folder / "ema.safetensors")
    if run.world.is_main:
        state = {
            "progress": asdict(run.progress),
            "layout": asdict(_layout(run)),
            "data": run.blend.identity(),
            "torch": torch.__version__,
            "settings": flatten(run.plan.settings),
        }
        (folder / "state.json").write_text(json_text(state, indent=2) + "\n", encoding="utf-8")


def _save_gathered(run: TrainingRun, path: Path) -> None:
    gathered = run.engine.full_weights()
    if run.world.is_main:
        save_file(dict(gathered), path)
        path.chmod(0o644)  # safetensors writes files that only their owner can read; colleagues evaluate runs too
    else:
        for _ in gathered:  # gathering is collective, but only the main rank receives the weights
            pass


def _prepare_folder(run: TrainingRun, partial: Path) -> OSError | UserError | None:
    """Create an empty folder and check that a checkpoint fits on the disk.

    It holds these fp32 copies of the weights: DeepSpeed's, its master weights, two moments, ours; and two of the average.
    """
    if not run.world.is_main:
        return None
    copies = 7 if run.plan.settings.optim.ema_decay else 5
    needed = copies * 4 * sum(run.plan.settings.model.parameter_count().values())
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < needed:
            partial.rmdir()
            mib = 2**20
            return UserError(
                f"{partial.parent}: {free / mib:,.1f} MiB free, a checkpoint needs about {needed / mib:,.1f} MiB; free some "
                "space and run the same command again. Older checkpoints are complete"
            )
    except OSError as error:
        return error
    return None


def _flush(folder: Path) -> None:
    """Force every file to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)


def _complete(partial: Path) -> None:
    """Write the mark, once all nodes have flushed their files."""
    (partial / MARK).write_text("This checkpoint is whole.\n", encoding="utf-8")
    _sync(partial / MARK)
    _sync(partial)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _layout(run: TrainingRun) -> Layout:
    settings, shape = run.plan.settings, run.plan.shape
    parallel = settings.parallel
    return Layout(
        run.world.size,
        shape.tensor,
        shape.pipeline,
        parallel.pipeline_split,
        shape.mid_replicas,
        parallel.zero_stage,
        settings.train.precision,
    )


def _require_same(checkpoint: Path, state: dict[str, Any], run: TrainingRun) -> None:
    problems = [
        f"{key} was {state['layout'][key]}, now {value}"
        for key, value in asdict(_layout(run)).items()
        if state["layout"].get(key) != value
    ]
    old, new = _settings_of(state), flatten(run.plan.settings)
    kept = [key for key in new if key.startswith("model.") or key in IDENTITY]
    problems += [f"{key} was {old[key]}, now {new[key]}" for key in kept if old[key] != new[key]]
    if bool(old["optim.ema_decay"]) != bool(new["optim.ema_decay"]):
        problems.append(f"optim.ema_decay was {old['optim.ema_decay']}, now {new['optim.ema_decay']}")
    now = run.blend.identity()
    if state["data"] != now:
        changed = [name for name in {**state["data"], **now} if state["data"].get(name) != now.get(name)]
        problems.append(
            f"the data in {run.plan.settings.data.path} differs from the data of the run ({', '.join(changed)} changed)"
        )
    if problems:
        raise UserError(
            f"{checkpoint}: cannot resume: "
            + "; ".join(problems)
            + ". Restore these values, or start a new run with another run.name or --no-resume"
        )
