"""The keys of a configuration: their types and help texts, their values by key, and what a wrong key stands for."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic_core import to_jsonable_python

from pretrain.config.settings import Settings


@cache
def annotations() -> dict[str, Any]:
    """Type of every dotted key, in the order of `settings`."""
    return {key: info.annotation for key, info in _fields_of(Settings, "")}


def describe_keys() -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default, help text) of every key, in the order of `settings`."""
    for key, info in _fields_of(Settings, ""):
        yield key, _type_name(info.annotation), _as_override(info.default), info.description or ""


def flatten(settings: Settings) -> dict[str, Any]:
    """Dotted key -> plain value of every key."""
    return dict(_leaves(to_jsonable_python(settings)))


def members(annotation: Any) -> list[Any]:
    """Types that a value may have: the members of a union, literals one by one, without the constraints of pydantic."""
    if hasattr(annotation, "__metadata__"):
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for part in get_args(annotation) for one in members(part)]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [annotation]


def inside(section: str) -> list[str]:
    """Keys of a section, given by its dotted name; empty if there is no such section."""
    return [key for key in annotations() if key.startswith(f"{section}.")]


def hint(key: str) -> str:
    """What to write in place of an unknown key or section."""
    known = list(annotations())
    first, _, rest = key.partition(".")
    sections = {name.partition(".")[0] for name in known}
    close = difflib.get_close_matches(first.lower(), sorted(sections), n=1, cutoff=0.75)
    section = SECTIONS.get(first.lower()) or (close[0] if close else first)
    if not rest and section in sections:
        return f"did you mean the section {section}?"
    meant = _nearest(f"{section}.{rest}" if rest else key, known)
    return f"did you mean {meant}?" if meant else "`--help` lists all keys"


SECTIONS = {
    "optimizer": "optim", "optimiser": "optim", "scheduler": "optim", "training": "train", "trainer": "train",
    "evaluation": "eval", "validation": "eval", "logging": "log", "logger": "log", "checkpoints": "checkpoint",
    "checkpointing": "checkpoint", "parallelism": "parallel", "distributed": "parallel", "dataset": "data",
    "architecture": "model",
}  # fmt: skip
"""Sections as other systems call them -> ours."""

OTHER_NAMES = {
    "learning_rate": "lr", "batch_size": "global_batch_size", "train_batch_size": "global_batch_size",
    "per_device_train_batch_size": "micro_batch_size", "train_micro_batch_size_per_gpu": "micro_batch_size",
    "max_steps": "steps", "num_steps": "steps", "total_steps": "steps", "train_iters": "steps", "num_train_steps": "steps",
    "gradient_clipping": "clip_norm", "max_grad_norm": "clip_norm", "clip_grad": "clip_norm", "grad_clip": "clip_norm",
    "dtype": "precision", "num_loops": "loops", "max_loops": "loop.max", "sequence_length": "seq_len",
    "seq_length": "seq_len", "max_seq_len": "seq_len", "block_size": "seq_len", "context_length": "seq_len",
    "warmup": "warmup_steps", "num_warmup_steps": "warmup_steps", "warmup_iters": "warmup_steps",
    "lr_scheduler": "schedule", "lr_schedule": "schedule", "lr_scheduler_type": "schedule", "lr_decay_style": "schedule",
    "min_lr": "min_lr_ratio", "adam_beta1": "beta1", "adam_beta2": "beta2", "adam_eps": "eps", "ema": "ema_decay",
    "n_layer": "num_layers", "n_layers": "num_layers", "num_hidden_layers": "num_layers", "n_head": "num_heads",
    "n_heads": "num_heads", "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads",
    "n_embd": "hidden_size", "d_model": "hidden_size", "dim": "hidden_size", "d_ff": "ffn_hidden_size",
    "intermediate_size": "ffn_hidden_size", "tensor_parallel_size": "tensor", "tensor_model_parallel_size": "tensor",
    "tp": "tensor", "pipeline_parallel_size": "pipeline", "pipeline_model_parallel_size": "pipeline", "pp": "pipeline",
    "sequence_parallel": "sequence", "stage": "zero_stage", "zero": "zero_stage", "activation_checkpointing": "recompute",
    "gradient_checkpointing": "recompute", "deepspeed": "ds_config", "deepspeed_config": "ds_config",
    "output_dir": "dir", "save_dir": "dir", "run_name": "name", "data_path": "path", "data_dir": "path",
    "save_interval": "checkpoint.every", "save_steps": "checkpoint.every", "eval_interval": "eval.every",
    "interval": "every", "frequency": "every", "eval_steps": "eval.every", "log_interval": "log.every",
    "logging_steps": "log.every", "random_seed": "seed",
}  # fmt: skip
"""Last parts of keys as other systems call them -> ours."""


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """The known key that a wrong one stands for: the same last part, by our name or another's, else similar letters."""
    last = key.rpartition(".")[2].lower()
    last = OTHER_NAMES.get(last, last)
    same = [k for k in known if k == last or k.endswith(f".{last}")]
    close = difflib.get_close_matches(key, same or known, n=1, cutoff=0.0 if same else 0.5)
    return close[0] if close else None


def _fields_of(section: type, prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, pydantic's description of the field) of every key."""
    documented = section.__pydantic_fields__
    for field in fields(section):
        key, info = f"{prefix}{field.name}", documented[field.name]
        if is_dataclass(info.annotation):
            yield from _fields_of(info.annotation, f"{key}.")
        else:
            yield key, info


def _as_override(default: Any) -> str:
    """A default as it would be written on the command line; empty for None."""
    match to_jsonable_python(default):
        case None:
            return ""
        case bool(value):
            return str(value).lower()
        case list(values):
            return ",".join(map(str, values))
        case value:
            return str(value)


def _type_name(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return "|".join(str(a) for a in get_args(annotation))
    if origin in (Union, UnionType):
        return "|".join(_type_name(a) for a in get_args(annotation) if a is not type(None))
    if origin is tuple:
        return "int,int,..."
    if hasattr(annotation, "__metadata__"):
        return _type_name(get_args(annotation)[0])
    return getattr(annotation, "__name__", str(annotation)).lower()


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
