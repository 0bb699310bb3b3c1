"""What every sampler must do, with every option that goes with it, on networks whose logits are exact."""

import itertools
from dataclasses import replace

import pytest
import torch

from model.sampling.drawing import Drawing
from model.sampling.generate import SamplingPlan, generate
from model.sampling.guidance import Guidance
from model.sampling.order import ORDERS, Ancestral, EntropyBound, Ranked, Threshold
from model.sampling.revise import DraftAndVerify, Remasking
from model.sampling.speculative import Speculative
from tests.toy_denoisers import HashedDenoiser

VOCAB, MASK, STOP, LENGTH = 9, 9, 4, 13
PLANS = {
    "ancestral": SamplingPlan(Ancestral(), 7),
    "remasking": SamplingPlan(Remasking(0.4), 7),
    **{f"{name}, one": SamplingPlan(Ranked(order)) for name, order in ORDERS.items()},
    "confidence, 3 per step": SamplingPlan(Ranked(ORDERS["confidence"], 3)),
    "margin, 7 steps": SamplingPlan(Ranked(ORDERS["margin"], None), 7),
    "random, 7 steps": SamplingPlan(Ranked(ORDERS["random"], None), 7),
    "confidence, speculative": SamplingPlan(Speculative(ORDERS["confidence"], 3)),
    "left_to_right, speculative": SamplingPlan(Speculative(ORDERS["left_to_right"], 2)),
    "threshold": SamplingPlan(Threshold(0.5)),
    "entropy bound": SamplingPlan(EntropyBound(1.0)),
    "draft and verify": SamplingPlan(DraftAndVerify(0.3, 0.6)),
}
OPTIONS = {
    "plain": {},
    "greedy, blocks of 4": {"drawing": Drawing(temperature=0), "block_length": 4},
    "top-k, top-p, temperature, blocks of 5": {"drawing": Drawing(0.7, top_k=5, top_p=0.8), "block_length": 5},
    "guidance": {"guidance": Guidance(HashedDenoiser(VOCAB), 1.5)},
    "stop": {"stop_id": STOP},
    "all": {
        "drawing": Drawing(1.3, top_p=0.9), "block_length": 3, "guidance": Guidance(HashedDenoiser(VOCAB), 0.5), "stop_id": STOP
    },
}  # fmt: skip


def prompts():
    """8 rows: nothing given, a beginning, an end, both, single tokens in between, all but one given."""
    rows = torch.full((8, LENGTH), MASK)
    rows[1:4, :2] = torch.tensor([3, 1])
    rows[3, -4:] = torch.tensor([1, 2, 5, 4])
    rows[4, -1] = 7
    rows[5, ::2] = 6
    rows[6, :-1] = 8
    rows[7, 5] = STOP
    return rows


def fill(plan, rows, samples=None, seed=3):
    samples = torch.arange(len(rows)) if samples is None else samples
    return generate(HashedDenoiser(VOCAB), rows, samples, plan, MASK, seed)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", PLANS)
def test_conformance(name, options):
    """Nothing masked, the prompt untouched, the same rows alone and together, the same text from the same seed."""
    plan, rows = replace(PLANS[name], **OPTIONS[options]), prompts()
    together = fill(plan, rows)
    assert not (together.tokens == MASK).any()
    given = rows != MASK
    assert torch.equal(together.tokens[given], rows[given])
    assert torch.equal(rows, prompts())  # the input is not modified
    assert (together.steps[given] == -1).all()
    for number in range(8):
        alone = fill(plan, rows[number, None], torch.tensor([number]))
        assert torch.equal(alone.tokens[0], together.tokens[number])
        assert torch.equal(alone.steps[0], together.steps[number])
    backwards = fill(plan, rows.flip(0), torch.arange(8).flip(0))
    assert torch.equal(backwards.tokens.flip(0), together.tokens)
    if plan.drawing.temperature > 0:
        assert not torch.equal(fill(plan, rows, seed=4).tokens, together.tokens)


@pytest.mark.parametrize("name", PLANS)
def test_the_network_is_asked_for_masked_positions_of_unfinished_rows_only(name):
    network, rows = HashedDenoiser(VOCAB), prompts()
    generate(network, rows, torch.arange(8), replace(PLANS[name], stop_id=STOP), MASK, 0)
    assert network.queries
    for query in network.queries:
        assert (query.tokens.flatten()[query.positions] == MASK).all()
        assert (query.positions.diff() > 0).all()
        assert set((query.positions // LENGTH).tolist()) == set(range(len(query.tokens)))
        assert torch.equal(query.time, (query.tokens == MASK).double().mean(dim=1))
        given = rows[query.samples] != MASK
        assert torch.equal(query.tokens[given], rows[query.samples][given])
        for row, position in zip(
            (query.positions // LENGTH).tolist(), (query.positions % LENGTH).tolist(), strict=True
        ):
            first = int(given[row].nonzero().max()) + 1 if given[row].any() else 0
            assert STOP not in query.tokens[row, first:position], "after the end of the row"


@pytest.mark.parametrize("name", [name for name, plan in PLANS.items() if not isinstance(plan.sampler, Speculative)])
def test_a_step_reveals_what_the_network_was_asked_for(name):
    """Ancestral samplers and fixed orders compute no other logits; those that rank compute the block's masked ones."""
    network = HashedDenoiser(VOCAB)
    generate(network, torch.full((1, 12), MASK), torch.arange(1), replace(PLANS[name], block_length=6), MASK, 0)
    asked = sum(len(query.positions) for query in network.queries)
    if name.startswith(("ancestral", "left_to_right", "random")):
        assert asked == 12
    first = network.queries[0].positions
    assert (first < 6).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("options", OPTIONS)
def test_speculative_decoding_gives_the_output_of_one_token_per_step(order, options):
    rows = torch.cat([prompts(), torch.full((8, LENGTH), MASK)])
    plain = fill(replace(SamplingPlan(Ranked(ORDERS[order])), **OPTIONS[options]), rows)
    for draft in (1, 2, 20):
        faster = fill(replace(plan_of_draft(order, draft), **OPTIONS[options]), rows)
        assert torch.equal(faster.tokens, plain.tokens)
        assert (faster.steps <= plain.steps).all()


def plan_of_draft(order, draft):
    return SamplingPlan(Speculative(ORDERS[order], draft))


class Independent:
    """Logits that depend on the position only: every guess is right."""

    def __init__(self):
        self.calls = 0

    def __call__(self, query):
        self.calls += 1
        position = query.positions % query.tokens.shape[1]
        return ((position[:, None] * 7 + torch.arange(VOCAB) * 3) % 11).double() / 2


@pytest.mark.parametrize("order", ORDERS)
def test_right_guesses_are_all_accepted(order):
    """12 tokens: the first step has no guess and reveals 1; each further one reveals its 3 guesses and one more."""
    network = Independent()
    generate(network, torch.full((2, 12), MASK), torch.arange(2), plan_of_draft(order, 3), MASK, 0)
    assert network.calls == 1 + 3


@pytest.mark.parametrize("name", [name for name, plan in PLANS.items() if plan.steps])
def test_blocks_are_filled_from_left_to_right(name):
    """11 tokens to fill in blocks of 4, 4 and 3 within 7 steps, which are shared out as 3, 2 and 2."""
    rows = prompts()[1:2]
    steps = fill(replace(PLANS[name], block_length=4), rows).steps[0, 2:]
    ends = [3, 5, 7]
    for number, part in enumerate(steps.split(4)):
        assert part.max() < ends[number]
        assert part.min() >= ([0, *ends][number] if name in ("ancestral", "remasking") else 0)
    assert all(a.max() < b.min() for a, b in itertools.pairwise(steps.split(4)))


def test_equal_shares_of_the_steps():
    """As LLaDA's `get_num_transfer_tokens`: what cannot be shared goes to the first steps."""
    steps = fill(SamplingPlan(Ranked(ORDERS["left_to_right"], None), 4), torch.full((1, 10), MASK)).steps
    assert steps.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 3, 3]]


def test_fewer_steps_than_blocks_is_an_error():
    with pytest.raises(ValueError, match="2 steps are too few for the 4 blocks of a row"):
        fill(SamplingPlan(Ancestral(), 2, block_length=4), prompts())


def test_logits_that_are_not_numbers_are_an_error():
    with pytest.raises(FloatingPointError, match="NaN"):
        generate(
            lambda query: torch.full((len(query.positions), 3), float("nan")),
            torch.full((1, 4), 3), torch.arange(1), PLANS["ancestral"], 3, 0,
        )  # fmt: skip


def test_stop_ends_a_row_at_its_first_end_after_the_prompt():
    rows = prompts()
    plain = fill(SamplingPlan(Ranked(ORDERS["left_to_right"])), rows)
    stopped = fill(replace(SamplingPlan(Ranked(ORDERS["left_to_right"])), stop_id=STOP), rows)
    ended = 0
    for row, before, after, steps, length in zip(rows, plain.tokens, *stopped, strict=True):
        last_given = int((row != MASK).nonzero().max()) if (row != MASK).any() else -1
        ends = [i for i in range(last_given + 1, LENGTH) if before[i] == STOP]
        end = ends[0] if ends else LENGTH
        # From left to right nothing before the end can depend on what would come after it.
        assert torch.equal(after[: end + 1], before[: end + 1])
        assert (after[end + 1 :] == STOP).all()
        assert (steps[end + 1 :] == -1).all()
        assert length == end
        ended += end < LENGTH
    assert ended >= 3
