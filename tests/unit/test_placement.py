"""On every split a micro-batch passes all layers in the order of the model, and the load is balanced."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.architecture import LoopSplit
from model.placement import Costs, bottleneck, chunk_cost, group_size, lockstep_time, place, stage_load, whole

PAPER = LoopSplit(head=1, mid=2, tail=9, max=12)
UNIFORM = [1 / 12] * 12
COSTS = Costs(layer=1.0, embedding=0.1, lm_head=0.3)


def order_of_layers(placement, loops):
    """What is applied to a micro-batch, chunk by chunk."""
    chunks = [stage.chunks(loops) for stage in placement]
    assert len({len(own) for own in chunks}) == 1
    applied = []
    for current in zip(*chunks, strict=True):
        for stage, chunk in zip(placement, current, strict=True):
            applied += ["embedding"] * chunk.embed + [("head", i) for i in chunk.head]
            applied += [("mid", number, i) for number in chunk.passes for i in stage.mid]
            applied += [("tail", i) for i in chunk.tail] + ["logits"] * chunk.logits
    return applied


def expected_order(split, loops):
    mid = [("mid", number, i) for number in range(1, loops + 1) for i in range(split.mid)]
    head, tail = ([(phase, i) for i in range(n)] for phase, n in (("head", split.head), ("tail", split.tail)))
    return ["embedding", *head, *mid, *tail, "logits"]


splits = st.builds(LoopSplit, head=st.integers(0, 9), mid=st.integers(1, 9), tail=st.integers(0, 13), max=st.just(12))


@settings(max_examples=150, deadline=None)
@given(
    split=splits,
    stages=st.integers(1, 8),
    loops=st.integers(1, 13),
    lm_head=st.floats(0, 4),
    kind=st.sampled_from(["looped", "contiguous"]),
)
def test_every_layer_once_and_in_order(split, stages, loops, lm_head, kind):
    costs = Costs(1.0, 0.25, lm_head)
    placement = place(split, stages, costs, UNIFORM, kind)
    assert order_of_layers(placement, loops) == expected_order(split, loops)
    for stage in placement:
        total = sum(chunk_cost(stage, chunk, costs) for chunk in stage.chunks(loops))
        assert stage_load(stage, loops, costs) == pytest.approx(total)


@settings(max_examples=60, deadline=None)
@given(split=splits, stages=st.sampled_from([2, 4, 6]), loops=st.integers(1, 13), data=st.data())
def test_copies_of_the_mid_block_take_turns(split, stages, loops, data):
    replicas = data.draw(st.sampled_from([n for n in range(1, stages + 1) if stages % n == 0]))
    placement = place(split, stages, COSTS, UNIFORM, replicas=replicas)
    assert order_of_layers(placement, loops) == expected_order(split, loops)
    for layer in range(split.mid):
        assert sum(layer in stage.mid for stage in placement) == replicas


def test_head_and_tail_layers_are_on_one_stage_only():
    for stages in (2, 3, 4, 8):
        placement = place(PAPER, stages, COSTS, UNIFORM)
        for phase, layers in (("head", PAPER.head), ("tail", PAPER.tail)):
            held = [i for stage in placement for chunk in getattr(stage, phase) for i in chunk]
            assert sorted(held) == list(range(layers))


def test_load_is_balanced_for_every_s():
    """1 + 2 x S + 9 on 2 stages: the loads differ by at most one layer at every S; those of the contiguous split do not."""
    looped, contiguous = (place(PAPER, 2, COSTS, UNIFORM, kind) for kind in ("looped", "contiguous"))
    for loops in range(1, 13):
        one, other = (stage_load(stage, loops, COSTS) for stage in looped)
        assert abs(one - other) <= 1.0
    assert max(abs(stage_load(contiguous[0], s, COSTS) - stage_load(contiguous[1], s, COSTS)) for s in (1, 12)) > 8


def test_the_paper_case_on_four_and_eight_stages_copies_the_mid_block():
    for stages, copies in ((4, 2), (8, 4)):
        chosen, single = (place(PAPER, stages, COSTS, UNIFORM, replicas=r) for r in (None, 1))
        assert chosen[0].replicas == copies
        assert bottleneck(chosen, 12, COSTS) <= 0.6 * bottleneck(single, 12, COSTS)


def test_no_stage_is_idle_between_phases():
    """1 + 2 x S + 9 layers are 10 + 2 S chunks on 2 stages: in every round both stages have one layer."""
    placement = place(PAPER, 2, Costs(1.0, 0.0, 0.3), UNIFORM)
    for loops in (1, 4, 12):
        assert lockstep_time(placement, loops, Costs(1.0, 0.0, 0.0)) == (10 + 2 * loops) / 2


def test_the_stage_with_an_expensive_lm_head_has_fewer_layers():
    """An LM head that costs as much as three layers; the other stages have work while it runs."""
    placement = place(PAPER, 4, Costs(1.0, 0.0, 3.0), UNIFORM)
    tails = [sum(len(chunk) for chunk in stage.tail) for stage in placement]
    assert tails[-1] == min(tails)
    assert lockstep_time(placement, 6, Costs(1.0, 0.0, 3.0)) <= (10 + 12 + 3) / 4 + 1.5


def test_stages_without_layers_pass_through():
    tiny = LoopSplit(head=0, mid=1, tail=0, max=4)
    assert order_of_layers(place(tiny, 4, COSTS, [0.25] * 4, replicas=1), 3) == expected_order(tiny, 3)


def test_one_stage_is_the_whole_model():
    assert place(PAPER, 1, COSTS, UNIFORM) == (whole(PAPER),)
    assert len(whole(PAPER).chunks(12)) == 1


@pytest.mark.parametrize(
    ("micro_batches", "stages", "size"), [(8, 2, 2), (8, 4, 4), (7, 4, 7), (9, 4, 5), (5, 2, 3), (4, 4, 4)]
)
def test_group_size(micro_batches, stages, size):
    assert group_size(micro_batches, stages) == size
