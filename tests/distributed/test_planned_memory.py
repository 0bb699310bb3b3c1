"""The planner's memory figures against what processes on a CPU use; measured_memory.py explains how."""

import json
import sys

import pytest

from tests.distributed.measured_memory import ALLOCATOR
from tests.launching import BIN, ROOT, free_port, run

pytestmark = pytest.mark.distributed
RECIPE = ROOT / "tests" / "tiny.yaml"
COMMON = ("model.num_kv_heads=null", "model.num_heads=4", "checkpoint.every=null", "optim.warmup_steps=0")
SIZES = {
    "7M": ("model.hidden_size=384", "train.global_batch_size=16", "train.micro_batch_size=8"),
    "28M": ("model.hidden_size=768", "train.global_batch_size=2", "train.micro_batch_size=1"),
}
"""Activations dominate in the first, weights in the second."""

SIZES_OF_BF16 = {"7M": (*SIZES["7M"][:1], "train.global_batch_size=8", "train.micro_batch_size=4")}
"""One: a CPU without instructions for bf16 took 6 to 110 times as long for a product as in fp32."""

LAYOUTS = {
    1: {
        "ZeRO-0": ("parallel.zero_stage=0",),
        "ZeRO-1, bf16": ("train.precision=bf16",),
    },
    2: {
        "ZeRO-1": (),
        "ZeRO-1, Muon": ("optim.name=muon",),
        "ZeRO-2, bf16": ("parallel.zero_stage=2", "train.precision=bf16"),
        "ZeRO-3, recompute full": ("parallel.zero_stage=3", "parallel.recompute=full"),
        "PP2": ("parallel.pipeline=2",),
        "PP2, recompute loop": ("parallel.pipeline=2", "parallel.recompute=loop"),
        "TP2 + SP": ("parallel.tensor=2", "parallel.sequence=true"),
    },
}


def sizes_of(layout):
    """Sizes at which a layout is measured -> their overrides."""
    return SIZES_OF_BF16 if "bf16" in layout else SIZES


CASES = [(ranks, layout, size) for ranks, names in LAYOUTS.items() for layout in names for size in sizes_of(layout)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory, corpus):
    """(ranks, layout, size) -> [(measured, planned) of each rank]; one start of processes per number of ranks."""
    folder, found = tmp_path_factory.mktemp("memory"), {}
    for ranks, layouts in LAYOUTS.items():
        cases = [(layout, size) for layout in layouts for size in sizes_of(layout)]
        overrides = [
            [f"data.path={corpus}", "train.loops=2", *COMMON, *sizes_of(layout)[size], *layouts[layout]]
            for layout, size in cases
        ]
        (folder / "layouts.json").write_text(json.dumps(overrides))
        out = folder / f"ranks-{ranks}"
        script = [ROOT / "tests/distributed/measured_memory.py", out, RECIPE, folder / "layouts.json"]
        torchrun = [BIN / "torchrun", f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
        command = [sys.executable, *script] if ranks == 1 else [*torchrun, *script]
        done = run(command, timeout=300, PYTHONPATH=str(ROOT), **ALLOCATOR)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        by_rank = [json.loads(out.with_name(f"{out.name}.{rank}").read_text()) for rank in range(ranks)]
        found |= {(ranks, *case): pairs for case, pairs in zip(cases, zip(*by_rank, strict=True), strict=True)}
    return found


@pytest.mark.parametrize(("ranks", "layout", "size"), CASES)
def test_memory_is_as_planned(measured, ranks, layout, size):
    """Within 15% on every rank."""
    for resident, planned in measured[ranks, layout, size]:
        assert planned == pytest.approx(resident, rel=0.15), (planned / 2**20, resident / 2**20)
