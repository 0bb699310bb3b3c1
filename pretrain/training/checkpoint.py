"""Save and restore a run: which settings may change in between, and which checkpoint a start continues from."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline.json_text import json_text
from pretrain.checkpoints.damage import DamagedCheckpointError
from pretrain.checkpoints.folder import has_index, list_checkpoints, prune, read_state, read_whole_index, step_of
from pretrain.checkpoints.index import Index
from pretrain.checkpoints.reader import Reader
from pretrain.checkpoints.retention import steps_to_keep
from pretrain.checkpoints.saver import Saver
from pretrain.checkpoints.states import Held
from pretrain.config.keys import flatten
from pretrain.errors import UserError
from pretrain.training.state import Progress, TrainingRun

SHARDS = "deepspeed"
"""Folder of an older checkpoint with the shards of one layout."""
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
    """How a run was divided. A checkpoint of the older format needs the same layout."""

    world_size: int
    tensor: int
    pipeline: int
    pipeline_split: str
    mid_replicas: int
    zero_stage: int
    precision: str


def saver_of(run: TrainingRun) -> Saver:
    """Saves the checkpoints of a start, and removes those that `checkpoint.keep*` do not ask for."""

    def on_saved(folder: Path) -> None:
        if run.world.is_main:
            remove_old(run)
            print(f"saved {folder}", flush=True)

    return Saver(Held(run.engine, run.plan.settings.model, run.world), run.world, on_saved)


def remove_old(run: TrainingRun) -> None:
    """Remove the checkpoints that need not be kept. For the main rank."""
    steps = map(step_of, list_checkpoints(run.folder))
    prune(run.folder, steps_to_keep(steps, run.plan.settings.checkpoint, run.folder, run.progress.sound_step))


def start_save(run: TrainingRun, saver: Saver) -> None:
    """Begin to save the current step. Collective."""
    state = {
        "progress": asdict(run.progress),
        "layout": asdict(_layout(run)),
        "data": run.blend.identity(),
        "torch": torch.__version__,
        "settings": flatten(run.plan.settings),
    }
    saver.start(run.folder / "checkpoints" / f"step_{run.progress.step}", json_text(state, indent=2) + "\n")


def restore(run: TrainingRun) -> Path | None:
    """Load the newest checkpoint of the run's folder that is whole and return it, or None if there is none. Collective.

    Raises:
        UserError: it was made with another model, seed or data; or it is damaged, and `checkpoint.on_damage` is `stop` or there
            is no older one.
    """
    damaged: list[Path] = []
    while True:
        chosen = run.world.from_main(_newest(run.folder, damaged) if run.world.is_main else None)
        if chosen is None:
            return None
        problem = _load(run, chosen)
        if problem is None:
            return chosen
        damaged.append(chosen)
        _skip_damaged(run, chosen, problem, damaged)


def set_aside(checkpoint: Path, ending: str) -> Path:
    """Rename a checkpoint, because its step will be saved again. Raises UserError if that is not possible."""
    aside = checkpoint.with_name(f"{checkpoint.name}.{ending}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        return checkpoint.rename(aside)
    except OSError as error:
        raise UserError(
            f"{checkpoint}: cannot be renamed to {aside.name} ({error.strerror}); rename or remove it, then start again"
        ) from None


def changed_settings(checkpoint: Path, run: TrainingRun) -> list[str]:
    """`key: old -> new` of every setting that differs from the checkpoint's."""
    old, new = read_state(checkpoint)["settings"], flatten(run.plan.settings)
    return [f"{key}: {old.get(key)} -> {new[key]}" for key in new if old.get(key) != new[key]]


def _newest(folder: Path, damaged: list[Path]) -> Path | None:
    """The main rank decides for all: on a network file system, other nodes may not see the newest one yet."""
    return next((path for path in reversed(list_checkpoints(folder)) if path not in damaged), None)


def _skip_damaged(run: TrainingRun, chosen: Path, problem: str, damaged: list[Path]) -> None:
    """Say that an older checkpoint will be used. Raises UserError if that is not wanted or there is none. Collective."""
    older = run.world.from_main(_newest(run.folder, damaged) is not None if run.world.is_main else None)
    if run.plan.settings.checkpoint.on_damage == "stop" or not older:
        fix = "set checkpoint.on_damage=previous to use an older one" if older else "there is no older one"
        raise UserError(f"{chosen}: {problem}; {fix}")
    if run.world.is_main:
        aside = set_aside(chosen, "damaged")
        print(f"warning: {chosen}: {problem}; moved to {aside.name}, using the checkpoint before it", flush=True)


def _load(run: TrainingRun, chosen: Path) -> str | None:
    """Load a checkpoint; returns what is wrong with its files, or None. Collective.

    Raises:
        UserError: this run cannot resume from it.
    """
    error, progress, index, problem = None, Progress(), None, None
    if run.world.is_main:
        try:
            index = read_whole_index(chosen) if has_index(chosen) else None
            state = read_state(chosen)
            progress = _progress_of(chosen, state)
            _require_same(chosen, state, run, elastic=index is not None)
        except DamagedCheckpointError as damage:
            problem = damage.problem
        except UserError as caught:
            error = caught
    run.world.raise_on_all_ranks(error)
    progress, index, problem = run.world.from_main((progress, index, problem))
    if problem is None and index is None:
        try:
            run.engine.load(chosen, SHARDS)
        except UserError as refused:
            raise UserError(f"{chosen}: {refused}") from None
    elif problem is None:
        problem = _fill(run, chosen, index)
    if problem is None:
        run.progress = progress
        run.plan = run.plan.resumed(run.progress.step, run.progress.flops)
    return problem


def _progress_of(checkpoint: Path, state: dict[str, Any]) -> Progress:
    """How far the run was. Raises UserError if a later version has written more than this one can go on with."""
    try:
        return Progress(**state["progress"])
    except KeyError:
        raise DamagedCheckpointError(checkpoint, "state.json: has no progress") from None
    except TypeError as error:
        raise UserError(
            f"{checkpoint / 'state.json'}: its progress is not what this version writes ({error}); use the version of LoopMDM "
            "that has saved it"
        ) from None


def _fill(run: TrainingRun, chosen: Path, index: Index) -> str | None:
    """Compare all files with their checksums, each on one rank, then load; returns what is wrong, or None. Collective."""
    files = sorted({entry.file for entry in index.entries})
    with Reader(chosen, index) as reader:
        problem = None
        try:
            reader.verify(files[run.world.rank :: run.world.size])
        except DamagedCheckpointError as damage:
            problem = damage.problem
        problem = run.world.first(problem)
        if problem is None:
            Held(run.engine, run.plan.settings.model, run.world).fill(reader)
    return problem


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


def _require_same(checkpoint: Path, state: dict[str, Any], run: TrainingRun, elastic: bool) -> None:
    """Refuse what a resume must not change.

    Args:
        elastic: the checkpoint can be loaded on any layout.
    """
    if not elastic and not (checkpoint / SHARDS).is_dir():
        raise UserError(
            f"{checkpoint}: has only weights, as `loopmdm import` writes them, without the optimizer states that training "
            "continues from; start a new run with another run.name"
        )
    problems = [] if elastic else _changed_layout(state, run)
    new = flatten(run.plan.settings)
    kept = [key for key in new if key.startswith("model.") or key in IDENTITY]
    problems += [
        f"{key} was {state['settings'].get(key)}, now {new[key]}"
        for key in kept
        if state["settings"].get(key) != new[key]
    ]
    if bool(state["settings"].get("optim.ema_decay")) != bool(new["optim.ema_decay"]):
        problems.append(f"optim.ema_decay was {state['settings'].get('optim.ema_decay')}, now {new['optim.ema_decay']}")
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


def _changed_layout(state: dict[str, Any], run: TrainingRun) -> list[str]:
    return [
        f"{key} was {state['layout'][key]}, now {value}"
        for key, value in asdict(_layout(run)).items()
        if state["layout"].get(key) != value
    ]
