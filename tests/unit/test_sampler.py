"""The ancestral sampler draws from distributions that can be enumerated."""

import itertools

import pytest
import torch

from model.sampler import ancestral_sample, sample_categorical

VOCAB, MASK = 3, 3
SEQUENCES = torch.tensor(list(itertools.product(range(VOCAB), repeat=2)))
JOINT = torch.tensor([0.30, 0.02, 0.05, 0.01, 0.25, 0.04, 0.08, 0.05, 0.20], dtype=torch.float64)


def true_conditionals(noisy, selected):
    """log p(x_i | revealed tokens) under JOINT at the selected positions, [m, VOCAB]."""
    agrees = ((noisy[:, None, :] == MASK) | (noisy[:, None, :] == SEQUENCES[None])).all(dim=-1)
    posterior = agrees * JOINT
    posterior /= posterior.sum(dim=1, keepdim=True)
    one_hot = torch.nn.functional.one_hot(SEQUENCES, VOCAB).double()
    return torch.einsum("bn,nlv->blv", posterior, one_hot).log()[selected]


def frequencies(denoising_steps, rows=40_000):
    generator = torch.Generator().manual_seed(0)
    drawn = ancestral_sample(true_conditionals, torch.full((rows, 2), MASK), MASK, denoising_steps, generator)
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
    generator = torch.Generator().manual_seed(1)
    drawn = ancestral_sample(lambda x, selected: torch.randn(selected.sum(), 7), tokens, 7, denoising_steps, generator)
    assert not (drawn == 7).any()
    assert torch.equal(drawn[:, :4], tokens[:, :4])
    assert (tokens[:, 4:] == 7).all()  # the input is not modified


def test_revealed_tokens_are_frozen_and_each_is_drawn_once():
    seen = []

    def denoise(noisy, selected):
        assert (noisy[selected] == 9).all()
        seen.append(selected.clone())
        return torch.randn(selected.sum(), 9)

    ancestral_sample(denoise, torch.full((3, 40), 9), 9, 20, torch.Generator().manual_seed(2))
    assert torch.equal(torch.stack(seen).sum(dim=0), torch.ones(3, 40, dtype=torch.long))


def test_equal_share_per_step():
    """Each of T steps reveals L / T of the L masked tokens in expectation."""
    counts = []

    def denoise(noisy, selected):
        counts.append(selected.sum().item())
        return torch.zeros(selected.sum(), 9)

    ancestral_sample(denoise, torch.full((100, 100), 9), 9, 4, torch.Generator().manual_seed(0))
    assert counts == pytest.approx([2500] * 4, abs=4 * (10_000 * 3 / 16) ** 0.5)


def test_impossible_tokens_are_never_drawn():
    logits = torch.zeros(1000, 4)
    logits[:, 3] = float("-inf")
    assert sample_categorical(logits, torch.Generator().manual_seed(0)).max() == 2
