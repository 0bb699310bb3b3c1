"""The NELBO, checked by enumeration: with the true conditionals its expectation is the entropy of the data."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.denoiser import positions_of
from model.noise import timesteps
from model.objective import masked_cross_entropy, token_weights
from pretrain.evaluation.nelbo import Evaluator

VOCAB, LENGTH, MASK = 3, 3, 3
SEQUENCES = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))
MASKS = torch.tensor(list(itertools.product([False, True], repeat=LENGTH)))


@pytest.fixture(scope="module")
def probabilities() -> torch.Tensor:
    """A joint distribution in which all positions depend on each other, fp64 [27]."""
    weights = torch.rand(len(SEQUENCES), generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3
    return weights / weights.sum()


def true_logits(probabilities, noisy, positions):
    """log p(x_i | the unmasked tokens) at the selected positions, [m, VOCAB]."""
    agrees = ((noisy[:, None, :] == MASK) | (noisy[:, None, :] == SEQUENCES[None])).all(dim=-1)
    posterior = agrees * probabilities
    posterior = posterior / posterior.sum(dim=1, keepdim=True)
    one_hot = torch.nn.functional.one_hot(SEQUENCES, VOCAB).double()
    conditionals = torch.einsum("bn,nlv->blv", posterior, one_hot)
    return conditionals.clamp_min(1e-300).log().flatten(0, 1)[positions].float()


def test_expected_loss_is_the_entropy(world, probabilities):
    """Exact: sums over every x and every mask, and Gauss-Legendre quadrature in t, which is exact for these polynomials."""
    entropy = -(probabilities * probabilities.log()).sum().item()
    nodes, node_weights = np.polynomial.legendre.leggauss(4)
    expectation = 0.0
    for t, node_weight in zip((nodes + 1) / 2, node_weights / 2, strict=True):
        for mask in MASKS:
            masked = mask.expand(len(SEQUENCES), LENGTH)
            noisy = SEQUENCES.masked_fill(masked, MASK)
            cross_entropy = masked_cross_entropy(
                true_logits(probabilities, noisy, positions_of(masked)), SEQUENCES[masked]
            )
            weights = token_weights(torch.full(masked.shape, t)[masked], 0.0, LENGTH)
            chance = t ** mask.sum().item() * (1 - t) ** (LENGTH - mask.sum().item())
            # Every masked token of row x is weighted by p(x).
            per_row = probabilities.unsqueeze(1).expand(masked.shape)[masked].float()
            expectation += node_weight * chance * torch.dot(weights, cross_entropy * per_row).item()
    assert expectation == pytest.approx(entropy / LENGTH, rel=1e-5)


def test_expected_loss_of_documents_with_their_own_timesteps_is_the_entropy(world, probabilities):
    """A row of two independent documents, of one and three tokens: the sum of their entropies.

    Exact like the test above, but integrated over the row's value u. The t of the second document jumps where it wraps
    around, so the integral is taken on each side of the jump. There every term is a polynomial in u, because a weight 1/t
    is always multiplied by a probability t**k with k >= 1.
    """
    first, second = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), probabilities
    entropy = -(first * first.log()).sum().item() - (second * second.log()).sum().item()
    owners = np.array([[0, 1, 1, 1]])
    wrap = 1 - (5**0.5 - 1) / 2
    nodes, node_weights = np.polynomial.legendre.leggauss(5)
    expectation = 0.0
    for low, high in ((0.0, wrap), (wrap, 1.0)):
        for u, share in zip(low + (high - low) * (nodes + 1) / 2, node_weights * (high - low) / 2, strict=True):
            t = torch.from_numpy(timesteps(np.array([u]), owners, 0.0))
            for mask in itertools.product([False, True], repeat=4):
                masked = torch.tensor([mask])
                chance = torch.where(masked, t, 1 - t).prod().item()
                weights = token_weights(t[masked], 0.0, 4)
                expectation += share * chance * torch.dot(weights, _expected_nats(first, second, masked)).item()
    assert expectation == pytest.approx(entropy / 4, rel=1e-5)


def _expected_nats(first, second, masked):
    """-log p of each masked token under the true conditionals of its document, averaged over the data, fp32 [m]."""
    of_second = masked[:, 1:].expand(len(SEQUENCES), 3)
    noisy = SEQUENCES.masked_fill(of_second, MASK)
    nats = torch.zeros(len(SEQUENCES), 3, dtype=torch.float64)
    nats[of_second] = masked_cross_entropy(
        true_logits(second, noisy, positions_of(of_second)), SEQUENCES[of_second]
    ).double()
    own = -(first * first.log()).sum()
    return torch.cat([own[None], (second[:, None] * nats).sum(dim=0)])[masked[0]].float()


def test_expected_evaluation_estimate_is_the_entropy(world, probabilities):
    """The any-order form used in evaluation: k uniform on 1..L, then a uniformly random set of k masked tokens."""
    entropy = -(probabilities * probabilities.log()).sum().item()
    expectation = 0.0
    evaluator = Evaluator(
        lambda inputs, loops: [true_logits(probabilities, one.tokens, one.logit_positions) for one in inputs],
        world, "row", max_rows=len(SEQUENCES), batch_size=len(SEQUENCES),
    )  # fmt: skip
    for mask in MASKS[1:]:
        sets = [m for m in MASKS if m.sum() == mask.sum()]
        (rows,) = evaluator.nats_of_rows(_Rows(), _Noise(mask), [slice(0, len(SEQUENCES))], loops=1)
        expectation += (probabilities * rows).sum().item() / LENGTH / len(sets)
    assert expectation == pytest.approx(entropy / LENGTH, rel=1e-5)


class _Rows:
    manifest = SimpleNamespace(tokenizer=SimpleNamespace(mask_id=MASK))

    def rows(self, indices):
        return SEQUENCES.numpy()[indices]


class _Noise:
    document_ids = None

    def __init__(self, mask):
        self.rows, self._mask = np.arange(len(SEQUENCES)), mask

    def masks(self, part):
        return self._mask.expand(len(SEQUENCES), LENGTH).numpy()[part]


def test_cross_entropy_equals_torch(world):
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(40, 11, generator=generator), torch.randint(0, 11, (40,), generator=generator)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert torch.allclose(masked_cross_entropy(logits.clone(), targets), expected, atol=1e-6)


@pytest.mark.parametrize("distribution", ["uniform", "bell"])
@pytest.mark.parametrize("minimum", [1e-3, 0.2])
def test_weights_are_the_inverse_density(world, minimum, distribution):
    """Whatever the distribution of t is, the mean over t of weight * f(t) is the same integral of w(t) f(t)."""
    strata = (np.arange(20_000) + 0.5) / 20_000
    t = torch.from_numpy(timesteps(strata, np.zeros((20_000, 1), int), minimum, distribution)[:, 0])
    for weight, power, integral in (
        ("nelbo", 1, 1 - minimum),
        ("nelbo", 2, (1 - minimum**2) / 2),
        ("uniform", 1, 1.0),  # the mean number of masked tokens of a row, divided by itself
        ("uniform", 2, (1 - minimum**3) / 3 * 2 / (1 - minimum**2)),
    ):
        mean = (token_weights(t, minimum, 1, weight, distribution).double() * t**power).mean().item()
        assert mean == pytest.approx(integral, rel=1e-6), (weight, power)
