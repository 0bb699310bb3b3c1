"""`loopmdm plan`: every legal layout of a recipe on N ranks, what each costs, and the best one."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from data_pipeline.atomic_files import write_output
from data_pipeline.dataset.blend import is_prepared, load_blend
from data_pipeline.json_text import json_text
from data_pipeline.paths import user_path
from pretrain.config.layout_names import layout_name, stage_contents
from pretrain.config.load import load_settings
from pretrain.config.run_plan import RunPlan
from pretrain.errors import UserError
from pretrain.planning.estimate import Estimate, peak_tflops
from pretrain.planning.layouts import GIB, best, legal_layouts, plan_of, ranked
from pretrain.planning.memory import memory_of

SHOWN = 12
"""Number of layouts in the table without --all."""

MOST_RANKS = 100_000
"""A larger number is a mistake, and all its layouts would take minutes to check."""

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "total")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("--config", required=True, metavar="RECIPE", help="a shipped recipe or a YAML file")
    parser.add_argument("--ranks", required=True, type=int, metavar="N", help="number of ranks (GPUs)")
    parser.add_argument(
        "--all", action="store_true", help="show every legal layout, including those that do not fit into memory"
    )
    parser.add_argument(
        "--json", type=user_path, metavar="FILE", help="also write all figures of every legal layout to FILE"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override a key of the recipe, such as hardware.memory_gib=36"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; returns the exit status."""
    if not 1 <= arguments.ranks <= MOST_RANKS:
        raise UserError(f"--ranks {arguments.ranks}: must be from 1 to {MOST_RANKS:,}")
    settings = load_settings(arguments.config, arguments.overrides)
    manifest = load_blend(settings.data.path).manifest if is_prepared(settings.data.path) else None
    base = plan_of(settings, manifest, arguments.ranks)
    estimates = ranked(legal_layouts(base))
    if estimates:
        shown = estimates if arguments.all else [e for e in estimates if e.fits][:SHOWN] or estimates[:3]
        print("\n".join(_assumptions(base)))
        print(f"\n{_table(shown, fastest=estimates[0])}\n\n{_summary(estimates)}")
    if arguments.json:
        write_output("--json", arguments.json, json_text([_record(e) for e in estimates], indent=2) + "\n")
    print("\n" + "\n".join(_describe(best(base, estimates))))
    return 0


def _assumptions(plan: RunPlan) -> list[str]:
    """What the estimates are based on, and the units of the table."""
    hardware, train, split = plan.settings.hardware, plan.settings.train, plan.settings.model.loop
    assumed = (
        "" if hardware.peak_tflops else f" (an H100 in {train.precision}; set hardware.peak_tflops for another device)"
    )
    speed = f"{hardware.efficiency:.0%} of {peak_tflops(plan):g} TFLOP/s{assumed}"
    step_flops = plan.tokens_per_step * plan.expected_flops_per_token
    return [
        f"model:    {split.head} + {split.mid} x S + {split.tail} layers of width {plan.settings.model.hidden_size}, "
        f"E[S] = {plan.loops_after_ramp.mean(0):.2f}, {train.precision}",
        f"step:     {train.global_batch_size} rows of {plan.seq_len} tokens, {train.micro_batch_size} per micro-batch; "
        f"{step_flops:.3g} FLOPs",
        f"hardware: {plan.world_size} ranks, {hardware.ranks_per_node} per node; {speed}; {hardware.memory_gib:g} GiB",
        f"network:  {hardware.node_gb_per_second:g} GB/s inside a node, {hardware.network_gb_per_second:g} GB/s between nodes, "
        f"{hardware.latency_microseconds:g} microseconds per message; communication does not overlap with compute",
        "memory:   GiB on the rank that needs most, at the largest S",
        "sent:     GiB per step by the rank that sends most, at E[S]",
    ]


def _table(shown: Sequence[Estimate], fastest: Estimate) -> str:
    heads = ["layout", *PARTS, "sent", "bubble E[S]", "S_max", "s/step", "tokens/s", "verdict"]
    rows = [heads, *([layout_name(e.plan), *_figures(e), _verdict(e, fastest)] for e in shown)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    last = len(heads) - 1
    aligned = [
        [
            cell.ljust(w) if i in (0, last) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def _figures(e: Estimate) -> list[str]:
    memory = [f"{getattr(e.memory, part) / GIB:.2f}" for part in PARTS]
    times = [f"{e.bubble:.1%}", f"{e.bubble_largest:.1%}", f"{e.seconds:.3g}", f"{e.tokens_per_second:,.0f}"]
    return [*memory, f"{e.traffic.total / GIB:.2f}", *times]


def _verdict(estimate: Estimate, fastest: Estimate) -> str:
    capacity = estimate.plan.settings.hardware.memory_gib
    if not estimate.fits:
        return f"does not fit: {estimate.memory.total / GIB:.1f} of {capacity:g} GiB"
    return "best" if estimate is fastest else f"{estimate.seconds / fastest.seconds:.2f} x the best time"


def _summary(estimates: Sequence[Estimate]) -> str:
    fitting = sum(e.fits for e in estimates)
    return f"{len(estimates)} legal layouts, {fitting} fit into memory; --all shows all of them, --json FILE writes all figures"


def _describe(chosen: Estimate) -> list[str]:
    """The overrides that select this layout, and what its stages hold."""
    plan = chosen.plan
    p = plan.settings.parallel
    layout = f"parallel.tensor={p.tensor} parallel.pipeline={p.pipeline} parallel.sequence={str(p.sequence).lower()}"
    lines = [
        f"best: {layout_name(plan)}",
        f"to use it: parallel=auto, or {layout} parallel.zero_stage={p.zero_stage} parallel.recompute={p.recompute}",
    ]
    if p.pipeline > 1:
        lines += [
            f"  stage {s.index}: {stage_contents(s)}, {memory_of(plan, s).total / GIB:.2f} GiB" for s in plan.placement
        ]
    return lines


def _record(e: Estimate) -> dict[str, Any]:
    return {
        "layout": layout_name(e.plan),
        "parallel": {k: v for k, v in asdict(e.plan.settings.parallel).items() if k != "ds_config"},
        "memory_bytes": asdict(e.memory) | {"total": e.memory.total},
        "sent_bytes": asdict(e.traffic) | {"total": e.traffic.total},
        "flops_per_step": e.flops,
        "bubble": {"expected": e.bubble, "largest": e.bubble_largest},
        "seconds_per_step": {"expected": e.seconds, "largest": e.seconds_largest},
        "tokens_per_second": e.tokens_per_second,
        "fits": e.fits,
    }
