"""Samples of a network that knows a joint distribution have the frequencies that can be computed for their sampler."""

import itertools

import pytest
import torch

from model.sampling.drawing import Drawing
from model.sampling.generate import SamplingPlan, generate
from model.sampling.guidance import Guidance
from model.sampling.order import ORDERS, Ancestral, EntropyBound, Ranked
from model.sampling.revise import Remasking
from model.sampling.speculative import Speculative
from tests.toy_denoisers import JointDenoiser, p_value

ROWS = 20_000
PAIR = torch.tensor([[0.30, 0.02, 0.05], [0.01, 0.25, 0.04], [0.08, 0.05, 0.20]])
TRIPLE = torch.tensor([3.0, 1, 0, 2, 5, 1, 1, 4, 2, 0, 2, 6, 1, 1, 3, 2, 0, 1, 5, 1, 1, 0, 3, 2, 4, 1, 2]).view(3, 3, 3)
REJECT = 1e-4
"""Largest p-value that counts as a difference. The seeds are fixed, so a test passes always or never."""


def counts_of(joint, plan, rows=ROWS, seed=0):
    network = JointDenoiser(joint)
    tokens = torch.full((rows, network.length), network.size)
    return network.counts(generate(network, tokens, torch.arange(rows), plan, network.size, seed).tokens)


def normalized(table):
    return table.double() / table.sum()


@pytest.mark.parametrize("block_length", [None, 2])
@pytest.mark.parametrize("draft", [0, 2])
@pytest.mark.parametrize("order", [name for name in ORDERS if name != "confidence"])
def test_one_token_per_step_draws_the_joint_distribution(order, draft, block_length):
    """In every order that does not depend on the drawn tokens. Confidence does: it postpones unlikely ones."""
    sampler = Speculative(ORDERS[order], draft) if draft else Ranked(ORDERS[order])
    counts = counts_of(TRIPLE, SamplingPlan(sampler, block_length=block_length))
    assert p_value(counts, normalized(TRIPLE)) > REJECT


def test_an_entropy_bound_of_zero_draws_the_joint_distribution():
    assert p_value(counts_of(TRIPLE, SamplingPlan(EntropyBound(0.0))), normalized(TRIPLE)) > REJECT


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("sampler", [Ancestral(), Remasking(0.0)], ids=["ancestral", "cap 0"])
def test_the_ancestral_process_draws_its_own_distribution(sampler, steps):
    """Each of T steps reveals a token with probability 1/T: both in the same step, as a product, with probability 1/T."""
    joint = normalized(PAIR)
    product = torch.outer(joint.sum(1), joint.sum(0))
    counts = counts_of(PAIR, SamplingPlan(sampler, steps))
    assert p_value(counts, product / steps + joint * (1 - 1 / steps)) > REJECT


def test_blocks_of_one_token_make_the_ancestral_process_exact():
    assert p_value(counts_of(TRIPLE, SamplingPlan(Ancestral(), 5, block_length=1)), normalized(TRIPLE)) > REJECT


def exact_remasking(joint, cap, steps):
    """The distribution of x_0 of ReMDM's chain for two tokens, by enumeration of all states (token 3 is [MASK])."""
    network = JointDenoiser(joint)
    chances = {(3, 3): 1.0}
    for left in range(steps, 0, -1):
        t, s = left / steps, (left - 1) / steps
        sigma = cap if left == steps else min(cap, s / (1 - t))
        reveal, after = (t - s + sigma * (1 - t)) / t, {}
        for state, chance in chances.items():
            conditionals = [conditional(network, state, i) for i in range(2)]
            outcomes = [
                [(v, reveal * float(conditionals[i][v])) for v in range(3)] + [(3, 1 - reveal)]
                if state[i] == 3
                else [(state[i], 1 - sigma), (3, sigma)]
                for i in range(2)
            ]
            for (a, first), (b, second) in itertools.product(*outcomes):
                after[a, b] = after.get((a, b), 0.0) + chance * first * second
        chances = after
    return torch.tensor([[chances.get((a, b), 0.0) for b in range(3)] for a in range(3)], dtype=torch.float64)


def conditional(network, state, i):
    """p(x_i | the revealed tokens of a pair)."""
    agrees = ((torch.tensor(state) == 3) | (torch.tensor(state) == network.sequences)).all(dim=1)
    posterior = agrees * network.joint.flatten()
    chances = torch.stack([posterior[network.sequences[:, i] == v].sum() for v in range(3)])
    return chances / chances.sum()


@pytest.mark.parametrize("cap", [0.1, 1.0])
def test_remasking_draws_the_distribution_of_its_chain(cap):
    counts = counts_of(PAIR, SamplingPlan(Remasking(cap), 6))
    expected = exact_remasking(PAIR, cap, 6)
    assert float(expected.sum()) == pytest.approx(1)
    assert p_value(counts, expected) > REJECT


def test_remasking_keeps_the_masked_share_of_the_ancestral_process():
    """Masked with probability t before each step: 1, 3/4, 1/2, 1/4."""
    shares = []
    sampler = Remasking(0.5)

    class Recording:
        revises = True

        def __call__(self, state, predict):
            shares.append(float((state.tokens == 3).double().mean()))
            return sampler(state, predict)

    counts_of(PAIR, SamplingPlan(Recording(), 4))
    assert shares == pytest.approx([1, 0.75, 0.5, 0.25], abs=4 * (0.25 / (2 * ROWS)) ** 0.5)


def test_temperature_top_k_and_top_p_change_the_marginals_as_defined():
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    cases = {
        Drawing(): [0.4, 0.3, 0.2, 0.1],
        Drawing(top_k=2): [4 / 7, 3 / 7, 0, 0],
        Drawing(top_p=0.69): [4 / 7, 3 / 7, 0, 0],
        Drawing(top_p=0.71): [4 / 9, 3 / 9, 2 / 9, 0],
        Drawing(top_p=0.01): [1, 0, 0, 0],
        Drawing(top_k=3, top_p=0.5): [4 / 7, 3 / 7, 0, 0],
        Drawing(temperature=0.5): [16 / 30, 9 / 30, 4 / 30, 1 / 30],
        Drawing(temperature=0): [1, 0, 0, 0],
    }
    for drawing, expected in cases.items():
        counts = counts_of(probabilities, SamplingPlan(Ancestral(), 1, drawing))
        assert p_value(counts, torch.tensor(expected, dtype=torch.float64)) > REJECT, drawing


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_guidance_multiplies_by_the_likelihood_of_the_prompt(scale):
    """Given x_1 = 2: p(x_2 | x_1) (p(x_2 | x_1) / p(x_2))^scale, normalized."""
    network, joint = JointDenoiser(PAIR), normalized(PAIR)
    plan = SamplingPlan(Ancestral(), 1, guidance=Guidance(JointDenoiser(PAIR), scale))
    tokens = torch.tensor([[2, 3]]).repeat(ROWS, 1)
    drawn = generate(network, tokens, torch.arange(ROWS), plan, 3, 0).tokens
    with_prompt, without = joint[2] / joint[2].sum(), joint.sum(0)
    expected = with_prompt * (with_prompt / without) ** scale
    assert p_value(network.counts(drawn)[2], expected / expected.sum()) > REJECT
    assert all((query.tokens == 3).all() for query in plan.guidance.denoise.queries)


def test_impossible_tokens_are_never_drawn():
    joint = torch.tensor([0.0, 0.5, 0.5, 0.0])
    guidance = Guidance(JointDenoiser(joint), 3.0)
    for plan in (SamplingPlan(Ancestral(), 1), SamplingPlan(Ancestral(), 1, guidance=guidance)):
        assert counts_of(joint, plan)[[0, 3]].sum() == 0
