"""Stop and resume equal an uninterrupted run bit for bit, on the layouts and optimizers of production."""

from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch

from tests.distributed.parity import BF16, MUON, MUON_BF16, SMALL, Layout, launch, p, weights
from tests.launching import metrics

pytestmark = pytest.mark.distributed

LAYOUTS = [
    Layout("ZeRO-1, bf16", 1, p("zero_stage=1"), BF16),
    Layout("DP2, ZeRO-1, bf16", 2, p("zero_stage=1"), BF16),
    Layout("DP2, ZeRO-2, bf16", 2, p("zero_stage=2"), BF16),
    Layout("DP2, ZeRO-2, optimizer on CPU", 2, p("zero_stage=2", "offload=optimizer"), SMALL),
    Layout("DP2, ZeRO-3, weights on CPU, bf16", 2, p("zero_stage=3", "offload=parameters"), BF16),
    Layout("TP2 + SP, bf16", 2, p("tensor=2", "sequence=true"), BF16),
    Layout("PP2", 2, p("pipeline=2"), SMALL),
    Layout("PP2, 2 copies of mid, bf16", 2, p("pipeline=2", "mid_replicas=2"), BF16),
    *(Layout(f"DP2, ZeRO-{z}, Muon", 2, p(f"zero_stage={z}"), MUON) for z in (0, 2, 3)),
    Layout("TP2 + SP, Muon, bf16", 2, p("tensor=2", "sequence=true"), MUON_BF16),
]
STOP = ("run.stop_after=3", "train.steps=6")


def stages_of_a_run(layout: Layout) -> list[Layout]:
    """One run to the end, and one that stops and is started again under the same name."""
    parts = replace(layout, name=f"parts {layout.name}")
    whole = replace(layout, overrides=(*layout.overrides, "checkpoint.keep=1", STOP[1]))
    return [
        whole,
        replace(parts, overrides=(*layout.overrides, "checkpoint.keep=1", *STOP)),
        replace(parts, overrides=whole.overrides),
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus) -> Path:
    """The run folders of all layouts, from one start of ranks per world size."""
    folder = tmp_path_factory.mktemp("resumes")
    for _, layouts in groupby(LAYOUTS, key=lambda layout: layout.ranks):
        launch(folder, {"corpus": corpus}, [stage for layout in layouts for stage in stages_of_a_run(layout)])
    return folder


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.folder)
def test_resume_is_bit_for_bit(runs, layout):
    whole, parts = (runs / stage.folder for stage in stages_of_a_run(layout)[:2])
    assert "resumed from" in (parts / "logs" / "rank_0.log").read_text()
    compared = ("step", "samples", "loss", "grad_norm", "lr", "loops")
    assert [[m[key] for key in compared] for m in metrics(parts)] == [
        [m[key] for key in compared] for m in metrics(whole)
    ]
    for averaged in (False, True):
        expected, got = weights(whole, averaged), weights(parts, averaged)
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            assert torch.equal(got[name], value), name
