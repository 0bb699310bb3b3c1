"""Rules between settings. Each rule yields its problems, so that all of them are reported at once. Imports no torch."""

from collections.abc import Callable, Iterator

from pretrain.config.deepspeed_file import deepspeed_file_problems
from pretrain.config.settings import Parallel, Settings
from pretrain.errors import Problem


def problems_of(settings: Settings) -> list[Problem]:
    """Every violated rule."""
    return [problem for rule in RULES for problem in rule(settings)]


def _layers_add_up(s: Settings) -> Iterator[Problem]:
    split, total = s.model.loop, s.model.num_layers
    if (layers := split.head + split.mid + split.tail) != total:
        yield Problem(
            "model.num_layers",
            total,
            f"model.loop has {split.head} + {split.mid} + {split.tail} = {layers} layers (head + mid + tail); make them equal",
            related=("model.loop.head", "model.loop.mid", "model.loop.tail"),
        )


def _heads_divide(s: Settings) -> Iterator[Problem]:
    model = s.model
    if model.hidden_size % model.num_heads:
        yield Problem(
            "model.num_heads",
            model.num_heads,
            f"does not divide model.hidden_size={model.hidden_size}; choose a divisor",
            related=("model.hidden_size",),
        )
    elif model.head_dim % 2:
        yield Problem(
            "model.num_heads",
            model.num_heads,
            f"RoPE rotates pairs of components, and a head has {model.head_dim}; make model.hidden_size / model.num_heads even",
            related=("model.hidden_size",),
        )
    if model.num_heads % model.kv_heads:
        yield Problem(
            "model.num_kv_heads",
            model.kv_heads,
            f"does not divide model.num_heads={model.num_heads}; choose a divisor",
            related=("model.num_heads",),
        )


def _run_ends(s: Settings) -> Iterator[Problem]:
    train = s.train
    if train.steps is None and train.max_flops is None:
        yield Problem(
            "train.steps",
            None,
            "is empty, and so is train.max_flops, so the run would never end; set one of them",
            related=("train.max_flops",),
        )
    if train.steps is None and train.loop_ramp > 0:
        yield Problem(
            "train.loop_ramp",
            train.loop_ramp,
            "is a fraction of train.steps, which is empty; set train.steps",
            related=("train.steps",),
        )


def _loops_fit(s: Settings) -> Iterator[Problem]:
    loops, largest = s.train.loops, s.model.loop.max
    if isinstance(loops, int) and loops > largest:
        yield Problem(
            "train.loops",
            loops,
            f"is larger than model.loop.max={largest}; raise model.loop.max",
            related=("model.loop.max",),
        )


def _batch_divides(s: Settings) -> Iterator[Problem]:
    train = s.train
    if train.global_batch_size % train.micro_batch_size:
        yield Problem(
            "train.global_batch_size",
            train.global_batch_size,
            f"is not a multiple of train.micro_batch_size={train.micro_batch_size}; change one of them",
            related=("train.micro_batch_size",),
        )


def _warmup_fits(s: Settings) -> Iterator[Problem]:
    if s.train.steps is not None and s.optim.warmup_steps >= s.train.steps:
        yield Problem(
            "optim.warmup_steps",
            s.optim.warmup_steps,
            f"the run has only train.steps={s.train.steps}; shorten the warm-up or train longer",
            related=("train.steps",),
        )


def _tensor_parallel_divides(s: Settings) -> Iterator[Problem]:
    size, model = s.parallel.tensor, s.model
    sizes = {"model.num_kv_heads": model.kv_heads, "model.ffn_hidden_size": model.ffn_size}
    uneven = [f"{key}={value}" for key, value in sizes.items() if value % size]
    if uneven:
        yield Problem(
            "parallel.tensor",
            size,
            f"does not divide {' and '.join(uneven)}; choose a divisor",
            related=(*sizes, "model.num_heads", "model.hidden_size"),
        )
    if model.vocab_size is not None and model.padded_vocab_size % size:
        yield Problem(
            "parallel.tensor",
            size,
            f"does not divide the vocabulary, which is padded to {model.padded_vocab_size} ids; choose a power of two up to 64",
            related=("model.vocab_size",),
        )


def _sequence_divides(s: Settings) -> Iterator[Problem]:
    if not s.parallel.sequence:
        return
    size, seq_len = s.parallel.tensor, s.data.seq_len
    if size == 1:
        yield Problem(
            "parallel.sequence",
            True,
            "splits the sequence inside tensor-parallel groups, but parallel.tensor=1; raise parallel.tensor or set it to false",
            related=("parallel.tensor",),
        )
    if seq_len is not None and seq_len % size:
        yield Problem(
            "parallel.sequence",
            True,
            f"data.seq_len={seq_len} is not a multiple of parallel.tensor={size}; set it to false",
            related=("data.seq_len", "parallel.tensor"),
        )


def _pipeline_divides(s: Settings) -> Iterator[Problem]:
    parallel = s.parallel
    copies = parallel.mid_replicas
    if copies is None:
        return
    if parallel.pipeline % copies:
        yield Problem(
            "parallel.mid_replicas",
            copies,
            f"does not divide parallel.pipeline={parallel.pipeline}; choose a divisor",
            related=("parallel.pipeline",),
        )
    if parallel.pipeline_split == "contiguous" and copies > 1:
        yield Problem(
            "parallel.mid_replicas",
            copies,
            "parallel.pipeline_split=contiguous holds the mid block once; leave mid_replicas empty",
            related=("parallel.pipeline_split",),
        )


AUTO_CHOOSES = (
    "tensor",
    "pipeline",
    "pipeline_split",
    "mid_replicas",
    "sequence",
    "zero_stage",
    "recompute",
    "ds_config",
)
"""Keys of `parallel` that the planner fills in under `parallel: auto`."""


def _auto_chooses_alone(s: Settings) -> Iterator[Problem]:
    parallel, default = s.parallel, Parallel()
    given = [name for name in AUTO_CHOOSES if getattr(parallel, name) != getattr(default, name)]
    if parallel.auto and given:
        yield Problem(
            "parallel.auto",
            True,
            f"chooses parallel.{given[0]} itself; leave one of the two out",
            related=tuple(f"parallel.{name}" for name in given),
        )


def _deepspeed_supports(s: Settings) -> Iterator[Problem]:
    stage, pipelined = s.parallel.zero_stage, s.parallel.pipeline > 1
    if s.train.precision == "bf16" and stage == 0:
        yield Problem(
            "parallel.zero_stage",
            stage,
            "without ZeRO, DeepSpeed sums bf16 gradients in bf16, which this project does not support; set "
            "parallel.zero_stage=1 (sums in fp32) or train.precision=fp32",
            related=("train.precision",),
        )
    if pipelined and stage > 1:
        yield Problem(
            "parallel.zero_stage",
            stage,
            "ZeRO-2 and ZeRO-3 reduce gradients inside DeepSpeed's backward pass, which a pipeline schedule replaces; set "
            "parallel.zero_stage=1 or parallel.pipeline=1",
            related=("parallel.pipeline",),
        )


def _offload_is_supported(s: Settings) -> Iterator[Problem]:
    offload, stage = s.parallel.offload, s.parallel.zero_stage
    if offload == "none":
        return
    if s.parallel.pipeline > 1:
        yield Problem(
            "parallel.offload",
            offload,
            "DeepSpeed offloads inside its own backward pass, which a pipeline schedule replaces; set parallel.offload=none or "
            "parallel.pipeline=1",
            related=("parallel.pipeline",),
        )
    if stage == 0:
        yield Problem(
            "parallel.offload",
            offload,
            "offloading needs ZeRO; set parallel.zero_stage=1, 2 or 3",
            related=("parallel.zero_stage",),
        )
    if offload == "parameters" and stage != 3:
        yield Problem(
            "parallel.offload",
            offload,
            f"only ZeRO-3 can offload weights, and parallel.zero_stage={stage}; set parallel.zero_stage=3 or "
            "parallel.offload=optimizer",
            related=("parallel.zero_stage",),
        )


RULES: tuple[Callable[[Settings], Iterator[Problem]], ...] = (
    _layers_add_up,
    _heads_divide,
    _run_ends,
    _loops_fit,
    _batch_divides,
    _warmup_fits,
    _tensor_parallel_divides,
    _sequence_divides,
    _pipeline_divides,
    _auto_chooses_alone,
    _deepspeed_supports,
    _offload_is_supported,
    deepspeed_file_problems,
)
