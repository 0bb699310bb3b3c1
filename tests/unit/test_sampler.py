"""The ancestral sampler draws from distributions that can be enumerated."""

import itertools

import pytest
import torch

from model.sampling.generate import SamplingPlan, generate
from model.sampling.order import Ancestral

VOCAB, MASK = 3, 3
SEQUENCES = torch.tensor(list(itertools.product(range(VOCAB), repeat=2)))
JOINT = torch.tensor([0.30, 0.02, 0.05, 0.01, 0.25, 0.04, 0.08, 0.05, 0.20], dtype=torch.float64)


def true_conditionals(query):
    """log p(x_i | revealed tokens) under JOINT at the wanted positions, [m, VOCAB]."""
    agrees = ((query.tokens[:, None, :] == MASK) | (query.tokens[:, None, :] == SEQUENCES[None])).all(dim=-1)
    posterior = agrees * JOINT
    posterior /= posterior.sum(dim=1, keepdim=True)
    one_hot = torch.nn.functional.one_hot(SEQUENCES, VOCAB).double()
    return torch.einsum("bn,nlv->blv", posterior, one_hot).log().flatten(0, 1)[query.positions]


def sample(denoise, tokens, mask, steps, seed=0):
    return generate(denoise, tokens, torch.arange(len(tokens)), SamplingPlan(Ancestral(), steps), mask, seed)


def frequencies(denoising_steps, rows=40_000):
    drawn = sample(true_conditionals, torch.full((rows, 2), MASK), MASK, denoising_steps)
    return torch.bincount(drawn[:, 0] * VOCAB + drawn[:, 1], minlength=9) / rows


def test_one_step_draws_the_product_of_the_marginals():
    table = JOINT.view(VOCAB, VOCAB)
    product = torch.outer(table.sum(1), table.sum(0)).flatten()
    assert (frequencies(1) - product).abs().sum() / 2 < 0.012


def test_many_steps_draw_the_joint_distribution():
    """With T steps both tokens are revealed at once with probability about 1/T; otherwise the draw is exact."""
    assert (frequencies(200) - JOINT).abs().sum() / 2 < 0.012


@pytest.mark.parametrize("denoising_steps", [1, 3, 16, 100])
def test_nothing_stays_masked_and_the_prompt_does_not_change(denoising_steps):
    tokens = torch.full((5, 12), 7)
    tokens[:, :4] = torch.arange(4)
    drawn = sample(lambda query: torch.randn(len(query.positions), 7), tokens, 7, denoising_steps)
    assert not (drawn == 7).any()
    assert torch.equal(drawn[:, :4], tokens[:, :4])
    assert (tokens[:, 4:] == 7).all()  # the input is not modified


def test_revealed_tokens_are_frozen_and_each_is_drawn_once():
    seen = torch.zeros(3, 40, dtype=torch.long)

    def denoise(query):
        assert (query.tokens.flatten()[query.positions] == 9).all()
        seen[query.samples[query.positions // 40], query.positions % 40] += 1
        return torch.randn(len(query.positions), 9)

    sample(denoise, torch.full((3, 40), 9), 9, 20, seed=2)
    assert (seen == 1).all()


def test_equal_share_per_step():
    """Each of T steps reveals L / T of the L masked tokens in expectation."""
    counts = []

    def denoise(query):
        counts.append(len(query.positions))
        return torch.zeros(len(query.positions), 9)

    sample(denoise, torch.full((100, 100), 9), 9, 4)
    assert counts == pytest.approx([2500] * 4, abs=4 * (10_000 * 3 / 16) ** 0.5)


def test_a_row_does_not_depend_on_the_others():
    def denoise(query):
        return (
            query.tokens.sum(dim=1)[query.positions // 24, None] + torch.arange(50) * query.positions[:, None]
        ).sin()

    tokens = torch.full((8, 24), 50)
    together = sample(denoise, tokens, 50, 7, seed=5)
    assert torch.equal(together[:1], sample(denoise, tokens[:1], 50, 7, seed=5))


def test_impossible_tokens_are_never_drawn():
    logits = torch.zeros(1000, 4)
    logits[:, 3] = float("-inf")
    drawn = sample(lambda query: logits[: len(query.positions)], torch.full((1000, 1), 4), 4, 1)
    assert drawn.max() == 2
