"""`config.json` of an exported folder, from which transformers builds the model."""

from collections.abc import Mapping
from typing import Any

from data_pipeline.manifest import Manifest
from model.architecture import Architecture
from pretrain.errors import UserError

MODEL_TYPE = "loopmdm"
MODELING = "modeling_loopmdm"


def config_fields(architecture: Architecture, manifest: Manifest, loops: int) -> dict[str, Any]:
    """The content of `config.json`.

    Args:
        loops: S where a call does not give it.
    """
    model = f"{MODELING}.LoopMDMModel"
    return {
        "architectures": ["LoopMDMModel"],
        "auto_map": {"AutoConfig": f"{MODELING}.LoopMDMConfig", "AutoModel": model, "AutoModelForMaskedLM": model},
        "model_type": MODEL_TYPE,
        "dtype": "float32",
        # Of the format. Without it, transformers 4.57 says of vocabularies above 100,000 that their tokenizer is wrong.
        "transformers_version": "5.0.0",
        **shape_fields(architecture),
        "max_position_embeddings": manifest.seq_len,
        "loops": loops,
        "loop_tolerance": None,
        "mask_token_id": manifest.tokenizer.mask_id,
        "eos_token_id": manifest.tokenizer.eod_id,
        "pad_token_id": manifest.tokenizer.pad_id,
    }


def shape_fields(architecture: Architecture) -> dict[str, Any]:
    """What decides the shapes of the weights and how they are used."""
    split = architecture.loop
    return {
        "vocab_size": architecture.known_vocab_size,
        "padded_vocab_size": architecture.padded_vocab_size,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.ffn_size,
        "num_hidden_layers": architecture.num_layers,
        "head_layers": split.head,
        "mid_layers": split.mid,
        "tail_layers": split.tail,
        "max_loops": split.max,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.kv_heads,
        "rope_base": architecture.rope_base,
        "rms_norm_eps": architecture.norm_eps,
        "initializer_range": architecture.init_std,
    } | ({"loop_norm": True} if split.norm else {})


def check_config(path: str, found: Mapping[str, Any], architecture: Architecture) -> None:
    """Compare `config.json` with the architecture of the run that was exported.

    Args:
        path: of the file, for messages.

    Raises:
        UserError: names the first key that differs.
    """
    for key, value in shape_fields(architecture).items():
        if found.get(key) != value:
            raise UserError(
                f"{path}: {key} is {found.get(key)}, but the run that was exported has {value}; restore the file from the export"
            )
