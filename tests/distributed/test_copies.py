"""A save compares what several ranks hold, and names a copy that differs."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pretrain.checkpoints.copies import AT_ONCE, checksum
from pretrain.checkpoints.folder import list_checkpoints
from tests.distributed.parity import BF16, MUON, RECIPE, SMALL, p
from tests.launching import BIN, ROOT, free_port, run, train

NORM, MATRIX = "mid.layers.1.input_layernorm.weight", "mid.layers.0.mlp.linear_fc1.weight"
TWO_COPIES = p("pipeline=2", "mid_replicas=2")
JOBS = {
    "TP2": (SMALL, p("tensor=2"), [(1, NORM, "weight"), (1, NORM, "exp_avg"), (0, "final_norm.weight", "ema")]),
    "TP2 + SP, ZeRO-3, bf16": (BF16, p("tensor=2", "sequence=true", "zero_stage=3"), [(1, NORM, "exp_avg_sq")]),
    "PP2, 2 copies of mid": (SMALL, TWO_COPIES, [(1, MATRIX, "weight"), (1, NORM, "exp_avg")]),
    "PP2, 2 copies of mid, Muon": (MUON, TWO_COPIES, [(1, MATRIX, "momentum_buffer")]),
    "DP2, ZeRO-0": (SMALL, p("zero_stage=0"), [(1, "lm_head.weight", "weight"), (1, NORM, "exp_avg_sq")]),
}
THREE_ROWS = (*TWO_COPIES, "train.global_batch_size=6", "train.micro_batch_size=1")
pytestmark = pytest.mark.distributed


def launch(folder: Path, corpus: Path, ranks: int, jobs: list[dict]) -> None:
    """Do the jobs in one start of ranks; lowest bits are flipped unless a fault names one."""
    for job in jobs:
        job["out"].mkdir()
        job["words"] = [f"data.path={corpus}", "train.steps=9", *job["words"]]
    (folder / "jobs.json").write_text(json.dumps(jobs, default=str))
    torchrun = [BIN / "torchrun", f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
    script = [ROOT / "tests/distributed/damaged_copies.py", folder / "jobs.json"]
    done = run([*torchrun, *script], timeout=600, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, corpus) -> Path:
    """A folder of results for each of `JOBS`."""
    folder = tmp_path_factory.mktemp("copies")
    jobs = [
        {"words": [*model, *layout], "out": folder / name, "faults": [[[rank], *what, 0] for rank, *what in faults]}
        for name, (model, layout, faults) in JOBS.items()
    ]
    launch(folder, corpus, 2, jobs)
    return folder


@pytest.mark.parametrize("name", JOBS)
def test_one_flipped_bit_is_named_and_not_saved(two_ranks, name):
    *messages, without_fault = json.loads((two_ranks / name / "messages.json").read_text())
    for message, (_, weight, tensor) in zip(messages, JOBS[name][2], strict=True):
        assert f"{weight}: rank 1 and rank 0 must hold the same numbers, but differ in {tensor} by up to" in message
        assert "resume from the checkpoint before" in message
    assert without_fault is None


def test_rounding_passes_where_three_ranks_are_summed_in_another_order(tmp_path, corpus):
    """The place of the mid block in the buffers of gradients differs between stages, and with it the order of gloo's sums."""
    second = [3, 4, 5]
    faults = [
        [second, NORM, "weight", 22],
        [second, NORM, "exp_avg", 30],
    ]  # 1 becomes 1.5, and a small number a large one
    launch(tmp_path, corpus, 6, [{"words": [*SMALL, *THREE_ROWS], "out": tmp_path / "out", "faults": faults}])
    assert json.loads((tmp_path / "out/equal.json").read_text()) is False, "all are exact now: ROUNDING may go"
    weight, moment, without_fault = json.loads((tmp_path / "out/messages.json").read_text())
    assert re.search(
        rf"{NORM}: rank [345] and rank [012] must hold the same numbers, but differ in weight by up to 0.[45]", weight
    )
    assert re.search(
        rf"{NORM}: rank [345] and rank [012] must hold the same numbers, but differ in exp_avg by up to", moment
    )
    assert without_fault is None


def test_a_run_ends_with_the_error_and_resumes_from_the_checkpoint_before(tmp_path, corpus):
    words = [f"data.path={corpus}", f"run.dir={tmp_path}", "run.name=run", "train.steps=6", "checkpoint.every=2"]
    arguments = ["--config", RECIPE, *words, *SMALL, "parallel.tensor=2"]
    torchrun = [BIN / "torchrun", "--nproc-per-node=2", f"--master-port={free_port()}"]
    done = run([*torchrun, ROOT / "tests/distributed/flipping.py", "1", *arguments], PYTHONPATH=str(ROOT))
    assert "(exitcode: 2)" in done.stderr
    error = (
        f"error: {tmp_path}/run/checkpoints/step_4: not saved: final_norm.weight: rank 1 and rank 0 must hold the same"
    )
    assert done.stderr.count(error) == 1
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step_2"]
    resumed = train(*arguments, ranks=2)
    assert f"resumed from {tmp_path}/run/checkpoints/step_2" in resumed.stdout
    assert "done: 6 steps" in resumed.stdout


@pytest.mark.parametrize("start", [0, 2**33 + 5])
def test_checksums_of_parts_add_up_and_tell_places_apart(start):
    values = torch.randn(2 * AT_ONCE + 3, generator=torch.Generator().manual_seed(0))
    whole = checksum(values, start)
    cuts = (0, 1, AT_ONCE - 7, AT_ONCE, len(values))
    parts = [checksum(values[a:b], start + a) for a, b in pairwise(cuts)]
    assert torch.stack(parts).sum(dtype=torch.int32) == whole
    swapped = values.clone()
    swapped[[5, -1]] = values[[-1, 5]]
    assert checksum(swapped, start) != whole
    bits = values.view(torch.int32).clone()
    bits[7], bits[8] = bits[7] + 1, bits[8] - 1
    assert checksum(bits.view(torch.float32), start) != whole
