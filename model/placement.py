"""Which layers a pipeline stage holds and what it runs when a micro-batch visits it. Imports no torch.

Looped split: every stage holds a share of head, of mid and of tail, and a micro-batch travels the ring of stages again and
again: for the head, for each pass of the mid block, for the tail. A visit to a stage is a `Chunk`. The work per stage
stays level for every S. Where the mid block has fewer layers than there are stages, the stages form groups that each
hold a copy of it: one trip round the ring then makes as many passes as there are copies. Head and tail are cut into trips
about as long as those of the mid block: stages wait for their neighbours after every chunk, so unequal ones cost time.

Contiguous split: consecutive layers per stage, the whole mid block in one of them, one visit per micro-batch. It is level
for one S at most; it is kept as the baseline that the looped split is measured against.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model.architecture import LoopSplit

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
        head, tail: layers held here, those of each trip round the ring together. Every stage has as many trips.
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
        passes = range(1 + self.replica, trips_round(loops, self.replicas) * self.replicas + 1, self.replicas)
        head = [Chunk(embed=self.first and trip == 0, head=layers) for trip, layers in enumerate(self.head)]
        mid = [Chunk(passes=range(n, n + 1) if n <= loops and self.mid else range(0)) for n in passes]
        final = len(self.tail) - 1
        tail = [Chunk(tail=layers, logits=self.last and trip == final) for trip, layers in enumerate(self.tail)]
        return head + mid + tail


@dataclass(frozen=True)
class Costs:
    """Work per token in one unit of the caller's choice (FLOPs, seconds)."""

    layer: float
    embedding: float
    lm_head: float


def whole(split: LoopSplit) -> Stage:
    """The stage of a model that is not split."""
    return Stage(0, 1, (range(split.head),), range(split.mid), (range(split.tail),))


def trips_round(loops: int, replicas: int) -> int:
    """Trips round the ring for the mid block: ceil(S / copies)."""
    return -(-loops // replicas)


def chunk_cost(stage: Stage, chunk: Chunk, costs: Costs) -> float:
    """Work of one visit."""
    layers = len(chunk.head) + len(chunk.passes) * len(stage.mid) + len(chunk.tail)
    return layers * costs.layer + chunk.embed * costs.embedding + chunk.logits * costs.lm_head


def stage_load(stage: Stage, loops: int, costs: Costs) -> float:
    """Work of a stage per micro-batch at S = `loops`."""
    return sum(chunk_cost(stage, chunk, costs) for chunk in stage.chunks(loops))


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
    """Divide the layers over the stages so that the most loaded one is as light as possible.

    Args:
        loop_probabilities: p(S = 1), p(S = 2), ...; head and tail level out the load at E[S].
        replicas: copies of the mid block; None: the number, out of the divisors of `stages`, whose most loaded stage is
            lightest on average over S; the smallest of equals, because copies cost memory and a gradient sum.
    """
    if stages == 1:
        return (whole(split),)
    if kind == "contiguous":
        return _place_contiguous(split, stages, costs, loop_probabilities)
    choices = [n for n in range(1, stages + 1) if stages % n == 0] if replicas is None else [replicas]
    placements = [_place_looped(split, stages, costs, loop_probabilities, n) for n in choices]
    return min(placements, key=lambda p: round(expected_bottleneck(p, costs, loop_probabilities) / costs.layer, 9))


def expected_bottleneck(placement: Sequence[Stage], costs: Costs, loop_probabilities: Sequence[float]) -> float:
    """Mean over S of the work of the most loaded stage."""
    return sum(
        p * max(stage_load(stage, loops, costs) for stage in placement)
        for loops, p in enumerate(loop_probabilities, start=1)
        if p
    )


def _place_looped(
    split: LoopSplit, stages: int, costs: Costs, probabilities: Sequence[float], replicas: int
) -> tuple[Stage, ...]:
    per_copy = stages // replicas
    mids = _consecutive(_even_counts(split.mid, per_copy)) * replicas
    none = (range(0),)
    bare = [Stage(i, stages, none, mids[i], none, replica=i // per_copy, replicas=replicas) for i in range(stages)]
    counts = _fill([_expected_load(s, costs, probabilities) for s in bare], split.head + split.tail, costs.layer)
    heads = _share(counts, split.head)
    tails = [total - head for total, head in zip(counts, heads, strict=True)]
    pace = max(len(mid) for mid in mids)
    head_trips = _trips(heads, pace, pace)
    # The LM head ends the last trip of the last stage: the others get as much work beside it.
    beside = max(pace, round(costs.lm_head / costs.layer))
    tail_trips = _trips(tails, pace, beside, last_own=max(0, beside - round(costs.lm_head / costs.layer)))
    return tuple(
        Stage(s.index, stages, head, s.mid, tail, s.replica, replicas)
        for s, head, tail in zip(bare, head_trips, tail_trips, strict=True)
    )


def _trips(counts: Sequence[int], pace: int, final: int, last_own: int | None = None) -> list[tuple[range, ...]]:
    """Divide one phase into trips round the ring: per stage, the layers of each trip.

    Args:
        counts: layers of the phase on each stage.
        pace: layers that a stage runs in one trip.
        final: the same for the last trip.
        last_own: the same for the last trip on the last stage; None: like the others.
    """
    finals = [final] * (len(counts) - 1) + [final if last_own is None else last_own]
    earlier = max(-(-max(0, count - room) // pace) for count, room in zip(counts, finals, strict=True))
    per_trip = [[0] * len(counts) for _ in range(earlier + 1)]
    for stage, (count, room) in enumerate(zip(counts, finals, strict=True)):
        per_trip[-1][stage] = min(count, room) if earlier else count
        for trip, share in enumerate(_even_counts(count - per_trip[-1][stage], earlier)):
            per_trip[trip][stage] = share
    ranges = _consecutive([share for trip in per_trip for share in trip])
    return [tuple(ranges[stage :: len(counts)]) for stage in range(len(counts))]


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


def _expected_load(stage: Stage, costs: Costs, probabilities: Sequence[float]) -> float:
    return sum(p * stage_load(stage, loops, costs) for loops, p in enumerate(probabilities, start=1))


def _even_counts(total: int, parts: int) -> list[int]:
    """As even as possible, the larger shares first; nothing for no parts."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _consecutive(counts: Sequence[int]) -> list[range]:
    """Counts -> ranges that follow one another from 0."""
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]


def _fill(loads: Sequence[float], layers: int, layer_cost: float) -> list[int]:
    """Layers for each stage: each goes to the lightest one. Equal items, so the largest load is as small as possible."""
    counts = [0] * len(loads)
    for _ in range(layers):
        lightest = min(range(len(loads)), key=lambda i: loads[i] + counts[i] * layer_cost)
        counts[lightest] += 1
    return counts


def _share(capacities: Sequence[int], total: int) -> list[int]:
    """Spread `total` over capacities in proportion to them: each item goes where the largest share of room is left."""
    taken = [0] * len(capacities)
    for _ in range(total):
        free = [(c - t) / c if c else -1.0 for c, t in zip(capacities, taken, strict=True)]
        taken[free.index(max(free))] += 1
    return taken


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
