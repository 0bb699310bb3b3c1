"""The duration of a step's pipeline: all stages are simulated through their programs together. Imports no torch.

Exchanges block, and a send and its receive wait for each other, like megatron-core's point-to-point calls without overlap: an
exchange begins when the stage and the neighbours involved have reached it, and ends one hop later.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.architecture import Recompute
from model.placement import Chunk, Costs, Stage, chunk_cost, group_size
from pretrain.planning.programs import Program, programs_of

FULL = 4
"""Number of groups of micro-batches after which each further group adds the same time."""


@dataclass(frozen=True)
class Case:
    """One pipeline to time; all times in the same unit.

    Attributes:
        programs: one for each stage.
        forward, backward: time of each chunk, float [stages, chunks].
        hop: time of one exchange.
    """

    programs: tuple[Program, ...]
    forward: np.ndarray
    backward: np.ndarray
    hop: float
    micro_batches: int

    @property
    def work(self) -> float:
        """Busy time, summed over all stages."""
        return float((self.forward + self.backward).sum() * self.micro_batches)

    def shortened(self, micro_batches: int) -> "Case":
        """The same pipeline with fewer micro-batches."""
        programs = programs_of(len(self.programs), self.forward.shape[1], micro_batches)
        return replace(self, programs=programs, micro_batches=micro_batches)

    def bubble(self, makespan: float) -> float:
        """Fraction of the stages' time in which they wait; at least 0 in spite of rounding."""
        return max(0.0, 1.0 - self.work / (len(self.programs) * makespan))


@dataclass(frozen=True)
class Durations:
    """How long the parts of a step take, in seconds.

    Attributes:
        forward, backward: of one micro-batch in a layer, the embedding and the LM head.
        hop: of one exchange between stages.
        recompute: what the backward pass computes again.
    """

    forward: Costs
    backward: Costs
    hop: float = 0.0
    recompute: Recompute = "none"


def case_of(placement: Sequence[Stage], loops: int, micro_batches: int, durations: Durations) -> Case:
    """The pipeline of a step at S = `loops`."""
    forward, backward = durations.forward, durations.backward
    chunks_of = [stage.chunks(loops) for stage in placement]
    ahead = [[chunk_cost(s, c, forward) for c in chunks] for s, chunks in zip(placement, chunks_of, strict=True)]
    back = [
        [chunk_cost(s, c, backward) + chunk_cost(s, recomputed_part(c, durations.recompute), forward) for c in chunks]
        for s, chunks in zip(placement, chunks_of, strict=True)
    ]
    programs = programs_of(len(placement), len(chunks_of[0]), micro_batches)
    return Case(programs, np.array(ahead), np.array(back), durations.hop, micro_batches)


def recomputed_part(chunk: Chunk, recompute: Recompute) -> Chunk:
    """The part of a chunk that its backward pass recomputes."""
    if recompute == "none":
        return Chunk()
    if recompute == "loop":
        return Chunk(passes=chunk.passes)
    return replace(chunk, embed=False, logits=False)


def step_times(cases: Sequence[Case]) -> list[float]:
    """The same as `makespans`, faster for steps with many micro-batches.

    Once the pipeline is full, each group of micro-batches adds the same time, so two short steps give that of a long one.
    """
    short = [_shortened(case) for case in cases]
    times = iter(makespans([part for parts in short for part in parts]))
    found = []
    for case, parts in zip(cases, short, strict=True):
        last = next(times)
        if len(parts) == 2:
            before, last = last, next(times)
            group = parts[1].micro_batches - parts[0].micro_batches
            last += (last - before) * (case.micro_batches - parts[1].micro_batches) / group
        found.append(last)
    return found


def _shortened(case: Case) -> tuple[Case, ...]:
    """The case with FULL and with FULL + 1 groups; the case itself if it has no more groups or the last one is smaller."""
    group = group_size(case.micro_batches, len(case.programs))
    if case.micro_batches % group or case.micro_batches <= (FULL + 1) * group:
        return (case,)
    return case.shortened(FULL * group), case.shortened((FULL + 1) * group)


def makespans(cases: Sequence[Case]) -> list[float]:
    """Time of each case from the first chunk to the last exchange. All cases must have the same number of stages."""
    if len(cases[0].programs) == 1:
        return [case.work for case in cases]
    race = _Race(cases)
    while race.advance():
        pass
    return [float(time) for time in race.now.max(axis=1)]


class _Race:
    """All stages of all cases, each at one entry of its program.

    Arrays [cases, stages, entries] are indexed flat. Entry 0 is the start, at time 0, which waits for no other stage.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        shape = (len(cases), len(cases[0].programs))
        links = {id(case.programs): _links(case.programs) for case in cases}
        self._lengths = np.array([[len(p.forward) for p in case.programs] for case in cases])
        longest = int(self._lengths.max()) + 2
        work = np.zeros((*shape, longest))
        self._after, self._before = np.zeros((*shape, longest), np.int32), np.zeros((*shape, longest), np.int32)
        self._hop = np.array([[case.hop] for case in cases])
        for index, case in enumerate(cases):
            after, before = links[id(case.programs)]
            for stage, program in enumerate(case.programs):
                entries = slice(1, len(program.forward) + 1)
                work[index, stage, entries] = _durations(program, case.forward[stage], case.backward[stage])
                self._after[index, stage, entries] = after[stage]
                self._before[index, stage, entries] = before[stage]
        self._work = work
        self._arrived = np.zeros((*shape, longest))  # when each stage reached the exchange of each entry
        self._offsets = np.arange(shape[0] * shape[1]).reshape(shape) * longest
        self._at = np.zeros(shape, np.int64)
        self.now = np.zeros(shape)  # when the last exchange ended

    def advance(self) -> bool:
        """Advance every stage whose exchange can finish by one entry; False when all stages have finished."""
        here = self._offsets + self._at
        after, before = self._after.take(here), self._before.take(here)
        ready = (np.roll(self._at, -1, 1) >= after) & (np.roll(self._at, 1, 1) >= before) & (self._at <= self._lengths)
        if not ready.any():
            assert (self._at > self._lengths).all(), "deadlock: the programs of the stages do not match"
            return False
        arrived = self._arrived
        met = np.maximum(
            arrived.take(np.roll(self._offsets, -1, 1) + after), arrived.take(np.roll(self._offsets, 1, 1) + before)
        )
        end = np.maximum(arrived.take(here), met) + self._hop * ((after > 0) | (before > 0))
        self.now = np.where(ready, end, self.now)
        self._at = self._at + ready
        here = self._offsets + self._at
        arrived.put(here, self.now + self._work.take(here))
        return True


def _durations(program: Program, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Work before each exchange of one stage."""
    return np.append(forward, 0.0)[program.forward] + np.append(backward, 0.0)[program.backward]


def _links(programs: Sequence[Program]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each exchange, the exchange of the next (previous) stage that it waits for, counted from 1; 0 for none.

    The n-th send to a neighbour matches its n-th receive. Where an exchange sends and receives, the later match counts.
    """
    after, before = [], []
    for stage, own in enumerate(programs):
        following, previous = programs[(stage + 1) % len(programs)], programs[stage - 1]
        after.append(np.maximum(_meet(own.send_next, following.recv_prev), _meet(own.recv_next, following.send_prev)))
        before.append(np.maximum(_meet(own.send_prev, previous.recv_next), _meet(own.recv_prev, previous.send_next)))
    return after, before


def _meet(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """At the n-th True of `own`, the position (from 1) of the n-th True of `other`; 0 elsewhere."""
    met = np.zeros(len(own), np.int32)
    met[own] = np.flatnonzero(other) + 1
    return met
