"""Attention in bf16 on CPUs whose backward pass computes in fp32.

With rows of up to 256 tokens, the backward pass of torch's flash attention for CPUs takes 1.2 to 4 times as long in bf16 as in
fp32, conversions included (torch 2.13, one core of a Xeon with AMX). torch has no public function for the backward pass
alone, so this file calls the operators behind `scaled_dot_product_attention`. Their signatures are the same in 2.11 and 2.13.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST_ROW = 256
"""Tokens. With 512 both take the same time; with 1,024 bf16 is faster."""


def is_faster(query: Tensor) -> bool:
    """Whether `attention` is faster than SDPA; queries [b, n, s, d]."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] <= LONGEST_ROW


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """SDPA with the same output and saved tensors, grouped queries included: [b, n, s, d] -> [b, n, s, d]."""
    return _Attention.apply(query, key, value, mask)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        context, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=mask
        )
        ctx.save_for_backward(query, key, value, context, logsumexp, mask)
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *states, logsumexp, mask = ctx.saved_tensors
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient.float(),
            *(x.float() for x in states),
            logsumexp,
            0.0,  # dropout
            False,  # causal
            attn_mask=None if mask is None else mask.float(),
        )
        return *(x.to(gradient.dtype) for x in gradients), None
