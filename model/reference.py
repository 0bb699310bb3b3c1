"""Reference implementation of the looped denoiser and its loss in plain PyTorch: slow and simple, for the tests.

It does not use megatron-core and shares no code with `model.layers` or `model.objective`. The tests compare the logits,
loss and gradients of `LoopedDenoiser` with those computed here from the same weights.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from model.architecture import Architecture

Weights = Mapping[str, Tensor]


def reference_logits(
    weights: Weights, architecture: Architecture, tokens: Tensor, loops: int, document_ids: Tensor | None = None
) -> Tensor:
    """Logits at every position: x_t, int64 [b, s] -> [b, s, vocabulary without [MASK]].

    With `document_ids`, int [b, s], tokens attend to their own document only. Weights named `pass.K.mid.` are those of pass K
    alone, as from `copied_weights`.
    """
    split, hidden = architecture.loop, weights["embedding.weight"][tokens]
    for i in range(split.head):
        hidden = _layer(weights, f"head.layers.{i}", architecture, hidden, document_ids)
    for number in range(1, loops + 1):
        own = {name.removeprefix(f"pass.{number}."): value for name, value in weights.items()}
        if split.norm:
            hidden = _rms_norm(hidden, own["mid.norm.weight"], architecture.norm_eps)
        for i in range(split.mid):
            hidden = _layer(own, f"mid.layers.{i}", architecture, hidden, document_ids)
    for i in range(split.tail):
        hidden = _layer(weights, f"tail.layers.{i}", architecture, hidden, document_ids)
    hidden = _rms_norm(hidden, weights["final_norm.weight"], architecture.norm_eps)
    return (hidden @ weights["lm_head.weight"].T)[..., : architecture.mask_id]


def reference_loss(
    weights: Weights,
    architecture: Architecture,
    clean: Tensor,
    masked: Tensor,
    timesteps: Tensor,
    loops: int,
    document_ids: Tensor | None = None,
) -> Tensor:
    """NELBO estimate of one batch in nats per token: the sum of -log p / t over masked tokens, divided by all tokens.

    Args:
        clean: x_0, int64 [b, s].
        masked: bool [b, s].
        timesteps: t of each token, float [b, s].
        document_ids: int [b, s]; tokens attend to their own document only.
    """
    corrupted = torch.where(masked, architecture.mask_id, clean)
    log_p = reference_logits(weights, architecture, corrupted, loops, document_ids).log_softmax(dim=-1)
    nll = -log_p.gather(-1, clean.unsqueeze(-1)).squeeze(-1)
    return (nll * masked / timesteps).sum() / clean.numel()


def copied_weights(weights: Weights, loops: int) -> dict[str, Tensor]:
    """The same weights, with a separate copy of the mid block for each of `loops` passes."""
    copied = {name: value.detach().clone() for name, value in weights.items() if not name.startswith("mid.")}
    for name, value in weights.items():
        if name.startswith("mid."):
            copied |= {f"pass.{number}.{name}": value.detach().clone() for number in range(1, loops + 1)}
    return copied


def _layer(
    weights: Weights, name: str, architecture: Architecture, hidden: Tensor, document_ids: Tensor | None
) -> Tensor:
    eps = architecture.norm_eps
    normed = _rms_norm(hidden, weights[f"{name}.input_layernorm.weight"], eps)
    hidden = hidden + _attention(weights, name, architecture, normed, document_ids)
    normed = _rms_norm(hidden, weights[f"{name}.pre_mlp_layernorm.weight"], eps)
    gate, up = (normed @ weights[f"{name}.mlp.linear_fc1.weight"].T).chunk(2, dim=-1)
    return hidden + (gate * torch.sigmoid(gate) * up) @ weights[f"{name}.mlp.linear_fc2.weight"].T


def _attention(
    weights: Weights, name: str, architecture: Architecture, hidden: Tensor, document_ids: Tensor | None
) -> Tensor:
    batch, length, _ = hidden.shape
    groups, width = architecture.kv_heads, architecture.head_dim
    per_group = architecture.num_heads // groups
    qkv = hidden @ weights[f"{name}.self_attention.linear_qkv.weight"].T
    # megatron-core stores the queries, then the key, then the value of each key-value group.
    qkv = qkv.view(batch, length, groups, per_group + 2, width)
    angles = _angles(length, width, architecture.rope_base)
    query = _rotate(qkv[..., :per_group, :], angles)
    key, value = _rotate(qkv[..., per_group : per_group + 1, :], angles), qkv[..., per_group + 1 :, :]
    scores = torch.einsum("bqgpd,bkgod->bgpqk", query, key) / width**0.5
    if document_ids is not None:
        different = document_ids[:, None, None, :, None] != document_ids[:, None, None, None, :]
        scores = scores.masked_fill(different, -torch.inf)
    if architecture.causal:
        position = torch.arange(length)
        scores = scores.masked_fill(position[:, None] < position, -torch.inf)
    context = torch.einsum("bgpqk,bkgod->bqgpd", scores.softmax(dim=-1), value)
    return context.reshape(batch, length, -1) @ weights[f"{name}.self_attention.linear_proj.weight"].T


def _angles(length: int, width: int, base: float) -> Tensor:
    frequencies = torch.tensor([base ** (-2 * i / width) for i in range(width // 2)])
    return torch.arange(length)[:, None] * frequencies


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None, None, :], angles.sin()[:, None, None, :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight
