"""How long a step's pipeline takes: its stages, stepped through their programs side by side. Imports no torch.

An exchange is blocking, and a send and its receive wait for each other, as megatron-core's point-to-point calls do without
overlap: it begins when the stage and the neighbours concerned have come to it, and ends one hop later.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.architecture import Recompute
from model.placement import Chunk, Costs, Stage, chunk_cost, group_size
from pretrain.planning.programs import Program, programs_of

FULL = 4
"""Groups of micro-batches after which the time grows by the same for each further one."""


@dataclass(frozen=True)
class Case:
    """One pipeline to time, in one unit of time.

    Attributes:
        programs: of every stage.
        forward, backward: time of every chunk, float [stages, chunks].
        hop: of one exchange.
    """

    programs: tuple[Program, ...]
    forward: np.ndarray
    backward: np.ndarray
    hop: float
    micro_batches: int

    @property
    def work(self) -> float:
        """Time that all stages are busy, summed."""
        return float((self.forward + self.backward).sum() * self.micro_batches)

    def shortened(self, micro_batches: int) -> "Case":
        """The same pipeline with fewer micro-batches."""
        programs = programs_of(len(self.programs), self.forward.shape[1], micro_batches)
        return replace(self, programs=programs, micro_batches=micro_batches)

    def bubble(self, makespan: float) -> float:
        """Share of the stages' time in which they wait; not below 0, where rounding would put a pipeline of one stage."""
        return max(0.0, 1.0 - self.work / (len(self.programs) * makespan))


def case_of(
    placement: Sequence[Stage],
    loops: int,
    micro_batches: int,
    forward: Costs,
    backward: Costs,
    recompute: Recompute = "none",
    hop: float = 0.0,
) -> Case:
    """The pipeline of a step at S = `loops`.

    Args:
        forward, backward: time of one micro-batch in what stages are made of.
        hop: of one exchange.
    """
    visits = [stage.chunks(loops) for stage in placement]
    ahead = [[chunk_cost(s, c, forward) for c in chunks] for s, chunks in zip(placement, visits, strict=True)]
    back = [
        [chunk_cost(s, c, backward) + chunk_cost(s, recomputed_part(c, recompute), forward) for c in chunks]
        for s, chunks in zip(placement, visits, strict=True)
    ]
    programs = programs_of(len(placement), len(visits[0]), micro_batches)
    return Case(programs, np.array(ahead), np.array(back), hop, micro_batches)


def recomputed_part(chunk: Chunk, recompute: Recompute) -> Chunk:
    """What the backward pass of a chunk computes a second time."""
    if recompute == "none":
        return Chunk()
    if recompute == "loop":
        return Chunk(passes=chunk.passes)
    return replace(chunk, embed=False, logits=False)


def step_times(cases: Sequence[Case]) -> list[float]:
    """`makespans`, of long steps by way of short ones.

    Once the pipeline is full, each group of micro-batches takes as long as the one before.
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
    """The case with FULL and with FULL + 1 groups of micro-batches; the case itself where it has no more or a last smaller one."""
    group = group_size(case.micro_batches, len(case.programs))
    if case.micro_batches % group or case.micro_batches <= (FULL + 1) * group:
        return (case,)
    return case.shortened(FULL * group), case.shortened((FULL + 1) * group)


def makespans(cases: Sequence[Case]) -> list[float]:
    """Time from the first work to the last exchange of each case. All have as many stages; they are timed side by side."""
    if len(cases[0].programs) == 1:
        return [case.work for case in cases]
    race = _Race(cases)
    while race.advance():
        pass
    return [float(time) for time in race.now.max(axis=1)]


class _Race:
    """All stages of all cases, each at its own entry of its program.

    Arrays [cases, stages, entries] are read flat; entry 0 is a start that needs nobody, at time 0.
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
        self._arrived = np.zeros((*shape, longest))  # when each stage came to the exchange of each entry
        self._offsets = np.arange(shape[0] * shape[1]).reshape(shape) * longest
        self._at = np.zeros(shape, np.int64)
        self.now = np.zeros(shape)  # when the last exchange ended

    def advance(self) -> bool:
        """Let every stage that can finish its exchange go on to the next; False when all are at their end."""
        here = self._offsets + self._at
        after, before = self._after.take(here), self._before.take(here)
        ready = (np.roll(self._at, -1, 1) >= after) & (np.roll(self._at, 1, 1) >= before) & (self._at <= self._lengths)
        if not ready.any():
            assert (self._at > self._lengths).all(), "the stages wait for each other: programs do not fit together"
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
    """The exchange of the next (previous) stage that each exchange waits for, counted from 1; 0 for none.

    The n-th send to a neighbour meets its n-th receive. Where an exchange sends and receives, the later one counts.
    """
    after, before = [], []
    for stage, own in enumerate(programs):
        following, previous = programs[(stage + 1) % len(programs)], programs[stage - 1]
        after.append(np.maximum(_meet(own.send_next, following.recv_prev), _meet(own.recv_next, following.send_prev)))
        before.append(np.maximum(_meet(own.send_prev, previous.recv_next), _meet(own.recv_prev, previous.send_next)))
    return after, before


def _meet(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Number (from 1) of the entry where the other side's n-th flag stands, at the own n-th flag; 0 elsewhere."""
    met = np.zeros(len(own), np.int32)
    met[own] = np.flatnonzero(other) + 1
    return met
