"""Every layout starts from the same weights bit for bit, and no rank holds more than its part and one weight meanwhile."""

import json

import pytest

from tests.distributed.built import Built
from tests.distributed.measured_memory import ALLOCATOR
from tests.distributed.parity import p
from tests.launching import BIN, ROOT, free_port, run

pytestmark = pytest.mark.distributed
RANKS = 4
RECIPE = ROOT / "tests" / "tiny.yaml"
BF16 = ("train.precision=bf16",)
LAYOUTS = {
    "DP4, ZeRO-0": p("zero_stage=0"),
    "DP4, ZeRO-1, bf16": (*p("zero_stage=1"), *BF16),
    "DP2 x TP2 + SP, ZeRO-2, optimizer on CPU": p("zero_stage=2", "tensor=2", "sequence=true", "offload=optimizer"),
    "TP2 x PP2, bf16": (*p("zero_stage=1", "tensor=2", "pipeline=2"), *BF16),
    "DP4, ZeRO-3": p("zero_stage=3"),
    "DP4, ZeRO-3, optimizer on CPU, bf16": (*p("zero_stage=3", "offload=optimizer"), *BF16),
    "DP2 x TP2, ZeRO-3, weights on CPU": p("zero_stage=3", "tensor=2", "offload=parameters"),
    "DP2 x TP2 + SP, ZeRO-3, bf16": (*p("zero_stage=3", "tensor=2", "sequence=true"), *BF16),
}
LARGE = ("model.hidden_size=384", "model.num_kv_heads=null", "train.global_batch_size=4", "train.micro_batch_size=1")
"""7M weights: 29 MB in fp32, of which the largest has 3 MB."""

SLACK = 4 * 2**20
"""Bytes for what else a rank allocates while it makes its weights: buffers of collectives, Python objects."""


@pytest.fixture(scope="module")
def built(tmp_path_factory, corpus):
    """layout -> what each rank wrote. The first, small model loads the libraries, so that they count for no layout."""
    folder = tmp_path_factory.mktemp("built")
    common = (f"data.path={corpus}", "train.global_batch_size=8")
    overrides = [[*common, *p("zero_stage=3")], *([*common, *LARGE, *layout] for layout in LAYOUTS.values())]
    (folder / "layouts.json").write_text(json.dumps(overrides))
    script = [ROOT / "tests/distributed/built.py", folder / "built", RECIPE, folder / "layouts.json"]
    torchrun = [BIN / "torchrun", f"--nproc-per-node={RANKS}", f"--master-port={free_port()}"]
    done = run([*torchrun, *script], PYTHONPATH=str(ROOT), **ALLOCATOR)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    by_rank = [json.loads((folder / f"built.{rank}").read_text())[1:] for rank in range(RANKS)]
    ranks = [[Built(**one) for one in layout] for layout in zip(*by_rank, strict=True)]
    return dict(zip(LAYOUTS, ranks, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_initial_weights_are_the_same_bit_for_bit(built, layout):
    assert built[layout][0].different == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_makes_one_weight_at_a_time(built, layout):
    for rank in built[layout]:
        # Beside the weights that the rank keeps: the full one, and this rank's shard of it or its copy in bf16.
        assert rank.peak < rank.sharded + 1.5 * rank.largest * ranks_of_a_weight(layout) + SLACK, rank


def ranks_of_a_weight(layout: str) -> int:
    """Tensor-parallel ranks: each draws the full weight to take its shard."""
    return 2 if "TP2" in layout else 1
