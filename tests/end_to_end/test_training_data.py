"""Training on rows with padding and on mixtures: the numbers against plain PyTorch and against each part alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.dataset.blend import load_blend
from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.dataset.samples import Samples
from data_pipeline.manifest import load_manifest
from model.noise import masks, stratified, timesteps
from model.reference import reference_logits
from model.weights import initial_weights
from pretrain.cli import main as loopmdm
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.evaluation.nelbo import freeze_noise
from pretrain.training.batches import Batches
from pretrain.training.start import run_training
from tests.checkpoints import weights_of
from tests.launching import ROOT, metrics, train
from tests.rows import rows_of

pytestmark = pytest.mark.end_to_end
RECIPE = ROOT / "tests" / "tiny.yaml"


@pytest.fixture(scope="module")
def padded(corpus, tmp_path_factory) -> Path:
    """The tests' corpus, its documents whole in rows of 256."""
    folder = tmp_path_factory.mktemp("padded") / "data"
    shutil.copytree(corpus, folder)
    assert loopmdm(["prepare", "--repack", str(folder), "--seq-len", "256", "--pack", "best_fit"]) == 0
    split = PackedDataset(folder, "train").manifest.splits["train"]
    assert split.padded_tokens / (split.rows * 256) > 0.002
    return folder


@pytest.fixture(scope="module")
def mixture(corpus, tmp_path_factory) -> Path:
    """A blend file of two folders with the same tokenizer: other text, one of them padded."""
    folder = tmp_path_factory.mktemp("mixture")
    shutil.copytree(corpus, folder / "plain")
    text = folder / "other.jsonl"
    text.write_text("".join(json.dumps({"text": "jihg fedc " * (i % 5 + 1) + str(i)}) + "\n" for i in range(120)))
    words = ["--input", str(text), "--output", str(folder / "other"), "--tokenizer", str(corpus / "tokenizer.model")]
    words += ["--seq-len", "32", "--pack", "best_fit", "--validation-fraction", "0", "--workers", "1"]
    assert loopmdm(["prepare", *words]) == 0
    blend = folder / "blend.yaml"
    blend.write_text("corpora:\n- {path: plain, weight: 3}\n- {path: other, weight: 1, max_epochs: 0.5}\n")
    return blend


def settings_of(data: Path, *words: str):
    return load_settings(str(RECIPE), [f"data.path={data}", *words])


def run_here(data: Path, folder: Path, name: str, *words: str) -> Path:
    settings, blend = settings_of(data, f"run.dir={folder}", f"run.name={name}", *words), load_blend(data)
    assert run_training(make_run_plan(settings, blend.manifest, 1), blend, resume=True) == 0
    return folder / name


def test_a_finished_run_over_capped_corpora_can_be_started_again(corpus, tmp_path, capsys):
    """Its corpora have no rows for one more step, and it needs none."""
    capped = tmp_path / "capped.yaml"
    rows = load_manifest(corpus).splits["train"].rows
    capped.write_text(f"corpora:\n- {{path: {corpus}, weight: 1, max_epochs: {40 / rows!r}}}\n")
    run_here(capped, tmp_path, "run", "train.steps=5", "optim.warmup_steps=1")
    capsys.readouterr()
    run_here(capped, tmp_path, "run", "train.steps=5", "optim.warmup_steps=1")
    assert "nothing to do:" in capsys.readouterr().out


def nats_of(weights, architecture, clean, masked, loops, document_ids=None):
    """-log p of every masked token, 0 elsewhere, [b, s]."""
    noisy = torch.where(masked, architecture.mask_id, clean)
    logits = reference_logits(weights, architecture, noisy, loops, document_ids)
    # A pad id has no logit of its own to look at where it is not a target.
    return -logits.log_softmax(-1).gather(-1, clean[..., None]).squeeze(-1) * masked


@pytest.mark.parametrize("data", ["corpus", "padded", "mixture"])
def test_masks_and_counts_of_batches_leave_padding_out_on_every_layout(request, data):
    path = request.getfixturevalue(data)
    blend = load_blend(path)
    for ranks, micro in ((1, 2), (2, 4), (4, 1)):
        plan = make_run_plan(settings_of(path, f"train.micro_batch_size={micro}"), blend.manifest, ranks)
        source = Samples.of(blend, 0)
        for step in (0, 7):
            samples = np.arange(8 * step, 8 * step + 8)
            real = source.document_ids(samples) >= 0
            t = timesteps(
                stratified(0, step, 8), np.zeros_like(source.document_ids(samples)), plan.settings.train.min_timestep
            )
            expected = masks(0, samples, t) & real
            made = [b for rank in range(ranks) for b in Batches(plan, source, rank, torch.device("cpu"))[step]]
            assert _batch_tokens(made, plan.settings.train.min_timestep) == pytest.approx(int(real.sum()))
            clean, masked, _ = rows_of(made)
            assert np.array_equal(masked.numpy(), expected)
            assert np.array_equal(clean.numpy(), source.rows(samples))
            if data == "corpus":
                assert real.all() and int(real.sum()) == plan.tokens_per_step


def test_padding_is_no_target_of_an_autoregressive_model(padded):
    blend = load_blend(padded)
    plan, source = make_run_plan(settings_of(padded, "model.causal=true"), blend.manifest, 1), Samples.of(blend, 0)
    made = Batches(plan, source, 0, torch.device("cpu"))[0]
    ids = source.document_ids(np.arange(plan.settings.train.global_batch_size))
    assert sum(len(one.inputs.targets) for one in made) == (ids >= 0).sum() < ids.size
    assert sum(one.inputs.loss_weights.sum().item() for one in made) == pytest.approx(1)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("attention", ["row", "document"])
@pytest.mark.parametrize("noise", ["row", "document"])
def test_batches_have_the_documents_and_timesteps_of_the_rows(short_documents, tmp_path, packing, attention, noise):
    folder = tmp_path / "data"
    shutil.copytree(short_documents, folder)
    assert loopmdm(["prepare", "--repack", str(folder), "--seq-len", "32", "--pack", packing]) == 0
    blend = load_blend(folder)
    words = (f"train.attention={attention}", f"train.noise={noise}")
    plan = make_run_plan(settings_of(folder, *words), blend.manifest, 2)
    source, minimum = Samples.of(blend, 0), plan.settings.train.min_timestep
    samples = np.arange(24, 32)
    owners = source.document_ids(samples)
    assert owners.max(axis=1).min() >= 1 and owners.max() >= 2, "too few documents a row"
    assert np.any(owners < 0) == (packing == "best_fit")
    made = [b for rank in range(2) for b in Batches(plan, source, rank, torch.device("cpu"))[3]]
    t = np.ones(owners.shape)
    for row, (value, numbers) in enumerate(zip(stratified(0, 3, 8), owners, strict=True)):
        for number in set(numbers[numbers >= 0]):
            u = (value + number * (5**0.5 - 1) / 2) % 1 if noise == "document" else value
            t[row, numbers == number] = minimum + (1 - minimum) * u
    _, masked, drawn = (x.numpy() for x in rows_of(made))
    assert not masked[owners < 0].any() and np.array_equal(masked, masks(0, samples, t) & (owners >= 0))
    assert drawn[masked] == pytest.approx(t[masked], abs=1e-12)
    assert torch.cat([b.inputs.loss_weights for b in made]).numpy() == pytest.approx(
        (1 - minimum) / t[masked] / source.lengths(samples).sum(), rel=1e-6
    )
    if attention == "row":
        assert all(b.inputs.document_ids is None for b in made)
    else:
        assert np.array_equal(torch.cat([b.inputs.document_ids for b in made]).numpy(), owners)


@pytest.mark.parametrize("data", ["corpus", "padded"])
def test_complementary_rows_share_a_sample_and_split_its_tokens(request, data):
    """Rows 2 i and 2 i + 1 of a step, also on different ranks, with t from a bell and weights of the mean cross-entropy."""
    path = request.getfixturevalue(data)
    blend = load_blend(path)
    words = ("train.complementary_masks=true", "train.timesteps=bell", "train.loss_weight=uniform")
    source, samples = Samples.of(blend, 0), np.arange(12, 16)
    real = source.document_ids(samples) >= 0
    for ranks in (1, 2, 8):
        plan = make_run_plan(settings_of(path, "train.micro_batch_size=1", *words), blend.manifest, ranks)
        minimum = plan.settings.train.min_timestep
        made = [b for rank in range(ranks) for b in Batches(plan, source, rank, torch.device("cpu"))[3]]
        clean, masked, drawn = (x.numpy() for x in rows_of(made))
        t = timesteps(stratified(0, 3, 4), np.zeros(real.shape, int), minimum, "bell")
        assert np.array_equal(clean[::2], source.rows(samples)) and np.array_equal(clean[1::2], clean[::2])
        assert np.array_equal(masked[::2], masks(0, samples, t) & real)
        assert np.array_equal(masked[::2] | masked[1::2], real)
        assert drawn[::2][masked[::2]] == pytest.approx(t[masked[::2]])
        assert drawn[1::2][masked[1::2]] == pytest.approx((1 + minimum - t)[masked[1::2]])
        u = (drawn[masked] - minimum) / (1 - minimum)
        expected = 2 / (1 + minimum) / (0.3 + 4.2 * u * (1 - u)) / (2 * real.sum())
        assert torch.cat([b.inputs.loss_weights for b in made]).numpy() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("data", ["padded", "mixture"])
def test_loss_is_the_mean_over_real_tokens(request, world, data, tmp_path):
    """The first step's loss, of initial weights, against plain PyTorch; then other micro-batches with the same numbers."""
    path = request.getfixturevalue(data)
    words = ("train.loops=2", "optim.ema_decay=0", "run.stop_after=6")
    run = run_here(path, tmp_path, "run", *words)
    settings, blend = settings_of(path), load_blend(path)
    plan = make_run_plan(settings, blend.manifest, 1)
    architecture, minimum = plan.settings.model, settings.train.min_timestep
    shapes = {name: w.shape for name, w in weights_of(run / "checkpoints/step_6", architecture=architecture).items()}
    drawn = initial_weights(architecture, settings.run.seed)
    weights = {name: drawn(name, shape) for name, shape in shapes.items()}
    source, samples = Samples.of(blend, settings.run.seed), np.arange(8)
    clean, real = torch.from_numpy(source.rows(samples)), torch.from_numpy(source.document_ids(samples) >= 0)
    t = timesteps(stratified(settings.run.seed, 0, 8), np.zeros(clean.shape), minimum)
    masked = torch.from_numpy(masks(settings.run.seed, samples, t)) & real
    assert not real.all()
    nats = nats_of(weights, architecture, clean, masked, loops=2)
    expected = (nats * ((1 - minimum) / torch.from_numpy(t))).sum() / real.sum()
    assert metrics(run)[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    other = run_here(path, tmp_path, "other", *words, "train.micro_batch_size=8")
    for one, two in zip(metrics(run), metrics(other), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)


def test_two_ranks_train_the_same_on_padded_rows(padded, world, tmp_path):
    one = run_here(padded, tmp_path, "one", "run.stop_after=4")
    words = [f"data.path={padded}", f"run.dir={tmp_path}", "run.name=two", "run.stop_after=4"]
    train("--config", RECIPE, *words, ranks=2)
    for single, double in zip(metrics(one), metrics(tmp_path / "two"), strict=True):
        assert single["loss"] == pytest.approx(double["loss"], rel=1e-4)


@pytest.mark.parametrize("attention", ["row", "document"])
def test_evaluation_on_padded_rows_equals_the_oracle(padded, world, tmp_path, attention, capsys):
    # Weights so wide that attention to other documents changes the figures.
    words = ("eval.every=20", "eval.rows=12", "eval.loops=1,3", f"train.attention={attention}", "model.init_std=0.3")
    run = run_here(padded, tmp_path, "run", *words)
    banner = capsys.readouterr().out
    for line in ("attention within each\n", "\nattention within documents  torch SDPA with a mask"):
        assert (line in banner) == (attention == "document")
    dataset = PackedDataset(padded, "validation")
    weights, architecture = weights_of(run / "checkpoints/step_20"), None
    architecture = make_run_plan(settings_of(padded), dataset.manifest, 1).settings.model
    noise = freeze_noise(dataset, 12)
    clean, masked = torch.from_numpy(dataset.rows(noise.rows)), torch.from_numpy(noise.masks(slice(0, 12)))
    owners = dataset.document_ids(noise.rows)
    real, apart = owners >= 0, torch.from_numpy(owners)
    document_ids = apart if attention == "document" else None
    assert not np.any(masked.numpy() & ~real) and np.array_equal(masked.sum(1).numpy(), noise.masked_counts)
    assert np.array_equal(real.sum(axis=1), noise.lengths) and not real.all()
    figures = json.loads((run / "eval" / "train_step_20.json").read_text())
    assert figures["tokens"] == real.sum()
    for row in figures["loops"]:
        nats = nats_of(weights, architecture, clean, masked, row["loops"], document_ids)
        # The estimate of a row's sum is L times the mean over its masked tokens; the figure is all sums over all tokens.
        sums = noise.lengths * (nats.sum(1) / masked.sum(1)).numpy()
        assert row["nats_per_token"] == pytest.approx(sums.sum() / real.sum(), rel=1e-5)
        assert row["nats_per_token_se"] > 0
        other = nats_of(weights, architecture, clean, masked, row["loops"], None if document_ids is not None else apart)
        others = noise.lengths * (other.sum(1) / masked.sum(1)).numpy()
        assert abs(others.sum() / sums.sum() - 1) > 1e-4


def test_validation_of_a_mixture_weighs_the_corpora_as_training_does(corpus, padded, world, tmp_path, capsys):
    """In shares of tokens: a corpus with padding has fewer in a row."""
    shutil.copytree(corpus, tmp_path / "plain")
    assert loopmdm(["prepare", "--repack", str(tmp_path / "plain"), "--seq-len", "256", "--pack", "concat"]) == 0
    blend = tmp_path / "blend.yaml"
    blend.write_text(f"corpora:\n- {{path: plain, weight: 3}}\n- {{path: {padded}, weight: 1}}\n")
    run = run_here(blend, tmp_path, "run", "run.stop_after=2", "eval.every=2", "eval.rows=6", "eval.loops=1,2")
    figures = [json.loads(path.read_text()) for path in sorted((run / "eval").glob("train_step_2_*.json"))]
    plain, other, mixture = figures
    split = PackedDataset(padded, "train").manifest.splits["train"]
    tokens = np.array([3.0, 1 - split.padded_tokens / (split.rows * 256)])
    share = tokens / tokens.sum()
    for row, a, b in zip(mixture["loops"], plain["loops"], other["loops"], strict=True):
        assert row["nats_per_token"] == pytest.approx(share @ [a["nats_per_token"], b["nats_per_token"]], rel=1e-12)
        errors = share * [a["nats_per_token_se"], b["nats_per_token_se"]]
        assert row["nats_per_token_se"] == pytest.approx((errors**2).sum() ** 0.5, rel=1e-12)
    assert mixture["corpora"] == ["1_plain", "2_data"] and mixture["shares"] == pytest.approx(share)
    assert "validation of mixture at step 2 (raw weights), nats/token: S=1 " in capsys.readouterr().out
    assert loopmdm(["evaluate", str(run), "--rows", "6", "--loops", "1,2", "--weights", "raw"]) == 0
    after = json.loads((run / "eval" / "step_2_raw_loops_1-2_rows_6_mixture.json").read_text())
    for row, before in zip(after["loops"], mixture["loops"], strict=True):
        assert row["nats_per_token"] == pytest.approx(before["nats_per_token"], rel=1e-6)
    assert "mixture, nats/token: S=1 " in capsys.readouterr().out


def test_a_mixture_trains_evaluates_and_resumes(mixture, world, tmp_path, capsys):
    run = run_here(mixture, tmp_path, "run", "run.stop_after=9", "eval.every=20", "eval.rows=8", "eval.loops=1")
    banner = capsys.readouterr().out
    assert "a mixture of 2 corpora, rows of 32 tokens" in banner
    assert "plain: weight 75.00%" in banner and "other: weight 25.00%" in banner and "epochs, at most 0.5" in banner
    run_here(mixture, tmp_path, "run", "eval.every=20", "eval.rows=8", "eval.loops=1")
    assert "validation of 1_plain at step 20" in capsys.readouterr().out  # the other has no validation split
    whole = run_here(mixture, tmp_path, "whole")
    assert [m["loss"] for m in metrics(run)] == [m["loss"] for m in metrics(whole)]
    words = ["evaluate", str(run), "--rows", "8", "--loops", "1", "--weights", "raw"]
    assert loopmdm(words) == 0 and loopmdm([*words, "--data", str(mixture.parent / "plain")]) == 0
    names = ("train_step_20_1_plain", "step_20_raw_loops_1_rows_8_1_plain", "step_20_raw_plain_loops_1_rows_8")
    during, after, alone = (json.loads((run / "eval" / f"{name}.json").read_text())["loops"] for name in names)
    assert after == alone and after[0]["nats_per_token"] == pytest.approx(during[0]["nats_per_token"], rel=1e-6)


def test_resuming_with_another_mixture_is_refused(mixture, world, tmp_path):
    from pretrain.errors import UserError

    run_here(mixture, tmp_path, "run", "run.stop_after=2")
    other = mixture.with_name("other.yaml")
    other.write_text(mixture.read_text().replace("weight: 3", "weight: 2"))
    with pytest.raises(UserError, match="data"):
        run_here(other, tmp_path, "run")


def _batch_tokens(batches, minimum: float) -> float:
    """The number of tokens that the loss weights divide by."""
    t = torch.cat([batch.timesteps for batch in batches])
    return ((1 - minimum) / t / torch.cat([batch.inputs.loss_weights for batch in batches])).mean().item()
