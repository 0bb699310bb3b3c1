"""Rules across settings: every function returns its problems, and all problems are told at once. Imports no torch."""

from collections.abc import Callable, Iterator

from pretrain.config.deepspeed_file import DERIVED_DEEPSPEED_KEYS, ds_config_path, read_ds_config
from pretrain.config.settings import Parallel, Settings


def problems_of(settings: Settings) -> list[str]:
    """Every violated rule as `key=value: what is wrong; the fix`."""
    return [problem for rule in RULES for problem in rule(settings)]


def _layers_add_up(s: Settings) -> Iterator[str]:
    split, total = s.model.loop, s.model.num_layers
    if split.head + split.mid + split.tail != total:
        yield (
            f"model.num_layers={total}: model.loop has {split.head} + {split.mid} + {split.tail} = "
            f"{split.head + split.mid + split.tail} layers (head + mid + tail); make them equal"
        )


def _heads_divide(s: Settings) -> Iterator[str]:
    model = s.model
    if model.hidden_size % model.num_heads:
        yield f"model.num_heads={model.num_heads}: does not divide model.hidden_size={model.hidden_size}; pick a divisor"
    elif model.head_dim % 2:
        yield (
            f"model.num_heads={model.num_heads}: heads of width {model.head_dim} have no pairs for RoPE to rotate; "
            "make hidden_size / num_heads even"
        )
    if model.num_heads % model.kv_heads:
        yield f"model.num_kv_heads={model.kv_heads}: does not divide model.num_heads={model.num_heads}; pick a divisor"


def _run_ends(s: Settings) -> Iterator[str]:
    train = s.train
    if train.steps is None and train.max_flops is None:
        yield "train.steps: neither it nor train.max_flops is given, so the run would not end; give one"
    if train.steps is None and train.loop_ramp > 0:
        yield "train.loop_ramp: is a share of train.steps, which is empty; give train.steps"


def _loops_fit(s: Settings) -> Iterator[str]:
    if isinstance(s.train.loops, int) and s.train.loops > s.model.loop.max:
        yield f"train.loops={s.train.loops}: is above model.loop.max={s.model.loop.max}; raise model.loop.max"


def _batch_divides(s: Settings) -> Iterator[str]:
    train = s.train
    if train.global_batch_size % train.micro_batch_size:
        yield (
            f"train.global_batch_size={train.global_batch_size}: is no multiple of train.micro_batch_size="
            f"{train.micro_batch_size}; change one of them"
        )


def _warmup_fits(s: Settings) -> Iterator[str]:
    if s.train.steps is not None and s.optim.warmup_steps >= s.train.steps:
        yield (
            f"optim.warmup_steps={s.optim.warmup_steps}: the run has only train.steps={s.train.steps}; "
            "lower the warm-up or train longer"
        )


def _tensor_parallel_divides(s: Settings) -> Iterator[str]:
    size, model = s.parallel.tensor, s.model
    if s.parallel.sequence and size == 1:
        yield "parallel.sequence=True: shares the sequence inside tensor-parallel groups; raise parallel.tensor or set it to false"
    uneven = [
        f"model.{k}={v}" for k, v in (("num_kv_heads", model.kv_heads), ("ffn_hidden_size", model.ffn_size)) if v % size
    ]
    if uneven:
        yield f"parallel.tensor={size}: does not divide {' and '.join(uneven)}; pick a divisor"
    if model.vocab_size is not None and model.padded_vocab_size % size:
        yield (
            f"parallel.tensor={size}: does not divide the vocabulary, padded to {model.padded_vocab_size}; pick a power of two "
            "up to 64"
        )
    if s.parallel.sequence and s.data.seq_len is not None and s.data.seq_len % size:
        yield f"parallel.sequence=True: data.seq_len={s.data.seq_len} is no multiple of parallel.tensor={size}; set it to false"


def _pipeline_divides(s: Settings) -> Iterator[str]:
    parallel = s.parallel
    copies = parallel.mid_replicas
    if copies is None:
        return
    if parallel.pipeline % copies:
        yield f"parallel.mid_replicas={copies}: does not divide parallel.pipeline={parallel.pipeline}; pick a divisor"
    if parallel.pipeline_split == "contiguous" and copies > 1:
        yield f"parallel.mid_replicas={copies}: the contiguous split holds the mid block once; leave it empty"


def _auto_picks_alone(s: Settings) -> Iterator[str]:
    parallel, plain = s.parallel, Parallel()
    picked = (
        "tensor",
        "pipeline",
        "pipeline_split",
        "mid_replicas",
        "sequence",
        "zero_stage",
        "recompute",
        "ds_config",
    )
    given = [name for name in picked if getattr(parallel, name) != getattr(plain, name)]
    if parallel.auto and given:
        yield f"parallel.auto=True: picks parallel.{given[0]} itself; leave one of them out"


def _deepspeed_can(s: Settings) -> Iterator[str]:
    parallel, stage = s.parallel, s.parallel.zero_stage
    if s.train.precision == "bf16" and stage == 0:
        yield (
            "parallel.zero_stage=0: DeepSpeed sums bf16 gradients in bf16 without ZeRO, and this project does not train on "
            "such sums; set parallel.zero_stage=1 (fp32 sums) or train.precision=fp32"
        )
    if parallel.pipeline > 1 and stage > 1:
        yield (
            f"parallel.zero_stage={stage}: reduces gradients inside DeepSpeed's own backward pass, and a pipeline schedule "
            "runs its own; set parallel.zero_stage=1 or parallel.pipeline=1"
        )
    if parallel.offload != "none" and parallel.pipeline > 1:
        yield (
            f"parallel.offload={parallel.offload}: DeepSpeed offloads in its own backward pass, and a pipeline schedule runs "
            "its own; set it to none or parallel.pipeline=1"
        )
    if parallel.offload != "none" and stage == 0:
        yield f"parallel.offload={parallel.offload}: is part of ZeRO; set parallel.zero_stage=1, 2 or 3"
    if parallel.offload == "parameters" and stage != 3:
        yield f"parallel.offload=parameters: only ZeRO-3 shards weights, not ZeRO-{stage}; set zero_stage=3 or offload=optimizer"


def _deepspeed_file_is_ours(s: Settings) -> Iterator[str]:
    path = ds_config_path(s)
    try:
        content = read_ds_config(path)
    except OSError as error:
        yield f"parallel.ds_config={path}: cannot be read ({error.strerror}); give an existing file"
        return
    except ValueError as error:
        yield f"parallel.ds_config={path}: not valid JSON ({error}); mend the file"
        return
    for key in sorted(content.keys() & DERIVED_DEEPSPEED_KEYS.keys()):
        yield f"parallel.ds_config={path}: key {key!r} follows from {DERIVED_DEEPSPEED_KEYS[key]}; remove it from the file"
    stage = content.get("zero_optimization", {}).get("stage", s.parallel.zero_stage)
    if stage != s.parallel.zero_stage:
        yield f"parallel.ds_config={path}: has ZeRO stage {stage}, but parallel.zero_stage={s.parallel.zero_stage}; make them equal"


RULES: tuple[Callable[[Settings], Iterator[str]], ...] = (
    _layers_add_up,
    _heads_divide,
    _run_ends,
    _loops_fit,
    _batch_divides,
    _warmup_fits,
    _tensor_parallel_divides,
    _pipeline_divides,
    _auto_picks_alone,
    _deepspeed_can,
    _deepspeed_file_is_ours,
)
