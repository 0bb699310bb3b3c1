"""Placement of layers on pipeline stages: what each stage holds and in which chunks it runs. Does not import torch.

Looped split. A micro-batch goes through the stages 0, ..., P - 1 several times; each time is called a round. What a stage
runs of a micro-batch in one round is a `Chunk`, possibly empty. If the chunks are numbered in the order in which a
micro-batch passes them, chunk c is on stage c mod P in round c // P. The chunks of the head come first, then those of the
passes of the mid block, then those of the tail:

- Every stage holds a part of the mid block, as equal as possible, and one pass takes P consecutive chunks, one per stage. So
  the work in the mid block is balanced for every S.
- The mid block starts on the stage after the last chunk of the head, and the tail on the stage after the mid block, so that
  the stages between two phases are not idle.
- Head and tail are divided into chunks about as long as those of the mid block, because stages wait for each other after
  every chunk, and unequal chunks cost time.
- The stages may form groups that each hold a copy (replica) of the mid block, which helps if it has fewer layers than there
  are stages. P consecutive chunks then make as many passes as there are copies.

Contiguous split. Each stage holds consecutive layers, one of them the whole mid block, and runs one chunk per micro-batch. The
work can be equal for one S at most; this split is the baseline for measuring the looped split.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from model.architecture import Architecture, LoopSplit

PipelineSplit = Literal["looped", "contiguous"]


@dataclass(frozen=True)
class Chunk:
    """What a stage runs in one round, in this order: embedding, head, passes of the mid block, tail, norm and LM head.

    Attributes:
        embed: start with the embedding.
        head, tail: layers of that phase to run.
        passes: numbers of the passes, counted from 1, in which to run this stage's layers of the mid block.
        logits: end with the final norm and the LM head.
    """

    embed: bool = False
    head: range = range(0)
    passes: range = range(0)
    tail: range = range(0)
    logits: bool = False


@dataclass(frozen=True)
class Stage:
    """The layers of one pipeline stage, numbered within their phase from 0.

    Attributes:
        index, count: number of this stage, from 0, and of all stages.
        head, tail: layers held here, one range per chunk. len(head) + len(tail) is the same on every stage.
        mid: layers of the mid block held here.
        replica, replicas: which copy of the mid block `mid` belongs to, from 0, and the number of copies.
        split: see the module's docstring.
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

    @property
    def begins_pass(self) -> bool:
        """Holds the first layer of the mid block."""
        return 0 in self.mid

    def passes(self, loops: int) -> range:
        """Those of the passes 1, ..., `loops` that run on this stage."""
        return range(self.replica + 1, loops + 1, self.replicas) if self.mid else range(0)

    def chunks(self, loops: int) -> list[Chunk]:
        """Chunks of this stage for one micro-batch when S = `loops`, in order: the same number on every stage."""
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
    """Cost per token of each part of the model, in any one unit (FLOPs, seconds)."""

    layer: float
    embedding: float
    lm_head: float


def whole(split: LoopSplit) -> Stage:
    """The only stage of a model that is not split."""
    return Stage(0, 1, (range(split.head),), range(split.mid), (range(split.tail),))


def weights_held(stage: Stage, architecture: Architecture, tensor: int) -> int:
    """Number of weights on one rank of a stage: matrices are split over the `tensor` ranks, norms are not."""
    norms = 2 * layers_held(stage) + stage.last + (architecture.loop.norm and stage.begins_pass)
    norms *= architecture.hidden_size
    ends = architecture.padded_vocab_size * architecture.hidden_size // tensor
    return hidden_matrices_held(stage, architecture, tensor) + norms + (stage.first + stage.last) * ends


def hidden_matrices_held(stage: Stage, architecture: Architecture, tensor: int) -> int:
    """Number of weights in the matrices of the layers on one rank of a stage."""
    matrices = architecture.parameters_per_layer() - 2 * architecture.hidden_size
    return layers_held(stage) * (matrices // tensor)


def layers_held(stage: Stage) -> int:
    """Number of layers of a stage; those of the mid block count once."""
    return len(stage.mid) + sum(len(chunk) for chunk in (*stage.head, *stage.tail))


def mid_rounds(loops: int, replicas: int) -> int:
    """Number of rounds of the mid block: ceil(S / copies)."""
    return -(-loops // replicas)


def chunk_cost(stage: Stage, chunk: Chunk, costs: Costs) -> float:
    """Cost of one chunk."""
    layers = len(chunk.head) + len(chunk.passes) * len(stage.mid) + len(chunk.tail)
    return layers * costs.layer + chunk.embed * costs.embedding + chunk.logits * costs.lm_head


def stage_load(stage: Stage, loops: int, costs: Costs) -> float:
    """Cost of all chunks of a stage for one micro-batch when S = `loops`."""
    once = sum(len(chunk) for chunk in (*stage.head, *stage.tail))
    layers = once + len(stage.passes(loops)) * len(stage.mid)
    return layers * costs.layer + stage.first * costs.embedding + stage.last * costs.lm_head


def group_size(micro_batches: int, stages: int) -> int:
    """Micro-batches that a stage runs through one chunk before it starts the next (`microbatch_group_size_per_vp_stage`).

    The smallest number that megatron-core's interleaved schedule accepts, because it keeps the fewest activations: at least
    `stages`, and the last, smaller group must not have fewer than `stages` either.
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
    """Divide the layers among the pipeline stages.

    Args:
        loop_probabilities: p(S = 1), p(S = 2), ...; head and tail are placed so that the expected load is even.
        replicas: copies of the mid block. None: the divisor of `stages` with the shortest expected time, and the smallest of
            those that tie, because copies cost memory and a reduction of gradients.
    """
    if stages == 1:
        return (whole(split),)
    workload = _Workload(split, stages, costs, loop_probabilities)
    if kind == "contiguous":
        return _place_contiguous(workload)
    choices = [n for n in range(1, stages + 1) if stages % n == 0] if replicas is None else [replicas]
    placements = [_place_looped(workload, n) for n in choices]
    return min(placements, key=lambda p: round(workload.mean(lambda s: lockstep_time(p, s, costs)), 6))


def bottleneck(placement: Sequence[Stage], loops: int, costs: Costs) -> float:
    """Cost of the most loaded stage for one micro-batch when S = `loops`."""
    return max(stage_load(stage, loops, costs) for stage in placement)


def lockstep_time(placement: Sequence[Stage], loops: int, costs: Costs) -> float:
    """Time per micro-batch if the stages wait for each other after every round: the sum of the most expensive chunks."""
    rounds = zip(*(stage.chunks(loops) for stage in placement), strict=True)
    return sum(max(chunk_cost(s, c, costs) for s, c in zip(placement, chunks, strict=True)) for chunks in rounds)


@dataclass(frozen=True)
class _Workload:
    """What is divided among the stages; see `place`."""

    split: LoopSplit
    stages: int
    costs: Costs
    loop_probabilities: Sequence[float]

    def mean(self, value: Callable[[int], float]) -> float:
        """Expectation of a function of S."""
        return sum(p * value(loops) for loops, p in enumerate(self.loop_probabilities, start=1) if p)


def _place_looped(workload: _Workload, replicas: int) -> tuple[Stage, ...]:
    """Try divisions of head and tail into chunks; take the least `lockstep_time`, bottleneck, longest chunk, chunk count."""
    split, stages, costs = workload.split, workload.stages, workload.costs
    layers_per_chunk = -(-split.mid // (stages // replicas))
    likely = [-(-layers // layers_per_chunk) for layers in (split.head, split.tail)]
    around = [[count + d for d in range(-stages, stages + 1)] for count in likely]
    candidates = [
        _candidate(workload, replicas, head_chunks, tail_chunks, even_chunks)
        for head_chunks, tail_chunks in product(*around)
        if (head_chunks + tail_chunks) % stages == 0
        and head_chunks >= (split.head > 0)
        and tail_chunks >= (split.tail > 0)
        for even_chunks in (False, True)
    ]
    typical = round(workload.mean(float))

    def criteria(placement: tuple[Stage, ...]) -> tuple[float, ...]:
        time = lockstep_time(placement, typical, costs)
        heaviest = workload.mean(lambda loops: bottleneck(placement, loops, costs))
        longest = max(chunk_cost(stage, chunk, costs) for stage in placement for chunk in stage.chunks(typical))
        in_layers = (round(time / costs.layer, 6), round(heaviest / costs.layer, 6), round(longest / costs.layer))
        return *in_layers, len(placement[0].chunks(typical))

    return min(candidates, key=criteria)


def _candidate(
    workload: _Workload, replicas: int, head_chunks: int, tail_chunks: int, even_chunks: bool
) -> tuple[Stage, ...]:
    """The looped split with these numbers of chunks: the first for the head, the last for the tail, the mid block between.

    Args:
        head_chunks, tail_chunks: their sum is a multiple of `stages`, so that every stage has the same number of chunks.
        even_chunks: give each layer to the chunk with the least work instead of the stage with the least work.
    """
    split, stages, costs = workload.split, workload.stages, workload.costs
    per_copy = stages // replicas
    parts = _consecutive(_even_counts(split.mid, per_copy))
    # Position of each stage in a pass of the mid block, which starts on the stage after the last chunk of the head.
    position = [(stage - head_chunks) % stages for stage in range(stages)]
    none: tuple[range, ...] = ()
    mids = [Stage(i, stages, none, parts[p % per_copy], none, p // per_copy, replicas) for i, p in enumerate(position)]
    loads = [workload.mean(lambda loops, s=stage: stage_load(s, loops, costs)) for stage in mids]
    heads = _fill(
        split.head, [c % stages for c in range(head_chunks)], loads, [0.0] * head_chunks, costs.layer, even_chunks
    )
    ends = [0.0] * (tail_chunks - 1) + [costs.lm_head] * (tail_chunks > 0)
    order = [(head_chunks + c) % stages for c in range(tail_chunks)]
    tails = _fill(split.tail, order, loads, ends, costs.layer, even_chunks)
    return tuple(
        replace(stage, head=tuple(heads[stage.index :: stages]), tail=tuple(tails[p::stages]))
        for stage, p in zip(mids, position, strict=True)
    )


def _fill(
    layers: int, order: Sequence[int], loads: list[float], work: list[float], layer_cost: float, even_chunks: bool
) -> list[range]:
    """Distribute the layers of one phase over its chunks, one layer at a time, to where there is least work so far.

    Args:
        order: the stage of each chunk.
        loads: work of each stage so far; updated.
        work: work of each chunk so far; updated.
        even_chunks: see `_candidate`.

    Returns:
        The layers of each chunk.
    """
    counts = [0] * len(order)
    for _ in range(layers):
        keys = [(work[c], loads[s]) if even_chunks else (loads[s], work[c]) for c, s in enumerate(order)]
        chosen = keys.index(min(keys))
        counts[chosen] += 1
        work[chosen] += layer_cost
        loads[order[chosen]] += layer_cost
    return _consecutive(counts)


def _place_contiguous(workload: _Workload) -> tuple[Stage, ...]:
    """Cut the sequence of head layers, mid block (indivisible, E[S] times its cost) and tail layers."""
    split, stages, costs = workload.split, workload.stages, workload.costs
    row = [costs.layer] * split.head + [workload.mean(float) * split.mid * costs.layer] + [costs.layer] * split.tail
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


def _even_counts(total: int, parts: int) -> list[int]:
    """`total` divided into `parts` shares, as evenly as possible, the larger shares first."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _consecutive(counts: Sequence[int]) -> list[range]:
    """Counts -> consecutive ranges that start at 0."""
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]


def _cut(row: Sequence[float], parts: int) -> list[int]:
    """Ends of `parts` consecutive segments of `row`, by dynamic programming.

    Minimizes the largest segment sum, then the sum of the squared segment sums.
    """
    sums = [sum(row[:i]) for i in range(len(row) + 1)]
    best = [[(sums[end], sums[end] ** 2)] for end in range(len(row) + 1)]  # best[end][k - 1]: row[:end] in k segments
    start = [[0] for _ in range(len(row) + 1)]
    for _ in range(1, parts):
        previous = [values[-1] for values in best]
        for end in range(len(row) + 1):
            cuts = [(previous[low], sums[end] - sums[low], low) for low in range(end + 1)]
            value, low = min(((max(old[0], last), old[1] + last**2), low) for old, last, low in cuts)
            best[end].append(value)
            start[end].append(low)
    ends = [len(row)]
    for k in range(parts - 1, 0, -1):
        ends.append(start[ends[-1]][k])
    return ends[::-1]
