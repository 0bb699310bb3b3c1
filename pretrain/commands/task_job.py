"""What an evaluation by tasks was asked for: samplers, loops, names of files."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pretrain.evaluation.compute_settings import ComputeSettings
from pretrain.evaluation.sampler_settings import SamplerSettings

if TYPE_CHECKING:
    from model.sampling.query import Denoise
    from pretrain.commands.load_run import LoadedRun
    from pretrain.evaluation.tasks.task import Task, TaskModel

DEFAULT_LOOPS = ["4"]
OF_ADAPTIVE = ("loop_criterion", "loop_threshold")


@dataclass(frozen=True)
class Job:
    """The options that all tasks share, checked.

    Attributes:
        sampler: how samples are drawn.
        computes: how much is computed; each gives figures of its own.
        seed: of samples and masks.
    """

    arguments: argparse.Namespace
    sampler: SamplerSettings
    computes: Sequence[ComputeSettings]
    seed: int

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Job":
        """The job of a command line.

        Raises:
            UserError: options that mean nothing, or do not go together.
        """
        given, texts = vars(arguments), arguments.loops or DEFAULT_LOOPS
        some_adaptive = any(text.startswith("adaptive") for text in texts)
        computes = []
        for text in texts:
            left_out = OF_ADAPTIVE if some_adaptive and not text.startswith("adaptive") else ()
            computes.append(ComputeSettings.of({**given, **dict.fromkeys(left_out), "loops": text}))
            computes[-1].check_layout(arguments.pipeline)
        return cls(arguments, SamplerSettings.of(given), computes, arguments.seed or 0)

    def settings(self, task: "Task", run: "LoadedRun") -> dict[str, Any]:
        """What distinguishes the records of a task's items from others, without what is computed."""
        sampler = {"sampler": self.sampler.record()} if task.samples else {}
        return {**task.settings, **sampler, "seed": self.seed, "step": run.step, "weights": run.weights}

    def stem(self, task: "Task", run: "LoadedRun", computes: Sequence[ComputeSettings]) -> str:
        """Of the names of files: the settings that differ from the defaults as far as they are short."""
        arguments, sampler = self.arguments, self.sampler
        parts = [f"step_{run.step}_{run.weights}", task.name]
        parts += [arguments.split] if arguments.split != "validation" else []
        if task.samples:
            parts += [sampler.sampler] if sampler.sampler != "ancestral" else []
            parts += [f"steps_{sampler.steps}"] if sampler.steps is not None else []
        else:
            parts += [arguments.likelihood] if arguments.likelihood not in (None, "nelbo") else []
            parts += [f"masks_{arguments.masks}"] if arguments.masks is not None else []
        parts += [f"seed_{self.seed}"] if self.seed else []
        return "_".join([*parts, loops_part(computes)])

    def model(self, run: "LoadedRun", compute: ComputeSettings) -> "TaskModel":
        """The run with what is computed."""
        from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer
        from pretrain.evaluation.networks import predict_by
        from pretrain.evaluation.scoring import Predict, TokenScorer
        from pretrain.evaluation.tasks.task import TaskModel, Work

        size, work = self.arguments.batch_size, Work()

        def network() -> "Denoise":
            return run.denoiser(compute.compute(size), work.tally)

        tokenizer = load_prepared_tokenizer(run.tokenizer_folder, run.manifest)
        loops, mask_id = compute.record()["loops"], run.settings.model.mask_id
        if isinstance(loops, int):
            predict: Predict = partial(run.logits, loops=loops)
        else:
            alone = replace(compute, cache=None, refresh=None, warm_start=False)  # its rows are no steps of one sample
            predict = predict_by(run.denoiser(alone.compute(size), work.tally), run.world, mask_id)
        scorer = TokenScorer(predict, run.world, mask_id, size)
        return TaskModel(scorer, loops, network, self.sampler, tokenizer, run.settings.data.seq_len, self.seed, work)

    def resolved(self, run: "LoadedRun") -> list[ComputeSettings]:
        """What is computed by a run: without numbers `adaptive` has those of its training."""
        return [compute.resolved(run.settings.model.loop.max) for compute in self.computes]


def loops_part(computes: Sequence[ComputeSettings]) -> str:
    """What is computed, for names of files."""
    loops = [compute.loops_name.replace(":", "_") for compute in computes]
    joined = ("-" if all(map(str.isdecimal, loops)) else "_").join(loops)
    cache = f"_cache_{computes[0].cache}" if computes[0].cache else ""
    return f"loops_{joined}{cache}{'_warm_start' if computes[0].warm_start else ''}"
