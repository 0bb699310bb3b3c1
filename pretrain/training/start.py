"""From checked settings to a trained run: build the parts in order, then hand them to the loop."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from data_pipeline.dataset.blend import Blend
from data_pipeline.dataset.samples import Samples
from data_pipeline.errors import first_line
from data_pipeline.manifest import VALIDATION
from pretrain.config.run_plan import RunPlan
from pretrain.durations import format_duration
from pretrain.errors import OutOfMemoryError
from pretrain.evaluation.sets import evaluation_sets
from pretrain.machine.determinism import use_deterministic_algorithms
from pretrain.machine.devices import peak_flops
from pretrain.machine.kernels import choose_document_attention, choose_kernels
from pretrain.parallel.consistency import require_identical_on_all_ranks, weight_facts
from pretrain.parallel.launcher import read_launcher
from pretrain.parallel.parallelize import parallelize
from pretrain.parallel.watchdog import Watchdog, watch
from pretrain.parallel.world import World, join_ranks, start_world
from pretrain.training.banner import print_banner
from pretrain.training.batches import Batches
from pretrain.training.checkpoint import changed_settings, restore
from pretrain.training.divergence import DivergedError, go_back, require_samples
from pretrain.training.facts import batch_facts, run_facts
from pretrain.training.hooks.base import Hook
from pretrain.training.hooks.checkpoints import Checkpoints
from pretrain.training.hooks.metrics import Metrics
from pretrain.training.hooks.parts import Parts
from pretrain.training.hooks.recorder import Recorder
from pretrain.training.hooks.sinks import Console, MetricsFile, TensorBoard
from pretrain.training.hooks.texts import Texts
from pretrain.training.hooks.trackers import Trackio, WandB
from pretrain.training.hooks.validation import Validation, validation_is_missing
from pretrain.training.loop import train
from pretrain.training.rank_logs import logged
from pretrain.training.run_folder import (
    claim_folder,
    describe_run,
    recorded_status,
    require_progress,
    require_shared_folder,
)
from pretrain.training.state import Progress, TrainingRun
from pretrain.training.stop_request import STOPPED, StopRequest, leave_at_once

CPU_IS_FULL = "DefaultCPUAllocator"
"""In the error of torch on a CPU, which has no type of its own."""


def run_training(plan: RunPlan, blend: Blend, resume: bool) -> int:
    """Train until this start ends; returns the exit status. Collective: every rank calls it.

    Raises:
        UserError, DataError: something that the user can fix.
    """
    with StopRequest(plan.settings.run.time_limit) as stop, ExitStack() as held:
        ranks = read_launcher()
        use_deterministic_algorithms(plan.settings.train.deterministic)
        watchdog = _join_under_watchdog(ranks, plan, held)
        require_identical_on_all_ranks(run_facts(plan, blend))
        world = replace(start_world(ranks, plan.shape), watchdog=watchdog)
        _prepare_folder(plan, blend, world, resume, held)
        watchdog.log = held.enter_context(logged(plan.settings.run_folder, world.rank))
        note_status = held.enter_context(recorded_status(plan.settings.run_folder, world))
        world.enter_phase("building the model", 0)
        with _telling_lack_of_memory(world, lambda: "before the first step"):
            run = build_run(plan, blend, world)
            world.enter_phase("restoring")
            restored = restore(run)
        if run.progress.step >= run.plan.total_steps:  # its corpora may have no rows for another step
            if validation_is_missing(run):
                _train(run, stop)
            if world.is_main:
                print(_nothing_to_do(run, restored), flush=True)
            note_status(state="finished")
            return 0
        note_status(total_steps=run.plan.total_steps)
        world.enter_phase("comparing ranks")
        require_samples(run)
        facts = weight_facts(run.engine.model, world) | batch_facts(run.batches[run.progress.data_step], world)
        require_identical_on_all_ranks(facts)
        if world.is_main:
            _describe(run, restored)
        with _telling_lack_of_memory(world, lambda: _next_step(run)):
            _train(run, stop)
        why, status = _finish(run, stop)
        note_status(state="finished" if why == "finished" else "stopped", why=why)
        if run.world.any(stop.launcher_ended):
            leave_at_once(status)  # the store of the ranks ended with it: nobody could be told goodbye
        return status


def _train(run: TrainingRun, stop: StopRequest) -> None:
    """Run the loop, again from a sound checkpoint if the run diverges. Raises TrainingDivergedError if that does not help."""
    while True:
        try:
            return train(run, _hooks(run, stop), stop)
        except DivergedError as error:
            sound = go_back(run, str(error))
            if run.world.is_main:
                print(
                    f"warning: {error}: the last of too many skipped updates in a row (train.max_skipped). Going back to "
                    f"{sound}, past the samples since then",
                    flush=True,
                )


def _join_under_watchdog(ranks: tuple[int, int, int], plan: RunPlan, held: ExitStack) -> Watchdog:
    """Connect to the other ranks. A rank that fails or dies from now on is named by the others, whatever they wait for."""
    started: list[Watchdog] = []
    timeout = 60 * plan.settings.parallel.timeout_minutes
    join_ranks(ranks, plan.shape, lambda: started.append(held.enter_context(watch(*ranks[:2], timeout))))
    return started[0]


def build_run(plan: RunPlan, blend: Blend, world: World) -> TrainingRun:
    """The engine and the batches of this rank, at step 0. Collective."""
    settings = plan.settings
    engine = parallelize(settings.model, settings.optim, plan, world)
    batches = Batches(plan, Samples.of(blend, settings.run.seed), world.data_parallel_rank, world.device)
    return TrainingRun(plan, world, engine, blend, batches, settings.run_folder, Progress())


def _hooks(run: TrainingRun, stop: StopRequest) -> list[Hook]:
    """In the order of their calls: metrics, texts, validation, then the checkpoint that makes them permanent."""
    settings = run.plan.settings
    wanted = {TensorBoard: settings.log.tensorboard, WandB: settings.log.wandb, Trackio: settings.log.trackio}
    recorder = Recorder([Console(), MetricsFile(), *(sink() for sink, on in wanted.items() if on)])
    peak = peak_flops(run.world.device, settings.train.precision, settings.hardware.peak_tflops)
    parts = Parts() if settings.log.parts else None
    hooks: list[Hook] = [recorder, *([parts] if parts else []), Metrics(recorder, peak, parts)]
    if settings.log.texts_every is not None:
        hooks.append(Texts(recorder))
    if settings.eval.every is not None:
        hooks.append(Validation(evaluation_sets(run.blend, VALIDATION, check=False), recorder, stop))
    return [*hooks, Checkpoints()]


def _prepare_folder(plan: RunPlan, blend: Blend, world: World, resume: bool, held: ExitStack) -> None:
    """Check the data and create the run folder on the main rank. If that fails, all ranks raise."""
    error: Exception | None = None
    if world.is_main:
        try:
            blend.check(plan.total_steps * plan.samples_per_step)
            data = [blend.path, *(corpus.path for corpus in blend.corpora)]
            claim_folder(plan.settings.run_folder, resume, held, data)
            require_progress(plan.settings.run_folder)
        except Exception as caught:
            error = caught
    world.raise_on_all_ranks(error)
    require_shared_folder(plan.settings.run_folder, world)


def _describe(run: TrainingRun, restored: Path | None) -> None:
    """Print the banner, and copy settings and tokenizer into the run folder so that it can be used on its own."""
    settings = run.plan.settings
    notes = []
    if restored is not None:
        notes = [
            f"resumed from {restored}, 0 tokens repeated",
            *(f"changed since then: {c}" for c in changed_settings(restored, run)),
        ]
    parallel, muon, device = settings.parallel, settings.optim.name == "muon", run.world.device
    kernels = choose_kernels(device, parallel.offload != "none", parallel.zero_stage, settings.train.compile, muon)
    if settings.train.attention == "document":
        dtype = next(run.engine.model.parameters()).dtype
        kernels.append(choose_document_attention(device, dtype, settings.model.head_dim))
    print_banner(run, kernels, notes)
    describe_run(run.folder, settings, run.blend)


def _nothing_to_do(run: TrainingRun, restored: Path | None) -> str:
    limit = "train.steps" if run.plan.settings.train.max_flops is None else "train.steps or train.max_flops"
    changes = changed_settings(restored, run) if restored is not None else []
    text = f"nothing to do: {run.folder} is at step {run.progress.step}; raise {limit} to continue"
    if not changes:
        return text
    return f"{text}\nchanged without effect: {', '.join(changes)}; --no-resume trains anew, run.name=NAME in another folder"


@contextmanager
def _telling_lack_of_memory(world: World, when: Callable[[], str]) -> Iterator[None]:
    """In the block, turn the errors of the libraries into one that says when it happened and what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and CPU_IS_FULL not in str(error):
            raise
        raise OutOfMemoryError(
            f"rank {world.rank} ran out of memory {when()}: {first_line(error)}. Run the same command again, with settings that "
            "need less memory, to resume from the last checkpoint"
        ) from error


def _next_step(run: TrainingRun) -> str:
    step = run.progress.step
    return f"in step {step + 1} at {run.plan.loops(step)} loops"


def _finish(run: TrainingRun, stop: StopRequest) -> tuple[str | None, int]:
    """Print what to do next; returns why this start ended, and the exit status, which is the same on all ranks."""
    step, total = run.progress.step, run.plan.total_steps
    why, status = run.stop_reason, 0
    if why == "request":
        why, status = run.world.first(stop.reason), STOPPED
    if run.world.is_main:
        duration, shown = format_duration(run.progress.elapsed), shlex.quote(str(run.folder))
        if run.stop_reason == "finished":
            print(f"done: {step} steps in {duration}\nnext: loopmdm evaluate {shown}   loopmdm sample {shown}")
        else:
            print(f"stopped at step {step} of {total} by {why}; run the same command again to resume", flush=True)
    return why, status
