"""Names and layouts of weights: ours (megatron-core's) and those of an exported folder, which are those of Llama's layers.

An exported folder numbers the layers of head, mid and tail from 0 on, and has one matrix for each of query, key, value, gate
and up projection. Only rows are moved, so a weight that goes there and back has the same bits.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from model.architecture import Architecture

OUTSIDE_LAYERS = {
    "embedding.weight": "embed_tokens.weight",
    "final_norm.weight": "norm.weight",
    "lm_head.weight": "lm_head.weight",
}
LOOP_NORM = {"mid.norm.weight": "loop_norm.weight"}
"""With `model.loop.norm`."""

UNCHANGED = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
"""Weights of a layer that have another name there."""

QKV, QKV_PARTS = "self_attention.linear_qkv.weight", tuple(f"self_attn.{part}_proj.weight" for part in "qkv")
FC1, FC1_PARTS = "mlp.linear_fc1.weight", ("mlp.gate_proj.weight", "mlp.up_proj.weight")

Source = Callable[[str], Tensor]
"""Name of a weight -> the weight."""


def exported_weights(architecture: Architecture, ours: Source) -> dict[str, Tensor]:
    """All weights of an exported folder, from those of a checkpoint."""
    exported = {theirs: ours(name) for name, theirs in _outside_layers(architecture).items()}
    for layer, there in _layers(architecture).items():
        exported |= {f"{there}.{theirs}": ours(f"{layer}.{name}") for name, theirs in UNCHANGED.items()}
        parts = split_qkv(ours(f"{layer}.{QKV}"), architecture)
        exported |= {f"{there}.{name}": part for name, part in zip(QKV_PARTS, parts, strict=True)}
        parts = ours(f"{layer}.{FC1}").chunk(2)
        exported |= {f"{there}.{name}": part for name, part in zip(FC1_PARTS, parts, strict=True)}
    # Copies, because safetensors refuses tensors that share memory, as parts of one matrix do.
    return {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in exported.items()}


def imported_weights(architecture: Architecture, theirs: Source) -> dict[str, Tensor]:
    """All weights of a checkpoint, from those of an exported folder: the inverse of `exported_weights`."""
    weights = {name: theirs(there) for name, there in _outside_layers(architecture).items()}
    for layer, there in _layers(architecture).items():
        weights |= {f"{layer}.{name}": theirs(f"{there}.{other}") for name, other in UNCHANGED.items()}
        weights[f"{layer}.{QKV}"] = join_qkv([theirs(f"{there}.{name}") for name in QKV_PARTS], architecture)
        weights[f"{layer}.{FC1}"] = torch.cat([theirs(f"{there}.{name}") for name in FC1_PARTS])
    return weights


def exported_shapes(architecture: Architecture) -> Mapping[str, tuple[int, ...]]:
    """Shape of every weight of an exported folder."""
    hidden, ffn, vocabulary = architecture.hidden_size, architecture.ffn_size, architecture.padded_vocab_size
    key = architecture.kv_heads * architecture.head_dim
    shapes = dict.fromkeys(_outside_layers(architecture).values(), (hidden,))
    shapes |= dict.fromkeys(("embed_tokens.weight", "lm_head.weight"), (vocabulary, hidden))
    layer = dict(zip(UNCHANGED.values(), ((hidden,), (hidden, hidden), (hidden,), (hidden, ffn)), strict=True))
    layer |= dict(zip(QKV_PARTS, ((hidden, hidden), (key, hidden), (key, hidden)), strict=True))
    layer |= dict.fromkeys(FC1_PARTS, (ffn, hidden))
    for there in _layers(architecture).values():
        shapes |= {f"{there}.{name}": shape for name, shape in layer.items()}
    return shapes


def split_qkv(qkv: Tensor, architecture: Architecture) -> tuple[Tensor, Tensor, Tensor]:
    """megatron-core's matrix, which holds the queries, the key and the value of one key-value head after the other.

    Returns:
        The query, key and value projections, [heads * d, h] each; query heads of one key-value head are neighbors.
    """
    groups, width = architecture.kv_heads, architecture.head_dim
    per_group = architecture.num_heads // groups
    heads = qkv.view(groups, per_group + 2, width, -1)
    query, key, value = heads.split((per_group, 1, 1), dim=1)
    return query.flatten(0, 2), key.flatten(0, 2), value.flatten(0, 2)


def join_qkv(parts: list[Tensor], architecture: Architecture) -> Tensor:
    """The inverse of `split_qkv`."""
    groups, width = architecture.kv_heads, architecture.head_dim
    return torch.cat([part.view(groups, -1, width, part.shape[-1]) for part in parts], dim=1).flatten(0, 2)


def _outside_layers(architecture: Architecture) -> dict[str, str]:
    return OUTSIDE_LAYERS | (LOOP_NORM if architecture.loop.norm else {})


def _layers(architecture: Architecture) -> dict[str, str]:
    """Our name of every layer -> the name there, in the order of a forward pass with S = 1."""
    split = architecture.loop
    sizes = {"head": split.head, "mid": split.mid, "tail": split.tail}
    ours = [f"{phase}.layers.{i}" for phase, size in sizes.items() for i in range(size)]
    return {name: f"layers.{number}" for number, name in enumerate(ours)}
