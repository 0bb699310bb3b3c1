"""Load a finished or running run for evaluation and sampling, on one process or on a layout of several."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.dataset.blend import Blend, is_prepared, load_blend
from data_pipeline.manifest import Manifest
from model.denoiser import Inputs, LoopedDenoiser
from model.layers import Sharding
from model.sampling.network import Compute
from model.sampling.passes import LoopPolicy
from model.sampling.query import Denoise
from model.sampling.tally import Tally
from pretrain.checkpoints.folder import checkpoint_of, list_checkpoints, read_state
from pretrain.checkpoints.weights import load_into
from pretrain.config.load import load_settings
from pretrain.config.run_folder import check_run_folder
from pretrain.config.run_plan import RunPlan
from pretrain.config.settings import Settings
from pretrain.errors import UserError
from pretrain.evaluation.networks import sampling_network
from pretrain.export.read import read_manifest
from pretrain.parallel.launcher import read_launcher
from pretrain.parallel.pipeline import Pipeline
from pretrain.parallel.world import World, start_world


@dataclass(frozen=True)
class LoadedRun:
    """A checkpoint of a run, loaded.

    Attributes:
        model: in evaluation mode, fp32, on the world's device.
        manifest: of the training data, from the run folder; its tokenizer is in `tokenizer_folder`.
        weights: "ema" or "raw".
    """

    folder: Path
    checkpoint: Path
    settings: Settings
    manifest: Manifest
    model: LoopedDenoiser
    world: World
    weights: str

    def logits(self, inputs: Sequence[Inputs], loops: int) -> list[Tensor | None]:
        """Logits at each micro-batch's `logit_positions`: this rank's share of the vocabulary on the last stage, else None."""
        return Pipeline(self.model, inputs[0].tokens.shape[1], torch.float32).logits(inputs, loops)

    def denoiser(self, compute: Compute | int, tally: Tally | None = None) -> Denoise:
        """The model for samplers. Its logits are [m, padded vocabulary].

        Args:
            compute: how much is computed, or S; see `sampling_network`.
            tally: where the work is counted.
        """
        if isinstance(compute, int):
            compute = Compute(LoopPolicy((compute,)))
        return sampling_network(self.model, self.world, compute, tally)

    @property
    def tokenizer_folder(self) -> Path:
        """The run's own copy of the tokenizer."""
        return self.folder / "tokenizer"

    @property
    def step(self) -> int:
        """Optimizer steps taken to reach these weights."""
        return int(self.checkpoint.name.removeprefix("step_"))


def find_data(loaded: LoadedRun) -> Path:
    """The data of a run that may have been copied, linked or moved, or that is used from another working folder.

    `config.yaml` has the path from the time of training. It also tells how the data lay relative to the run folder, which still
    holds after a move of both, and for runs whose recorded paths are relative.

    Raises:
        UserError: nothing prepared at any of these places.
    """
    data, home = loaded.settings.data.path, loaded.settings.run_folder
    places = [data]
    if data.is_absolute() == home.is_absolute():
        beside = Path(os.path.relpath(data, home))
        relocated = [
            Path(os.path.normpath(folder / beside)) for folder in (loaded.folder.absolute(), loaded.folder.resolve())
        ]
        places = [data, *relocated] if data.is_absolute() else [*relocated, data]
    for place in places:
        if is_prepared(place):
            return place
    raise UserError(
        f"{loaded.folder}: its data, {data}, is not at {' or '.join(dict.fromkeys(str(place.absolute()) for place in places))}; "
        "name the prepared folder with --data DIR"
    )


def data_of(loaded: LoadedRun, named: Path | None = None) -> Blend:
    """The data that a run is to be measured on: those that the user has named, or its own.

    Of its own, the main rank warns if their documents are not those of the training any more: a document that was trained on may
    then be in the validation split, which makes the figures too good.

    Raises:
        UserError, DataError: there are none.
    """
    if named is not None:
        return load_blend(named)
    blend = load_blend(find_data(loaded))
    trained, now = {}, blend.identity()
    with suppress(UserError):  # a run in progress may have removed the checkpoint since it was loaded
        trained = read_state(loaded.checkpoint).get("data", {})
    changed = [name for name in {**trained, **now} if trained.get(name) != now.get(name) and not name.endswith("rows")]
    if trained and changed and loaded.world.is_main:
        print(
            f"warning: {blend.path} is not what {loaded.folder} was trained on ({', '.join(changed)} changed): some of its "
            "held-out rows may have been trained on",
            file=sys.stderr,
        )
    return blend


def check_tokenizer(blend: Blend, loaded: LoadedRun) -> None:
    """Raise UserError if data were prepared with another tokenizer than that of a run."""
    if blend.manifest.tokenizer != loaded.manifest.tokenizer:
        raise UserError(
            f"{blend.path}: was prepared with a different tokenizer than that of {loaded.folder}; prepare it again with "
            f"--tokenizer {loaded.tokenizer_folder / loaded.manifest.tokenizer.file}"
        )


def open_run(
    folder: Path,
    weights: str | None,
    tensor: int = 1,
    pipeline: int = 1,
    *,
    step: int | None = None,
    may_be_causal: bool = False,
) -> LoadedRun:
    """Load a complete checkpoint of a run folder.

    Args:
        folder: such as `runs/quickstart`.
        weights: "ema", "raw", or None for the average if the run keeps one, else raw.
        tensor, pipeline: layout to load it on, independent of the layout of training; the launcher starts the ranks.
        step: of the checkpoint; None for the newest.
        may_be_causal: whether the caller can use an autoregressive model.

    Raises:
        UserError: no run, no complete checkpoint, weights that do not fit the settings, or ranks that do not fit the layout.
    """
    check_run_folder(folder)
    checkpoint_of(folder, step)  # notice before the ranks meet that there is none
    settings = load_settings(
        str(folder / "config.yaml"),
        [f"parallel.tensor={tensor}", f"parallel.pipeline={pipeline}", "parallel.zero_stage=1", "parallel.offload=none",
         "parallel.sequence=false", "parallel.mid_replicas=null", "parallel.pipeline_split=looped", "parallel.ds_config=null"],
    )  # fmt: skip
    if settings.model.causal and not may_be_causal:
        raise UserError(
            f"{folder}: model.causal=true, an autoregressive model; only `loopmdm evaluate` without --tasks measures it"
        )
    chosen = weights or ("ema" if settings.optim.ema_decay else "raw")
    manifest = read_manifest(folder / "tokenizer")
    ranks = read_launcher()
    plan = RunPlan(settings, ranks[1])
    if plan.world_size % (tensor * pipeline):
        raise UserError(
            f"--tensor {tensor} x --pipeline {pipeline} needs a multiple of {tensor * pipeline} ranks, not {ranks[1]}"
        )
    world = start_world(ranks, plan.shape)
    sharding = Sharding(tensor=tensor, rank=world.tensor_rank)
    model = LoopedDenoiser(settings.model, stage=plan.placement[world.stage], sharding=sharding)
    checkpoint = _load(folder, step, model, world, averaged=chosen == "ema")
    model = model.to(world.device).eval().requires_grad_(False)
    return LoadedRun(folder, checkpoint, settings, manifest, model, world, chosen)


def open_runs(arguments: argparse.Namespace, *, may_be_causal: bool = False) -> list[LoadedRun]:
    """The run that a command line names, at `--checkpoint`, and the newest checkpoint of the one to compare it with."""
    wanted = [(arguments.folder, arguments.checkpoint), *([(arguments.compare, None)] if arguments.compare else [])]
    layout = (arguments.tensor, arguments.pipeline)
    return [
        open_run(folder, arguments.weights, *layout, step=step, may_be_causal=may_be_causal) for folder, step in wanted
    ]


def _load(folder: Path, step: int | None, model: LoopedDenoiser, world: World, averaged: bool) -> Path:
    """Load the checkpoint of a step, or the newest complete one, the same on all ranks. Collective.

    A run in progress may remove a checkpoint between its listing and its loading; then the newest one is loaded anew.
    """
    while True:
        checkpoint = world.from_main(_find(folder, step, world))
        error = None
        try:
            load_into(model, checkpoint, model.architecture, world.tensor_rank, world.shape.tensor, averaged)
        except (UserError, OSError) as caught:
            error = caught
        if not world.any(error is not None and checkpoint not in list_checkpoints(folder)):
            world.raise_on_all_ranks(error)
            return checkpoint


def _find(folder: Path, step: int | None, world: World) -> Path | None:
    """The complete checkpoint of a step, or the newest one, on the main rank. Collective.

    Raises:
        UserError: there is none; on all ranks.
    """
    checkpoint, error = None, None
    if world.is_main:
        try:
            checkpoint = checkpoint_of(folder, step)
        except UserError as caught:
            error = caught
    world.raise_on_all_ranks(error)
    return checkpoint
