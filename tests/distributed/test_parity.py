"""Every layout gives the numbers of one rank at the same global batch."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import BIN, ROOT, free_port, metrics, run

pytestmark = pytest.mark.distributed
RECIPE = ROOT / "tests" / "tiny.yaml"

FP32 = {
    "zero0": ["parallel.zero_stage=0"],
    "zero1": ["parallel.zero_stage=1"],
    "zero2": ["parallel.zero_stage=2"],
    "zero3": ["parallel.zero_stage=3"],
}
VARIANTS = {
    "micro1": ["train.micro_batch_size=1"],
    "micro4": ["train.micro_batch_size=4"],
    "recompute-full": ["parallel.recompute=full"],
    "recompute-loop": ["parallel.recompute=loop"],
    "zero3-recompute-loop": ["parallel.zero_stage=3", "parallel.recompute=loop"],
}
# Three ranks: neither the weights nor the rows divide by a power of two.
UNEVEN = {f"uneven-zero{z}": [f"parallel.zero_stage={z}", "train.global_batch_size=6"] for z in (0, 1, 2, 3)}
BF16 = {f"bf16-zero{z}": ["train.precision=bf16", f"parallel.zero_stage={z}"] for z in (1, 2, 3)}


def launch(folder: Path, corpus: Path, ranks: int, layouts: dict[str, list[str]]) -> None:
    common = [f"data.path={corpus}", f"run.dir={folder}"]
    listed = [[*common, f"run.name={ranks}-{name}", *words] for name, words in layouts.items()]
    (folder / f"layouts-{ranks}.json").write_text(json.dumps(listed))
    script = [ROOT / "tests/distributed/ranks.py", RECIPE, folder / f"layouts-{ranks}.json"]
    torchrun = [BIN / "torchrun", f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
    done = run([sys.executable, *script] if ranks == 1 else [*torchrun, *script], timeout=400, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus) -> Path:
    """Run folders `RANKS-LAYOUT` of every layout, from one launch per world size."""
    folder = tmp_path_factory.mktemp("parity")
    alone = {"zero0": FP32["zero0"], "zero3": FP32["zero3"], "micro8": ["train.micro_batch_size=8"]}
    launch(folder, corpus, 1, alone | BF16 | {"uneven-zero0": UNEVEN["uneven-zero0"]})
    launch(folder, corpus, 2, FP32 | VARIANTS | BF16)
    launch(folder, corpus, 3, UNEVEN)
    return folder


def weights(runs: Path, name: str, averaged: bool = False) -> dict[str, torch.Tensor]:
    return load_file(
        runs / name / "checkpoints" / "step_20" / ("ema.safetensors" if averaged else "weights.safetensors")
    )


LAYOUTS = ["1-zero3", "1-micro8", *(f"2-{name}" for name in FP32 | VARIANTS), *(f"3-{name}" for name in UNEVEN)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_fp32_layout_equals_one_rank(runs, name):
    """20 steps with S changing: loss within 1e-5, gradient norm and final weights within 1e-4, relative."""
    reference = "1-uneven-zero0" if "uneven" in name else "1-zero0"
    expected, got = metrics(runs / reference), metrics(runs / name)
    assert [m["step"] for m in got] == list(range(1, 21))
    assert [m["loops"] for m in got] == [m["loops"] for m in expected]
    assert len({m["loops"] for m in got}) > 2
    for one, other in zip(expected, got, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    for averaged in (False, True):
        expected_weights, got_weights = weights(runs, reference, averaged), weights(runs, name, averaged)
        assert expected_weights.keys() == got_weights.keys()
        for key, value in expected_weights.items():
            error = (got_weights[key] - value).norm() / value.norm()
            assert error < 1e-4, (key, averaged, error)


@pytest.mark.parametrize("name", [*(f"1-{name}" for name in BF16), *(f"2-{name}" for name in BF16)])
def test_bf16_follows_fp32(runs, name):
    expected, got = metrics(runs / "1-zero0"), metrics(runs / name)
    for one, other in zip(expected, got, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=2e-2)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=5e-2)


def test_bf16_keeps_fp32_master_weights(runs):
    """The saved weights carry bits that bf16 cannot."""
    for key, value in weights(runs, "2-bf16-zero1").items():
        assert value.dtype == torch.float32
        if value.dim() == 2:
            assert not torch.equal(value.bfloat16().float(), value), key


def test_training_learns(runs):
    losses = [m["loss"] for m in metrics(runs / "1-zero0")]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.05


def test_loss_by_timestep_and_by_loops_agree(runs):
    """The bins hold every masked token once: the same figures on two ranks as on one."""
    for one, other in zip(metrics(runs / "1-zero0"), metrics(runs / "2-zero2"), strict=True):
        for expected, got in zip(one["loss_by_timestep"], other["loss_by_timestep"], strict=True):
            assert (got is None) == (expected is None)
            assert got is None or got == pytest.approx(expected, rel=1e-4)
        assert other["loss_by_loops"].keys() == {str(int(other["loops"]))}
