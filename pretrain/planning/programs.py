"""The order of work on every pipeline stage under megatron-core's schedules. Imports no torch.

`megatron/core/pipeline_parallel/schedules.py` computes the order while it runs the chunks; here the order alone is computed, as
arrays. tests/unit/test_pipeline_timing.py compares it with the original schedules. Without overlap
(`pretrain/parallel/pipeline.py`) a stage alternates between the work of one chunk and a blocking exchange with its neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from model.placement import group_size


@dataclass(frozen=True)
class Program:
    """Work and exchanges of one stage, in order. Each entry is work (forward, then backward) followed by one exchange.

    Attributes:
        forward, backward: the chunk that is run, int [entries]; -1 for none.
        send_next, recv_prev, send_prev, recv_next: what the exchange moves, bool [entries]. Neighbours form a ring.
    """

    forward: np.ndarray
    backward: np.ndarray
    send_next: np.ndarray
    recv_prev: np.ndarray
    send_prev: np.ndarray
    recv_next: np.ndarray

    def peak(self, held: Sequence[float]) -> float:
        """Largest amount held at one time, if each chunk holds `held[chunk]` from its forward to its backward pass."""
        sizes = np.append(np.asarray(held, dtype=float), 0.0)  # index -1: no chunk
        taken, given = sizes[self.forward], sizes[self.backward]
        return float((np.cumsum(taken - given) + given).max())

    def sent(self) -> int:
        """Messages that the stage sends in a step."""
        return int(self.send_next.sum() + self.send_prev.sum())


@lru_cache(maxsize=4096)
def programs_of(stages: int, chunks: int, micro_batches: int) -> tuple[Program, ...]:
    """Programs of all stages of a pipeline in which each stage runs `chunks` chunks per micro-batch."""
    if chunks == 1:
        return tuple(_plain(stage, stages, micro_batches) for stage in range(stages))
    return tuple(_interleaved(stage, stages, chunks, micro_batches) for stage in range(stages))


def _interleaved(stage: int, stages: int, chunks: int, micro_batches: int) -> Program:
    """`forward_backward_pipelining_with_interleaving` without overlap."""
    first, last = stage == 0, stage == stages - 1
    group = group_size(micro_batches, stages)
    forward = _schedule_table(micro_batches, chunks, group)
    backward = chunks - 1 - forward
    total = len(forward)
    warmup = min(2 * (stages - stage - 1) + (chunks - 1) * group, total)
    steady = total - warmup
    # After the n-th forward (backward) a stage receives the input of the next one. The first stage receives it from the last
    # one, which is stages - 1 entries behind and sends nothing after its last chunk; in the backward pass vice versa.
    gets_forward = _receives(forward, chunks - 1, stages) if first else np.ones(total, bool)
    gets_backward = _receives(backward, 0, stages) if last else np.ones(total, bool)
    gets_forward[-1] = gets_backward[-1] = False
    gives_forward = ~(last & (forward == chunks - 1))
    gives_backward = ~(first & (backward == 0))
    # The first gradient is received in the last exchange of the warm-up, or in an entry of its own where all is warm-up.
    turn = np.zeros(warmup, bool)
    turn[-1] = not last and steady > 0
    alone = np.array([not last] if steady == 0 else [], bool)
    nothing, ready = np.full(1, -1), np.full(len(alone), -1)
    no, none = np.zeros(1, bool), np.zeros(len(alone), bool)
    rest = total - steady
    return Program(
        forward=np.concatenate([nothing, forward, ready, np.full(rest, -1)]),
        backward=np.concatenate([np.full(1 + warmup, -1), backward[:steady], ready, backward[steady:]]),
        send_next=np.concatenate([no, gives_forward, none, np.zeros(rest, bool)]),
        recv_prev=np.concatenate([~no & (not first), gets_forward, none, np.zeros(rest, bool)]),
        send_prev=np.concatenate([no, np.zeros(warmup, bool), gives_backward[:steady], none, gives_backward[steady:]]),
        recv_next=np.concatenate([no, turn, gets_backward[:steady], alone, gets_backward[steady:]]),
    )


def _schedule_table(micro_batches: int, chunks: int, group: int) -> np.ndarray:
    """Chunk of every forward pass, in order: a group of micro-batches goes through all chunks before the next group starts.

    The last group holds the remaining micro-batches (megatron-core's `get_schedule_table`).
    """
    starts = range(0, micro_batches, group)
    return np.concatenate([np.repeat(np.arange(chunks), min(group, micro_batches - start)) for start in starts])


def _receives(chunks: np.ndarray, end: int, stages: int) -> np.ndarray:
    """Whether the first stage receives something after its n-th chunk: the last stage sent it stages - 1 chunks earlier."""
    earlier = np.concatenate([np.full(stages - 1, end), chunks])[: len(chunks)]
    return earlier != end


def _plain(stage: int, stages: int, micro_batches: int) -> Program:
    """`forward_backward_pipelining_without_interleaving`."""
    first, last = stage == 0, stage == stages - 1
    warmup = min(stages - stage - 1, micro_batches)
    steady = micro_batches - warmup
    rows: list[tuple[int, int, bool, bool, bool, bool]] = []  # in the order of Program's fields
    for _ in range(warmup):
        rows += [(-1, -1, False, not first, False, False), (0, -1, not last, False, False, False)]
    if steady:
        rows.append((-1, -1, False, not first, False, False))
    for number in range(steady):
        more = number < steady - 1
        rows += [(0, -1, not last, False, False, not last), (-1, 0, False, more and not first, not first, False)]
    for _ in range(warmup):
        rows += [(-1, -1, False, False, False, not last), (-1, 0, False, False, not first, False)]
    forward, backward, *flags = (np.array(column) for column in zip(*rows, strict=True))
    return Program(forward, backward, *flags)
