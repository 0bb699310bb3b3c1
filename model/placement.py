"""Which layers a pipeline stage holds and what it runs when a micro-batch visits it. Imports no torch.

Looped split: the layers that a micro-batch passes through, S passes of the mid block among them, lie along a ring of stages
that it travels again and again; a visit to a stage is a `Chunk`. Every pass of the mid block goes once round the ring, so
each stage holds the same part of it for every S, and the load stays level. The mid block begins on the stage after the
last one of the head, and the tail on the one after the mid block: no trip is left half empty where a phase ends. Head
and tail are cut into visits about as long as the mid block's: stages wait for their neighbours after every chunk, so unequal
ones cost time. Where the mid block has fewer layers than there are stages, the stages form groups that each hold a copy of
it: one trip round the ring then makes as many passes as there are copies.

Contiguous split: consecutive layers per stage, the whole mid block in one of them, one visit per micro-batch. It is level
for one S at most; it is kept as the baseline that the looped split is measured against.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from model.architecture import Architecture, LoopSplit

PipelineSplit = Literal["looped", "contiguous"]


@dataclass(frozen=True)
class Chunk:
    """What one visit runs, in this order: embedding, head, the passes of the mid block, tail, then norm and LM head.

    Attributes:
        embed: look the tokens up first.
        head, tail: layers of that phase to run.
        passes: numbers of the passes (from 1) that this stage's mid layers make during the visit.
        logits: the visit ends in the final norm and the LM head.
    """

    embed: bool = False
    head: range = range(0)
    passes: range = range(0)
    tail: range = range(0)
    logits: bool = False


@dataclass(frozen=True)
class Stage:
    """What one pipeline stage holds; layers are numbered inside their phase, from 0.

    Attributes:
        index, count: which of how many stages.
        head, tail: layers held here, those of each visit together. The visits of both add up to the same on every stage.
        mid: layers held here.
        replica, replicas: which copy of the mid block `mid` is a part of, and how many copies the ring has.
        split: see the module.
    """

    index: int
    count: int
    head: tuple[range, ...]
    mid: range
    tail: tuple[range, ...]
    replica: int = 0
    replicas: int = 1
    split: PipelineSplit = "looped"

    @property
    def first(self) -> bool:
        """Holds the embedding."""
        return self.index == 0

    @property
    def last(self) -> bool:
        """Holds the final norm and the LM head."""
        return self.index == self.count - 1

    def passes(self, loops: int) -> range:
        """Passes that this stage's mid layers take part in, out of 1..loops."""
        return range(self.replica + 1, loops + 1, self.replicas) if self.mid else range(0)

    def chunks(self, loops: int) -> list[Chunk]:
        """Visits of a micro-batch at S = `loops`, in order. Every stage has as many."""
        if self.count == 1 or self.split == "contiguous":
            return [Chunk(self.first, self.head[0], self.passes(loops), self.tail[0], self.last)]
        passes = range(1 + self.replica, mid_rounds(loops, self.replicas) * self.replicas + 1, self.replicas)
        mid = [Chunk(passes=range(n, n + 1) if n <= loops and self.mid else range(0)) for n in passes]
        chunks = [*(Chunk(head=layers) for layers in self.head), *mid, *(Chunk(tail=layers) for layers in self.tail)]
        chunks[0] = replace(chunks[0], embed=self.first)
        chunks[-1] = replace(chunks[-1], logits=self.last)
        return chunks


@dataclass(frozen=True)
class Costs:
    """Work per token in one unit of the caller's choice (FLOPs, seconds)."""

    layer: float
    embedding: float
    lm_head: float


def whole(split: LoopSplit) -> Stage:
    """The stage of a model that is not split."""
    return Stage(0, 1, (range(split.head),), range(split.mid), (range(split.tail),))


def weights_held(stage: Stage, architecture: Architecture, tensor: int) -> int:
    """Weights on one rank of a stage, in numbers: matrices are cut over the `tensor` ranks, norms are not."""
    layers = len(stage.mid) + sum(len(visit) for visit in (*stage.head, *stage.tail))
    norms = 2 * architecture.hidden_size
    matrices = architecture.parameters_per_layer() - norms
    ends = architecture.padded_vocab_size * architecture.hidden_size // tensor
    return layers * (matrices // tensor + norms) + stage.first * ends + stage.last * (ends + architecture.hidden_size)


def mid_rounds(loops: int, replicas: int) -> int:
    """Trips round the ring for the mid block: ceil(S / copies)."""
    return -(-loops // replicas)


def chunk_cost(stage: Stage, chunk: Chunk, costs: Costs) -> float:
    """Work of one visit."""
    layers = len(chunk.head) + len(chunk.passes) * len(stage.mid) + len(chunk.tail)
    return layers * costs.layer + chunk.embed * costs.embedding + chunk.logits * costs.lm_head


def stage_load(stage: Stage, loops: int, costs: Costs) -> float:
    """Work of a stage per micro-batch at S = `loops`: that of all its chunks."""
    once = sum(len(visit) for visit in (*stage.head, *stage.tail))
    layers = once + len(stage.passes(loops)) * len(stage.mid)
    return layers * costs.layer + stage.first * costs.embedding + stage.last * costs.lm_head


def group_size(micro_batches: int, stages: int) -> int:
    """Micro-batches that a stage takes through one chunk before the next chunk begins.

    The smallest that megatron-core's interleaved schedule allows, which keeps the fewest activations: at least one per stage,
    and no remainder smaller than that.
    """
    return next(n for n in range(stages, micro_batches + 1) if micro_batches % n == 0 or micro_batches % n >= stages)


def place(
    split: LoopSplit,
    stages: int,
    costs: Costs,
    loop_probabilities: Sequence[float],
    kind: PipelineSplit = "looped",
    replicas: int | None = None,
) -> tuple[Stage, ...]:
    """Divide the layers over the stages.

    Args:
        loop_probabilities: p(S = 1), p(S = 2), ...; head and tail level out the load at E[S].
        replicas: copies of the mid block; None: the number, out of the divisors of `stages`, with the shortest mean time;
            the smallest of equals, because copies cost memory and a gradient sum.
    """
    if stages == 1:
        return (whole(split),)
    if kind == "contiguous":
        return _place_contiguous(split, stages, costs, loop_probabilities)
    choices = [n for n in range(1, stages + 1) if stages % n == 0] if replicas is None else [replicas]
    placements = [_place_looped(split, stages, costs, loop_probabilities, n) for n in choices]
    return min(placements, key=lambda p: round(_mean(lambda s: lockstep_time(p, s, costs), loop_probabilities), 6))


def bottleneck(placement: Sequence[Stage], loops: int, costs: Costs) -> float:
    """Work of the most loaded stage per micro-batch at S = `loops`."""
    return max(stage_load(stage, loops, costs) for stage in placement)


def lockstep_time(placement: Sequence[Stage], loops: int, costs: Costs) -> float:
    """Time per micro-batch of stages that wait for each other after every trip round the ring."""
    trips = zip(*(stage.chunks(loops) for stage in placement), strict=True)
    return sum(max(chunk_cost(s, c, costs) for s, c in zip(placement, trip, strict=True)) for trip in trips)


def _place_looped(
    split: LoopSplit, stages: int, costs: Costs, probabilities: Sequence[float], replicas: int
) -> tuple[Stage, ...]:
    """Of the ways to cut head and tail, the fastest in lockstep; of equals by bottleneck, length of visits and their number."""
    pace = -(-split.mid // (stages // replicas))
    around = [[-(-layers // pace) + d for d in range(-stages, stages + 1)] for layers in (split.head, split.tail)]
    laid = [
        _lay_out(split, stages, costs, probabilities, replicas, head_visits, tail_visits, even_visits)
        for head_visits, tail_visits in product(*around)
        if (head_visits + tail_visits) % stages == 0
        and head_visits >= (split.head > 0)
        and tail_visits >= (split.tail > 0)
        for even_visits in (False, True)
    ]
    typical = round(_mean(float, probabilities))

    def merit(placement: tuple[Stage, ...]) -> tuple[float, ...]:
        time = lockstep_time(placement, typical, costs)
        heaviest = _mean(lambda loops: bottleneck(placement, loops, costs), probabilities)
        longest = max(chunk_cost(stage, chunk, costs) for stage in placement for chunk in stage.chunks(typical))
        in_layers = (round(time / costs.layer, 6), round(heaviest / costs.layer, 6), round(longest / costs.layer))
        return *in_layers, len(placement[0].chunks(typical))

    return min(laid, key=merit)


def _lay_out(
    split: LoopSplit,
    stages: int,
    costs: Costs,
    probabilities: Sequence[float],
    replicas: int,
    head_visits: int,
    tail_visits: int,
    even_visits: bool,
) -> tuple[Stage, ...]:
    """Head on the first visits of the ring, mid block from the stage after them, tail on the last visits.

    Args:
        head_visits, tail_visits: their sum is a multiple of `stages`, so that the ring is closed.
        even_visits: a layer goes to the visit with least work, not to the stage with least.
    """
    per_copy = stages // replicas
    parts = _consecutive(_even_counts(split.mid, per_copy))
    turned = [
        (stage - head_visits) % stages for stage in range(stages)
    ]  # place on a ring that begins with the mid block
    none: tuple[range, ...] = ()
    bare = [Stage(i, stages, none, parts[t % per_copy], none, t // per_copy, replicas) for i, t in enumerate(turned)]
    loads = [_mean(lambda loops, s=stage: stage_load(s, loops, costs), probabilities) for stage in bare]
    heads = _fill(
        split.head, [v % stages for v in range(head_visits)], loads, [0.0] * head_visits, costs.layer, even_visits
    )
    ends = [0.0] * (tail_visits - 1) + [costs.lm_head] * (tail_visits > 0)
    order = [(head_visits + v) % stages for v in range(tail_visits)]
    tails = _fill(split.tail, order, loads, ends, costs.layer, even_visits)
    return tuple(
        Stage(s.index, stages, tuple(heads[s.index :: stages]), s.mid, tuple(tails[t::stages]), s.replica, replicas)
        for s, t in zip(bare, turned, strict=True)
    )


def _fill(
    layers: int, order: Sequence[int], loads: list[float], work: list[float], layer_cost: float, even_visits: bool
) -> list[range]:
    """Layers of one phase for each of its visits, whose stages are `order`; adds them to the stages' loads."""
    counts = [0] * len(order)
    for _ in range(layers):
        keys = [(work[v], loads[s]) if even_visits else (loads[s], work[v]) for v, s in enumerate(order)]
        chosen = keys.index(min(keys))
        counts[chosen] += 1
        work[chosen] += layer_cost
        loads[order[chosen]] += layer_cost
    return _consecutive(counts)


def _place_contiguous(split: LoopSplit, stages: int, costs: Costs, probabilities: Sequence[float]) -> tuple[Stage, ...]:
    """Cut the row of head layers, mid block (indivisible, E[S] times) and tail layers."""
    mean = sum(loops * p for loops, p in enumerate(probabilities, start=1))
    row = [costs.layer] * split.head + [mean * split.mid * costs.layer] + [costs.layer] * split.tail
    row[0] += costs.embedding
    row[-1] += costs.lm_head
    ends = _cut(row, stages)
    placed = []
    for index, (low, high) in enumerate(zip([0, *ends], ends, strict=False)):
        head = range(min(low, split.head), min(high, split.head))
        mid = range(split.mid if low <= split.head < high else 0)
        after = split.head + 1
        tail = range(max(low - after, 0), max(high - after, 0))
        placed.append(Stage(index, stages, (head,), mid, (tail,), split="contiguous"))
    return tuple(placed)


def _mean(value: Callable[[int], float], probabilities: Sequence[float]) -> float:
    """Mean of a function of S."""
    return sum(p * value(loops) for loops, p in enumerate(probabilities, start=1) if p)


def _even_counts(total: int, parts: int) -> list[int]:
    """As even as possible, the larger shares first; nothing for no parts."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _consecutive(counts: Sequence[int]) -> list[range]:
    """Counts -> ranges that follow one another from 0."""
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]


def _cut(row: Sequence[float], parts: int) -> list[int]:
    """Ends of `parts` consecutive pieces of `row`: the largest sum small, then the squares of all (dynamic programme)."""
    sums = [sum(row[:i]) for i in range(len(row) + 1)]
    best = [[(sums[end], sums[end] ** 2)] for end in range(len(row) + 1)]  # best[end][k - 1]: row[:end] in k pieces
    start = [[0] for _ in range(len(row) + 1)]
    for _ in range(1, parts):
        previous = [values[-1] for values in best]
        for end in range(len(row) + 1):
            pieces = [(previous[low], sums[end] - sums[low], low) for low in range(end + 1)]
            value, low = min(((max(old[0], last), old[1] + last**2), low) for old, last, low in pieces)
            best[end].append(value)
            start[end].append(low)
    ends = [len(row)]
    for piece in range(parts - 1, 0, -1):
        ends.append(start[ends[-1]][piece])
    return ends[::-1]
