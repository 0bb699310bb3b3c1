"""The bytes that ZeRO-3 gathers do not depend on S: the looped block is gathered once or twice per micro-batch."""

import json

import pytest

from data_pipeline.manifest import load_manifest
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from tests.launching import BIN, ROOT, free_port, run

pytestmark = pytest.mark.distributed
RECIPE = ROOT / "tests" / "tiny.yaml"
# DeepSpeed partitions only weights above its persistence threshold (100,000 elements), so the matrices must be larger.
OVERRIDES = ("model.hidden_size=256", "parallel.zero_stage=3", "train.micro_batch_size=2", "train.global_batch_size=8")

PERSISTENT = 100_000
"""Weights with fewer elements stay on every rank (ds_configs/zero3.json)."""

MEMORY = {"kept": {}, "released": {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}}
"""Whether gathered weights may be kept from the forward to the backward pass."""


def sharded_bytes(architecture) -> int:
    hidden, kv = architecture.hidden_size, architecture.kv_heads * architecture.head_dim
    layer = [
        hidden * (hidden + 2 * kv),
        hidden * hidden,
        2 * hidden * architecture.ffn_size,
        hidden * architecture.ffn_size,
    ]
    ends = 2 * [architecture.padded_vocab_size * hidden]
    return 4 * sum(n for n in (*architecture.num_layers * layer, *ends) if n >= PERSISTENT)


RUNS = [
    (recompute, memory, times) for recompute in ("none", "loop") for memory, times in (("kept", 1), ("released", 2))
]


def overrides_of(folder, corpus, recompute, memory):
    config = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": PERSISTENT} | MEMORY[memory]}
    file = folder / f"zero3-{memory}.json"
    file.write_text(json.dumps(config))
    return [f"data.path={corpus}", *OVERRIDES, f"parallel.recompute={recompute}", f"parallel.ds_config={file}"]


@pytest.fixture(scope="module")
def gathered(tmp_path_factory, corpus):
    """Bytes by S for each of `RUNS`, from one start of the ranks."""
    folder = tmp_path_factory.mktemp("gathers")
    listed, out = folder / "runs.json", folder / "gathered.json"
    listed.write_text(json.dumps([overrides_of(folder, corpus, recompute, memory) for recompute, memory, _ in RUNS]))
    torchrun = [BIN / "torchrun", "--nproc-per-node=2", f"--master-port={free_port()}"]
    done = run([*torchrun, ROOT / "tests/distributed/gathered.py", out, RECIPE, listed], PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return dict(zip(RUNS, json.loads(out.read_text()), strict=True))


@pytest.mark.parametrize(("recompute", "memory", "times"), RUNS)
def test_gathered_bytes_do_not_grow_with_s(gathered, tmp_path, corpus, recompute, memory, times):
    settings = load_settings(str(RECIPE), overrides_of(tmp_path, corpus, recompute, memory))
    plan = make_run_plan(settings, load_manifest(corpus), 2)
    expected = times * plan.micro_batches * sharded_bytes(plan.settings.model)
    assert gathered[recompute, memory, times] == {"1": expected, "6": expected}
