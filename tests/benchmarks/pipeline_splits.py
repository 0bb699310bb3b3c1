"""Speed-up of the paper's model over one rank for each pipeline split and number of copies of the mid block, simulated.

    python tests/benchmarks/pipeline_splits.py [--micro-batches 4] [--json FILE]

Stages work and exchange like under megatron-core's schedules (tests/unit/test_pipeline_timing.py compares the times). A layer
takes one unit of time forward and two backward, the LM head in proportion to its FLOPs, and a hop 2% of a unit.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from model.placement import Costs, Stage, place  # noqa: E402
from pretrain.config.load import load_settings  # noqa: E402
from pretrain.planning.layouts import plan_of  # noqa: E402
from pretrain.planning.timing import Durations, case_of, makespans  # noqa: E402

STAGES = (2, 4, 8, 16)
LOOPS = (1, 6, 12)
HOP = 0.02


def placements(stages: int, costs: Costs) -> dict[str, tuple[Stage, ...]]:
    """Every number of copies, with a mark at the one that training chooses, and the contiguous split."""
    plan = plan_of(load_settings("paper_170m", ["model.vocab_size=50258", "data.path=nowhere"]), None, 1)
    split, probabilities = plan.settings.model.loop, [float(p) for p in plan.loops.probabilities(0)]
    chosen = place(split, stages, costs, probabilities)[0].replicas
    named = {}
    for copies in (n for n in range(1, stages + 1) if stages % n == 0):
        name = f"looped, mid block x {copies}{' (chosen)' if copies == chosen else ''}"
        named[name] = place(split, stages, costs, probabilities, replicas=copies)
    return named | {"contiguous": place(split, stages, costs, probabilities, "contiguous")}


def main() -> None:
    """Time every split, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batches", type=int, default=4, help="micro-batches per stage and step [4]")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    plan = plan_of(load_settings("paper_170m", ["model.vocab_size=50258", "data.path=nowhere"]), None, 1)
    lm_head = plan.costs.lm_head / plan.costs.layer
    forward, backward = Costs(1.0, 0.0, lm_head), Costs(2.0, 0.0, 2 * lm_head)
    print(f"| stages | split | {' | '.join(f'S={s}' for s in LOOPS)} | mean over S=1..12 |")
    print("|---|---|" + "---|" * (len(LOOPS) + 1))
    rows = []
    for stages in STAGES:
        for name, placement in placements(stages, forward).items():
            micro_batches = arguments.micro_batches * stages
            cases = [case_of(placement, s, micro_batches, Durations(forward, backward, HOP)) for s in range(1, 13)]
            times = makespans(cases)
            speedups = [case.work / time for case, time in zip(cases, times, strict=True)]
            mean = sum(case.work for case in cases) / sum(times)
            rows.append({"stages": stages, "split": name, "speedup": dict(enumerate(speedups, 1)), "mean": mean})
            shown = " | ".join(f"{speedups[s - 1]:.2f}" for s in LOOPS)
            print(f"| {stages} | {name} | {shown} | {mean:.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
