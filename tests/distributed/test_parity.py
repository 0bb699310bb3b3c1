"""Every layout gives the numbers of one rank at the same global batch; see parity.py for the layouts."""

import json
import re
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.dataset.blend import load_blend
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.dataset.samples import Samples
from data_pipeline.manifest import load_manifest
from model.reference import copied_weights
from model.weights import initial_weights
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.training.batches import Batches
from tests.distributed.parity import (
    BF16,
    FP32_LIMITS,
    LAYOUTS,
    MUON,
    ONE_STEP,
    RECIPE,
    REFERENCES,
    SWITCHES,
    Layout,
    changes,
    deviations,
    launch,
    moment_deviation,
    part_deviations,
    same_text,
    table,
    table_row,
    weights,
)
from tests.distributed.tied_copies import MODEL, bf16_copies_gradient
from tests.launching import BIN, ROOT, free_port, metrics, run
from tests.rows import loss_in_plain_pytorch

pytestmark = pytest.mark.distributed
FP32 = [layout for layout in LAYOUTS if layout.limits == FP32_LIMITS]
# The oracle reads gradients from Adam's first step, and knows neither other weights of the loss nor paired rows.
ADAMW_FP32 = [layout for layout in FP32 if layout.model not in (MUON, SWITCHES)]
TWO_RANKS_BF16 = [
    layout for layout in LAYOUTS if layout.model == BF16 and layout.ranks == 2 and "TP" not in layout.name
]
MEASURED: dict[str, tuple[float, float, float]] = {}


def by_ranks(layouts: list[Layout]) -> list[list[Layout]]:
    ordered = sorted(layouts, key=lambda layout: layout.ranks)
    return [list(group) for _, group in groupby(ordered, key=lambda layout: layout.ranks)]


@pytest.fixture(scope="module")
def corpora(corpus, short_documents) -> dict[str, Path]:
    """Prepared folders by the name of their fixture."""
    short = PackedDataset(short_documents, "train")
    assert (short.document_ids(np.arange(short.num_rows)).max(axis=1) >= 1).mean() > 0.95, "one document a row"
    return {"corpus": corpus, "short_documents": short_documents}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpora) -> Path:
    """Run folders of every layout, from one start of ranks per world size."""
    folder = tmp_path_factory.mktemp("parity")
    for layouts in by_ranks([*REFERENCES.values(), *LAYOUTS]):
        launch(folder, corpora, layouts)
    return folder


@pytest.fixture(scope="module")
def one_step_runs(tmp_path_factory, corpora) -> Path:
    """The same layouts after one update at S = 3 whose size tells the gradient."""
    folder = tmp_path_factory.mktemp("gradients")
    for layouts in by_ranks(ADAMW_FP32):
        launch(folder, corpora, layouts, extra=ONE_STEP)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.folder)
def test_layout_equals_one_rank(runs, layout):
    """With S changing: loss, gradient norm, final and averaged weights within the limits of its precision."""
    measured = MEASURED[layout.name] = deviations(runs, layout)
    for value, limit in zip(measured, layout.limits, strict=True):
        assert value < limit, (measured, layout.limits)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.folder)
def test_figures_of_the_parts_equal_one_rank(runs, layout):
    """And their gradient norms make up the global one."""
    grad_norm, update_ratio, total = part_deviations(runs, layout)
    _, norm_limit, weight_limit = layout.limits
    assert grad_norm < norm_limit and update_ratio < weight_limit and total < 1e-5, (grad_norm, update_ratio, total)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.folder)
def test_moments_equal_one_rank(runs, layout):
    """The optimizer's moments of every weight, and so the size of its gradients in all steps, to which Adam's updates are blind."""
    deviation = moment_deviation(runs, layout)
    assert deviation < layout.limits[2], deviation


@pytest.mark.parametrize("layout", FP32, ids=lambda layout: layout.folder)
def test_texts_drawn_in_training_equal_those_of_one_rank(runs, layout):
    """But for a token or two that stand on an edge: weights and logits differ by rounding."""
    assert same_text(runs, layout) > 0.9


def test_readme_has_the_rows_of_the_table(runs, record_property):
    """The table is printed at the end as measured here; its copy in tests/README.md must have the same rows."""
    rows = [(layout, deviations(runs, layout)) for layout in LAYOUTS]
    record_property("table", table(rows))
    shown = (ROOT / "tests" / "README.md").read_text().splitlines()
    for layout in LAYOUTS:
        assert any(line.startswith(table_row(layout, "", "", "").rstrip() + " ") for line in shown), layout.name


@pytest.fixture(scope="module")
def copies_gradient(corpora):
    """Gradient of the first step's global batch at S = 3 by the oracle: S copies of the mid block, summed."""
    known: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}

    def of(layout: Layout) -> dict[str, torch.Tensor]:
        if layout.model not in known:
            known[layout.model] = oracle_gradient(corpora[layout.data], layout)
        return known[layout.model]

    return of


def oracle_gradient(corpus: Path, layout: Layout) -> dict[str, torch.Tensor]:
    settings = load_settings(str(RECIPE), [f"data.path={corpus}", *layout.model, *ONE_STEP])
    plan = make_run_plan(settings, load_manifest(corpus), 1)
    architecture, train = plan.settings.model, plan.settings.train
    drawn = initial_weights(architecture, settings.run.seed)
    final = {name: drawn(name, shape) for name, shape in full_shapes(architecture).items()}
    copies = {k: v.requires_grad_() for k, v in copied_weights(final, 3).items()}
    source = Samples.of(load_blend(corpus), settings.run.seed)
    batch = Batches(plan, source, 0, torch.device("cpu"))[0]
    tokens = int(source.lengths(np.arange(train.global_batch_size)).sum())
    loss_in_plain_pytorch(copies, architecture, batch, 3, train.min_timestep, tokens).backward()
    gradient = {name: torch.zeros_like(value) for name, value in final.items()}
    for name, value in copies.items():
        gradient[re.sub(r"^pass\.\d+\.", "", name)] += value.grad
    return gradient


def full_shapes(architecture):
    from model.denoiser import LoopedDenoiser
    from pretrain.parallel.world import start_world

    start_world((0, 1, 0))
    return {name: weight.shape for name, weight in LoopedDenoiser(architecture).named_parameters()}


def without_padding(padded: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
    """A gradient without the rows of the vocabulary's padding, which checkpoints leave out: they get none."""
    assert not padded[len(saved) :].any()
    return padded[: len(saved)]


@pytest.mark.parametrize("layout", ADAMW_FP32, ids=lambda layout: layout.folder)
def test_gradient_equals_that_of_tied_copies(one_step_runs, copies_gradient, corpora, layout):
    """Every weight's gradient, the shared block's first: read from one update, against S copies in plain PyTorch."""
    settings = load_settings(str(RECIPE), [f"data.path={corpora[layout.data]}", *layout.model])
    architecture = make_run_plan(settings, load_manifest(corpora[layout.data]), 1).settings.model
    drawn = initial_weights(architecture, settings.run.seed)
    expected = copies_gradient(layout)
    after = weights(one_step_runs / layout.folder)
    assert after.keys() == expected.keys()
    for name, padded in expected.items():
        gradient = without_padding(padded, after[name])
        initial = drawn(name, padded.shape)[: len(gradient)]
        moved = (initial - after[name]) / 100  # g / (|g| + 1), see ONE_STEP
        recovered = moved / (1 - moved.abs())
        error = (recovered - gradient).norm() / gradient.norm()
        assert error < 1e-4, (name, error)


@pytest.fixture(scope="module")
def bf16_copies(world, corpora) -> dict[str, torch.Tensor]:
    return bf16_copies_gradient(corpora["corpus"], (*MODEL, *without_loops(ONE_STEP)))


@pytest.fixture(scope="module")
def bf16_one_step_runs(tmp_path_factory, corpora) -> Path:
    """The bf16 layouts of two ranks after one update at S = 12 whose size tells the gradient."""
    folder = tmp_path_factory.mktemp("bf16_gradients")
    launch(folder, corpora, TWO_RANKS_BF16, extra=(*MODEL, *without_loops(ONE_STEP)))
    return folder


def without_loops(overrides: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for word in overrides if not word.startswith("train.loops="))


@pytest.mark.parametrize("layout", TWO_RANKS_BF16, ids=lambda layout: layout.folder)
def test_bf16_gradients_are_summed_in_fp32(bf16_one_step_runs, bf16_copies, layout):
    """Over S = 12 passes, micro-batches and ranks: against the fp32 sum over separate copies of the mid block.

    ZeRO-2 moves every micro-batch's gradient through a bf16 bucket, which rounds it once.
    """
    limit = 3e-3 if "ZeRO-2" in layout.name else 5e-6
    moved_by_name = changes(bf16_one_step_runs / layout.folder)
    assert moved_by_name.keys() == bf16_copies.keys()
    for name, padded in bf16_copies.items():
        gradient = without_padding(padded, moved_by_name[name])
        moved = -moved_by_name[name] / 100  # g / (|g| + 1), see ONE_STEP
        error = (moved / (1 - moved.abs()) - gradient).norm() / gradient.norm()
        assert error < limit, (name, error)


def test_bf16_gradients_are_summed_in_fp32_under_tensor_parallelism(corpora, tmp_path):
    """The same on two tensor-parallel ranks, whose copies round the partial sums of the products as the loop does."""
    script = [ROOT / "tests/distributed/tied_copies.py", tmp_path / "errors.json", corpora["corpus"]]
    torchrun = [BIN / "torchrun", "--nproc-per-node=2", f"--master-port={free_port()}"]
    done = run([*torchrun, *script], timeout=120, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert errors.keys() == {"sequence=False", "sequence=True"}
    assert max(errors.values()) < 1e-6, errors


def test_bf16_keeps_fp32_master_weights(runs):
    """The saved weights carry bits that bf16 cannot."""
    for layout in LAYOUTS:
        if layout.model == BF16:
            for key, value in weights(runs / layout.folder).items():
                assert value.dtype == torch.float32
                if value.dim() == 2:
                    assert not torch.equal(value.bfloat16().float(), value), key


def test_loss_by_timestep_and_by_loops_agree(runs):
    """The bins hold every masked token once, on every layout."""
    for layout in FP32:
        reference = REFERENCES[layout.model].folder
        for one, other in zip(metrics(runs / reference), metrics(runs / layout.folder), strict=True):
            for expected, got in zip(one["loss_by_timestep"], other["loss_by_timestep"], strict=True):
                assert (got is None) == (expected is None)
                assert got is None or got == pytest.approx(expected, rel=1e-4)
            assert other["loss_by_loops"].keys() == {str(int(other["loops"]))}
