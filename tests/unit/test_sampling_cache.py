"""Keys and values kept between denoising steps: what is computed, from what, and when all is computed again."""

from dataclasses import replace

import pytest
import torch

from model.reference import _layer, _rms_norm
from model.sampling.cache import Caching, SampleMemory
from model.sampling.generate import generate
from model.sampling.network import Compute, LoopedNetwork
from model.sampling.passes import LoopPolicy, Settling
from model.sampling.query import Query
from tests.tiny_networks import PLANS, fill, prompts, query_of, sharp_model

FOUR = LoopPolicy((4,))


@pytest.fixture(scope="module")
def model(world, tiny):
    return sharp_model(tiny)


def logits_of_a_job(model, compute, plan):
    """All that a sampler was told."""
    network, told = LoopedNetwork(model, compute), []

    def denoise(query):
        told.append(network(query))
        return told[-1]

    mask_id = model.architecture.mask_id
    generate(denoise, prompts(mask_id), torch.arange(8), plan, mask_id, 0)
    return told


@pytest.mark.parametrize("plan", ["blocks", "wino"])
def test_a_refresh_in_every_step_equals_no_cache(model, plan):
    """Bit for bit, for every way to cache."""
    plain = logits_of_a_job(model, Compute(FOUR), PLANS[plan])
    never_sure = Caching("dual", every=10**6, below=1.1)
    for caching in (Caching("prefix", 1), Caching("dual", 1), Caching("dual", 1, per_pass=False), never_sure):
        kept = logits_of_a_job(model, Compute(FOUR, caching, batch_size=8), PLANS[plan])
        assert len(kept) == len(plain)
        assert all(torch.equal(*pair) for pair in zip(kept, plain, strict=True)), caching


class Oracle:
    """The model in plain PyTorch, where tokens that are not computed enter each layer as they last did."""

    def __init__(self, model, per_pass):
        self.weights, self.architecture, self.per_pass = dict(model.named_parameters()), model.architecture, per_pass
        self.kept, self.passes = {}, 0

    def __call__(self, tokens, computed, loops):
        split, hidden = self.architecture.loop, self.weights["embedding.weight"][tokens]
        if computed.all():
            self.passes = loops
        mid = [("mid", split.mid, number) for number in range(1, loops + 1)]
        for phase, layers, number in [("head", split.head, 0), *mid, ("tail", split.tail, 0)]:
            if phase == "mid" and split.norm:
                hidden = _rms_norm(hidden, self.weights["mid.norm.weight"], self.architecture.norm_eps)
            for i in range(layers):
                name = f"{phase}.layers.{i}"
                key = (name, min(number, self.passes)) if phase == "mid" and self.per_pass else name
                self.kept[key] = torch.where(computed[..., None], hidden, self.kept.get(key, hidden))
                hidden = _layer(self.weights, name, self.architecture, self.kept[key], None)
        hidden = _rms_norm(hidden, self.weights["final_norm.weight"], self.architecture.norm_eps)
        return (hidden @ self.weights["lm_head.weight"].T)[..., : self.architecture.mask_id]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("per_pass", [False, True])
@pytest.mark.parametrize("reuse", ["prefix", "dual"])
def test_kept_tokens_are_those_of_earlier_steps(world, tiny, reuse, per_pass, norm):
    """Three steps. The rows compute different numbers of positions, and S changes from 3 to 5 and 2."""
    model = sharp_model(replace(tiny, loop=replace(tiny.loop, norm=norm)))
    mask_id = model.architecture.mask_id
    caching, policy = Caching(reuse, every=10, per_pass=per_pass), LoopPolicy((3, 5, 2))
    network, oracle = LoopedNetwork(model, Compute(policy, caching, batch_size=4)), Oracle(model, per_pass)
    rows = torch.full((2, 9), mask_id)
    rows[0, :2], rows[1, 0] = torch.tensor([3, 1]), 4
    wanted = torch.zeros_like(rows, dtype=torch.bool)
    wanted[0, 2:6] = wanted[1, 4:8] = True
    changed = torch.ones_like(wanted)
    for time, loops in ((1.0, 3), (0.5, 5), (0.0, 2)):
        positions = wanted.flatten().nonzero().squeeze(1)
        computed = changed | wanted
        if reuse == "prefix":
            computed |= (rows == mask_id).cumsum(dim=1) > 0
        logits = network(Query(rows, positions, torch.tensor([5, 2]), torch.full((2,), time).double()))
        expected = oracle(rows, computed, loops)[wanted]
        assert torch.allclose(logits[:, :mask_id], expected, rtol=1e-4, atol=1e-4)
        exact = model(rows, positions, loops)[:, :mask_id]
        assert torch.allclose(expected, exact, atol=1e-4) == bool(computed.all())
        revealed = torch.zeros_like(wanted)
        revealed[0, int(wanted[0].nonzero()[0])] = revealed[1, int(wanted[1].nonzero()[-1])] = True
        rows, wanted, changed = torch.where(revealed, 7, rows), wanted & ~revealed, revealed


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize(
    ("caching", "policy"),
    [
        (Caching("prefix", per_pass=False), FOUR),
        (Caching("dual", every=3), LoopPolicy((6,), Settling(0.2, "direction"))),
        (Caching("dual", below=0.2), LoopPolicy((1, 5))),
    ],
)
def test_a_row_does_not_depend_on_its_batch(model, caching, policy, name):
    rows = prompts(model.architecture.mask_id)
    compute = Compute(policy, caching, batch_size=8)
    together, tally = fill(model, compute, PLANS[name], rows, torch.arange(8))
    work = torch.zeros(4, dtype=torch.float64)
    for number in range(8):
        alone, of_row = fill(model, compute, PLANS[name], rows[number, None], torch.tensor([number]))
        assert torch.equal(alone.tokens[0], together.tokens[number])
        work += of_row.values()
        assert of_row.of_samples[number] == pytest.approx(tally.of_samples[number], rel=1e-12)
        assert of_row.of_samples[number] == pytest.approx(of_row.values()[:3].tolist(), rel=1e-12)
    assert torch.allclose(work, tally.values(), rtol=1e-12)


def test_what_is_computed():
    """Two samples of 6 tokens; 9 is [MASK]. The second sample has two rows, of which only the first is kept."""
    memory = SampleMemory(2, 6, torch.device("cpu"))
    slots = memory.find(torch.tensor([7, 3, 3]))
    assert slots.number[0] != slots.number[1] == slots.number[2]
    assert slots.writes.tolist() == [True, True, False]
    tokens = torch.tensor([[1, 9, 9, 9, 9, 9], [9, 9, 9, 9, 9, 2], [9, 9, 9, 9, 9, 2]])
    wanted = torch.zeros(3, 6, dtype=torch.bool)
    wanted[:, 1:3] = True

    def computed(caching):
        return ["".join("x" if c else "." for c in row) for row in memory.computed(caching, slots, tokens, wanted, 9)]

    everything = torch.ones_like(wanted)
    assert computed(Caching("dual")) == ["xxxxxx"] * 3  # nothing is known yet
    memory.note(slots, tokens, everything, wanted, torch.full((3,), 4))
    tokens[0, 1] = tokens[1, 2] = tokens[2, 1] = 5
    wanted[:, 1] = False
    assert computed(Caching("dual")) == [".xx...", "..x...", ".xx..."]
    assert computed(Caching("prefix")) == [".xxxxx", "xxxxxx", "xxxxxx"]
    assert computed(Caching("dual", every=1)) == ["xxxxxx"] * 3
    memory.note(slots, tokens, wanted, wanted, torch.full((3,), 4))
    assert computed(Caching("dual")) == [".xx...", "..x...", ".xx..."]  # the revealed token has not been computed
    assert computed(Caching("dual", every=3)) == [".xx...", "..x...", ".xx..."]
    assert computed(Caching("dual", every=2)) == ["xxxxxx"] * 3
    wanted[0] = torch.tensor([False, False, False, True, False, False])
    assert computed(Caching("dual")) == ["xxxxxx", "..x...", ".xx..."]  # a block begins
    assert computed(Caching("dual", every=3)) == [".x.x..", "..x...", ".xx..."]


def test_the_sample_used_least_recently_is_forgotten():
    memory = SampleMemory(2, 4, torch.device("cpu"))
    rows, everything = torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)
    memory.note(memory.find(torch.tensor([10, 20])), rows, everything, everything, torch.tensor([4, 4]))
    first = memory.find(torch.tensor([10])).number
    assert memory.age[first] == 1
    assert memory.find(torch.tensor([30])).number != first  # takes the place of 20
    assert memory.age[memory.find(torch.tensor([10])).number] == 1
    new = memory.find(torch.tensor([20])).number
    assert memory.age[new] == 0 and (memory.tokens[new] == -1).all()
    with pytest.raises(ValueError, match="3 samples in one forward pass do not fit 2 places; raise batch_size"):
        memory.find(torch.tensor([1, 2, 3]))


def test_rows_of_another_length_begin_anew(model):
    mask_id = model.architecture.mask_id
    network = LoopedNetwork(model, Compute(FOUR, Caching("dual", every=10), batch_size=8))
    for length in (13, 16, 13):
        query = query_of(prompts(mask_id, length), mask_id)
        assert torch.equal(network(query), model(query.tokens, query.positions, 4))
