"""The JSON file with DeepSpeed's own keys: which one a run reads, and which keys it may not hold. Imports no torch.

Keys that follow from the recipe are added in `pretrain/parallel/engine.py`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.config.settings import Settings
from pretrain.errors import Problem

DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"

DERIVED_DEEPSPEED_KEYS = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size",
    "managed_gradient_accumulation": "parallel.*",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "optim.*",
    "scheduler": "optim.schedule",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "data_types": "train.precision",
    "zero_allow_untested_optimizer": "optim.*",
    "steps_per_print": "log.every",
}
"""Keys of DeepSpeed's configuration that follow from the recipe -> the key to set instead."""

DEFAULT_REDUCE_BUCKET = 500_000_000
"""DeepSpeed's default for `reduce_bucket_size`: how many gradients it reduces at once."""


def ds_config_path(settings: Settings) -> Path:
    """The DeepSpeed file of a run: `parallel.ds_config`, or the shipped file for its ZeRO stage."""
    return settings.parallel.ds_config or DS_CONFIGS / f"zero{settings.parallel.zero_stage}.json"


def read_ds_config(path: Path) -> dict[str, Any]:
    """Content of a DeepSpeed file. Raises OSError, or ValueError when it is not a JSON object."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("the top level must be an object")
    return content


def deepspeed_file_problems(settings: Settings) -> Iterator[Problem]:
    """A rule (see `rules`): the file can be read, holds no derived key, and agrees on the ZeRO stage."""
    path, stage = ds_config_path(settings), settings.parallel.zero_stage

    def problem(text: str) -> Problem:
        return Problem("parallel.ds_config", path, text, related=("parallel.zero_stage",))

    try:
        content = read_ds_config(path)
    except OSError as error:
        yield problem(f"cannot be read ({error.strerror}); give an existing file")
        return
    except ValueError as error:
        yield problem(f"is not valid JSON ({error}); correct the file")
        return
    for key in sorted(content.keys() & DERIVED_DEEPSPEED_KEYS.keys()):
        yield problem(f"the key {key!r} follows from {DERIVED_DEEPSPEED_KEYS[key]}; remove it from the file")
    zero = content.get("zero_optimization", {})
    if not isinstance(zero, dict):
        yield problem("the key 'zero_optimization' must be an object; correct the file")
    elif zero.get("stage", stage) != stage:
        yield problem(f"has ZeRO stage {zero['stage']}, but parallel.zero_stage={stage}; make them equal")


def reduce_bucket(settings: Settings, weights: int) -> int:
    """Number of gradients that DeepSpeed reduces at once.

    Args:
        weights: number of weights of this rank's pipeline stage. A larger bucket would only take memory.
    """
    zero = read_ds_config(ds_config_path(settings)).get("zero_optimization", {})
    return min(int(zero.get("reduce_bucket_size", DEFAULT_REDUCE_BUCKET)), weights)
