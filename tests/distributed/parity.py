"""The layouts whose numbers must equal one rank's, what is compared, and the table of tests/README.md.

Deviations are relative: the largest over steps for loss and gradient norm; the largest over weights, norms included, for what
training has changed in the weights and in their moving average: |ours - theirs| / |theirs - initial weights|. (Relative to the
weights themselves, eight steps would change too little to see an error.)
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import torch

from model.weights import initial_weights
from pretrain.checkpoints.index import VOCABULARY
from pretrain.checkpoints.weights import TENSORS
from pretrain.config.load import load_settings
from pretrain.optimizer.update_norms import PARTS
from tests.checkpoints import tensors_of, weights_of
from tests.launching import BIN, ROOT, free_port, metrics, records, run

RECIPE = ROOT / "tests" / "tiny.yaml"
STEPS = 8
SMALL = ("model.num_layers=4", "model.loop.head=1", "model.loop.mid=2", "model.loop.tail=1")
PAPER = ("model.num_layers=12", "model.loop.head=1", "model.loop.mid=2", "model.loop.tail=9")
FP32_LIMITS = (1e-5, 1e-4, 1e-4)
# Layouts that sum the same bf16 products in another order, against one rank in bf16.
BF16_LIMITS = (1e-3, 1e-2, 1e-2)
# Layouts that round elsewhere: bf16 partial sums of tensor parallelism, bf16 buckets of ZeRO-2, and bf16 against fp32.
ROUNDED_LIMITS = (5e-3, 3e-2, 0.2)
# The same with Muon, which enlarges small singular values of the gradient, and the rounding errors with them.
ROUNDED_MUON_LIMITS = (5e-3, 3e-2, 0.4)


@dataclass(frozen=True)
class Layout:
    """A run to compare.

    Attributes:
        name: as the table shows it.
        ranks: processes.
        overrides: of the recipe; those of `model` also go to the reference run.
        model: which model and numbers of rows, shared with the reference.
        limits: largest relative deviation of loss, gradient norm, changes of weights.
        data: the fixture with the prepared folder.
    """

    name: str
    ranks: int
    overrides: tuple[str, ...]
    model: tuple[str, ...] = SMALL
    limits: tuple[float, float, float] = FP32_LIMITS
    data: str = "corpus"

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return "".join(c if c.isalnum() else "-" for c in f"{self.ranks} {self.name}").lower()


def p(*overrides: str) -> tuple[str, ...]:
    """`tensor=2` -> `parallel.tensor=2`."""
    return tuple(f"parallel.{word}" for word in overrides)


UNEVEN = (*SMALL, "train.global_batch_size=6")
# Wide initial weights, so that rounding to bf16 is measured against weights and not against Adam's first updates.
WIDE = (*SMALL, "model.init_std=0.1")
BF16 = (*WIDE, "train.precision=bf16")
# Three layers, so that the shares of two ranks end inside a matrix.
MUON = ("model.num_layers=3", "model.loop.head=1", "model.loop.mid=1", "model.loop.tail=1", "optim.name=muon")
MUON_BF16 = (*MUON, "model.init_std=0.1", "train.precision=bf16")
# Several documents in each row: attention and noise are each document's own.
DOCUMENTS = (*SMALL, "train.attention=document", "train.noise=document")
# Another distribution of t, another weight, pairs of complementary rows, S beyond S_max; the ramp begins late.
SWITCHES = (
    *SMALL, "train.timesteps=bell", "train.loss_weight=uniform", "train.complementary_masks=true", "train.loop_start=0.2",
    "train.loop_tail=0.3",
)  # fmt: skip
# Normalized states between passes; S beyond S_max is drawn too.
NORM = (*WIDE, "model.loop.norm=true", "train.loop_tail=0.2")
REFERENCES = {
    SMALL: Layout("reference", 1, p("zero_stage=0")),
    PAPER: Layout("reference paper", 1, p("zero_stage=0"), PAPER),
    UNEVEN: Layout("reference uneven", 1, p("zero_stage=0"), UNEVEN),
    WIDE: Layout("reference wide", 1, p("zero_stage=0"), WIDE),
    BF16: Layout("reference bf16", 1, p("zero_stage=1"), BF16),
    MUON: Layout("reference Muon", 1, p("zero_stage=0"), MUON),
    MUON_BF16: Layout("reference Muon bf16", 1, p("zero_stage=1"), MUON_BF16),
    SWITCHES: Layout("reference switches", 1, p("zero_stage=0"), SWITCHES),
    NORM: Layout("reference norm", 1, p("zero_stage=0"), NORM),
    DOCUMENTS: Layout("reference documents", 1, p("zero_stage=0"), DOCUMENTS, data="short_documents"),
}
"""Runs of one rank without ZeRO in fp32, by the model that they and their layouts train."""

LAYOUTS = [
    Layout("ZeRO-3", 1, p("zero_stage=3")),
    Layout("micro-batch 8", 1, ("train.micro_batch_size=8", *p("zero_stage=0"))),
    Layout("recompute full", 1, p("zero_stage=0", "recompute=full")),
    Layout("recompute loop", 1, p("zero_stage=0", "recompute=loop")),
    Layout("compiled, recompute loop", 1, ("train.compile=true", *p("recompute=loop"))),
    *(Layout(f"DP2, ZeRO-{z}", 2, p(f"zero_stage={z}")) for z in (0, 1, 2, 3)),
    *(Layout(f"DP2, ZeRO-{z}, optimizer on CPU", 2, p(f"zero_stage={z}", "offload=optimizer")) for z in (1, 2)),
    Layout("DP2, ZeRO-3, weights on CPU", 2, p("zero_stage=3", "offload=parameters")),
    Layout("DP2, micro-batch 1", 2, ("train.micro_batch_size=1",)),
    Layout("DP2, micro-batch 4", 2, ("train.micro_batch_size=4",)),
    Layout("DP2, recompute full", 2, p("recompute=full")),
    Layout("DP2, recompute loop", 2, p("recompute=loop")),
    Layout("DP2, ZeRO-3, recompute loop", 2, p("zero_stage=3", "recompute=loop")),
    Layout("TP2", 2, p("tensor=2", "zero_stage=0")),
    Layout("TP2 + SP", 2, p("tensor=2", "sequence=true", "zero_stage=0")),
    Layout("TP2 + SP, recompute loop", 2, p("tensor=2", "sequence=true", "recompute=loop")),
    Layout("PP2", 2, p("pipeline=2")),
    Layout("PP2, ZeRO-0", 2, p("pipeline=2", "zero_stage=0")),
    Layout("PP2, recompute full", 2, p("pipeline=2", "recompute=full")),
    Layout("PP2, recompute loop", 2, p("pipeline=2", "recompute=loop")),
    Layout("PP2, 2 copies of mid", 2, p("pipeline=2", "mid_replicas=2")),
    Layout("PP2, 1 + 2 x S + 9", 2, p("pipeline=2"), PAPER),
    Layout("PP2, 1 + 2 x S + 9, contiguous", 2, p("pipeline=2", "pipeline_split=contiguous"), PAPER),
    *(Layout(f"DP3, 6 rows, ZeRO-{z}", 3, p(f"zero_stage={z}"), UNEVEN) for z in (0, 1, 2, 3)),
    Layout("PP3, 1 + 2 x S + 9, 3 copies of mid", 3, p("pipeline=3"), PAPER),
    Layout("PP4, 1 + 2 x S + 9, 2 copies of mid", 4, p("pipeline=4"), PAPER),
    Layout("PP4, 1 + 2 x S + 9, 1 copy of mid", 4, p("pipeline=4", "mid_replicas=1", "zero_stage=0"), PAPER),
    Layout("TP2 x PP2", 4, p("tensor=2", "pipeline=2")),
    Layout("TP2 x PP2 + SP", 4, p("tensor=2", "pipeline=2", "sequence=true"), PAPER),
    Layout("DP2 x PP2", 4, p("pipeline=2")),
    Layout("DP2 x PP2, 2 copies of mid", 4, p("pipeline=2", "mid_replicas=2", "zero_stage=0")),
    Layout("DP2 x TP2", 4, p("tensor=2")),
    Layout("DP2 x TP2 + SP, ZeRO-2", 4, p("tensor=2", "sequence=true", "zero_stage=2")),
    Layout("DP2 x TP2 + SP, ZeRO-3", 4, p("tensor=2", "sequence=true", "zero_stage=3")),
]
LAYOUTS += [
    Layout("ZeRO-1, bf16 against fp32", 1, ("train.precision=bf16", *p("zero_stage=1")), WIDE, ROUNDED_LIMITS),
    *(
        Layout(f"{name}, bf16", ranks, p(*overrides), BF16, limits)
        for name, ranks, overrides, limits in (
            ("recompute loop", 1, ("zero_stage=1", "recompute=loop"), BF16_LIMITS),
            ("DP2, ZeRO-1", 2, ("zero_stage=1",), BF16_LIMITS),
            ("DP2, ZeRO-2", 2, ("zero_stage=2",), ROUNDED_LIMITS),
            ("DP2, ZeRO-3", 2, ("zero_stage=3",), BF16_LIMITS),
            ("DP2, ZeRO-1, optimizer on CPU", 2, ("zero_stage=1", "offload=optimizer"), BF16_LIMITS),
            ("DP2, ZeRO-2, optimizer on CPU", 2, ("zero_stage=2", "offload=optimizer"), ROUNDED_LIMITS),
            ("DP2, ZeRO-3, weights on CPU", 2, ("zero_stage=3", "offload=parameters"), BF16_LIMITS),
            ("TP2 + SP", 2, ("tensor=2", "sequence=true"), ROUNDED_LIMITS),
            ("PP2", 2, ("pipeline=2",), BF16_LIMITS),
            ("PP2, 2 copies of mid", 2, ("pipeline=2", "mid_replicas=2"), BF16_LIMITS),
            ("PP4, 2 copies of mid", 4, ("pipeline=4",), BF16_LIMITS),
            ("TP2 x PP2", 4, ("tensor=2", "pipeline=2"), ROUNDED_LIMITS),
        )
    ),
]

LAYOUTS += [
    Layout(f"{name}, within documents", ranks, overrides, DOCUMENTS, data="short_documents")
    for name, ranks, overrides in (
        ("micro-batch 8, recompute full", 1, ("train.micro_batch_size=8", *p("recompute=full"))),
        ("DP2, ZeRO-3", 2, p("zero_stage=3")),
        ("TP2 + SP", 2, p("tensor=2", "sequence=true")),
        ("PP2, recompute loop", 2, p("pipeline=2", "recompute=loop")),
        ("PP3", 3, p("pipeline=3")),
    )
]
LAYOUTS += [
    *(
        Layout(f"{name}, Muon", ranks, p(*overrides), MUON)
        for name, ranks, overrides in (
            *((f"DP2, ZeRO-{z}", 2, (f"zero_stage={z}",)) for z in (1, 2, 3)),
            ("TP2 + SP", 2, ("tensor=2", "sequence=true")),
            ("PP2, 2 copies of mid", 2, ("pipeline=2", "mid_replicas=2")),
            ("DP2 x TP2 + SP, ZeRO-3", 4, ("tensor=2", "sequence=true", "zero_stage=3")),
        )
    ),
    *(
        Layout(f"{name}, Muon, bf16", 2, p(*overrides), MUON_BF16, limits)
        for name, overrides, limits in (
            ("DP2, ZeRO-1", ("zero_stage=1",), BF16_LIMITS),
            ("DP2, ZeRO-2", ("zero_stage=2",), ROUNDED_MUON_LIMITS),
            ("DP2, ZeRO-3", ("zero_stage=3",), ROUNDED_MUON_LIMITS),
            ("PP2, 2 copies of mid", ("pipeline=2", "mid_replicas=2"), ROUNDED_MUON_LIMITS),
        )
    ),
]

LAYOUTS += [
    Layout("DP2, ZeRO-2, switches", 2, p("zero_stage=2"), SWITCHES),
    Layout("PP2, 2 copies of mid, switches", 2, p("pipeline=2", "mid_replicas=2"), SWITCHES),
]

LAYOUTS += [
    Layout(f"{name}, norm", 2, p(*overrides), NORM)
    for name, overrides in (
        ("DP2, ZeRO-3", ("zero_stage=3",)),
        ("TP2 + SP", ("tensor=2", "sequence=true")),
        ("PP2, recompute loop", ("pipeline=2", "recompute=loop")),
        ("PP2, 2 copies of mid", ("pipeline=2", "mid_replicas=2")),
    )
]

# One update whose size tells the gradient: w1 - w0 = -lr g / (|g| + eps), Adam's first step. A large lr, for its digits.
ONE_STEP = (
    "train.steps=1", "train.loops=3", "train.loop_tail=0", "optim.lr=100", "optim.eps=1", "optim.warmup_steps=0",
    "optim.clip_norm=0", "optim.weight_decay=0", "optim.schedule=constant", "optim.ema_decay=0",
)  # fmt: skip


def launch(
    folder: Path, corpora: Mapping[str, Path], layouts: Iterable[Layout], prefix: str = "", extra: Iterable[str] = ()
) -> None:
    """Train layouts of equal rank counts in one start of ranks; run folders are `folder/PREFIX + layout.folder`.

    Args:
        corpora: prepared folders by the name of their fixture.
    """
    layouts = list(layouts)
    (ranks,) = {layout.ranks for layout in layouts}
    common = [f"run.dir={folder}", f"train.steps={STEPS}", "log.parts=true", f"log.texts_every={STEPS}"]
    overrides = [
        [
            *common,
            f"data.path={corpora[one.data]}",
            f"run.name={prefix}{one.folder}",
            *one.model,
            *one.overrides,
            *extra,
        ]
        for one in layouts
    ]
    listed = folder / f"{prefix}layouts-{ranks}.json"
    listed.write_text(json.dumps(overrides))
    script = [ROOT / "tests/distributed/ranks.py", RECIPE, listed]
    torchrun = [BIN / "torchrun", f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
    done = run([sys.executable, *script] if ranks == 1 else [*torchrun, *script], timeout=600, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]


def weights(run_folder: Path, averaged: bool = False) -> dict[str, torch.Tensor]:
    """Full weights of the only checkpoint of a run."""
    return weights_of(only_checkpoint(run_folder), "ema" if averaged else "raw")


def only_checkpoint(run_folder: Path) -> Path:
    """Of a run with a single one."""
    (checkpoint,) = (run_folder / "checkpoints").iterdir()
    return checkpoint


def changes(run_folder: Path, averaged: bool = False) -> dict[str, torch.Tensor]:
    """What training has added to every initial weight, or to the moving average."""
    settings = load_settings(str(run_folder / "config.yaml"))
    drawn = initial_weights(settings.model, settings.run.seed)
    # In bf16, DeepSpeed makes the fp32 master weights from weights that are rounded already.
    start = torch.bfloat16 if settings.train.precision == "bf16" else torch.float32
    changed = {}
    for name, value in weights(run_folder, averaged).items():
        rows = settings.model.padded_vocab_size if name in VOCABULARY else len(value)
        initial = drawn(name, torch.Size([rows, *value.shape[1:]]))[: len(value)]  # checkpoints have no padding
        changed[name] = value - initial.to(start).float()
    return changed


def deviations(folder: Path, layout: Layout) -> tuple[float, float, float]:
    """Relative deviation of loss, gradient norm and changes of weights from the reference run."""
    reference = folder / REFERENCES[layout.model].folder
    expected, got = metrics(reference), metrics(folder / layout.folder)
    assert [m["step"] for m in got] == list(range(1, STEPS + 1))
    assert [m["loops"] for m in got] == [m["loops"] for m in expected]
    assert len({m["loops"] for m in got}) > 2, "S does not change"
    pairs = list(zip(expected, got, strict=True))
    loss, norm = (max(abs(b[key] - a[key]) / a[key] for a, b in pairs) for key in ("loss", "grad_norm"))
    worst = 0.0
    for averaged in (False, True):
        ours, theirs = changes(folder / layout.folder, averaged), changes(reference, averaged)
        assert ours.keys() == theirs.keys()
        worst = max([worst, *(((ours[k] - v).norm() / v.norm()).item() for k, v in theirs.items())])
    return loss, norm, worst


def moment_deviation(folder: Path, layout: Layout) -> float:
    """Largest relative deviation of an optimizer's moment of a weight from the reference run."""
    ours, theirs = (tensors_of(only_checkpoint(folder / one.folder)) for one in (layout, REFERENCES[layout.model]))
    pairs = [
        (ours[weight][moment], values)
        for weight, tensors in theirs.items()
        for moment, values in tensors.items()
        if moment not in TENSORS.values()
    ]
    assert len(pairs) >= len(theirs), "every weight has a moment"
    return max(((own - other).norm() / other.norm()).item() for own, other in pairs)


def part_deviations(folder: Path, layout: Layout) -> tuple[float, float, float]:
    """Largest relative deviation over parts and steps: of gradient norms and of update-to-weight ratios from the reference run,
    and of the root of the sum of the norms' squares from the global gradient norm of the same run.
    """
    expected, got = metrics(folder / REFERENCES[layout.model].folder), metrics(folder / layout.folder)
    worst = {"grad_norm": 0.0, "update_ratio": 0.0}
    total = 0.0
    for one, other in zip(expected, got, strict=True):
        assert list(one["parts"]) == list(other["parts"]) == list(PARTS)
        for figure in worst:
            pairs = [(one["parts"][part][figure], other["parts"][part][figure]) for part in PARTS]
            worst[figure] = max([worst[figure], *(abs(b - a) / a for a, b in pairs)])
        norm = math.hypot(*(figures["grad_norm"] for figures in other["parts"].values()))
        total = max(total, abs(norm / other["grad_norm"] - 1))
    return worst["grad_norm"], worst["update_ratio"], total


def same_text(folder: Path, layout: Layout) -> float:
    """Share of the drawn texts that equals the reference's, from 0 to 1."""
    (one,), (other,) = (
        [record["texts"]["drawn"] for record in records(folder / name) if "texts" in record]
        for name in (REFERENCES[layout.model].folder, layout.folder)
    )
    return min(SequenceMatcher(None, *pair, autojunk=False).ratio() for pair in zip(one, other, strict=True))


def table_row(layout: Layout, *values: str) -> str:
    """A row of the table in tests/README.md."""
    loss, norm, weights = values
    return f"{layout.ranks:>5}  {layout.name:<49}{loss:>5}{norm:>15}{weights:>9}"


def table(rows: Iterable[tuple[Layout, tuple[float, float, float]]]) -> str:
    """The table in tests/README.md."""
    lines = [f"{'ranks':>5}  {'layout':<49}{'loss':>5}{'gradient norm':>15}{'weights':>9}"]
    for layout, values in rows:
        lines.append(table_row(layout, *("0" if value == 0 else f"{value:.0e}" for value in values)))
    return "\n".join(lines)
