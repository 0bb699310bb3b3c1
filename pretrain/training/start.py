"""From checked settings to a trained run: builds the parts in order and hands them to the loop."""

import shutil
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from data_pipeline.atomic_files import locked, write_atomic
from data_pipeline.dataset.blend import Blend
from data_pipeline.dataset.samples import Samples
from data_pipeline.manifest import MANIFEST_NAME, VALIDATION
from model.denoiser import LoopedDenoiser
from model.layers import Sharding
from pretrain.config.load import dump_settings
from pretrain.config.run_plan import RunPlan
from pretrain.config.settings import Settings
from pretrain.errors import RankError, UserError
from pretrain.evaluation.nelbo import evaluation_sets
from pretrain.machine.devices import peak_flops
from pretrain.machine.kernels import find_accelerations
from pretrain.optimizer.adamw import build_optimizer
from pretrain.parallel.engine import EMA_KEY, Engine
from pretrain.parallel.launcher import read_launcher
from pretrain.parallel.world import World, join_ranks, start_world
from pretrain.training.banner import print_banner
from pretrain.training.batches import Batches
from pretrain.training.checkpoint import changed_settings, restore
from pretrain.training.consistency import batch_facts, require_identical_on_all_ranks, run_facts, weight_facts
from pretrain.training.hooks.checkpoints import Checkpoints
from pretrain.training.hooks.metrics import Metrics, Sink
from pretrain.training.hooks.sinks import Console, MetricsFile, TensorBoard, format_duration
from pretrain.training.hooks.validation import Validation
from pretrain.training.loop import Hook, Progress, TrainingRun, train
from pretrain.training.rank_logs import logged
from pretrain.training.stop_request import StopRequest


def run_training(plan: RunPlan, blend: Blend, resume: bool) -> int:
    """Train until this start ends; returns the exit status. Collective: every rank calls it.

    Raises:
        UserError, DataError: something that the user can mend.
    """
    with StopRequest() as stop, ExitStack() as held:
        ranks = read_launcher()
        join_ranks(ranks)
        require_identical_on_all_ranks(run_facts(plan, blend))
        world = start_world(ranks, plan.shape)
        _prepare_folder(plan, blend, world, resume, held)
        log = held.enter_context(logged(plan.settings.run_folder, world.rank))
        watchdog = held.enter_context(world.watched(plan.settings.parallel.timeout_minutes, log))
        world = replace(world, watchdog=watchdog)
        world.enter_phase("building the model", 0)
        run = build_run(plan, blend, world)
        world.enter_phase("restoring")
        restored = restore(run, blend)
        world.enter_phase("agreement")
        require_identical_on_all_ranks(
            weight_facts(run.engine.model, world) | batch_facts(run.batches[run.progress.step], world)
        )
        if run.progress.step >= plan.total_steps:
            if world.is_main:
                done = run.progress.step
                print(f"nothing to do: {run.folder} is at step {done}; raise train.steps to go on", flush=True)
            return 0
        if world.is_main:
            _describe(run, blend, restored)
        try:
            train(run, _hooks(run, blend), stop)
        except torch.OutOfMemoryError as error:
            raise RankError(_out_of_memory(run, error)) from error
        return _finish(run, stop)


def build_run(plan: RunPlan, blend: Blend, world: World) -> TrainingRun:
    """Model, optimiser, engine and batches of this rank, at step 0. Collective."""
    settings, parallel = plan.settings, plan.settings.parallel
    model = LoopedDenoiser(
        settings.model,
        settings.run.seed,
        parallel.recompute,
        plan.placement[world.stage],
        Sharding(parallel.tensor, parallel.sequence),
    ).to(world.device)
    require_identical_on_all_ranks(weight_facts(model, world))
    optimizer = build_optimizer(model, settings.optim, world.device, EMA_KEY)
    engine = Engine(model, optimizer, plan, world)
    needs_rows = model.stage.first or model.stage.last or settings.train.attention == "document"
    source = Samples.of(blend, settings.run.seed) if needs_rows else None
    batches = Batches(plan, source, world.data_parallel_rank, world.device)
    return TrainingRun(plan, world, engine, batches, settings.run_folder, Progress())


def _hooks(run: TrainingRun, blend: Blend) -> list[Hook]:
    """In order: figures, evaluation, then the checkpoint that makes both permanent."""
    settings = run.plan.settings
    tensorboard = TensorBoard() if settings.log.tensorboard else None
    sinks: list[Sink] = [Console(), MetricsFile()] + ([tensorboard] if tensorboard else [])
    peak = peak_flops(run.world.device, settings.train.precision, settings.hardware.peak_tflops)
    hooks: list[Hook] = [Metrics(sinks, peak)]
    if settings.eval.every is not None:
        hooks.append(Validation(evaluation_sets(blend, VALIDATION), tensorboard))
    return [*hooks, Checkpoints(blend)]


def _prepare_folder(plan: RunPlan, blend: Blend, world: World, resume: bool, held: ExitStack) -> None:
    """Check the data and make the run folder, on the main rank; a failure there fails all."""
    error: Exception | None = None
    if world.is_main:
        try:
            blend.check(plan.total_steps * plan.settings.train.global_batch_size)
            _claim_folder(plan.settings, resume, held)
        except Exception as caught:
            error = caught
    world.raise_on_all_ranks(error)


def _claim_folder(settings: Settings, resume: bool, held: ExitStack) -> None:
    """Make the run folder, or take the one that is there, and hold it until the end of this start."""
    folder = settings.run_folder
    if not resume and folder.exists():
        with owned_folder(folder):
            pass
        aside = folder.with_name(f"{folder.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
        folder.rename(aside)
        print(f"moved {folder} to {aside}", flush=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(owned_folder(folder))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); set run.dir to a folder you can write to"
        ) from None


def owned_folder(folder: Path) -> AbstractContextManager[int]:
    """Hold a run folder until the end of the block or of the process.

    Raises:
        UserError: another process holds it.
    """
    busy = f"{folder}: another process is training here; wait for it or set another run.name"
    return locked(folder / ".lock", UserError(busy))


def _describe(run: TrainingRun, blend: Blend, restored: Path | None) -> None:
    """Print the banner and write what makes the run folder readable alone: its settings and its tokenizer."""
    settings = run.plan.settings
    notes = []
    if restored is not None:
        notes = [
            f"resumed from {restored}, 0 tokens repeated",
            *(f"changed since then: {c}" for c in changed_settings(restored, run)),
        ]
    print_banner(run, blend, find_accelerations(run.world.device), notes)
    write_atomic(run.folder / "config.yaml", dump_settings(settings))
    tokenizer = run.folder / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    for name in (blend.manifest.tokenizer.file, MANIFEST_NAME):
        shutil.copyfile(blend.corpora[0].path / name, tokenizer / name)


def _out_of_memory(run: TrainingRun, error: torch.OutOfMemoryError) -> str:
    """Where memory ran out and what to try, in the order of what it costs."""
    step = run.progress.step
    return (
        f"rank {run.world.rank} ran out of memory in step {step + 1} at {run.plan.loops(step)} loops: {error}. The run goes on "
        f"from its last checkpoint with a lower train.micro_batch_size (now {run.plan.settings.train.micro_batch_size}; the "
        "numbers stay the same), parallel.recompute=loop or full, or a higher parallel.zero_stage"
    )


def _finish(run: TrainingRun, stop: StopRequest) -> int:
    """Say what comes next; the exit status tells a scheduler whether the run was cut short."""
    step, total = run.progress.step, run.plan.total_steps
    if run.world.is_main:
        duration = format_duration(run.progress.elapsed)
        if run.stop_reason == "finished":
            print(
                f"done: {step} steps in {duration}\nnext: loopmdm evaluate {run.folder}   loopmdm sample {run.folder}"
            )
        else:
            why = stop.signal.name if stop.signal else run.stop_reason
            print(f"stopped at step {step} of {total} by {why}; the same command goes on from there", flush=True)
    return 128 + stop.signal if run.stop_reason == "signal" and stop.signal else 0
