"""Single steps of samplers, on logits that were chosen by hand."""

import math

import pytest
import torch

from model.sampling.blocks import Schedule, number_blocks
from model.sampling.drawing import Drawing
from model.sampling.generate import SamplingPlan, generate
from model.sampling.order import ORDERS, EntropyBound, Ranked, Threshold
from model.sampling.revise import DraftAndVerify
from model.sampling.scores import confidence, margin, negative_entropy

MASK = 3
GREEDY = Drawing(temperature=0)


class Table:
    """Probabilities of three tokens that depend on the row's tokens and the position.

    Args:
        rows: the row as a string with "_" for [MASK], such as "_0__" -> the probabilities at every position.
    """

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def __call__(self, query):
        logits = []
        for place in query.positions.tolist():
            row, position = divmod(place, query.tokens.shape[1])
            text = "".join("_" if t == MASK else str(t) for t in query.tokens[row].tolist())
            self.asked.append((text, position))
            logits.append(torch.tensor(self.rows[text][position], dtype=torch.float64).log())
        return torch.stack(logits)


class Same(Table):
    """The same probabilities whatever the row contains."""

    def __init__(self, *positions):
        super().__init__({})
        self.positions = torch.tensor(positions, dtype=torch.float64).log()

    def __call__(self, query):
        return self.positions[query.positions % query.tokens.shape[1]]


def steps_of(sampler, network, length):
    plan = SamplingPlan(sampler, drawing=GREEDY)
    return generate(network, torch.full((1, length), MASK), torch.arange(1), plan, MASK, 0)


SURE, LIKELY, HALF, FLAT = (0.98, 0.01, 0.01), (0.1, 0.8, 0.1), (0.2, 0.3, 0.5), (0.34, 0.33, 0.33)


def test_scores():
    log_p = torch.tensor([SURE, LIKELY, HALF], dtype=torch.float64).log()
    tokens = torch.tensor([0, 1, 0])
    assert confidence(log_p, tokens).tolist() == pytest.approx([0.98, 0.8, 0.2])
    assert margin(log_p, tokens).tolist() == pytest.approx([0.97, 0.7, 0.2])
    entropies = [-sum(p * math.log(p) for p in row) for row in (SURE, LIKELY, HALF)]
    assert (-negative_entropy(log_p, tokens)).tolist() == pytest.approx(entropies)


def test_impossible_tokens_have_no_entropy():
    assert negative_entropy(torch.tensor([[0.0, -math.inf]]), torch.tensor([0])).tolist() == [0]


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
def test_the_surest_positions_come_first_and_of_equal_ones_the_leftmost(order):
    network = Same(HALF, SURE, FLAT, SURE, LIKELY)
    assert steps_of(Ranked(ORDERS[order]), network, 5).steps.tolist() == [[3, 0, 4, 1, 2]]
    assert steps_of(Ranked(ORDERS[order], 2), network, 5).steps.tolist() == [[1, 0, 2, 0, 1]]


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("probabilities", [(0.5, 0.3, 0.2), (0.9999, 0.0001, 0.0), (0.4, 0.39, 0.21)])
def test_rounding_errors_of_the_network_do_not_decide_the_order(order, probabilities):
    """Logits with the relative errors of float32."""

    def network(query):
        generator = torch.Generator().manual_seed(0)
        logits = torch.tensor(probabilities, dtype=torch.float64).log().expand(len(query.positions), 3)
        return logits * (1 + 1e-7 * torch.randn(logits.shape, generator=generator, dtype=torch.float64))

    assert steps_of(Ranked(ORDERS[order]), network, 6).steps.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_threshold_reveals_all_sure_tokens_and_at_least_one():
    result = steps_of(Threshold(0.75), Same(HALF, SURE, FLAT, LIKELY), 4)
    assert result.steps.tolist() == [[1, 0, 2, 0]]
    assert result.tokens.tolist() == [[2, 0, 0, 1]]


def test_entropy_bound_counts_all_but_the_largest_entropy():
    """Entropies 0.11, 0.64, 1.03, 1.10: three have 0.75 nats without the largest, all four have 1.78."""
    network = Same(HALF, SURE, FLAT, LIKELY)
    entropies = sorted(-sum(p * math.log(p) for p in row) for row in (HALF, SURE, FLAT, LIKELY))
    assert sum(entropies[:2]) < 0.8 < sum(entropies[:3])
    assert steps_of(EntropyBound(0.8), network, 4).steps.tolist() == [[0, 0, 1, 0]]
    assert steps_of(EntropyBound(0.0), network, 4).steps.tolist() == [[2, 0, 3, 1]]


def verified(second_draft):
    """Four tokens. The first two are drafted together; given the others, the first is doubtful and the second is not."""
    return Table({
        "____": {0: LIKELY, 1: LIKELY, 2: FLAT, 3: HALF},
        "11__": {2: SURE, 3: second_draft},
        "_1__": {0: HALF}, "1___": {1: LIKELY},
        "_100": {0: SURE}, "110_": {3: HALF},
    })  # fmt: skip


def test_doubtful_tokens_are_masked_again_and_drawn_anew():
    network = verified(second_draft=SURE)
    result = steps_of(DraftAndVerify(0.7, 0.6), network, 4)
    assert network.asked[4:8] == [("11__", 2), ("11__", 3), ("_1__", 0), ("1___", 1)]  # one forward pass
    assert result.tokens.tolist() == [[0, 1, 0, 0]]
    assert result.steps.tolist() == [[2, 0, 1, 1]]
    assert network.asked[8:] == [("_100", 0)]  # nothing can be masked again: nothing is verified


def test_fewer_tokens_are_masked_again_than_revealed():
    """The second step reveals one token only, so the doubtful first token stays."""
    result = steps_of(DraftAndVerify(0.7, 0.6), verified(second_draft=HALF), 4)
    assert result.tokens.tolist() == [[1, 1, 0, 2]]
    assert result.steps.tolist() == [[0, 0, 1, 2]]


def test_block_numbers_count_the_tokens_to_fill():
    unknown = torch.tensor([[False, True, True, False, True, True, True], [True] * 7])
    assert number_blocks(unknown, 2).tolist() == [[-1, 0, 0, -1, 1, 1, 2], [0, 0, 1, 1, 2, 2, 3]]
    assert number_blocks(unknown, None).tolist() == [[-1, 0, 0, -1, 0, 0, 0], [0] * 7]


def test_steps_are_shared_out_to_blocks():
    schedule = Schedule.of(7, torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3], [-1, -1, -1, 0]]))
    clocks = [schedule.at(step) for step in range(7)]
    assert torch.stack([c.block for c in clocks], 1).tolist() == [
        [0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2, 3], [0] * 7
    ]  # fmt: skip
    assert torch.stack([c.steps_left for c in clocks], 1).tolist() == [
        [3, 2, 1, 2, 1, 2, 1], [2, 1, 2, 1, 2, 1, 1], [7, 6, 5, 4, 3, 2, 1]
    ]  # fmt: skip
    assert torch.stack([c.block_steps for c in clocks], 1).tolist() == [
        [3, 3, 3, 2, 2, 2, 2], [2, 2, 2, 2, 2, 2, 1], [7] * 7
    ]  # fmt: skip
