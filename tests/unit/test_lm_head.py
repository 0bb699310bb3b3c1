"""The loss with its gradient computed chunk by chunk, against autograd over all logits."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from model import lm_head
from model.layers import Sharding
from model.lm_head import LanguageModelHead

TOKENS, HIDDEN, VOCAB, MASK_ID = 50, 16, 40, 33
UPSTREAM = 3.0


def build(precision: torch.dtype) -> LanguageModelHead:
    head = LanguageModelHead(SimpleNamespace(padded_vocab_size=VOCAB, hidden_size=HIDDEN, mask_id=MASK_ID), Sharding())
    with torch.no_grad():
        head.weight.normal_(generator=torch.Generator().manual_seed(0))
    head.weight.data = head.weight.data.to(precision)
    head.weight.grad_dtype = torch.float32
    return head


def batch(precision: torch.dtype, tokens: int = TOKENS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden_states = torch.randn(tokens, HIDDEN, generator=generator).to(precision).requires_grad_()
    targets = torch.randint(0, MASK_ID, (tokens,), generator=generator)
    return hidden_states, targets, torch.rand(tokens, generator=generator) + 0.1


def expected(head, hidden_states, targets, weights):
    """Loss, cross-entropies and gradients in fp64 from the same rounded weights and hidden states."""
    rows, weight = (x.detach().double().requires_grad_() for x in (hidden_states, head.weight))
    cross_entropy = F.cross_entropy((rows @ weight.t())[:, :MASK_ID], targets, reduction="none")
    (torch.dot(weights.double(), cross_entropy) * UPSTREAM).backward()
    return torch.dot(weights.double(), cross_entropy), cross_entropy, rows.grad, weight.grad


def deviation(found: torch.Tensor, reference: torch.Tensor) -> float:
    return ((found.double() - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("rows_per_chunk", [1, 7, 25, 50, 10_000])
def test_loss_and_gradients_equal_autograd_for_any_chunk_size(monkeypatch, precision, tolerance, rows_per_chunk):
    monkeypatch.setattr(lm_head, "LOGITS_PER_CHUNK", rows_per_chunk * VOCAB)
    head, inputs = build(precision), batch(precision)
    loss, cross_entropy = head(*inputs)
    (loss * UPSTREAM).backward()
    found = (loss.detach(), cross_entropy, inputs[0].grad, head.weight.grad)
    for name, one, reference in zip(("loss", "nats", "hidden", "weight"), found, expected(head, *inputs), strict=True):
        assert deviation(one, reference) < tolerance, name
    assert head.weight.grad.dtype == torch.float32 and not cross_entropy.requires_grad
    assert not head.weight.grad[MASK_ID:].any(), "[MASK] and padding have probability 0"


def test_the_loss_is_that_of_the_logits():
    """Training and evaluation see the same cross-entropies."""
    head, (hidden_states, targets, weights) = build(torch.float32), batch(torch.float32)
    logits = head(hidden_states)
    assert torch.isinf(logits[:, MASK_ID:]).all()
    _, cross_entropy = head(hidden_states, targets, weights)
    assert torch.allclose(cross_entropy, F.cross_entropy(logits, targets, reduction="none"), atol=1e-6)


def test_no_logits_are_kept_for_the_backward_pass(monkeypatch):
    """What autograd keeps does not grow with tokens * vocabulary."""
    monkeypatch.setattr(lm_head, "LOGITS_PER_CHUNK", 8 * VOCAB)
    kept: list[int] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.numel())
        return x

    inputs = batch(torch.float32, tokens=2_000)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        build(torch.float32)(*inputs)
    assert max(kept) == inputs[0].numel()


def test_without_targets_there_is_no_loss_to_sum():
    head, inputs = build(torch.float32), batch(torch.float32, tokens=0)
    loss, cross_entropy = head(*inputs)
    loss.backward()
    assert loss == 0 and not len(cross_entropy) and not head.weight.grad.any()
