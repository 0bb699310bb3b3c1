"""The start-up banner: facts about the run before its first step."""

from collections.abc import Sequence

import torch

from data_pipeline.dataset.blend import Blend, Corpus
from pretrain.config.layout_names import stage_contents
from pretrain.config.run_plan import RunPlan
from pretrain.machine.devices import device_name, peak_flops
from pretrain.machine.kernels import KernelChoice
from pretrain.machine.versions import package_version
from pretrain.training.state import TrainingRun


def print_banner(run: TrainingRun, kernels: Sequence[KernelChoice], notes: Sequence[str]) -> None:
    """Print what this start will do. For the main rank."""
    rows = [
        ("run", str(run.folder)),
        ("versions", _versions()),
        ("device", f"{device_name(run.world.device)}; peak {_peak(run)}"),
        ("layout", _layout(run)),
        *_rank_rows(run.plan),
        *((k.operation, f"{k.implementation} ({k.reason})") for k in kernels),
        *_model_rows(run.plan),
        *_data_rows(run.plan, run.blend),
        *_document_rows(run.plan),
        *_arithmetic_rows(run),
        *(("note", note) for note in notes),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows), flush=True)


def _versions() -> str:
    names = ("deepspeed", "megatron-core", "numpy")
    return ", ".join([f"torch {torch.__version__}", *(f"{n} {package_version(n)}" for n in names)])


def _peak(run: TrainingRun) -> str:
    settings = run.plan.settings
    peak = peak_flops(run.world.device, settings.train.precision, settings.hardware.peak_tflops)
    return "unknown, so mfu is n/a (set hardware.peak_tflops)" if peak is None else f"{peak / 1e12:g} TFLOP/s"


def _layout(run: TrainingRun) -> str:
    parallel, train = run.plan.settings.parallel, run.plan.settings.train
    data = run.plan.data_parallel_size
    return (
        f"world size {run.world.size} = data {data} x tensor {parallel.tensor} x pipeline {parallel.pipeline}; "
        f"ZeRO-{parallel.zero_stage}, {train.precision}, recompute {parallel.recompute}"
    )


def _rank_rows(plan: RunPlan) -> list[tuple[str, str]]:
    """The ranks of each pipeline stage and what the stage holds. Rank order is tensor, data, pipeline (megatron-core)."""
    parallel, per_stage = plan.settings.parallel, plan.world_size // plan.settings.parallel.pipeline
    if plan.world_size == plan.data_parallel_size:
        return []
    rows = []
    for stage in plan.placement:
        first = stage.index * per_stage
        groups = [range(r, r + parallel.tensor) for r in range(first, first + per_stage, parallel.tensor)]
        shown = [f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]) for group in groups]
        ranks = " | ".join(shown if len(shown) <= 8 else [*shown[:4], "...", shown[-1]])
        rows.append((f"stage {stage.index}", f"ranks {ranks}: {stage_contents(stage)}"))
    return rows


def _model_rows(plan: RunPlan) -> list[tuple[str, str]]:
    model = plan.settings.model
    split, count = model.loop, model.parameter_count()
    unique, largest = sum(count.values()), split.max
    parts = ", ".join(f"{name} {_short(value)}" for name, value in count.items())
    executed = ", ".join(f"S={s} {_short(model.executed_parameters(s))}" for s in sorted({1, largest}))
    flops = ", ".join(f"S={s} {plan.flops.training(s):.3g}" for s in sorted({1, largest}))
    return [
        (
            "model",
            f"{split.head} + {split.mid} x S + {split.tail} layers of {model.hidden_size}, {model.num_heads} heads, "
            f"S_max {largest}, drawn {plan.settings.train.loops}, E[S] {plan.loops_after_ramp.mean(0):.2f}",
        ),
        ("parameters", f"{_short(unique)} unique ({parts}); executed: {executed}"),
        ("FLOPs", f"per token of training: {flops}; expected {plan.expected_flops_per_token:.3g}"),
    ]


def _data_rows(plan: RunPlan, blend: Blend) -> list[tuple[str, str]]:
    """The rows of one corpus; of a mixture, a line per corpus with its share and the epochs that the run makes of it."""
    sizes = f"rows of {plan.seq_len} tokens, {blend.manifest.vocab_size:,} token ids"
    if len(blend.corpora) == 1:
        corpus = blend.corpora[0]
        return [("data", f"{corpus.path}: {corpus.rows:,} {sizes}{_padding(corpus)}")]
    samples = plan.total_steps * plan.samples_per_step
    total = sum(corpus.weight for corpus in blend.corpora)
    rows = [("data", f"{blend.path}: a mixture of {len(blend.corpora)} corpora, {sizes}")]
    for corpus, taken in zip(blend.corpora, blend.schedule.counts(samples).tolist(), strict=True):
        limit = f", at most {corpus.max_epochs:g}" if corpus.max_epochs is not None else ""
        rows.append(
            (
                "",
                f"{corpus.path}: weight {float(corpus.weight / total):.2%}, {corpus.rows:,} rows{_padding(corpus)}; "
                f"{taken:,} samples of the run, {taken / corpus.rows:.2f} epochs{limit}",
            )
        )
    return rows


def _padding(corpus: Corpus) -> str:
    return f", {corpus.manifest.packing}, {corpus.padding:.2%} padding" if corpus.padding else ""


def _document_rows(plan: RunPlan) -> list[tuple[str, str]]:
    """What is done per document instead of per row; empty by default."""
    train = plan.settings.train
    scopes = {"attention within each": train.attention, "a timestep for each": train.noise}
    shown = [what for what, scope in scopes.items() if scope == "document"]
    return [("documents", ", ".join(shown))] if shown else []


def _arithmetic_rows(run: TrainingRun) -> list[tuple[str, str]]:
    plan = run.plan
    train, rest = plan.settings.train, plan.total_steps - run.progress.step
    total_tokens = plan.total_steps * plan.tokens_per_step
    total_flops = run.progress.flops + plan.expected_flops(run.progress.step, plan.total_steps)
    epochs = plan.total_steps * plan.samples_per_step / sum(corpus.rows for corpus in run.blend.corpora)
    return [
        (
            "batch",
            f"{train.global_batch_size} rows = {train.micro_batch_size} per micro-batch x {plan.micro_batches} per rank x "
            f"{plan.data_parallel_size} data-parallel; {plan.tokens_per_step:,} tokens a step",
        ),
        (
            "schedule",
            f"{plan.total_steps:,} steps, {_short(total_tokens)} tokens ({epochs:.2f} epochs), about {total_flops:.3g} FLOPs; "
            f"{rest:,} steps to go",
        ),
    ]


def _short(number: float) -> str:
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= factor:
            return f"{number / factor:.4g}{unit}"
    return f"{number:g}"
