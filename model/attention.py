"""Bidirectional attention over rows or within documents, and the choice of its kernel.

Attention over whole rows is torch's SDPA. Within documents there are two kernels, which compute the same numbers:

- On GPUs in bf16, torch's varlen flash attention: it skips other documents, where SDPA with a mask computes the whole row and
  cannot use flash attention. FlexAttention was the alternative. It needs a compiler on every node (Triton calls one), or
  computes all scores unfused; varlen flash attention needs none, repeats its results under
  `torch.use_deterministic_algorithms`, takes grouped queries and is one operator inside a compiled layer.
- Elsewhere (on CPUs and in fp32), SDPA with a mask.
"""

import inspect
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention.varlen import varlen_attn

from model import cpu_attention
from model.rope import Rotation, rotate

GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""Argument of `varlen_attn` for grouped queries. torch 2.11 takes them without."""


class KeptKeys(Protocol):
    """Keys and values of an earlier forward pass, for a forward pass that computes some tokens of a row only."""

    def __call__(self, layer_number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values of the computed tokens [b, a, kv heads, d] -> those of whole rows [b, s, kv heads, d]."""


class AttentionInputs(NamedTuple):
    """What the attention of all layers and passes shares. Passed through megatron-core's layers as `attention_mask`.

    Attributes:
        rotation: of queries and keys.
        mask: as from `document_mask` or `causal_mask`; None for attention over whole rows, or where `boundaries` are used.
        boundaries: as from `document_boundaries`, for varlen flash attention; None otherwise.
        kept: see `model/sampling/cache.py`; None if all tokens of the rows are computed. For attention over whole rows.
    """

    rotation: Rotation
    mask: Tensor | None = None
    boundaries: Tensor | None = None
    kept: KeptKeys | None = None


class BidirectionalAttention(nn.Module):
    """`core_attention` of megatron-core's local spec: RoPE, then each token attends to all tokens of its row or document."""

    def __init__(self, *_: Any, layer_number: int, **__: Any) -> None:
        super().__init__()
        self.layer_number = layer_number

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: AttentionInputs, **_: Any) -> Tensor:
        """Queries [s, b, n, d], keys and values [s, b, kv heads, d], not rotated -> context [s, b, n * d]."""
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        query, key = rotate(query, attention_mask.rotation), rotate(key, attention_mask.rotation)
        if attention_mask.kept is not None:
            key, value = attention_mask.kept(self.layer_number, key, value)
        if attention_mask.boundaries is None:
            context = attend(query, key, value, attention_mask.mask)
        else:
            context = attend_between(query, key, value, attention_mask.boundaries)
        return context.transpose(0, 1).flatten(2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """SDPA: queries [b, s, n, d], keys and values [b, s, kv heads, d] -> context [b, s, n, d]. The rows may have fewer queries.

    Args:
        mask: as from `document_mask` or `causal_mask`; None for attention over whole rows.
    """
    heads = query.shape[2]
    if not sdpa_takes_groups(query.device.type, query.dtype, mask is not None):
        key, value = repeated(key, heads), repeated(value, heads)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if cpu_attention.is_faster(query):
        context = cpu_attention.attention(query, key, value, mask)
    else:
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=key.shape[1] != heads)
    return context.transpose(1, 2)


def sdpa_takes_groups(device_type: str, dtype: torch.dtype, masked: bool) -> bool:
    """Whether SDPA has a fused kernel for grouped queries.

    On GPUs flash attention has one, but no fp32 and no masks; the memory-efficient kernel has those, but no groups
    (`sdp_utils.cpp` of torch 2.11 and 2.13). With groups in fp32, SDPA would store all scores.
    """
    return device_type != "cuda" or (dtype != torch.float32 and not masked)


def repeated(states: Tensor, heads: int) -> Tensor:
    """Keys or values [b, s, kv heads, d] -> [b, s, heads, d]: a copy for each query of a group."""
    groups = states.shape[2]
    if groups == heads:
        return states
    return states.unsqueeze(3).expand(-1, -1, -1, heads // groups, -1).flatten(2, 3)


def attend_between(query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor) -> Tensor:
    """Varlen flash attention: shapes as in `attend`.

    Args:
        boundaries: as from `document_boundaries`.
    """
    rows, length, _, _ = query.shape
    packed = (x.flatten(0, 1) for x in (query, key, value))
    # The row's length as the longest document, so that a compiled layer sees the same number at every step.
    context = varlen_attn(*packed, boundaries, boundaries, length, length, **GROUPED)
    return context.unflatten(0, (rows, length))


@lru_cache
def missing_varlen(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why varlen flash attention cannot be used; None if it can."""
    if device.type != "cuda":
        return "no CUDA device"
    if dtype == torch.float32:
        return "flash attention has no fp32"
    probe = torch.empty(1, 1, 8, head_dim, dtype=dtype, device=device, requires_grad=True)
    if head_dim % 8 or not can_use_flash_attention(SDPAParams(probe, probe, probe, None, 0.0, False, False)):
        return f"torch's flash attention does not take heads of width {head_dim} in {dtype} on this GPU"
    return None


def document_mask(document_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask that is added to the attention scores: 0 within a document, -inf between documents, [b, 1, s, s].

    All layers and passes share this one tensor. Given a boolean mask, SDPA would convert it in every layer and keep each
    converted copy for the backward pass. RoPE is relative, so positions do not have to restart at each document.

    Args:
        document_ids: document of each token within its row, int [b, s]; padding (-1) attends to padding.
        dtype: dtype of the hidden states.
    """
    same = document_ids.unsqueeze(2) == document_ids.unsqueeze(1)
    mask = torch.zeros(same.shape, dtype=dtype, device=document_ids.device)
    return mask.masked_fill_(~same, float("-inf")).unsqueeze(1)


def causal_mask(seq_len: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Mask that is added to the attention scores: 0 for a token itself and earlier ones, -inf for later ones, [1, 1, s, s]."""
    return torch.full((seq_len, seq_len), float("-inf"), dtype=dtype, device=device).triu(1)[None, None]


def document_boundaries(document_ids: Tensor) -> Tensor:
    """Where documents begin in the flattened [b * s] tokens, and the number of tokens: int32 [k + 1] for k documents.

    Empty documents at the end make k a power of two: a compiled layer is compiled again for another k. On a GPU this waits
    for the device, so training calls it on the CPU.

    Args:
        document_ids: int [b, s]; the tokens of a document are next to each other. Padding (-1) is a document.
    """
    begins = torch.ones(document_ids.shape, dtype=torch.bool, device=document_ids.device)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    first = begins.flatten().nonzero().squeeze(1)
    documents = 1 << (len(first) - 1).bit_length()
    return F.pad(first, (0, documents + 1 - len(first)), value=document_ids.numel()).int()
