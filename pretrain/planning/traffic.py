"""Bytes that one rank sends in a step, by kind. Imports no torch.

Collectives are assumed to be rings: an all-gather or reduce-scatter of b bytes over n ranks sends b (n - 1) / n bytes per rank,
an all-reduce twice as many.
"""

from dataclasses import dataclass

from model.placement import Stage, weights_held
from pretrain.config.run_plan import RunPlan
from pretrain.planning.memory import FP32, hidden_bytes, hidden_share, weight_bytes
from pretrain.planning.programs import programs_of
from pretrain.planning.timing import recomputed_part


@dataclass(frozen=True)
class Traffic:
    """Bytes sent by one rank in one step.

    Attributes:
        tensor: hidden states inside the tensor-parallel group.
        pipeline: hidden states and their gradients to neighbouring stages.
        data: gradients and weights inside the data-parallel group, depending on the ZeRO stage; Muon's pieces of matrices.
        copies: gradients of the mid block between its copies in one pipeline.
        host: gradients and weights to and from CPU memory under `parallel.offload`; not part of `total`.
    """

    tensor: float
    pipeline: float
    data: float
    copies: float
    host: float

    @property
    def total(self) -> float:
        """Bytes sent to other ranks."""
        return self.tensor + self.pipeline + self.data + self.copies


def traffic_of(plan: RunPlan, stage: Stage, loops: int) -> Traffic:
    """Traffic of a rank of this stage in a step at S = `loops`."""
    weights = weights_held(stage, plan.settings.model, plan.settings.parallel.tensor)
    chunks = stage.chunks(loops)
    again = [recomputed_part(chunk, plan.settings.parallel.recompute) for chunk in chunks]
    ahead, back = layer_bytes(plan)
    per_micro_batch = _layers(stage, chunks) * (ahead + back) + _layers(stage, again) * ahead
    return Traffic(
        tensor=plan.micro_batches * per_micro_batch,
        pipeline=_hops(plan, stage, len(chunks)) * hidden_bytes(plan),
        data=_data(plan, weights) + _muon(plan, stage),
        copies=_copies(plan, stage),
        host=_host(plan, weights),
    )


def layer_bytes(plan: RunPlan) -> tuple[float, float]:
    """Bytes sent inside the tensor-parallel group by the (forward, backward) pass of one layer over a micro-batch.

    Attention and SwiGLU each need one all-reduce per pass, or an all-gather and a reduce-scatter under sequence parallelism,
    where the backward pass also gathers both inputs again.
    """
    parallel, train = plan.settings.parallel, plan.settings.train
    whole = train.micro_batch_size * plan.seq_len * plan.settings.model.hidden_size * weight_bytes(plan)
    ring = whole * (parallel.tensor - 1) / parallel.tensor
    return 4 * ring, (6 if parallel.sequence else 4) * ring


def layer_collectives(plan: RunPlan) -> tuple[int, int]:
    """Collectives inside the tensor-parallel group in the (forward, backward) pass of one layer, see `layer_bytes`."""
    parallel = plan.settings.parallel
    if parallel.tensor == 1:
        return 0, 0
    return (4, 6) if parallel.sequence else (2, 2)


def _layers(stage: Stage, chunks: list) -> int:
    return sum(len(c.head) + len(c.tail) + len(c.passes) * len(stage.mid) for c in chunks)


def _hops(plan: RunPlan, stage: Stage, chunks: int) -> int:
    return programs_of(stage.count, chunks, plan.micro_batches)[stage.index].sent() if stage.count > 1 else 0


def _data(plan: RunPlan, weights: int) -> float:
    """Bytes of ZeRO inside the data-parallel group.

    Gradients are reduced in fp32, once per step (stages 0 and 1) or per micro-batch (2 and 3); below stage 3, DeepSpeed 0.19.8
    all-reduces all of them, though a rank needs its share. Weights are gathered after the update (1 and 2) or before each use.
    """
    stage, size, shares = plan.settings.parallel.zero_stage, weight_bytes(plan), plan.data_parallel_size
    ring = weights * (shares - 1) / shares
    if stage == 0:
        return 2 * ring * FP32
    if stage < 3:
        return ring * ((plan.micro_batches if stage == 2 else 1) * 2 * FP32 + size)
    return plan.micro_batches * ring * (2 * size + FP32)


def _muon(plan: RunPlan, stage: Stage) -> float:
    """Bytes of the pieces that go to the ranks that orthogonalize their matrices, and back."""
    if plan.settings.optim.name != "muon":
        return 0.0
    parallel = plan.settings.parallel
    ranks = parallel.tensor * (plan.data_parallel_size if parallel.zero_stage else 1)
    return 2 * FP32 * hidden_share(plan, stage) * (ranks - 1) / ranks


def _copies(plan: RunPlan, stage: Stage) -> float:
    model = plan.settings.model
    weights = model.parameters_per_layer() * len(stage.mid) / plan.settings.parallel.tensor
    weights += model.hidden_size * (model.loop.norm and stage.begins_pass)
    return 2 * weights * FP32 * (stage.replicas - 1) / stage.replicas


def _host(plan: RunPlan, weights: int) -> float:
    parallel, own = plan.settings.parallel, weights / plan.data_parallel_size
    if parallel.offload == "none":
        return 0.0
    gathered = 2 * plan.micro_batches * weight_bytes(plan) * own if parallel.offload == "parameters" else 0.0
    return own * (FP32 + weight_bytes(plan)) + gathered
