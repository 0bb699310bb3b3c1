"""The configuration of a run as typed dataclasses; the string under a field is its help text. Imports no torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from model.architecture import STRICT, Architecture, Recompute
from model.loops import LoopDistribution
from model.placement import PipelineSplit


def _split_commas(value: object) -> object:
    """Let `eval.loops=1,2,4` and `eval.loops=4` stand for lists."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int) else value


Scope = Literal["row", "document"]
"""What is treated as one text: the whole row, or each document in it."""

LoopList = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_split_commas), Field(min_length=1)]


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Run:
    """Where a run lives and what makes it this run."""

    dir: Path = Path("runs")
    """Folder that holds run folders."""
    name: str = Field("", pattern=r"^[\w.\-]*$")
    """Folder of this run inside run.dir; empty: the recipe's name."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of weights, sample order, timesteps, masks and loops."""
    stop_after: int | None = Field(None, ge=1)
    """Stop, with a checkpoint, after so many steps of this start; the schedules do not change."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Data:
    """What is read."""

    path: Path = Path("data")
    """Folder that `loopmdm prepare` wrote, or a YAML file that mixes several (data_pipeline/dataset/blend.py)."""
    seq_len: int | None = Field(None, ge=1)
    """Tokens per row; empty: as prepared. A number must match the prepared rows."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Train:
    """How long, how large a step, and which loops."""

    steps: int | None = Field(None, ge=1)
    """Optimiser steps. Give this or max_flops, or both (the earlier end wins)."""
    max_flops: float | None = Field(None, gt=0)
    """Budget of training FLOPs of the loops actually run (convention: model/flops.py)."""
    global_batch_size: int = Field(512, ge=1)
    """Rows per optimiser step over all ranks; the gradient is the same however it is split."""
    micro_batch_size: int = Field(8, ge=1)
    """Rows per forward pass of one rank. Lower it when memory runs out."""
    loops: LoopDistribution = "uniform"
    """S of each step: uniform on 1..model.loop.max, inverse_flops (p(S) ~ 1/F(S)), or a fixed number."""
    loop_ramp: float = Field(0.0, ge=0, le=1)
    """Share of the steps over which S_max grows from 1 to model.loop.max."""
    min_timestep: float = Field(1e-3, gt=0, lt=1)
    """Timesteps are drawn from [min_timestep, 1): the weight 1/t has no bounded variance at 0. Evaluation uses all of (0, 1]."""
    attention: Scope = "row"
    """row: a token attends to its whole row, padding included. document: to the tokens of its own document in the row."""
    noise: Scope = "row"
    """row: one timestep for all tokens of a row. document: each document of a row has its own, uniform over the same interval."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Weights and activations of the forward and backward pass. bf16 keeps fp32 master weights and gradient sums."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Optim:
    """AdamW, its learning-rate schedule, clipping and the average of the weights."""

    lr: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """After warm-up: constant, cosine to min_lr, or constant and then a linear decay to min_lr (wsd)."""
    warmup_steps: int = Field(2500, ge=0)
    """Steps of linear warm-up from 0."""
    decay_fraction: float = Field(0.1, gt=0, le=1)
    """Last share of the steps in which wsd decays."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """min_lr / lr, where cosine and wsd end."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's beta_1."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's beta_2."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of the matrices; norms have none."""
    clip_norm: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 for no clipping."""
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Decay of the exponential moving average of the weights; 0 for none."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Parallel:
    """How the work is spread over ranks. Data-parallel size = ranks / (tensor * pipeline)."""

    auto: bool = False
    """Let the planner pick everything below but the time-out; `parallel: auto` in a recipe says the same."""
    tensor: int = Field(1, ge=1)
    """Tensor-parallel size (megatron-core)."""
    pipeline: int = Field(1, ge=1)
    """Pipeline stages."""
    pipeline_split: PipelineSplit = "looped"
    """looped: every stage holds a share of head, mid and tail. contiguous: consecutive layers, for comparison."""
    mid_replicas: int | None = Field(None, ge=1)
    """Copies of the looped block in one pipeline, a divisor of pipeline; empty: what levels the stages' load."""
    sequence: bool = False
    """Share the sequence between tensor-parallel matrix products too (megatron-core's sequence parallelism)."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 1 shards optimiser states, 2 gradients too, 3 weights too."""
    recompute: Recompute = "none"
    """Activations computed again in the backward pass: none, of every layer, or inside each pass of the looped block."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Keep optimiser states (ZeRO-1/2/3), or the weights too (ZeRO-3), in the CPU's memory."""
    timeout_minutes: float = Field(20.0, gt=0, le=25)
    """Minutes that a rank may wait in one call; then the run ends and names the ranks that did not come."""
    ds_config: Path | None = None
    """JSON with DeepSpeed-owned keys; empty: ds_configs/zero{zero_stage}.json."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Checkpoint:
    """When the state is saved and how much of it is kept."""

    every: int | None = Field(1000, ge=1)
    """Steps between checkpoints; empty: only at the end. The last step, Ctrl-C and SIGTERM always save."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints to keep."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Evaluation:
    """Validation during training."""

    every: int | None = Field(None, ge=1)
    """Steps between evaluations; empty: none."""
    loops: LoopList = (1, 2, 4, 8)
    """Numbers of passes to evaluate at."""
    rows: int = Field(256, ge=2)
    """Validation rows to use; all of them when there are fewer."""
    batch_size: int = Field(16, ge=1)
    """Rows per forward pass."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Log:
    """What is written down while training."""

    every: int = Field(10, ge=1)
    """Steps between lines on the console and in metrics.jsonl; figures are means over these steps."""
    tensorboard: bool = True
    """Also write tensorboard/."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Hardware:
    """What one rank runs on: the planner takes all of it, MFU the peak. The defaults are a node of 8 H100s."""

    peak_tflops: float | None = Field(None, gt=0)
    """Peak TFLOP/s of one rank's device at train.precision; empty: MFU takes a table of known devices, the planner 989.4."""
    efficiency: float = Field(0.4, gt=0, le=1)
    """Share of the peak that the kernels reach, for the planner: an assumption until you measured yours."""
    memory_gib: float = Field(72.0, gt=0)
    """Memory of one rank's device for tensors: less than it has, for CUDA's context, NCCL's buffers and fragmentation."""
    ranks_per_node: int = Field(8, ge=1)
    """Ranks that share the fast links of a node."""
    node_gb_per_second: float = Field(450.0, gt=0)
    """What one rank sends inside its node, in 10^9 bytes per second."""
    network_gb_per_second: float = Field(50.0, gt=0)
    """What one rank sends to another node."""
    host_gb_per_second: float = Field(50.0, gt=0)
    """What one rank moves to and from the CPU's memory under parallel.offload."""
    latency_microseconds: float = Field(10.0, ge=0)
    """Time of a message that carries nothing."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Settings:
    """A whole run."""

    run: Run = Field(default_factory=Run)
    model: Architecture = Field(default_factory=Architecture)
    data: Data = Field(default_factory=Data)
    train: Train = Field(default_factory=Train)
    optim: Optim = Field(default_factory=Optim)
    parallel: Parallel = Field(default_factory=Parallel)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    eval: Evaluation = Field(default_factory=Evaluation)
    log: Log = Field(default_factory=Log)
    hardware: Hardware = Field(default_factory=Hardware)

    @property
    def run_folder(self) -> Path:
        """`run.dir/run.name`."""
        return self.run.dir / self.run.name
