"""What a layout costs: memory, FLOPs, traffic, bubble and the time of a step. Imports no torch.

The estimate assumes no overlap: compute waits for tensor-parallel messages, a pipeline hop waits for the slower neighbour, and
the data-parallel reduction follows the last backward pass. DeepSpeed overlaps a part of it, so the estimated times are upper
limits in this respect.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from model.placement import Costs, Stage
from pretrain.config.run_plan import RunPlan
from pretrain.planning.memory import Memory, hidden_bytes, memory_of
from pretrain.planning.orthogonalization import orthogonalization_flops
from pretrain.planning.timing import Case, Durations, case_of, step_times
from pretrain.planning.traffic import Traffic, layer_bytes, layer_collectives, traffic_of

H100_TFLOPS = {"bf16": 989.4, "fp32": 66.9}
"""Peak that the planner assumes where none is given: an H100 SXM, dense (NVIDIA's data sheet)."""

FP32_SHARE = H100_TFLOPS["fp32"] / H100_TFLOPS["bf16"]
"""Speed of fp32 relative to bf16 on the same device, which Muon's orthogonalization is timed with: that of an H100 SXM."""

BACKWARD = 2
"""FLOPs of a backward pass divided by those of the forward pass (model/flops.py)."""


@dataclass(frozen=True)
class Estimate:
    """The figures of one layout.

    Attributes:
        memory: of the rank that needs most, at the largest S.
        traffic: of the rank that sends most, at E[S].
        flops: model FLOPs of a step over all ranks, at E[S].
        bubble, bubble_largest: fraction of the time in which pipeline stages wait, at E[S] and at the largest S.
        seconds: expected time of a step over the distribution of S.
        seconds_largest: time of a step at the largest S.
    """

    plan: RunPlan
    memory: Memory
    traffic: Traffic
    flops: float
    bubble: float
    bubble_largest: float
    seconds: float
    seconds_largest: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second over all ranks."""
        return self.plan.tokens_per_step / self.seconds

    @property
    def fits(self) -> bool:
        """Whether the rank that needs most memory has enough."""
        return self.memory.total <= self.plan.settings.hardware.memory_gib * 2**30


@dataclass(frozen=True)
class _Rates:
    """Seconds per FLOP in `train.precision` and in fp32, per message, pipeline hop and byte of each kind of communication."""

    flop: float
    fp32_flop: float
    tensor_byte: float
    latency: float
    hop: float
    data_byte: float
    copies_byte: float
    host_byte: float


def estimate_all(plans: Sequence[RunPlan]) -> list[Estimate]:
    """The figures of each layout. Pipelines with equally many stages are timed together; layouts that differ only in ZeRO, once."""
    queues: dict[int, dict[tuple, RunPlan]] = defaultdict(dict)
    for plan in plans:
        queues[plan.settings.parallel.pipeline].setdefault(_pipeline_key(plan), plan)
    timed: dict[tuple, list[tuple[float, Case]]] = {}
    for by_key in queues.values():
        cases = {key: [_case(plan, loops) for loops in _support(plan)] for key, plan in by_key.items()}
        times = iter(step_times([case for own in cases.values() for case in own]))
        timed |= {key: [(next(times), case) for case in own] for key, own in cases.items()}
    return [_estimate(plan, timed[_pipeline_key(plan)]) for plan in plans]


def _estimate(plan: RunPlan, timed: Sequence[tuple[float, Case]]) -> Estimate:
    rates, probabilities = _rates(plan), plan.loops_after_ramp.probabilities(0)
    mean = round(plan.loops_after_ramp.mean(0))
    by_loops = dict(zip(_support(plan), timed, strict=True))
    traffics = [traffic_of(plan, stage, mean) for stage in plan.placement]
    after = max(map(partial(_seconds_after, plan, rates), plan.placement, traffics))
    expected = sum(float(probabilities[s - 1]) * time for s, (time, _) in by_loops.items())
    (typical, largest) = (by_loops[s] for s in (min(by_loops, key=lambda s: abs(s - mean)), max(by_loops)))
    return Estimate(
        plan=plan,
        memory=max((memory_of(plan, stage) for stage in plan.placement), key=lambda memory: memory.total),
        traffic=max(traffics, key=lambda traffic: traffic.total),
        flops=plan.tokens_per_step * plan.expected_flops_per_token,
        bubble=typical[1].bubble(typical[0]),
        bubble_largest=largest[1].bubble(largest[0]),
        seconds=expected + after,
        seconds_largest=largest[0] + after,
    )


def _seconds_after(plan: RunPlan, rates: _Rates, stage: Stage, traffic: Traffic) -> float:
    """What follows the backward pass on a rank of a stage: the gradients' reduction, the optimizer's exchanges, Muon's products."""
    sent = traffic.data * rates.data_byte + traffic.copies * rates.copies_byte + traffic.host * rates.host_byte
    return sent + orthogonalization_flops(plan, stage) * rates.fp32_flop


def _support(plan: RunPlan) -> list[int]:
    """Values of S with a probability above 0."""
    probabilities = plan.loops_after_ramp.probabilities(0)
    return [loops for loops, p in enumerate(probabilities, start=1) if p]


def _pipeline_key(plan: RunPlan) -> tuple:
    """Everything that the time of the schedule depends on; ZeRO is not a part of it."""
    p = plan.settings.parallel
    return p.tensor, p.pipeline, p.sequence, p.recompute, p.pipeline_split, p.mid_replicas, plan.micro_batches


def _case(plan: RunPlan, loops: int) -> Case:
    """The pipeline of a step at S = `loops`, in seconds."""
    rates, tensor = _rates(plan), plan.settings.parallel.tensor
    tokens = plan.settings.train.micro_batch_size * plan.seq_len
    compute = rates.flop * tokens / tensor
    messages = zip(layer_bytes(plan), layer_collectives(plan), strict=True)
    ahead, back = (bytes_ * rates.tensor_byte + count * rates.latency for bytes_, count in messages)
    layer, embedding, lm_head = plan.costs.layer, plan.costs.embedding, plan.costs.lm_head
    forward = Costs(compute * layer + ahead, compute * embedding, compute * lm_head)
    backward = Costs(compute * BACKWARD * layer + back, compute * BACKWARD * embedding, compute * BACKWARD * lm_head)
    durations = Durations(forward, backward, rates.hop, plan.settings.parallel.recompute)
    return case_of(plan.placement, loops, plan.micro_batches, durations)


def peak_tflops(plan: RunPlan) -> float:
    """Peak of one rank's device in `train.precision`: as given, else that of an H100."""
    return plan.settings.hardware.peak_tflops or H100_TFLOPS[plan.settings.train.precision]


def _rates(plan: RunPlan) -> _Rates:
    """Ranks are numbered tensor first, then data, then pipeline, so tensor-parallel groups stay inside a node."""
    hardware, parallel = plan.settings.hardware, plan.settings.parallel

    def byte(ranks: int) -> float:
        inside = ranks <= hardware.ranks_per_node
        return 1e-9 / (hardware.node_gb_per_second if inside else hardware.network_gb_per_second)

    flop = 1e-12 / (peak_tflops(plan) * hardware.efficiency)
    between_stages, latency = byte(plan.world_size), hardware.latency_microseconds * 1e-6
    return _Rates(
        flop=flop,
        fp32_flop=flop if plan.settings.train.precision == "fp32" else flop / FP32_SHARE,
        tensor_byte=byte(parallel.tensor),
        latency=latency,
        hop=latency + hidden_bytes(plan) * between_stages,
        data_byte=byte(parallel.tensor * plan.data_parallel_size),
        copies_byte=between_stages,
        host_byte=1e-9 / hardware.host_gb_per_second,
    )
