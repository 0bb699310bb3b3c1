"""ZeRO-3 gathers the looped block once per forward and once per backward pass of a micro-batch, whatever S is."""

import json

import pytest

from data_pipeline.manifest import load_manifest
from pretrain.configuring import load_settings
from pretrain.derive import make_plan
from tests.launching import BIN, ROOT, free_port, run

pytestmark = pytest.mark.distributed
RECIPE = ROOT / "tests" / "tiny.yaml"
# Wide enough for matrices above DeepSpeed's persistence threshold (100,000 numbers), which are the ones it shards.
WORDS = ("model.hidden_size=256", "parallel.zero_stage=3", "train.micro_batch_size=2", "train.global_batch_size=8")


@pytest.mark.parametrize("recompute", ["none", "loop", "full"])
def test_gathered_bytes_do_not_grow_with_s(tmp_path, corpus, recompute):
    words = [f"data.path={corpus}", *WORDS, f"parallel.recompute={recompute}"]
    torchrun = [BIN / "torchrun", "--nproc-per-node=2", f"--master-port={free_port()}"]
    out = tmp_path / "gathered.json"
    done = run(
        [*torchrun, ROOT / "tests/distributed/gathered.py", out, RECIPE, *words], timeout=120, PYTHONPATH=str(ROOT)
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    once, often = (json.loads(out.read_text())[s] for s in ("1", "6"))
    assert once == often
    plan = make_plan(load_settings(str(RECIPE), words), load_manifest(corpus), 2)
    count = plan.settings.model.parameter_count()
    norms = 256 * (2 * plan.settings.model.num_layers + 1)  # these stay on every rank
    small = sum(256 * rows for rows in (256, 320) if 256 * rows < 100_000)
    sharded = 4 * (sum(count.values()) - norms)
    per_micro_batch = once / plan.micro_batches
    assert small * 4 <= sharded
    assert 1.5 * sharded <= per_micro_batch <= 2 * sharded, (per_micro_batch, sharded)
