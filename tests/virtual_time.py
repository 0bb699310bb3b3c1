"""megatron-core's own pipeline schedules in virtual time: each stage is a thread with a clock that each chunk advances.

Tensors of one number carry the autograd graph; the forward and the backward pass of a chunk add their cost to the stage's
clock. The communicator replaces `_communicate` of the real class, so all its other methods run, and lets a send and its receive
wait for each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Queue
from threading import Thread
from typing import Any

import torch
from megatron.core.pipeline_parallel import schedules
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import ModelType
from torch import Tensor, nn

from model.architecture import Architecture
from model.layers import Sharding, transformer_config
from model.megatron_on_cpu import use_cpu_for_cuda

Message = tuple[Tensor | None, float]
"""(tensor, time at which its sender reached the exchange)."""


@dataclass
class Line:
    """One direction between two stages: what was sent, and when each side reached the exchange."""

    sent: Queue[Message] = field(default_factory=Queue)
    wanted: Queue[float] = field(default_factory=Queue)


@dataclass
class Clock:
    now: float = 0.0
    held: int = 0
    most_held: int = 0


class Group:
    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


class Communicator(P2PCommunicator):
    """The real class with `Line`s in the place of process groups."""

    def __init__(self, group: Group, config: Any, clock: Clock, hop: float, down: list[Line], up: list[Line]) -> None:
        self.pp_group, self.config = group, config
        self.virtual_pipeline_model_parallel_size = config.virtual_pipeline_model_parallel_size
        self._clock, self._hop = clock, hop
        rank, previous = group.rank(), (group.rank() - 1) % group.size()
        self._to_next, self._from_previous = down[rank], down[previous]  # down[i]: stage i -> i + 1
        self._to_previous, self._from_next = up[rank], up[(rank + 1) % group.size()]  # up[i]: stage i -> i - 1

    def _communicate(
        self, *, tensor_send_next, tensor_send_prev, recv_prev, recv_next, tensor_shape, wait_on_reqs=True
    ):
        assert wait_on_reqs
        here = self._clock.now
        sends = [(tensor_send_next, self._to_next), (tensor_send_prev, self._to_previous)]
        receives = [(recv_prev, self._from_previous), (recv_next, self._from_next)]
        for tensor, line in sends:
            if tensor is not None:
                line.sent.put((tensor.detach().clone(), here))
        for wanted, line in receives:
            if wanted:
                line.wanted.put(here)
        met = [line.wanted.get(timeout=60) for tensor, line in sends if tensor is not None]
        got: list[Tensor | None] = []
        for wanted, line in receives:
            tensor, when = line.sent.get(timeout=60) if wanted else (None, None)
            got.append(None if tensor is None else tensor.requires_grad_())
            met += [] if when is None else [when]
        if met:
            self._clock.now = max(here, *met) + self._hop
        return got[0], got[1], None


class _Spend(torch.autograd.Function):
    """Advances the stage's clock in the forward and in the backward pass."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, clock: Clock, ahead: float, back: float) -> Tensor:
        ctx.clock, ctx.back = clock, back
        clock.now += ahead
        clock.held += 1
        clock.most_held = max(clock.most_held, clock.held)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        ctx.clock.now += ctx.back
        ctx.clock.held -= 1
        return gradient, None, None, None


class VirtualChunk(nn.Module):
    """A chunk that only advances the clock."""

    def __init__(self, config: Any, clock: Clock, ahead: float, back: float) -> None:
        super().__init__()
        self.config, self.model_type = config, ModelType.encoder_or_decoder
        self._spend = (clock, ahead, back)
        self._received: Tensor | None = None

    def set_input_tensor(self, received: Any) -> None:
        self._received = received[0] if isinstance(received, list) else received

    def forward(self) -> Tensor:
        value = torch.ones(1, requires_grad=True) if self._received is None else self._received
        return _Spend.apply(value, *self._spend)


def run_schedule(
    forward: Sequence[Sequence[float]], backward: Sequence[Sequence[float]], micro_batches: int, group: int, hop: float
) -> tuple[float, list[int]]:
    """(time of the last event, the most chunks held between forward and backward pass on each stage).

    Args:
        forward, backward: time of each chunk of each stage; with one chunk per stage the plain 1F1B schedule is run.
        group: number of micro-batches per group of the interleaved schedule.
    """
    use_cpu_for_cuda()
    size = len(forward)
    down, up = [Line() for _ in range(size)], [Line() for _ in range(size)]
    clocks, failures = [Clock() for _ in range(size)], []

    def stage(rank: int) -> None:
        try:
            _run_stage(
                Group(rank, size), clocks[rank], forward[rank], backward[rank], micro_batches, group, hop, down, up
            )
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=stage, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive(), "deadlock between the stages"
    if failures:
        raise failures[0]
    return max(clock.now for clock in clocks), [clock.most_held for clock in clocks]


def _run_stage(
    pp: Group, clock: Clock, ahead: Sequence[float], back: Sequence[float], micro_batches: int, group: int,
    hop: float, down: list[Line], up: list[Line],
) -> None:  # fmt: skip
    architecture = Architecture(num_layers=12, hidden_size=32, num_heads=4, vocab_size=51)
    config = transformer_config(architecture, Sharding())
    config.pipeline_model_parallel_size, config.pipeline_dtype = pp.size(), torch.float32
    config.calculate_per_token_loss = True
    config.batch_p2p_comm = config.overlap_p2p_comm = False
    interleaved = len(ahead) > 1
    config.virtual_pipeline_model_parallel_size = len(ahead) if interleaved else None
    config.microbatch_group_size_per_vp_stage = group
    alone = Group(0, 1)
    run = (
        schedules.forward_backward_pipelining_with_interleaving
        if interleaved
        else schedules.forward_backward_pipelining_without_interleaving
    )

    def step(numbers: Any, chunk: VirtualChunk) -> tuple:
        next(numbers)
        return chunk(), lambda value: (value.sum(), torch.zeros((), dtype=torch.int), {})

    run(
        forward_step_func=step,
        data_iterator=[iter(range(micro_batches)) for _ in ahead],
        model=[VirtualChunk(config, clock, a, b) for a, b in zip(ahead, back, strict=True)],
        num_microbatches=micro_batches,
        seq_length=1,
        micro_batch_size=1,
        p2p_communicator=Communicator(pp, config, clock, hop, down, up),
        pg_collection=ProcessGroupCollection(tp=alone, cp=alone, embd=None, pos_embd=None, pp=pp, dp_cp=alone),
    )
