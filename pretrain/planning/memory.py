"""Memory of one rank by part, in bytes. Imports no torch.

Activations are the tensors that autograd saves in the layers of `model/layers.py`. Optimizer states and buffers are those that
DeepSpeed 0.19.8 was observed to allocate; a test compares the sum with the resident memory of processes on a CPU.
"""

from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal

from model.architecture import LOGITS_PER_CHUNK
from model.placement import Chunk, Stage, hidden_matrices_held, weights_held
from pretrain.config.deepspeed_file import reduce_bucket
from pretrain.config.run_plan import RunPlan
from pretrain.planning.programs import programs_of

FP32 = 4
"""Bytes of an fp32 number."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank's device at the peak; the parts (without `host`) add up to `total`.

    Attributes:
        gradients: those held at the peak. With one micro-batch, gradients appear while activations are freed.
        optimizer: fp32 master weights, AdamW's two moments (Muon has one), and the moving average.
        activations: kept from the forward to the backward pass, at the largest S.
        logits: one chunk of logits, and the gradients that the loss computes in the forward pass (`model/lm_head.py`).
        buffers: everything else at the peak: reduction buckets, gathered weights, the backward pass of a layer.
        host: bytes in CPU memory under `parallel.offload`.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """Bytes on the device at the peak."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.buffers


@dataclass(frozen=True)
class _States:
    """Weights, gradients and optimizer states of one rank under ZeRO, and the buffers of the phases of a step.

    Attributes:
        backward: during the backward pass: the gradient bucket of ZeRO-2 and ZeRO-3, the weights gathered by ZeRO-3.
        reduction: while gradients are reduced at the end of the backward pass, when few activations are left.
        step: during the update, when there are no activations; includes the gradients.
    """

    weights: float
    gradients: float
    optimizer: float
    backward: float
    reduction: float
    step: float


Device = Literal["cpu", "cuda"]


def memory_of(plan: RunPlan, stage: Stage, device: Device = "cuda") -> Memory:
    """Memory of a rank of this stage at the largest S of training."""
    held = _Held(plan, stage, device)
    states = _states(plan, weights_held(stage, plan.settings.model, plan.settings.parallel.tensor))
    if plan.settings.optim.name == "muon":
        states = _with_muon(states, plan, stage)
    offload = plan.settings.parallel.offload
    host = states.optimizer * (offload != "none") + states.weights * (offload == "parameters")
    optimizer = states.optimizer * (offload == "none")
    weights = states.weights * (offload != "parameters")
    activations, logits = held.activations(), held.logits()
    first = activations + logits + held.recomputed()
    if plan.micro_batches == 1:  # gradients appear while activations are freed
        first = max(activations + logits - states.gradients, held.recomputed())
    backward = states.gradients + states.backward + max(first + held.working(), states.reduction)
    peak = weights + optimizer + max(backward, states.step)
    rest = peak - weights - optimizer - activations - logits
    gradients = min(states.gradients, rest)
    return Memory(weights, gradients, optimizer, activations, logits, rest - gradients, host)


def weight_bytes(plan: RunPlan) -> int:
    """Bytes of a number in the forward and backward pass."""
    return FP32 if plan.settings.train.precision == "fp32" else 2


def hidden_bytes(plan: RunPlan) -> int:
    """Bytes of the hidden states of a micro-batch on one rank: the content of a pipeline hop."""
    parallel, train = plan.settings.parallel, plan.settings.train
    tokens = train.micro_batch_size * plan.seq_len
    return (
        tokens * plan.settings.model.hidden_size * weight_bytes(plan) // (parallel.tensor if parallel.sequence else 1)
    )


def hidden_share(plan: RunPlan, stage: Stage) -> float:
    """Numbers in the matrices of the layers that one rank of a stage updates: those that Muon would step."""
    held = hidden_matrices_held(stage, plan.settings.model, plan.settings.parallel.tensor)
    return held / (plan.data_parallel_size if plan.settings.parallel.zero_stage else 1)


def _with_muon(states: _States, plan: RunPlan, stage: Stage) -> _States:
    """One moment less of the matrices of the layers; the pieces that the ranks exchange, and five copies of the largest matrix."""
    model, alone = plan.settings.model, plan.world_size == plan.settings.parallel.pipeline
    moment = FP32 * hidden_share(plan, stage)
    exchanged = moment * (1 if alone else 2) + 5 * FP32 * 2 * model.ffn_size * model.hidden_size
    step = max(states.step, states.gradients + exchanged)
    return replace(states, optimizer=states.optimizer - moment, step=step)


def _states(plan: RunPlan, weights: int) -> _States:
    """States of `weights` weights, as DeepSpeed allocated them at data-parallel sizes 1, 2 and 4."""
    stage, shares = (
        plan.settings.parallel.zero_stage,
        plan.data_parallel_size if plan.settings.parallel.zero_stage else 1,
    )
    size, fp32 = weight_bytes(plan), plan.settings.train.precision == "fp32"
    whole, part, bucket = FP32 * weights, FP32 * weights / shares, size * reduce_bucket(plan.settings, weights)
    moments = (2 + (plan.settings.optim.ema_decay > 0)) * part
    optimizer = moments + (part if stage else 0.0)
    own = size * weights
    if stage == 0:
        return _States(own, whole, optimizer, 0.0, 0.0, whole + bucket)
    if stage == 1 and fp32:
        return _States(own, whole, optimizer, 0.0, 0.0, max(whole + bucket, 4 * part))
    if stage == 1:  # fp32 sums of all gradients, plus a bucket of them and the gathered weights
        return _States(own, whole, optimizer, 0.0, 0.0, whole + max(1.5 * whole, 2 * part))
    if stage == 2:  # bf16 buckets are converted to fp32 for the reduction
        return _States(own, part, optimizer, bucket, bucket if fp32 else 3 * bucket, (4 if fp32 else 3) * part)
    bucket = FP32 * reduce_bucket(plan.settings, weights)
    return _States(own / shares, part, optimizer, bucket + own, 1.5 * bucket, bucket + 4 * part)


class _Held:
    """What autograd and the pipeline schedule hold for the micro-batches on one rank of a stage."""

    def __init__(self, plan: RunPlan, stage: Stage, device: Device) -> None:
        self._plan, self._stage, self._device = plan, stage, device
        self._parallel, self._model = plan.settings.parallel, plan.settings.model
        self._size, self._fp32 = weight_bytes(plan), plan.settings.train.precision == "fp32"
        self._rows = plan.settings.train.micro_batch_size
        self._tokens = self._rows * plan.seq_len
        self._hidden = hidden_bytes(plan)
        self._chunks = stage.chunks(plan.largest_loops)

    def activations(self) -> float:
        """Activations of all micro-batches between their forward and backward pass, at the peak."""
        return self._peak([self._chunk(chunk) for chunk in self._chunks])

    def logits(self) -> float:
        """Gradients of the micro-batches that wait for their backward pass, and the logits of the current chunk."""
        vocab, hidden = self._model.padded_vocab_size / self._parallel.tensor, self._model.hidden_size
        kept = FP32 * vocab * hidden + self._size * self._masked() * hidden
        chunk = min(self._masked() * vocab, LOGITS_PER_CHUNK) * (FP32 if self._fp32 else FP32 + self._size)
        return (self._peak([kept * one.logits for one in self._chunks]) + chunk) * self._stage.last

    def recomputed(self) -> float:
        """Activations that the backward pass recomputes at one time."""
        if self._parallel.recompute == "none":
            return 0.0
        return self._layer() * (len(self._stage.mid) if self._parallel.recompute == "loop" else 1)

    def working(self) -> float:
        """Gradients inside the backward pass of one layer; the SwiGLU needs most."""
        width = 2 * self._model.ffn_size / self._parallel.tensor + 2 * self._model.hidden_size
        return self._tokens * width * self._size

    def _peak(self, held: list[float]) -> float:
        if self._stage.count == 1:
            return sum(held)
        return programs_of(self._stage.count, len(held), self._plan.micro_batches)[self._stage.index].peak(held)

    def _chunk(self, chunk: Chunk) -> float:
        """Activations of one chunk for one micro-batch."""
        once, passes = len(chunk.head) + len(chunk.tail), len(chunk.passes) if self._stage.mid else 0
        of_mid = passes * len(self._stage.mid)
        match self._parallel.recompute:
            case "none":
                kept = (once + of_mid) * self._layer() + passes * self._loop_norm()
            case "loop":
                kept = once * self._layer() + passes * self._hidden
            case "full":
                kept = (once + of_mid) * self._hidden + passes * self._loop_norm()
        if self._stage.count > 1:  # input and output; in fp32 the first norm keeps the input anyway
            kept += self._hidden * (1 if self._fp32 or not once + of_mid else 2)
        if once + of_mid:
            kept += self._rotation() + self._mask()
        return kept + self._masked() * self._norm() * chunk.logits

    def _loop_norm(self) -> float:
        """Saved by the norm before a pass: all but its output, which the next layer keeps."""
        saved = self._tokens * (self._norm() - self._size * self._model.hidden_size)
        saved /= self._parallel.tensor if self._parallel.sequence else 1
        return saved * (self._model.loop.norm and self._stage.begins_pass)

    def _rotation(self) -> float:
        """Cosine and sine of RoPE: one pair for all layers and passes of a chunk, on every rank."""
        return 2 * self._plan.seq_len * self._model.head_dim * self._size

    def _mask(self) -> float:
        """The attention mask of `train.attention=document`: one tensor for all layers and passes of a chunk, on every rank."""
        return self._tokens * self._plan.seq_len * self._size * (self._plan.settings.train.attention == "document")

    def _layer(self) -> float:
        """Saved by autograd in one layer: two norms, attention (q, k, v, rotated q and k, output), SwiGLU."""
        model, tensor = self._model, self._parallel.tensor
        query, key = model.num_heads * model.head_dim, model.kv_heads * model.head_dim
        sharded = self._size * (3 * query + 3 * key + 5 * model.ffn_size) + FP32 * model.num_heads
        replicated = 2 * self._norm() / (tensor if self._parallel.sequence else 1)
        return self._tokens * (replicated + sharded / tensor)

    def _norm(self) -> float:
        """Saved by one RMSNorm per token: input, output and 1 / rms; without torch's fused CUDA kernel two fp32 copies more."""
        inputs = self._size if self._device == "cuda" else 2 * FP32
        return self._model.hidden_size * (inputs + self._size) + FP32

    def _masked(self) -> float:
        """Masked tokens of a micro-batch, three standard deviations above the mean of uniform, independent t; or all."""
        if self._model.causal:
            return self._tokens
        share = (1 + self._plan.settings.train.min_timestep) / 2 + 3 * sqrt(1 / 12 / self._rows)
        return self._tokens * min(1.0, share)
