"""`loopmdm plan`: every legal layout of a recipe on so many ranks, what each costs, and the best one."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.atomic_files import write_atomic
from data_pipeline.dataset.blend import is_prepared, load_blend
from pretrain.config.layout_names import layout_name, stage_contents
from pretrain.config.load import load_settings
from pretrain.config.run_plan import RunPlan
from pretrain.planning.estimate import H100_BF16_TFLOPS, Estimate
from pretrain.planning.layouts import GIB, best, legal_layouts, plan_of, ranked
from pretrain.planning.memory import memory_of

SHOWN = 12
"""Layouts in the table unless --all is given."""

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "total")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("--config", required=True, metavar="RECIPE", help="a shipped recipe or a YAML file")
    parser.add_argument("--ranks", required=True, type=int, metavar="N", help="ranks (GPUs) to divide the work over")
    parser.add_argument("--all", action="store_true", help="show every legal layout, also those that do not fit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure of every legal layout")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override the recipe, such as hardware.memory_gib=36"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; returns the exit status."""
    settings = load_settings(arguments.config, arguments.overrides)
    manifest = load_blend(settings.data.path).manifest if is_prepared(settings.data.path) else None
    base = plan_of(settings, manifest, arguments.ranks)
    estimates = ranked(legal_layouts(base))
    if estimates:
        print("\n".join(_assumptions(base)), end="\n\n")
        print(
            _table(estimates if arguments.all else [e for e in estimates if e.fits][:SHOWN] or estimates[:3], estimates)
        )
        print("\n" + _summary(estimates))
    if arguments.json:
        write_atomic(arguments.json, json.dumps([_record(e) for e in estimates], indent=2) + "\n")
    print("\n" + "\n".join(_describe(best(base, estimates))))
    return 0


def _assumptions(plan: RunPlan) -> list[str]:
    hardware, train = plan.settings.hardware, plan.settings.train
    peak = hardware.peak_tflops or H100_BF16_TFLOPS
    assumed = "" if hardware.peak_tflops else " (an H100's in bf16; give hardware.peak_tflops)"
    split, mean = plan.settings.model.loop, plan.loops.mean(plan.loops.ramp_steps)
    return [
        f"{split.head} + {split.mid} x S + {split.tail} layers of {plan.settings.model.hidden_size}, E[S] {mean:.2f}, "
        f"{train.precision}; {train.global_batch_size} rows of {plan.seq_len} tokens a step, {train.micro_batch_size} at a time; "
        f"{plan.tokens_per_step * plan.expected_flops_per_token:.3g} FLOPs a step",
        f"{plan.world_size} ranks, {hardware.ranks_per_node} to a node: {hardware.efficiency:.0%} of {peak:g} TFLOP/s{assumed}, "
        f"{hardware.memory_gib:g} GiB, {hardware.node_gb_per_second:g} GB/s in a node, {hardware.network_gb_per_second:g} outside",
        "memory in GiB on the fullest rank at the largest S; sent in GiB per step by the busiest rank at E[S]; no overlap assumed",
    ]


def _table(shown: Sequence[Estimate], every: Sequence[Estimate]) -> str:
    heads = ["layout", *PARTS, "sent", "bubble E[S]", "S_max", "s/step", "tokens/s", "verdict"]
    rows = [heads, *([layout_name(e.plan), *_figures(e), _verdict(e, every[0])] for e in shown)]
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
    room = estimate.plan.settings.hardware.memory_gib
    if not estimate.fits:
        return f"needs {estimate.memory.total / GIB:.1f} of {room:g} GiB"
    ratio = estimate.seconds / fastest.seconds
    return "best" if estimate is fastest else f"{ratio:.2f} times its time"


def _summary(estimates: Sequence[Estimate]) -> str:
    fitting = sum(e.fits for e in estimates)
    return f"{len(estimates)} legal layouts, {fitting} fit into the memory; --all shows them, --json FILE keeps every figure"


def _describe(chosen: Estimate) -> list[str]:
    """The words that make a run take this layout, and what its stages hold."""
    plan = chosen.plan
    p = plan.settings.parallel
    words = f"parallel.tensor={p.tensor} parallel.pipeline={p.pipeline} parallel.sequence={str(p.sequence).lower()}"
    lines = [
        f"best: {layout_name(plan)}; `parallel=auto` takes it, as do",
        f"  {words} parallel.zero_stage={p.zero_stage} parallel.recompute={p.recompute}",
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
