"""Muon against its definition: singular values in fp64, torch's own Muon, and plain PyTorch over separate matrices."""

import math

import pytest
import torch
from torch import Tensor

from data_pipeline.dataset.blend import load_blend
from model.architecture import Architecture
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.optimizer.exchange import Exchange, Piece, Sharing
from pretrain.optimizer.orthogonal import COEFFICIENTS, ITERATIONS, muon_direction, orthogonalized
from pretrain.optimizer.schedule import learning_rate
from pretrain.training.start import build_run
from pretrain.training.state import TrainingRun
from pretrain.training.step import train_step
from tests.launching import ROOT
from tests.rows import loss_in_plain_pytorch

SHAPES = [(24, 24), (16, 40), (40, 16), (1, 7)]


def by_singular_values(matrix: Tensor, *_: object) -> Tensor:
    """The iteration as a function of the singular values, in fp64."""
    a, b, c = COEFFICIENTS
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / matrix.double().norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    return (left * values @ right).to(matrix.dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalization_changes_singular_values_alone(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalized(matrix), by_singular_values(matrix), rtol=1e-4, atol=1e-5)
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert values.min() > 0.68 and values.max() < 1.21


def test_a_zero_matrix_stays_zero():
    assert torch.equal(orthogonalized(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bf16_it_is_torchs_muon(shape):
    """With its adjustment of the learning rate: the size of AdamW's updates."""
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = gradient
    torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, momentum=0.0, adjust_lr_fn="match_rms_adamw").step()
    assert torch.equal(-weight, orthogonalized(gradient.bfloat16()).float() * (0.2 * math.sqrt(max(shape))))


def fused(query: Tensor, key: Tensor, value: Tensor, kv_heads: int) -> Tensor:
    """megatron-core's weight from the projections that other models store separately: grouped by key-value head."""
    parts = [part.view(kv_heads, -1, part.shape[1]) for part in (query, key, value)]
    return torch.cat([torch.cat([part[group] for part in parts]) for group in range(kv_heads)])


def separated(name: str, weight: Tensor, model: Architecture) -> list[Tensor]:
    """The matrices of one weight as other models store them."""
    if name.endswith("linear_fc1.weight"):
        return [weight[: model.ffn_size], weight[model.ffn_size :]]
    if not name.endswith("linear_qkv.weight"):
        return [weight]
    width, groups = model.head_dim, weight.chunk(model.kv_heads)
    rows = (slice(None, -2 * width), slice(-2 * width, -width), slice(-width, None))
    return [torch.cat([group[part] for group in groups]) for part in rows]


def joined(name: str, parts: list[Tensor], model: Architecture) -> Tensor:
    """The inverse of `separated`."""
    return fused(*parts, model.kv_heads) if name.endswith("linear_qkv.weight") else torch.cat(parts)


def test_fused_projections_are_separate_matrices(tiny):
    generator = torch.Generator().manual_seed(0)
    for name, rows in (("0.linear_qkv.weight", 2 * tiny.hidden_size), ("0.linear_fc1.weight", 2 * tiny.ffn_size)):
        momentum = torch.randn(rows, tiny.hidden_size, generator=generator)
        parts = [100**i * part for i, part in enumerate(separated(name, momentum, tiny))]
        expected = [muon_direction("0.linear_proj.weight", part, tiny) for part in parts]
        got = muon_direction(name, joined(name, parts, tiny), tiny)
        torch.testing.assert_close(got, joined(name, expected, tiny))


def plain_run(run: TrainingRun, steps: int) -> dict[str, Tensor]:
    """Weights after `steps` steps of plain PyTorch on one process: separate matrices, torch's own Muon and AdamW."""
    settings, model, optim = run.plan.settings, run.plan.settings.model, run.plan.settings.optim
    assert run.blend.corpora[0].padding == 0
    parts = {
        name: [torch.nn.Parameter(part.clone()) for part in separated(name, weight, model)]
        for name, weight in run.engine.full_weights()
    }
    by_kind: dict[str, list[Tensor]] = {"hidden": [], "ends": [], "norms": []}
    for name, own in parts.items():
        by_kind["norms" if "norm" in name else "hidden" if ".layers." in name else "ends"].extend(own)
    decay, arguments = optim.weight_decay, {"betas": (optim.beta1, optim.beta2), "eps": optim.eps}
    groups = [{"params": by_kind["ends"], "weight_decay": decay}, {"params": by_kind["norms"], "weight_decay": 0.0}]
    optimizers = [
        torch.optim.Muon(
            by_kind["hidden"], momentum=optim.momentum, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(groups, **arguments),
    ]
    for step in range(steps):
        weights = {name: joined(name, own, model) for name, own in parts.items()}
        loops, batches = run.plan.loops(step), run.batches[step]
        tokens, minimum = run.plan.tokens_per_step, settings.train.min_timestep
        loss_in_plain_pytorch(weights, model, batches, loops, minimum, tokens).backward()
        torch.nn.utils.clip_grad_norm_([part for own in parts.values() for part in own], optim.clip_norm)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(optim, step, run.plan.total_steps)
            optimizer.step()
            optimizer.zero_grad()
    return {name: joined(name, own, model).detach() for name, own in parts.items()}


def test_pieces_that_do_not_make_up_a_matrix_are_refused(world):
    """As after a change in how DeepSpeed divides the weights."""
    name = "tail.layers.0.mlp.linear_fc2.weight"
    sharing = Sharing(world.stage_group, 1, {name: torch.Size([2, 3])}, world.device)
    Exchange([Piece(name, 0, 0, 4, 0), Piece(name, 0, 4, 2, 4)], sharing)
    for start, length in ((4, 1), (3, 3)):
        with pytest.raises(RuntimeError, match=f"shard 0 of {name} is held in the ranges"):
            Exchange([Piece(name, 0, 0, 4, 0), Piece(name, 0, start, length, 4)], sharing)


def test_training_equals_plain_pytorch(corpus, world, monkeypatch, caplog):
    """What four steps change in each weight. torch.optim.Muon orthogonalizes in bf16, which would hide errors of 0.3 in matrices
    of low rank, so it is given the function of the singular values in fp64.
    """
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", by_singular_values)
    words = [f"data.path={corpus}", "optim.name=muon", "optim.weight_decay=0.5", "optim.clip_norm=0.5", "optim.lr=1e-2"]
    settings = load_settings(str(ROOT / "tests" / "tiny.yaml"), [*words, "optim.warmup_steps=0", "train.steps=4"])
    blend = load_blend(settings.data.path)
    run = build_run(make_run_plan(settings, blend.manifest, 1), blend, world)
    before = {name: weight.clone() for name, weight in run.engine.full_weights()}
    expected = plain_run(run, 4)
    for step in range(4):
        run.progress.step = step
        train_step(run, run.batches[step])
    for name, weight in run.engine.full_weights():
        change = expected[name] - before[name]
        error = (weight - expected[name]).norm() / change.norm()
        assert change.norm() > 0 and error < 1e-4, (name, error)
    assert "untested optimizer" not in caplog.text
