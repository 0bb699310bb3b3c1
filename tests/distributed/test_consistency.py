"""If the ranks differ, all of them stop before the first step and say which rank differs in what."""

import re

import pytest

from pretrain.parallel.consistency import find_differences
from tests.distributed.inconsistent import STOPPED
from tests.launching import BIN, ROOT, free_port, run

pytestmark = pytest.mark.distributed
RECIPE = ROOT / "tests" / "tiny.yaml"

CASES = {
    "optim.lr=0.5": (2, 1, (), "rank 1: optim.lr is 0.5, but 0.001 on rank 0"),
    "run.seed=3": (2, 1, (), "rank 1: run.seed is 3, but 0 on rank 0"),
    "parallel.pipeline=2": (2, 1, (), "rank 1: parallel.pipeline is 2, but 1 on rank 0"),
    "weights": (
        3,
        2,
        ("train.global_batch_size=6", "parallel.zero_stage=3"),
        "rank 2: the checksum of mid.layers.0.mlp.linear_fc1.weight is",
    ),
    "rows": (2, 1, ("parallel.tensor=2",), "rank 1: the checksum of the rows of data-parallel share 0 is"),
}


@pytest.mark.parametrize("difference", CASES)
def test_ranks_that_differ_stop_before_the_first_step(tmp_path, corpus, difference):
    ranks, different, overrides, message = CASES[difference]
    command = [BIN / "torchrun", f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
    script = [ROOT / "tests/distributed/inconsistent.py", RECIPE, different, difference]
    done = run(
        [*command, *script, f"data.path={corpus}", f"run.dir={tmp_path}", *overrides], timeout=120, PYTHONPATH=str(ROOT)
    )
    assert done.returncode and f"exitcode  : {STOPPED} " in done.stderr, done.stdout + done.stderr[-3000:]
    assert "-6" not in re.findall(r"exitcode  : (-?\d+)", done.stderr)
    for rank in range(ranks):
        assert f"rank {rank} stopped: the ranks differ, " in done.stdout
    assert message in done.stdout
    assert "step 1/" not in done.stdout


def test_the_rank_in_the_minority_is_named():
    facts = [{"a": 1, "b": 2}, {"a": 1}, {"a": 5}, {"a": 1, "b": 2}]
    assert find_differences(facts) == ["rank 2: a is 5, but 1 on ranks 0, 1, 3"]
    assert find_differences([{"a": 1}, {"b": 2}]) == []
