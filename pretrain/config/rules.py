"""Rules between settings. Each rule yields its problems, so that all of them are reported at once. Imports no torch."""

import math
from collections.abc import Callable, Iterator

from pretrain.config.deepspeed_file import deepspeed_file_problems
from pretrain.config.settings import Parallel, Settings, Train
from pretrain.config.suggestions import divisors, nearest
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
            f"model.loop has {split.head} + {split.mid} + {split.tail} = {layers} layers (head + mid + tail); set it to {layers}, "
            "or change model.loop",
            related=("model.loop.head", "model.loop.mid", "model.loop.tail"),
        )


def _heads_divide(s: Settings) -> Iterator[Problem]:
    model = s.model
    even = [n for n in divisors(model.hidden_size) if model.hidden_size // n % 2 == 0]
    way_out = f"set it to {nearest(even, model.num_heads)}" if even else "choose an even hidden_size"
    if model.hidden_size % model.num_heads:
        yield Problem(
            "model.num_heads",
            model.num_heads,
            f"does not divide model.hidden_size={model.hidden_size}; {way_out}",
            related=("model.hidden_size",),
        )
    elif model.head_dim % 2:
        yield Problem(
            "model.num_heads",
            model.num_heads,
            f"with model.hidden_size={model.hidden_size} a head has {model.head_dim} components, but RoPE needs an even number; "
            f"{way_out}",
            related=("model.hidden_size",),
        )
    if model.num_heads % model.kv_heads:
        yield Problem(
            "model.num_kv_heads",
            model.kv_heads,
            f"does not divide model.num_heads={model.num_heads}; set it to {nearest(divisors(model.num_heads), model.kv_heads)}",
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


def _samples_can_be_counted(s: Settings) -> Iterator[Problem]:
    train = s.train
    if train.steps is not None and train.steps * train.global_batch_size >= 2**63:
        yield Problem(
            "train.steps",
            train.steps,
            f"with train.global_batch_size={train.global_batch_size} the samples cannot be counted in 63 bits; set it to "
            f"{(2**63 - 1) // train.global_batch_size} or less",
            related=("train.global_batch_size",),
        )


def _loops_fit(s: Settings) -> Iterator[Problem]:
    loops, largest = s.train.loops, s.model.loop.max
    if isinstance(loops, int) and loops > largest:
        yield Problem(
            "train.loops",
            loops,
            f"is larger than model.loop.max={largest}; set it to {largest}, or model.loop.max to {loops}",
            related=("model.loop.max",),
        )


def _loop_schedule_is_consistent(s: Settings) -> Iterator[Problem]:
    train = s.train
    if train.loop_start + train.loop_ramp > 1:
        yield Problem(
            "train.loop_ramp",
            train.loop_ramp,
            f"with train.loop_start={train.loop_start} the ramp would end after the run; set it to {1 - train.loop_start:g} or "
            "less",
            related=("train.loop_start",),
        )
    if train.loop_tail and isinstance(train.loops, int):
        yield Problem(
            "train.loop_tail",
            train.loop_tail,
            f"train.loops={train.loops} is the only S of the run; set train.loop_tail=0, or train.loops=uniform",
            related=("train.loops",),
        )


def _batch_divides(s: Settings) -> Iterator[Problem]:
    train = s.train
    if train.global_batch_size % train.micro_batch_size:
        yield Problem(
            "train.micro_batch_size",
            train.micro_batch_size,
            f"does not divide train.global_batch_size={train.global_batch_size}; set it to "
            f"{nearest(divisors(train.global_batch_size), train.micro_batch_size)}",
            related=("train.global_batch_size",),
        )


def _complements_are_pairs(s: Settings) -> Iterator[Problem]:
    train = s.train
    if train.complementary_masks and train.global_batch_size % 2:
        yield Problem(
            "train.complementary_masks",
            True,
            f"needs an even number of rows in a step, but train.global_batch_size={train.global_batch_size}; set it to "
            f"{train.global_batch_size + 1}",
            related=("train.global_batch_size",),
        )


def _warmup_fits(s: Settings) -> Iterator[Problem]:
    if s.train.steps is not None and s.optim.warmup_steps >= s.train.steps:
        yield Problem(
            "optim.warmup_steps",
            s.optim.warmup_steps,
            f"the run has only train.steps={s.train.steps}; set it to {s.train.steps - 1} or less, or train longer",
            related=("train.steps",),
        )


def _tensor_parallel_divides(s: Settings) -> Iterator[Problem]:
    size, model = s.parallel.tensor, s.model
    sizes = {"model.num_kv_heads": model.kv_heads, "model.ffn_hidden_size": model.ffn_size}
    padded = model.padded_vocab_size if model.vocab_size is not None else 64
    uneven = [f"{key}={value}" for key, value in sizes.items() if value % size]
    if padded % size and not uneven:
        uneven = [f"the vocabulary, which is padded to {padded} ids"] if model.vocab_size is not None else []
    if uneven:
        choices = nearest((n for n in divisors(math.gcd(*sizes.values(), padded)) if n < size), size)
        kv_heads = nearest((n for n in divisors(model.num_heads) if n % size == 0), model.kv_heads)
        other = (
            f", or model.num_kv_heads to {kv_heads}" if kv_heads and len(uneven) == 1 and model.kv_heads % size else ""
        )
        yield Problem(
            "parallel.tensor",
            size,
            f"does not divide {' and '.join(uneven)}; set it to {choices}{other}",
            related=(*sizes, "model.num_heads", "model.hidden_size", "model.vocab_size"),
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
            f"data.seq_len={seq_len} is not a multiple of parallel.tensor={size}; set it to false, or parallel.tensor to "
            f"{nearest((n for n in divisors(seq_len) if n < size), size)}",
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
            f"does not divide parallel.pipeline={parallel.pipeline}; set it to {nearest(divisors(parallel.pipeline), copies)}",
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
    given = {
        name: getattr(parallel, name) for name in AUTO_CHOOSES if getattr(parallel, name) != getattr(default, name)
    }
    if parallel.auto and given:
        keys = " and ".join(f"parallel.{name}={str(value).lower()}" for name, value in given.items())
        yield Problem(
            "parallel.auto",
            True,
            f"chooses {' and '.join(f'parallel.{name}' for name in given)} itself, but {keys} is given; leave one of the two out",
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


def _compilation_is_supported(s: Settings) -> Iterator[Problem]:
    if s.train.compile and s.parallel.zero_stage == 3:
        yield Problem(
            "train.compile",
            True,
            "ZeRO-3 gathers the weights inside the layers, which cannot be compiled; set parallel.zero_stage to 2 or less, or "
            "train.compile=false",
            related=("parallel.zero_stage",),
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


def _causal_models_have_no_noise(s: Settings) -> Iterator[Problem]:
    if not s.model.causal:
        return
    keys = ("attention", "noise", "min_timestep", "timesteps", "loss_weight", "complementary_masks")
    train = {key: getattr(s.train, key) for key in keys}
    chosen = {f"train.{key}": value for key, value in train.items() if value != getattr(Train(), key)}
    chosen |= {"log.texts_every": s.log.texts_every} if s.log.texts_every else {}
    for key, value in chosen.items():
        yield Problem(
            key, value, "is for masked diffusion; leave it out with model.causal=true", related=("model.causal",)
        )


RULES: tuple[Callable[[Settings], Iterator[Problem]], ...] = (
    _layers_add_up,
    _heads_divide,
    _run_ends,
    _samples_can_be_counted,
    _loops_fit,
    _loop_schedule_is_consistent,
    _batch_divides,
    _complements_are_pairs,
    _causal_models_have_no_noise,
    _warmup_fits,
    _tensor_parallel_divides,
    _sequence_divides,
    _pipeline_divides,
    _auto_chooses_alone,
    _deepspeed_supports,
    _compilation_is_supported,
    _offload_is_supported,
    deepspeed_file_problems,
)
