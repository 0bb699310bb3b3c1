"""Bytes that one rank sends in a step, by kind. Imports no torch.

Collectives are counted as rings: an all-gather or reduce-scatter of b bytes over n ranks sends b (n - 1) / n, an all-reduce
twice that.
"""

from dataclasses import dataclass

from model.placement import Stage, weights_held
from pretrain.config.run_plan import RunPlan
from pretrain.planning.memory import FP32, hidden_bytes, weight_bytes
from pretrain.planning.programs import programs_of
from pretrain.planning.timing import recomputed_part


@dataclass(frozen=True)
class Traffic:
    """Bytes sent by one rank in one step.

    Attributes:
        tensor: hidden states inside the tensor-parallel group.
        pipeline: hidden states and their gradients to neighbouring stages.
        data: gradients and weights inside the data-parallel group, as ZeRO's stage has them.
        copies: gradients of the mid block between its copies in one pipeline.
        host: gradients and weights to and from the CPU's memory under offload; no part of the sum.
    """

    tensor: float
    pipeline: float
    data: float
    copies: float
    host: float

    @property
    def total(self) -> float:
        """Between ranks."""
        return self.tensor + self.pipeline + self.data + self.copies


def traffic_of(plan: RunPlan, stage: Stage, loops: int) -> Traffic:
    """What a rank of this stage sends in a step at S = `loops`."""
    weights = weights_held(stage, plan.settings.model, plan.settings.parallel.tensor)
    chunks = stage.chunks(loops)
    again = [recomputed_part(chunk, plan.settings.parallel.recompute) for chunk in chunks]
    ahead, back = layer_bytes(plan)
    per_micro_batch = _layers(stage, chunks) * (ahead + back) + _layers(stage, again) * ahead
    return Traffic(
        tensor=plan.micro_batches * per_micro_batch,
        pipeline=_hops(plan, stage, len(chunks)) * hidden_bytes(plan),
        data=_data(plan, weights),
        copies=_copies(plan, stage),
        host=_host(plan, weights),
    )


def layer_bytes(plan: RunPlan) -> tuple[float, float]:
    """Sent inside the tensor-parallel group by one layer's (forward, backward) pass over a micro-batch.

    Attention and SwiGLU take one all-reduce each way, or an all-gather and a reduce-scatter; under sequence parallelism
    the backward pass gathers both inputs again.
    """
    parallel, train = plan.settings.parallel, plan.settings.train
    whole = train.micro_batch_size * plan.seq_len * plan.settings.model.hidden_size * weight_bytes(plan)
    ring = whole * (parallel.tensor - 1) / parallel.tensor
    return 4 * ring, (6 if parallel.sequence else 4) * ring


def _layers(stage: Stage, chunks: list) -> int:
    return sum(len(c.head) + len(c.tail) + len(c.passes) * len(stage.mid) for c in chunks)


def _hops(plan: RunPlan, stage: Stage, chunks: int) -> int:
    return programs_of(stage.count, chunks, plan.micro_batches)[stage.index].sent() if stage.count > 1 else 0


def _data(plan: RunPlan, weights: int) -> float:
    """Of ZeRO: what is reduced once per step (0, 1) or per micro-batch (2, 3), and what is gathered afterwards or before."""
    stage, size, shares = plan.settings.parallel.zero_stage, weight_bytes(plan), plan.data_parallel_size
    ring = weights * (shares - 1) / shares
    if stage == 0:
        return 2 * ring * FP32
    if stage == 1:  # bf16 sums its gradients in fp32, of which DeepSpeed all-reduces the whole
        return ring * (2 * FP32 if size < FP32 else FP32) + ring * size
    if stage == 2:
        return (plan.micro_batches + 1) * ring * size
    return plan.micro_batches * 3 * ring * size


def _copies(plan: RunPlan, stage: Stage) -> float:
    layers = plan.settings.model.parameters_per_layer() * len(stage.mid) / plan.settings.parallel.tensor
    return 2 * layers * FP32 * (stage.replicas - 1) / stage.replicas


def _host(plan: RunPlan, weights: int) -> float:
    parallel, own = plan.settings.parallel, weights / plan.data_parallel_size
    if parallel.offload == "none":
        return 0.0
    gathered = 2 * plan.micro_batches * weight_bytes(plan) * own if parallel.offload == "parameters" else 0.0
    return own * (FP32 + weight_bytes(plan)) + gathered
