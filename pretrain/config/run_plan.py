"""RunPlan: the numbers that follow from the settings, the data and the number of ranks. Imports no torch."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np

from data_pipeline.manifest import Manifest
from model.flops import FlopsModel
from model.loops import LoopSchedule
from model.placement import Costs, Stage, place
from pretrain.config.optimizer_groups import groups_held
from pretrain.config.rules import problems_of
from pretrain.config.run_length import BLOCK, RunLength, Spent
from pretrain.config.settings import Settings
from pretrain.config.suggestions import divisors, nearest
from pretrain.errors import ConfigError, Problem

_placed = lru_cache(maxsize=256)(place)  # many of the planner's layouts have the same pipeline


@dataclass(frozen=True)
class Shape:
    """How the ranks of a run are divided into groups. Data-parallel size = ranks / (tensor * pipeline).

    Attributes:
        mid_replicas: copies of the mid block in one pipeline.
    """

    tensor: int = 1
    pipeline: int = 1
    mid_replicas: int = 1


@dataclass(frozen=True)
class RunPlan:
    """The arithmetic of a run: settings joined with the prepared data and the number of ranks.

    Attributes:
        settings: with model.vocab_size and data.seq_len filled in.
        world_size: number of ranks.
        spent: what the run used before this start, if its settings have changed since.
    """

    settings: Settings
    world_size: int
    spent: Spent = field(default_factory=Spent)

    @property
    def seq_len(self) -> int:
        """Tokens per row."""
        assert self.settings.data.seq_len is not None
        return self.settings.data.seq_len

    @property
    def data_parallel_size(self) -> int:
        """Ranks that see different rows."""
        return self.world_size // (self.settings.parallel.tensor * self.settings.parallel.pipeline)

    @cached_property
    def placement(self) -> tuple[Stage, ...]:
        """What each pipeline stage holds."""
        parallel, probabilities = self.settings.parallel, self.loops_after_ramp.probabilities(0)
        return _placed(
            self.settings.model.loop,
            parallel.pipeline,
            self.costs,
            tuple(float(p) for p in probabilities),
            parallel.pipeline_split,
            parallel.mid_replicas,
        )

    @property
    def shape(self) -> Shape:
        """Sizes of the process groups."""
        parallel = self.settings.parallel
        return Shape(parallel.tensor, parallel.pipeline, self.placement[0].replicas)

    @property
    def costs(self) -> Costs:
        """Forward FLOPs per token of a layer, the embedding and the LM head."""
        return Costs(self.flops.layer(), self.flops.embedding(), self.flops.lm_head())

    @property
    def rows_per_rank(self) -> int:
        """Rows of one step on one data-parallel rank."""
        return self.settings.train.global_batch_size // self.data_parallel_size

    @property
    def micro_batches(self) -> int:
        """Forward passes of one step on one rank."""
        return self.rows_per_rank // self.settings.train.micro_batch_size

    @property
    def samples_per_step(self) -> int:
        """Different samples of a global batch."""
        train = self.settings.train
        return train.global_batch_size // (2 if train.complementary_masks else 1)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a global batch, padding included: it costs as much as real tokens."""
        return self.settings.train.global_batch_size * self.seq_len

    @cached_property
    def flops(self) -> FlopsModel:
        """FLOPs per token; the masked fraction is the mean of t."""
        minimum, causal = self.settings.train.min_timestep, self.settings.model.causal
        return FlopsModel(self.settings.model, self.seq_len, masked_fraction=1.0 if causal else (1 + minimum) / 2)

    @cached_property
    def loops(self) -> LoopSchedule:
        """S of every step."""
        return self._loops(*self.length.ramp_steps(self.total_steps))

    @cached_property
    def loops_after_ramp(self) -> LoopSchedule:
        """S of a step after the ramp; unlike `loops`, it does not need the length of the run."""
        return self._loops(0, 0)

    @property
    def largest_loops(self) -> int:
        """The largest S that training draws."""
        return int(np.flatnonzero(self.loops_after_ramp.probabilities(0))[-1]) + 1

    def step_flops(self, step: int) -> float:
        """Training FLOPs of step `step` (from 0) over all ranks."""
        return self.tokens_per_step * self.flops.training(self.loops(step))

    @property
    def expected_flops_per_token(self) -> float:
        """Training FLOPs of a token at the expected number of loops, after the ramp. FLOPs are linear in S."""
        return self.flops.training(1) + (self.loops_after_ramp.mean(0) - 1) * self._flops_of_a_pass

    def expected_flops(self, first: int, last: int) -> float:
        """Training FLOPs of the steps first, ..., last - 1 over all ranks, at the expected loops of each, ramp included."""
        passes = self.loops.expected_passes(first, last) - (last - first)
        return self.tokens_per_step * ((last - first) * self.flops.training(1) + passes * self._flops_of_a_pass)

    @cached_property
    def total_steps(self) -> int:
        """Steps until train.steps or train.max_flops ends the run; the step that reaches the budget is the last one."""
        train = self.settings.train
        enough = train.steps is not None and (train.max_flops or math.inf) >= train.steps * self._step_flops_range[1]
        return train.steps if enough and not self.spent.step else self.length.total_steps()

    @property
    def length(self) -> RunLength:
        """How the run ends."""
        train = self.settings.train
        flops = (self.tokens_per_step * self.flops.training(1), self.tokens_per_step * self._flops_of_a_pass)
        return RunLength(
            train.steps, train.max_flops, train.loop_start, train.loop_ramp, self._loops, flops, self.spent
        )

    def resumed(self, step: int, flops: float) -> "RunPlan":
        """The plan of a run that has taken `step` steps and used `flops`, with other settings than now, or the same."""
        budget = self.settings.train.max_flops
        if budget is None or math.isclose(flops, self._flops_until(step), rel_tol=1e-9):
            return self
        return replace(self, spent=Spent(step, flops))

    def _flops_until(self, step: int) -> float:
        """Training FLOPs of the first steps with the settings of now."""
        once, more = self.length.flops
        return sum(
            float(np.sum(once + more * (self.loops.between(first, min(first + BLOCK, step)) - 1)))
            for first in range(0, step, BLOCK)
        )

    def _loops(self, start_steps: int, ramp_steps: int) -> LoopSchedule:
        train, seed, maximum = self.settings.train, self.settings.run.seed, self.settings.model.loop.max
        return LoopSchedule(seed, maximum, train.loops, ramp_steps, self.flops.training, start_steps, train.loop_tail)

    @property
    def _flops_of_a_pass(self) -> float:
        return self.flops.training(2) - self.flops.training(1)

    @property
    def _step_flops_range(self) -> tuple[float, float]:
        """Training FLOPs of a step at E[S] after the ramp, and at the largest S."""
        largest = self.flops.training(self.largest_loops)
        return self.tokens_per_step * self.expected_flops_per_token, self.tokens_per_step * largest


COUNTABLE_STEPS = 10_000_000
"""Largest number of steps whose FLOPs are added up one by one, as S differs from step to step. It takes some seconds."""


def budget_problems(plan: RunPlan) -> list[Problem]:
    """A budget that would take too many steps to count; none if train.steps ends the run before."""
    train = plan.settings.train
    if train.max_flops is None:
        return []
    typical, largest = plan._step_flops_range
    counted = min(train.max_flops / typical, train.steps or math.inf)
    if counted <= COUNTABLE_STEPS or (train.steps is not None and train.max_flops >= train.steps * largest):
        return []
    steps, enough = train.max_flops / typical, COUNTABLE_STEPS * typical
    digits = 10 ** (math.floor(math.log10(enough)) - 1)
    rounded = float(f"{steps:.2g}")
    text = (
        f"would take about {format(rounded, ',.0f' if rounded < 1e15 else '.2g')} steps of {typical:.3g} FLOPs, and at most "
        f"{COUNTABLE_STEPS:,} are counted; set it to {enough // digits * digits:.2g} or less, or set train.steps and leave it empty"
    )
    return [Problem("train.max_flops", train.max_flops, text, related=("train.steps",))]


def fill_from_manifest(settings: Settings, manifest: Manifest) -> Settings:
    """Fill in what the prepared data decides. Raises ConfigError where the settings contradict it."""
    problems, folder = [], settings.data.path
    if settings.data.seq_len not in (None, manifest.seq_len):
        problems.append(
            Problem(
                "data.seq_len",
                settings.data.seq_len,
                f"{folder} holds rows of {manifest.seq_len} tokens; set it to {manifest.seq_len} or leave it empty, or repack the "
                f"data (`loopmdm repack FOLDER --seq-len {settings.data.seq_len}`)",
            )
        )
    if settings.model.vocab_size not in (None, manifest.vocab_size):
        problems.append(
            Problem(
                "model.vocab_size",
                settings.model.vocab_size,
                f"{folder} has {manifest.vocab_size} token ids including [MASK]; set it to that or leave it empty",
            )
        )
    if problems:
        raise ConfigError(problems)
    return replace(
        settings,
        data=replace(settings.data, seq_len=manifest.seq_len),
        model=replace(settings.model, vocab_size=manifest.vocab_size),
    )


def make_run_plan(settings: Settings, manifest: Manifest, world_size: int) -> RunPlan:
    """Join settings, data and ranks. Raises ConfigError where they do not fit together."""
    filled = fill_from_manifest(settings, manifest)
    plan = RunPlan(filled, world_size)
    problems = layout_problems(plan) or problems_of(filled) or budget_problems(plan)
    if problems:
        raise ConfigError(problems)
    return plan


def layout_problems(plan: RunPlan) -> list[Problem]:
    """What does not fit between the batch, the layout and the number of ranks: the first problem, or none."""
    train, parallel, ranks = plan.settings.train, plan.settings.parallel, plan.world_size
    model_ranks = parallel.tensor * parallel.pipeline
    if ranks % model_ranks:
        key, size, other = (
            ("tensor", parallel.tensor, "pipeline")
            if parallel.tensor > 1
            else ("pipeline", parallel.pipeline, "tensor")
        )
        rest = model_ranks // size
        fitting = nearest((n for n in divisors(ranks) if ranks % (n * rest) == 0 and n < size), size)
        choice = f" or set parallel.{key} to {fitting}" if fitting else f" or lower parallel.{other}"
        text = (
            f"with parallel.{other}={rest}, one copy of the model needs {model_ranks} ranks, but {ranks} is not a multiple of "
            f"that; start {-(-ranks // model_ranks) * model_ranks} ranks,{choice}"
        )
        return [Problem(f"parallel.{key}", size, text)]
    per_pass = plan.data_parallel_size * train.micro_batch_size
    if train.global_batch_size % per_pass:
        choices = nearest(_multiples_around(train.global_batch_size, per_pass), train.global_batch_size)
        text = (
            f"{plan.data_parallel_size} {'ranks' if model_ranks == 1 else 'data-parallel groups'} with train.micro_batch_size="
            f"{train.micro_batch_size} need a multiple of {per_pass}; set it to {choices}, or change the micro-batch"
        )
        return [Problem("train.global_batch_size", train.global_batch_size, text)]
    if plan.micro_batches < parallel.pipeline:
        text = (
            f"needs at least as many micro-batches as stages; a step has {plan.micro_batches} (batch {train.global_batch_size} / "
            f"{plan.data_parallel_size} data-parallel / train.micro_batch_size={train.micro_batch_size}); "
            f"{_more_micro_batches(plan)}"
        )
        return [Problem("parallel.pipeline", parallel.pipeline, text)]
    return _placement_problems(plan)


def _placement_problems(plan: RunPlan) -> list[Problem]:
    """The first stage without weights, or that DeepSpeed would wait for: it sums ZeRO-1's fp32 gradient norms group by group."""
    parallel, precision = plan.settings.parallel, plan.settings.train.precision
    held = [groups_held(plan.settings.optim.name, stage) for stage in plan.placement]
    most, way_out = max(map(len, held)), "lower it, or change parallel.pipeline_split or parallel.mid_replicas"
    for stage, groups in enumerate(held):
        if not groups:
            text = f"stage {stage} would hold no weights; {way_out}"
        elif len(groups) < most and (parallel.zero_stage, precision) == (1, "fp32"):
            text = (
                f"stage {stage} would hold no layer, and so only {len(groups)} of the optimizer's {most} groups of weights, but "
                f"ZeRO-1 in fp32 needs the same groups on all stages; set parallel.zero_stage=0, {way_out}"
            )
        else:
            continue
        return [Problem("parallel.pipeline", parallel.pipeline, text)]
    return []


def _multiples_around(number: int, unit: int) -> list[int]:
    """The multiples of `unit` next to `number`, above 0."""
    lower = number // unit * unit
    return [size for size in (lower, lower + unit) if size]


def _more_micro_batches(plan: RunPlan) -> str:
    """A micro-batch, or else a batch, that gives every stage something to do."""
    train, stages = plan.settings.train, plan.settings.parallel.pipeline
    smaller = [n for n in divisors(plan.rows_per_rank) if plan.rows_per_rank // n >= stages]
    if smaller:
        return f"set train.micro_batch_size to {smaller[-1]} or less, or raise the batch size"
    return f"set train.global_batch_size to {plan.data_parallel_size * train.micro_batch_size * stages} or more"
