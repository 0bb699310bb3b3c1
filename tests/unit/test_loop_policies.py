"""How many passes of the looped block a row gets, and what the network computes for it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.flops import FlopsModel
from model.sampling import parts
from model.sampling.network import Compute, LoopedNetwork
from model.sampling.passes import Judge, LoopPolicy, Settling, change_of_state, run_passes
from tests.tiny_networks import PLANS, fill, prompts, query_of, sharp_model

THRESHOLDS = {"direction": 0.16, "state": 0.21, "logit-lens": 0.02, "prediction": 0.0085}
CRITERIA = tuple(THRESHOLDS)


@pytest.fixture(scope="module")
def model(world, tiny):
    return sharp_model(tiny)


def test_a_schedule_is_interpolated_over_the_masked_share():
    times = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.25, 0.1, 0.0]).double()
    assert LoopPolicy((1, 7, 1)).limits(times).tolist() == [1, 2, 4, 7, 4, 2, 1]
    assert LoopPolicy((2, 4)).limits(times).tolist() == [2, 2, 3, 3, 4, 4, 4]
    assert LoopPolicy((5,)).limits(times).tolist() == [5] * 7


def test_a_row_gets_its_number_of_passes_and_leaves_the_batch():
    seen = []

    def one_pass(states, number, rows):
        seen.append((number, rows.tolist()))
        return states * 2 + rows[:, None]

    states = torch.randn(3, 4, 2)
    limits = torch.tensor([3, 1, 3, 2])
    looped = run_passes(one_pass, states, limits)
    assert looped.loops.tolist() == limits.tolist()
    assert seen == [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (3, [0, 2])]
    for row, loops in enumerate(limits.tolist()):
        expected = states[:, row]
        for _ in range(loops):
            expected = expected * 2 + row
        assert torch.equal(looped.states[:, row], expected)


def test_changes_of_the_state_of_known_vectors():
    before = torch.tensor([[[3.0, 0.0], [1.0, 1.0]]])
    after = torch.tensor([[[0.0, 5.0], [3.0, 3.0]]])
    assert change_of_state("direction", before, after).tolist() == [[pytest.approx(2**0.5), pytest.approx(0, abs=1e-6)]]
    assert change_of_state("state", before, after).tolist() == [[pytest.approx(34**0.5 / 5), pytest.approx(2 / 3)]]


def test_a_row_settles_by_the_mean_change_of_its_wanted_positions():
    before, after = torch.ones(3, 2, 2), torch.ones(3, 2, 2)
    after[0, 0] = torch.tensor([1.0, -1.0])  # turned by a right angle
    wanted = torch.tensor([[True, False], [True, True], [False, True]])

    def settled(threshold, wanted=wanted, minimum=1):
        judge = Judge(Settling(threshold, "direction", minimum), wanted, pytest.fail, lambda decision: decision)
        return judge(before, after, 2, torch.arange(2)).tolist()

    assert settled(0.70) == [False, True]
    assert settled(0.71) == [True, True]  # the mean of sqrt(2) and 0
    assert settled(0.71, minimum=3) == [False, False]
    assert settled(0.1, ~wanted) == [True, True]
    assert settled(0.0) == [False, False]


def test_the_prediction_settles_by_its_kullback_leibler_divergence():
    """Row 0 wants two positions, row 1 one, and row 0 has left after the second pass."""
    wanted = torch.tensor([[True, False], [True, True]])
    logits = {
        1: torch.tensor([[0.0, 0.0, -torch.inf], [1.0, 0.0, -torch.inf], [0.0, 2.0, -torch.inf]]),
        2: torch.tensor([[0.0, 0.1, -torch.inf], [1.0, 0.0, -torch.inf], [0.0, -2.0, -torch.inf]]),
        3: torch.tensor([[0.0, -2.3, -torch.inf]]),
    }
    number = 0

    def predict(states, rows):
        return logits[number]

    def divergence(after, before):
        log_p, log_q = (x[:, :2].double().log_softmax(dim=1) for x in (after, before))
        return (log_p.exp() * (log_p - log_q)).sum(dim=1)

    mean = divergence(logits[2], logits[1])[:2].mean().item()
    last = divergence(logits[3], logits[2][2:]).item()
    for factor, expected in ((1.001, [True, False]), (0.999, [False, False])):
        judge = Judge(Settling(mean * factor, "prediction"), wanted, predict, lambda decision: decision)
        states = torch.zeros(2, 2, 4)
        number = 1
        assert judge(states, states, 1, torch.arange(2)).tolist() == [False, False]
        number = 2
        assert judge(states, states, 2, torch.arange(2)).tolist() == expected
    for factor, expected in ((1.001, [True]), (0.999, [False])):
        judge = Judge(Settling(last * factor, "prediction"), wanted, predict, lambda decision: decision)
        for number in (1, 2):
            judge(states, states, number, torch.arange(2))
        number = 3
        assert judge(states[:, 1:], states[:, 1:], 3, torch.tensor([1])).tolist() == expected


def test_predictions_are_compared_a_part_at_a_time(monkeypatch):
    """No float64 copy has more than the logits of a part; the figures are those of all at once."""
    monkeypatch.setattr(parts, "ELEMENTS", 3 * 50)
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            nonlocal largest
            found = operator(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
                largest = max(largest, found.numel())
            return found

    wanted = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    row = wanted.t().nonzero(as_tuple=True)[0]
    drawn = torch.randn(3, len(row), 50, generator=torch.Generator().manual_seed(1))
    logits = iter((drawn[0], drawn[1], drawn[2][row != 1]))
    judge = Judge(Settling(0.1, "prediction"), wanted, lambda states, rows: next(logits), lambda decision: decision)
    with Sizes():
        changes = [
            judge.change(drawn, drawn, k, torch.tensor(rows))
            for k, rows in ((1, [0, 1, 2, 3]), (2, [0, 1, 2, 3]), (3, [0, 2, 3]))
        ]
    assert changes[0].isinf().all() and largest <= 3 * 50
    for k, rows in ((1, [0, 1, 2, 3]), (2, [0, 2, 3])):
        log_p, log_q = (drawn[i].double().log_softmax(dim=-1) for i in (k, k - 1))
        each = torch.zeros(wanted.t().shape, dtype=torch.float64)
        each[wanted.t()] = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
        assert torch.equal(changes[k], (each.t().sum(dim=0) / wanted.sum(dim=0))[rows])


@pytest.mark.parametrize("loops", [1, 3, 7])
def test_the_network_is_the_model(model, loops):
    """Bit for bit, also for S above the largest of training; likewise with a threshold that never stops a row."""
    query = query_of(prompts(model.architecture.mask_id), model.architecture.mask_id)
    expected = model(query.tokens, query.positions, loops)
    assert torch.equal(LoopedNetwork(model, Compute(LoopPolicy((loops,))))(query), expected)
    for criterion in CRITERIA:
        network = LoopedNetwork(model, Compute(LoopPolicy((loops,), Settling(0.0, criterion))))
        assert torch.equal(network(query), expected)
        assert network.tally.loops == 8 * loops


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_row_that_settles_has_the_logits_of_its_own_number_of_passes(model, criterion):
    mask_id = model.architecture.mask_id
    rows = prompts(mask_id)
    query = query_of(rows, mask_id)
    network = LoopedNetwork(model, Compute(LoopPolicy((9,), Settling(THRESHOLDS[criterion], criterion, minimum=2))))
    logits = network(query).split((rows == mask_id).sum(dim=1).tolist())
    found = set()
    for row, of_row in zip(rows, logits, strict=True):
        alone = query_of(row[None], mask_id)
        equal = [torch.allclose(model(row[None], alone.positions, s), of_row, atol=1e-4) for s in range(1, 10)]
        assert sum(equal) == 1
        found.add(equal.index(True) + 1)
    assert min(found) >= 2 and len(found) > 2


def counted(work, name, call):
    """`call`, which adds the number of tokens that it computes to `work[name]`."""

    def counting(*inputs):
        result = call(*inputs)
        work[name] += len(result) if name == "output" else result.shape[0] * result.shape[1]
        return result

    return counting


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_is_counted_with_what_it_computes(model, criterion, monkeypatch):
    """The model's calls, counted, against the tally: some rows settle, others make all passes."""
    architecture, work = model.architecture, dict.fromkeys(("embed_and_head", "one_pass", "run_tail", "output"), 0)
    for name in work:
        monkeypatch.setattr(model, name, counted(work, name, getattr(model, name)))
    rows = prompts(architecture.mask_id)
    network = LoopedNetwork(model, Compute(LoopPolicy((4, 3), Settling(THRESHOLDS[criterion], criterion, 2))))
    network(query_of(rows, architecture.mask_id))
    split, costs = architecture.loop, FlopsModel(architecture, rows.shape[1], masked_fraction=1.0)
    layers = split.head * work["embed_and_head"] + split.mid * work["one_pass"] + split.tail * work["run_tail"]
    assert network.tally.flops == pytest.approx(layers * costs.layer() + work["output"] * costs.lm_head())
    assert 2 * 8 < network.tally.loops < 4 * 8


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        (LoopPolicy((1, 6, 2)), "ancestral"),
        (LoopPolicy((6,), Settling(0.2, "direction")), "wino"),
        (LoopPolicy((6,), Settling(0.2, "direction")), "speculative"),
        (LoopPolicy((6,), Settling(0.3, "state", 2)), "blocks"),
        (LoopPolicy((6,), Settling(0.01, "prediction")), "threshold"),
        (LoopPolicy((6,), Settling(0.05, "logit-lens")), "blocks"),
    ],
)
def test_a_row_does_not_depend_on_its_batch(model, policy, name):
    rows = prompts(model.architecture.mask_id)
    together, tally = fill(model, Compute(policy), PLANS[name], rows, torch.arange(8))
    work = torch.zeros(4, dtype=torch.float64)
    for number in range(8):
        alone, of_row = fill(model, Compute(policy), PLANS[name], rows[number, None], torch.tensor([number]))
        assert torch.equal(alone.tokens[0], together.tokens[number])
        work += of_row.values()
        assert of_row.of_samples[number] == pytest.approx(tally.of_samples[number], rel=1e-12)
        assert of_row.of_samples[number] == pytest.approx(of_row.values()[:3].tolist(), rel=1e-12)
    assert torch.allclose(work, tally.values(), rtol=1e-12)
    assert tally.forwards < tally.loops < 6 * tally.forwards
