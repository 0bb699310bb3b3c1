"""A save compares what several ranks hold, and names a copy that differs."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pretrain.checkpoints.folder import list_checkpoints
from pretrain.checkpoints.sums import AT_ONCE, checksum, squares_of_master
from tests.checkpoints import tensors_of
from tests.distributed.parity import BF16, MUON, RECIPE, SMALL, p
from tests.launching import BIN, ROOT, free_port, run, train

LAST = "Run the same command again: it goes on from the last checkpoint, if there is one"
ROUNDED = r"must be equal but for rounding, but their norms are from \S+ to"
EXPONENT = 30  # the highest bit of the exponent
NORM, MATRIX = "mid.layers.1.input_layernorm.weight", "mid.layers.0.mlp.linear_fc1.weight"
TWO_COPIES = p("pipeline=2", "mid_replicas=2")
JOBS = {
    "TP2": (SMALL, p("tensor=2"), [(1, NORM, "weight"), (1, NORM, "exp_avg"), (0, "final_norm.weight", "ema")]),
    "TP2 + SP, ZeRO-3, bf16": (BF16, p("tensor=2", "sequence=true", "zero_stage=3"), [(1, NORM, "exp_avg_sq")]),
    "PP2, 2 copies of mid": (SMALL, TWO_COPIES, [(1, MATRIX, "weight"), (1, NORM, "exp_avg")]),
    "PP2, 2 copies of mid, Muon": (MUON, TWO_COPIES, [(1, MATRIX, "momentum_buffer")]),
    "DP2, ZeRO-0": (SMALL, p("zero_stage=0"), [(1, "lm_head.weight", "weight"), (1, NORM, "exp_avg_sq")]),
}
ON_FOUR_RANKS = {
    "TP2, DP2, ZeRO-0": (SMALL, p("tensor=2", "zero_stage=0"), [(1, NORM, "weight"), (1, NORM, "exp_avg")]),
    "PP2, 2 copies of mid, DP2, ZeRO-0": (SMALL, (*TWO_COPIES, *p("zero_stage=0")), [(1, NORM, "weight")]),
}
THREE_ROWS = (*TWO_COPIES, "train.global_batch_size=6", "train.micro_batch_size=1")
DETERMINISTIC = {"ZeRO-1": (), "ZeRO-0": p("zero_stage=0"), "bf16": ("train.precision=bf16",)}
pytestmark = pytest.mark.distributed


def launch(folder: Path, corpus: Path, ranks: int, jobs: list[dict]) -> None:
    """Do the jobs in one start of ranks; lowest bits are flipped unless a fault names one."""
    for job in jobs:
        job["out"].mkdir()
        job["words"] = [f"data.path={corpus}", "train.steps=9", *job["words"]]
    (folder / "jobs.json").write_text(json.dumps(jobs, default=str))
    torchrun = [BIN / "torchrun", f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
    script = [ROOT / "tests/distributed/damaged_copies.py", folder / "jobs.json"]
    done = run([*torchrun, *script], timeout=300, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]


def check_flipped_bits(folder: Path, corpus: Path, ranks: int, named: dict) -> None:
    """Do named jobs, (model, layout, faults): each fault must be found, and nothing without one."""
    jobs = [
        {"words": [*model, *layout], "out": folder / name, "faults": [[[rank], *what, 0] for rank, *what in faults]}
        for name, (model, layout, faults) in named.items()
    ]
    launch(folder, corpus, ranks, jobs)
    for name, (_, _, faults) in named.items():
        *messages, without_fault = json.loads((folder / name / "messages.json").read_text())
        for message, (_, weight, tensor) in zip(messages, faults, strict=True):
            assert f"{weight}: rank 1 and rank 0 must hold the same numbers, but differ in {tensor} by up to" in message
            assert LAST in message
        assert without_fault is None, name


@pytest.mark.parametrize(("ranks", "named"), [(2, JOBS), (4, ON_FOUR_RANKS)])
def test_one_flipped_bit_is_named_and_not_saved(tmp_path, corpus, ranks, named):
    """On four ranks, it concerns one of two groups: the other must not wait for it."""
    check_flipped_bits(tmp_path, corpus, ranks, named)


def test_three_rows_round_copies_differently_unless_deterministic(tmp_path, corpus):
    """The place of the mid block in the buffers of gradients differs between stages, and with it the order of gloo's sums."""
    faults = [[[3, 4, 5], weight, "weight", EXPONENT] for weight in (NORM, MATRIX)]
    jobs = [{"words": [*SMALL, *THREE_ROWS], "out": tmp_path / "rounded", "faults": faults}]
    for name, words in DETERMINISTIC.items():
        all_words = [*SMALL, *THREE_ROWS, *words, "train.deterministic=true"]
        jobs.append({"words": all_words, "out": tmp_path / name, "faults": []})
    launch(tmp_path, corpus, 6, jobs)
    equal = {job["out"].name: json.loads((job["out"] / "equal.json").read_text()) for job in jobs}
    assert equal == {"rounded": False, **dict.fromkeys(DETERMINISTIC, True)}, "if all are equal, ROUNDING may go"
    *messages, without_fault = json.loads((tmp_path / "rounded/messages.json").read_text())
    for message, weight in zip(messages, (NORM, MATRIX), strict=True):
        assert re.search(rf"{weight}: its copies on ranks [012], [345] {ROUNDED} (inf|\S+e\+\d\d)\. ", message)
        assert LAST in message
    assert without_fault is None
    rounded, deterministic = (tensors_of(tmp_path / name / "checkpoints/step_3") for name in ("rounded", "ZeRO-1"))
    for weight, tensors in rounded.items():
        torch.testing.assert_close(deterministic[weight], tensors, rtol=1e-4, atol=1e-7, msg=weight)


def test_on_several_hosts_norms_are_compared(tmp_path, corpus):
    layouts = {"TP2": p("tensor=2"), "DP2, ZeRO-0": p("zero_stage=0")}
    faults = [[[1], NORM, "weight", EXPONENT]]
    jobs = {
        name: {"words": [*SMALL, *words], "out": tmp_path / name, "faults": faults} for name, words in layouts.items()
    }
    launch(tmp_path, corpus, 2, [{**job, "hosts": ["one", "two"]} for job in jobs.values()])
    for name in layouts:
        message, without_fault = json.loads((tmp_path / name / "messages.json").read_text())
        assert re.search(rf"{NORM}: its copies on ranks 0, 1 {ROUNDED} .* at fault \(on one, two\)", message)
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


def test_squares_of_parts_add_up():
    values = torch.randn(2 * AT_ONCE + 3, generator=torch.Generator().manual_seed(0))
    cuts = (0, 0, AT_ONCE - 7, len(values))
    parts = [squares_of_master({"weight": values[a:b], "ema": values}, a) for a, b in pairwise(cuts)]
    assert float(sum(parts)) == pytest.approx(float(torch.linalg.vector_norm(values.double())) ** 2, rel=1e-12)
