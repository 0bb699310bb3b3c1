"""The kernels of attention within documents against attention in fp64, and their speed; grouped queries in fp32.

On a CPU the model has one kernel, SDPA with a mask, so this compares that one with fp64.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from model.attention import attend, attend_between, document_boundaries, document_mask, missing_varlen
from tests.gpu.harness import Check
from tests.gpu.oracle import LIMITS
from tests.gpu.runs import release, synchronize

HEADS, WIDTH = 12, 64
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries, keys, values) -> context, as `model.attention.attend`."""


def check_attention(check: Check) -> None:
    """Rows of several documents, with all heads and with grouped queries."""
    device = torch.device(check.device)
    sizes = ((2, 64),) if check.quick else ((16, 1024), (4, 4096))
    for precision in LIMITS:
        for kv_heads in (HEADS, HEADS // 3):
            for rows, length in sizes:
                name = (
                    f"{str(precision).removeprefix('torch.')}, {rows} rows of {length}, kv heads {kv_heads} of {HEADS}"
                )
                with check.part(name) as figures:
                    figures["no varlen attention"] = missing_varlen(device, precision, WIDTH) or ""
                    inputs = states(rows, length, kv_heads, precision, device)
                    documents = documents_of(rows, length).to(device)
                    for kernel, attention in kernels(documents, precision).items():
                        deviation = against_fp64(attention, inputs, documents)
                        figures[f"{kernel}: deviation"] = deviation
                        figures[f"{kernel}: ms"] = 1e3 * seconds(attention, inputs, 2 if check.quick else 20)
                        check.expect(deviation < LIMITS[precision], f"{kernel}: deviation {deviation:.2g}")
    if not check.quick:
        with check.part("varlen attention repeats its gradients under use_deterministic_algorithms"):
            check.expect(repeats(device), "two backward passes differ")


def kernels(documents: Tensor, precision: torch.dtype) -> dict[str, Kernel]:
    """SDPA with a mask, and varlen attention where the model would use it."""
    found: dict[str, Kernel] = {"mask": partial(attend, mask=document_mask(documents, precision))}
    if missing_varlen(documents.device, precision, WIDTH) is None:
        found["varlen"] = partial(attend_between, boundaries=document_boundaries(documents))
    return found


def states(
    rows: int, length: int, kv_heads: int, precision: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, length, heads, WIDTH) for heads in (HEADS, kv_heads, kv_heads)]
    query, key, value = (torch.randn(shape, generator=generator).to(device, precision) for shape in shapes)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def documents_of(rows: int, length: int) -> Tensor:
    """Document ids [rows, length]: documents of random lengths, at most 600 tokens; the last row ends with padding."""
    generator = torch.Generator().manual_seed(1)
    begins = torch.randint(1, min(600, length // 2), (rows, length), generator=generator).cumsum(dim=1)
    documents = torch.searchsorted(begins, torch.arange(length).expand(rows, length).contiguous(), right=True).int()
    documents[-1, length - length // 8 :] = -1
    return documents


def results(attention: Kernel, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Context and gradients; the gradient of the context is ones and minus ones in turn."""
    context = attention(*inputs)
    signs = torch.ones_like(context)
    signs[..., ::2] = -1
    return [context.detach(), *torch.autograd.grad(context, inputs, signs)]


def against_fp64(attention: Kernel, inputs: Sequence[Tensor], documents: Tensor) -> float:
    """Largest relative deviation, by norm, of the context and the gradients. For the last row, because fp64 needs much memory."""
    last = [x.detach()[-1:].double().requires_grad_() for x in inputs]
    expected = results(partial(attend, mask=document_mask(documents[-1:], torch.float64)), last)
    found = [x[-1:].double() for x in results(attention, inputs)]
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))


def seconds(attention: Kernel, inputs: Sequence[Tensor], count: int) -> float:
    """Time of a forward and a backward pass."""
    release()
    results(attention, inputs)
    synchronize()
    begin = time.perf_counter()
    for _ in range(count):
        results(attention, inputs)
    synchronize()
    return (time.perf_counter() - begin) / count


def repeats(device: torch.device) -> bool:
    """Whether two runs give the same bits. True where there is no varlen attention."""
    inputs = states(16, 1024, HEADS // 3, torch.bfloat16, device)
    attention = kernels(documents_of(16, 1024).to(device), torch.bfloat16).get("varlen")
    if attention is None:
        return True
    torch.use_deterministic_algorithms(True)
    try:
        pairs = zip(results(attention, inputs), results(attention, inputs), strict=True)
        return all(torch.equal(first, second) for first, second in pairs)
    finally:
        torch.use_deterministic_algorithms(False)
