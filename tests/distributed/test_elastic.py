"""A checkpoint that any layout has saved can be loaded on any other, with the same bits and the same further losses."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import tensors_of
from tests.distributed.parity import MUON, SMALL, WIDE, p
from tests.launching import BIN, ROOT, free_port, run

pytestmark = pytest.mark.distributed

LAYOUTS = {
    "one": (1, p("zero_stage=0")),
    "dp2-zero1": (2, p("zero_stage=1")),
    "dp2-zero2": (2, p("zero_stage=2")),
    "dp2-zero3": (2, p("zero_stage=3")),
    "tp2-sp": (2, p("tensor=2", "sequence=true")),
    "pp2": (2, p("pipeline=2", "mid_replicas=1")),
    "pp2-copies": (2, p("pipeline=2", "mid_replicas=2")),
    "tp2-pp2": (4, p("tensor=2", "pipeline=2")),
}
BF16 = (*WIDE, "train.precision=bf16")
# Sources and targets of a model: all pairs, or those of a few layouts in which states lie differently.
FEW = ("dp2-zero1", "dp2-zero3", "tp2-sp", "pp2-copies")
MODELS = {"adamw": (SMALL, tuple(LAYOUTS)), "muon": (MUON, FEW), "bf16": (BF16, FEW)}
PAIRS = [(model, a, b) for model, (_, names) in MODELS.items() for a in names for b in names]


def job(folder: Path, corpus: Path, model: str, source: str | None, target: str) -> dict[str, Any]:
    """Save on a layout, or load there what another one has saved."""
    overrides, _ = MODELS[model]
    words = [f"data.path={corpus}", "train.steps=20", "train.micro_batch_size=4", *overrides, *LAYOUTS[target][1]]
    name = f"{model} {target}" if source is None else f"{model} {source} to {target}"
    return {"words": words, "source": source and str(folder / f"{model} {source}"), "out": str(folder / name)}


def launch(folder: Path, ranks: int, jobs: Iterable[dict[str, Any]]) -> None:
    listed, script = folder / f"jobs-{ranks}.json", ROOT / "tests/distributed/elastic.py"
    listed.write_text(json.dumps(list(jobs)))
    torchrun = [BIN / "torchrun", f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
    done = run([*([sys.executable] if ranks == 1 else torchrun), script, listed], timeout=900, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus) -> Path:
    """All saves, then all loads, in one start of ranks per number of ranks."""
    made = tmp_path_factory.mktemp("elastic")
    for loading in (False, True):
        for ranks in (1, 2, 4):
            jobs = [
                job(made, corpus, model, source if loading else None, target)
                for model, source, target in PAIRS
                if LAYOUTS[target][0] == ranks and (loading or source == target)
            ]
            launch(made, ranks, jobs)
    return made


@pytest.mark.parametrize("model, source, target", PAIRS)
def test_loaded_states_have_the_same_bits_and_train_on_alike(folder, model, source, target):
    saved, loaded = folder / f"{model} {source}", folder / f"{model} {source} to {target}"
    expected, got = tensors_of(saved / "checkpoints" / "step_3"), tensors_of(loaded / "again" / "step_3")
    assert expected.keys() == got.keys()
    for weight, tensors in expected.items():
        assert tensors.keys() == got[weight].keys()
        assert len(tensors) >= 3, "the weight, at least one moment, the average"
        for name, values in tensors.items():
            assert torch.equal(values, got[weight][name]), (weight, name)
    losses, further = (json.loads((path / "losses.json").read_text()) for path in (saved, loaded))
    assert further == pytest.approx(losses, rel=2e-3 if model == "bf16" else 1e-6)
    assert source != target or further == losses
