"""The configuration of a run as typed dataclasses. The string under a field is its help text. Imports no torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from model.architecture import STRICT, Architecture, Recompute
from model.loops import LoopDistribution
from model.noise import LossWeight, TimestepDistribution
from model.placement import PipelineSplit

Scope = Literal["row", "document"]
"""What counts as one text: the whole row, or each document in it."""

LoopList = Annotated[tuple[Annotated[int, Field(ge=1, le=100_000)], ...], Field(min_length=1)]


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Run:
    """Run folder, seed and early stop."""

    dir: Path = Path("runs")
    """Folder that contains the run folders."""
    name: str = Field("", pattern=r"^([\w.\-]*[\w\-][\w.\-]*)?$")
    """Name of this run's folder inside run.dir; empty: the recipe's name."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of initial weights, sample order, timesteps, masks and numbers of loops."""
    stop_after: int | None = Field(None, ge=1)
    """Save a checkpoint and stop after this many steps of this start; the schedules do not change. Empty: do not stop early."""
    time_limit: float | None = Field(None, gt=0)
    """Minutes after which this start saves a checkpoint and stops with status 75. Set it lower than the limit of the queue by the
    time of a step, a validation and a save. Empty: no limit."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Data:
    """Training and validation data."""

    path: Path = Path("data")
    """Folder written by `loopmdm prepare`, or a YAML file that mixes several (format: data_pipeline/dataset/blend.py)."""
    seq_len: int | None = Field(None, ge=1)
    """Tokens per row; empty: as prepared. A given number must equal that of the prepared rows."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Train:
    """Length of the run, batch size, number of loops, objective and precision."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps. Set this, max_flops or both; with both, the run ends at whichever is reached first."""
    max_flops: float | None = Field(None, gt=0)
    """Budget of training FLOPs, counted for the loops actually run, over all starts (convention: model/flops.py)."""
    global_batch_size: int = Field(512, ge=1, le=10_000_000)
    """Rows per optimizer step over all ranks. The gradient does not depend on how they are split."""
    micro_batch_size: int = Field(8, ge=1)
    """Rows per forward pass of one rank. Lower it if memory runs out; the result stays the same."""
    loops: LoopDistribution = "uniform"
    """Number of loops S of each step: uniform on 1..model.loop.max, inverse_flops (p(S) ~ 1/FLOPs(S)), or a fixed number."""
    loop_start: float = Field(0.0, ge=0, le=1)
    """Fraction of the run's steps, at its beginning, with S = 1."""
    loop_ramp: float = Field(0.0, ge=0, le=1)
    """Fraction of the run's steps, after loop_start, over which the largest S grows linearly from 1 to model.loop.max."""
    loop_tail: float = Field(0.0, ge=0, lt=1)
    """Probability of a larger S than model.loop.max: uniform on model.loop.max + 1..2 model.loop.max."""
    min_timestep: float = Field(1e-3, gt=0, lt=1)
    """Timesteps t are drawn from [min_timestep, 1), as the loss weight 1/t has unbounded variance at 0. Evaluation uses (0, 1]."""
    timesteps: TimestepDistribution = "uniform"
    """How t is drawn. bell: more often in the middle of the interval; the loss weights make up for it."""
    loss_weight: LossWeight = "nelbo"
    """nelbo: cross-entropies at time t count 1/t. uniform: all count the same, and the loss is their mean, which is no bound."""
    complementary_masks: bool = False
    """Take every sample twice in a step, with complementary masks: what is masked in one row is visible in the other."""
    attention: Scope = "row"
    """row: a token attends to its whole row, padding included. document: only to the tokens of its own document in the row."""
    noise: Scope = "row"
    """row: one timestep for all tokens of a row. document: one for each document in the row, uniform over the same interval."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Precision of the forward and backward pass. With bf16, master weights and gradient sums stay in fp32."""
    max_skipped: int = Field(5, ge=0)
    """Updates in a row that may be skipped because the loss or the gradient is not finite. After that the run goes back to the last
    sound checkpoint and past the samples of those steps, once; if that does not help, it stops."""
    spike_threshold: float | None = Field(None, gt=0)
    """Also skip an update whose loss exceeds the median of the last 100 by this many standard deviations; empty: never."""
    deterministic: bool = False
    """On GPUs, use only kernels whose results do not vary between runs, which are slower; CPU runs are repeatable anyway.
    Copies of the mid block on 3 or more data-parallel ranks then stay equal in all bits, for one more sum of their gradients."""
    compile: bool = False
    """Compile the transformer layer with torch.compile, once for all layers and loops; ignored where there is no compiler."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Optim:
    """AdamW or Muon, the learning-rate schedule, gradient clipping and the moving average of the weights."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of the layers, scaled to suit AdamW's lr, and AdamW for embedding, LM head and norms."""
    lr: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """After the warm-up: constant; cosine: decay to lr * min_lr_ratio; wsd: constant, then a linear decay to lr * min_lr_ratio."""
    warmup_steps: int = Field(2500, ge=0)
    """Steps of linear warm-up from 0 to lr."""
    decay_fraction: float = Field(0.1, gt=0, le=1)
    """wsd: fraction of the steps, at the end, over which the learning rate decays."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """cosine and wsd: final learning rate divided by lr."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's beta_1, the decay of the first moment."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's beta_2, the decay of the second moment."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's momentum."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of the matrices; the weights of norms are not decayed."""
    clip_norm: float = Field(1.0, ge=0)
    """Clip the global gradient norm to this value; 0: no clipping."""
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Decay of the exponential moving average of the weights; 0: no average."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Parallel:
    """How the work is divided over the ranks. Data-parallel size = ranks / (tensor * pipeline)."""

    auto: bool = False
    """Let the planner choose the layout: everything below except offload and timeout_minutes. Short: parallel=auto."""
    tensor: int = Field(1, ge=1)
    """Tensor-parallel size (megatron-core)."""
    pipeline: int = Field(1, ge=1)
    """Number of pipeline stages."""
    pipeline_split: PipelineSplit = "looped"
    """looped: every stage holds a part of head, mid and tail. contiguous: consecutive layers per stage, as a baseline."""
    mid_replicas: int | None = Field(None, ge=1)
    """Copies of the looped block in one pipeline, a divisor of parallel.pipeline; empty: the number that is fastest."""
    sequence: bool = False
    """Split the sequence over the tensor-parallel ranks outside the matrix products (megatron-core's sequence parallelism)."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: 1 shards the optimizer states, 2 also the gradients, 3 also the weights."""
    recompute: Recompute = "none"
    """Activations recomputed in the backward pass: none; full: of every layer; loop: inside each pass of the looped block."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Keep the optimizer states (ZeRO-1/2/3), or also the weights (ZeRO-3), in CPU memory."""
    timeout_minutes: float = Field(20.0, gt=0, le=25)
    """Minutes that a rank may spend in one call; after that the run ends and names the ranks that did not arrive."""
    ds_config: Path | None = None
    """JSON file with DeepSpeed's own keys; empty: ds_configs/zero{zero_stage}.json."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Checkpoint:
    """When checkpoints are saved and how many are kept."""

    every: int | None = Field(1000, ge=1)
    """Steps between checkpoints; empty: only at the end. The last step of every start is always saved."""
    keep: int = Field(2, ge=1)
    """Number of checkpoints to keep, the newest ones. One more may stay until the newest has proved sound in training."""
    keep_every: int | None = Field(None, ge=1)
    """Also keep those of steps that this divides, for good."""
    keep_best: bool = False
    """Also keep the one with the lowest validation loss, at the largest of eval.loops."""
    asynchronous: bool = True
    """Write while training goes on: only the copy of the states into CPU memory holds it up. The memory is kept for later saves."""
    on_damage: Literal["previous", "stop"] = "previous"
    """If the newest checkpoint is damaged: resume from the one before it, or stop."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Evaluation:
    """Validation during training."""

    every: int | None = Field(None, ge=1)
    """Steps between validations; empty: no validation."""
    loops: LoopList = (1, 2, 4, 8)
    """Numbers of loops S to evaluate at."""
    rows: int = Field(256, ge=2)
    """Validation rows to use; all rows if there are fewer."""
    batch_size: int = Field(16, ge=1)
    """Rows per forward pass."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Log:
    """What is logged during training."""

    every: int = Field(10, ge=1)
    """Steps between lines on the console and in metrics.jsonl; the figures are means over these steps."""
    tensorboard: bool = True
    """Also write TensorBoard files into tensorboard/ of the run folder."""
    parts: bool = False
    """Also log the gradient norm and the update-to-weight ratio of each part of the model, at the steps that are logged. During
    their update every rank holds a second copy of its share of the fp32 weights."""
    texts_every: int | None = Field(None, ge=1)
    """Steps between samples of text, two rows at model.loop.max; empty: none. With optim.ema_decay, whose weights they are drawn
    with, every rank meanwhile holds a second copy of its share of the fp32 weights."""
    wandb: bool = False
    """Also send the figures to Weights & Biases; offline with WANDB_MODE=offline. Needs the extra wandb."""
    trackio: bool = False
    """Also write the figures with trackio. Needs the extra trackio."""
    project: str = "loopmdm"
    """Name of the project there."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Hardware:
    """What one rank runs on. The planner uses all keys, MFU the peak. The defaults describe nodes of 8 H100s."""

    peak_tflops: float | None = Field(None, gt=0)
    """Peak TFLOP/s of one rank's device at train.precision; empty: MFU uses a table of known devices, the planner an H100's."""
    efficiency: float = Field(0.4, gt=0, le=1)
    """Fraction of the peak that the kernels reach, for the planner. The default is an assumption: measure your own."""
    memory_gib: float = Field(72.0, gt=0)
    """Memory for tensors on one rank's device: its capacity less CUDA's context, NCCL's buffers and fragmentation."""
    ranks_per_node: int = Field(8, ge=1)
    """Ranks connected by the fast links of one node."""
    node_gb_per_second: float = Field(450.0, gt=0)
    """Bandwidth of one rank inside its node, in 10^9 bytes per second."""
    network_gb_per_second: float = Field(50.0, gt=0)
    """Bandwidth of one rank to other nodes, in 10^9 bytes per second."""
    host_gb_per_second: float = Field(50.0, gt=0)
    """Bandwidth of one rank to and from CPU memory under parallel.offload, in 10^9 bytes per second."""
    latency_microseconds: float = Field(10.0, ge=0)
    """Time of an empty message."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Settings:
    """All settings of a run."""

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
