"""The JSON file of DeepSpeed-owned keys that belongs to a run, and what our settings decide instead. Imports no torch."""

import json
from pathlib import Path
from typing import Any

from pretrain.config.settings import Settings

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
"""Keys of DeepSpeed's configuration that follow from ours, and the key to set instead."""

DEFAULT_REDUCE_BUCKET = 500_000_000
"""DeepSpeed's default number of gradients that are reduced at once."""


def ds_config_path(settings: Settings) -> Path:
    """The DeepSpeed file of a run: the one given, or the shipped one for its ZeRO stage."""
    return settings.parallel.ds_config or DS_CONFIGS / f"zero{settings.parallel.zero_stage}.json"


def read_ds_config(path: Path) -> dict[str, Any]:
    """Content of a DeepSpeed file. Raises OSError, or ValueError when it is not a JSON object."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("the top level must be an object")
    return content


def reduce_bucket(settings: Settings, weights: int) -> int:
    """Number of gradients that DeepSpeed reduces at once.

    A bucket larger than the model would only take memory, so it is capped at `weights`, the number of weights that this
    rank's pipeline stage holds.
    """
    zero = read_ds_config(ds_config_path(settings)).get("zero_optimization", {})
    return min(int(zero.get("reduce_bucket_size", DEFAULT_REDUCE_BUCKET)), weights)
