"""Samples of text during training, with the same noise every time: what changes between them is the model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from data_pipeline.tokenizers.tokenizers import PreparedTokenizer, load_prepared_tokenizer
from model.denoiser import Inputs
from model.sampling.generate import SamplingPlan, generate
from model.sampling.order import Ancestral
from model.sampling.query import Query
from pretrain.config.run_folder import has_record
from pretrain.optimizer.ema import averaged_weights
from pretrain.parallel.engine import Engine
from pretrain.parallel.gather import all_gather_logits
from pretrain.training.hooks.base import Hook
from pretrain.training.hooks.metrics import position
from pretrain.training.hooks.recorder import Recorder
from pretrain.training.state import StepReport, TrainingRun

TEXTS, DENOISING_STEPS, SEED = 2, 32, 0


class Texts(Hook):
    """Draws whole rows every `log.texts_every` steps, at S_max, with the averaged weights if the run has them.

    Every data-parallel rank draws the same rows. The sampler is the ancestral one: how often it calls the network does not depend
    on logits, so under ZeRO-3, where a forward pass is a collective, all ranks make the same calls. Its numbers are those of
    `model/sampling/randomness.py`, so training's do not change.

    A request to stop comes first. The next start makes up for the texts; wandb and trackio, which take a step once, do not get
    those.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._tokenizer: PreparedTokenizer | None = None

    def on_start(self, run: TrainingRun) -> None:
        """Draw what is due after the restored step, unless that was done."""
        if run.world.is_main:  # the data may be moved during the run
            self._tokenizer = load_prepared_tokenizer(run.blend.corpora[0].path, run.blend.manifest)
        missing = run.world.is_main and _is_due(run) and not has_record(run.folder, "texts", run.progress.step)
        if run.world.from_main(missing):
            self._draw(run)

    def on_step(self, run: TrainingRun, report: StepReport) -> None:
        """Draw if it is due."""
        if _is_due(run) and run.stop_reason != "request":
            self._draw(run)

    def _draw(self, run: TrainingRun) -> None:
        run.engine.set_training(False)
        try:
            with _average_as_weights(run.engine):
                rows = _rows(run)
        except FloatingPointError as error:
            if run.world.is_main:
                print(f"warning: step {run.progress.step}: no texts were drawn: {error}", flush=True)
            return
        finally:
            run.engine.set_training(True)
        if run.world.is_main:
            self._record(run, rows)

    def _record(self, run: TrainingRun, rows: Tensor) -> None:
        assert self._tokenizer is not None, "on_start was not called"
        settings = run.plan.settings
        about = {"weights": "ema" if settings.optim.ema_decay else "raw", "loops": settings.model.loop.max}
        drawn = [self._tokenizer.decode(row) for row in rows.tolist()]
        texts = {"texts": about | {"denoising_steps": DENOISING_STEPS, "drawn": drawn}}
        self._recorder.record_texts(position(run) | {"elapsed": run.progress.elapsed} | texts)


def _rows(run: TrainingRun) -> Tensor:
    """Filled rows, int64 [TEXTS, seq_len], the same on every rank. Collective.

    Raises:
        FloatingPointError: the logits are not numbers.
    """
    world, model, loops = run.world, run.plan.settings.model, run.plan.settings.model.loop.max

    def denoise(query: Query) -> Tensor:
        world.enter_phase("drawing texts")
        (shard,) = run.engine.logits([Inputs(query.tokens, query.positions)], loops)
        return all_gather_logits(world, shard, len(query.positions), model.padded_vocab_size)

    masked = torch.full((TEXTS, run.plan.seq_len), model.mask_id, device=world.device)
    numbers = torch.arange(TEXTS, device=world.device)
    return generate(denoise, masked, numbers, SamplingPlan(Ancestral(), DENOISING_STEPS), model.mask_id, SEED).tokens


@contextmanager
def _average_as_weights(engine: Engine) -> Iterator[None]:
    """Inside the context the model computes with the average, if there is one. Collective."""
    try:
        with averaged_weights(engine.optimizer):
            engine.refresh_weights()
            yield
    finally:
        engine.refresh_weights()


def _is_due(run: TrainingRun) -> bool:
    every, progress = run.plan.settings.log.texts_every, run.progress
    return bool(every and progress.step and progress.step % every == 0 and not progress.skipped_in_a_row)
