"""Attention: RoPE, grouped queries, and the kernels for documents, which must compute the same numbers.

Varlen flash attention runs on GPUs only. Here its operator gets an implementation for CPUs, so that everything around the
kernel is torch's own: the public function, its gradient and its behaviour in a compiled layer.
"""

import pytest
import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from model import attention, cpu_attention, denoiser
from model.architecture import Architecture, LoopSplit
from model.attention import attend, attend_between, document_boundaries, document_mask, missing_varlen, repeated
from model.denoiser import LoopedDenoiser
from model.layers import Sharding, transformer_config
from model.rope import rotate, rotation
from pretrain.config.settings import Train
from pretrain.machine.compilation import compile_layers, missing_compiler
from pretrain.parallel.pipeline import ModelChunk, _with_rows
from pretrain.training.batches import corrupt

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 9 + [2] * 2, [0] * 7 + [1] * 5 + [-1] * 4, [0] * 16], dtype=torch.int32)
"""Three documents; two documents and padding; one document."""


def documents_of(boundaries, *packed):
    """The tokens of each document of several tensors [tokens, n, d], as [n, tokens, d]."""
    for first, end in zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True):
        yield [x[first:end].transpose(0, 1) for x in packed]


def probabilities(query, key):
    """[n, queries, keys] of one document."""
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)


@pytest.fixture(scope="module")
def varlen_calls():
    """Gives torch's varlen operator an implementation for CPUs; the sizes of `boundaries` in its calls.

    One document after the other, with a plain softmax. With grouped queries the kernel gets fewer keys than queries.
    """
    sizes = []

    def forward(query, key, value, boundaries, of_keys, longest, longest_key, causal, scale, window, *_):
        assert torch.equal(of_keys, boundaries) and boundaries.diff().max() <= longest == longest_key
        assert not causal and scale is None and list(window) == [-1, -1]
        sizes.append(len(boundaries))
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        parts = [probabilities(q, k) @ v for q, k, v in documents_of(boundaries, query, key, value)]
        logsumexp = torch.zeros(query.shape[1], query.shape[0])
        return torch.cat(parts, dim=1).transpose(0, 1).contiguous(), logsumexp, torch.zeros(2, dtype=torch.uint64)

    def backward(gradient, query, key, value, out, logsumexp, boundaries, *_):
        shape, scale, parts = (len(key), *key.shape[1:2], -1, key.shape[2]), query.shape[2] ** -0.5, []
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        for g, q, k, v in documents_of(boundaries, gradient, query, key, value):
            p, of_p = probabilities(q, k), g @ v.mT
            of_scores = scale * p * (of_p - (p * of_p).sum(dim=-1, keepdim=True))
            parts.append((of_scores @ k, of_scores.mT @ q, p.mT @ g))
        of_query, *others = (torch.cat(each, dim=1).transpose(0, 1) for each in zip(*parts, strict=True))
        return of_query.contiguous(), *(x.reshape(shape).sum(dim=2) for x in others)

    torch.library.register_kernel("torch_attn::_varlen_attn", "cpu", forward)
    torch.library.register_kernel("torch_attn::_varlen_attn_backward", "cpu", backward)
    return sizes


@pytest.fixture
def varlen(varlen_calls, monkeypatch):
    """Lets the model use varlen attention on the CPU."""
    monkeypatch.setattr(denoiser, "missing_varlen", lambda *_: None)
    varlen_calls.clear()
    return varlen_calls


def states(heads, kv_heads, rows=3, length=16, width=8):
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, length, n, width) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def results(function, inputs):
    """Output and gradients."""
    output = function(*inputs)
    generator = torch.Generator().manual_seed(1)
    return [output.detach(), *torch.autograd.grad(output, inputs, torch.randn(output.shape, generator=generator))]


def assert_close(found, expected, **limits):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **limits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rope_is_bit_for_bit_megatron_cores(world, dtype):
    """Output and gradient; megatron-core takes the angles and computes their cosine and sine in every call."""
    length, width = 16, 8
    frequencies = 10000.0 ** -(torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    angles = torch.cat([angles, angles], dim=-1)[:, None, None]
    architecture = Architecture(num_layers=1, hidden_size=16, num_heads=2, vocab_size=9, loop=LoopSplit())
    config = transformer_config(architecture, Sharding())
    x = states(2, 2)[0].detach().to(dtype).requires_grad_()
    by = rotation(length, width, 10000.0, CPU, dtype)

    def theirs(x):
        return apply_rotary_pos_emb(x.transpose(0, 1), angles, config, cp_group=world.tensor_group).transpose(0, 1)

    for found, expected in zip(results(lambda x: rotate(x, by), [x]), results(theirs, [x]), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_documents_are_attended_to_alike_by_both_kernels_and_by_flex_attention(varlen_calls, kv_heads):
    """Outputs and gradients. FlexAttention has no gradients on CPUs (torch 2.11 and 2.13)."""
    inputs, mask = states(4, kv_heads), document_mask(DOCUMENTS, torch.float32)
    masked = results(lambda *x: attend(*x, mask), inputs)
    assert_close(results(lambda *x: attend_between(*x, document_boundaries(DOCUMENTS)), inputs), masked)
    block_mask = create_block_mask(lambda b, h, q, k: DOCUMENTS[b, q] == DOCUMENTS[b, k], 3, None, 16, 16, device="cpu")
    heads_first = [x.detach().transpose(1, 2) for x in inputs]
    flex = flex_attention(*heads_first, block_mask=block_mask, enable_gqa=kv_heads < 4)
    torch.testing.assert_close(flex.transpose(1, 2), masked[0])
    row = attend(*inputs, None)
    assert not torch.allclose(row, masked[0], atol=1e-2)
    torch.testing.assert_close(row[2], masked[0][2])  # a row of one document


@pytest.mark.parametrize("recompute", ["none", "full", "loop"])
@pytest.mark.parametrize("kv_heads", [None, 1])
def test_the_model_gives_the_same_loss_and_gradients_with_varlen_attention(world, varlen, kv_heads, recompute):
    """The mask is the oracle; every layer of every pass uses the boundaries that the caller gave."""
    split = LoopSplit(head=1, mid=2, tail=1, max=4)
    architecture = Architecture(
        num_layers=4, hidden_size=32, num_heads=4, num_kv_heads=kv_heads, vocab_size=51, loop=split
    )
    model = LoopedDenoiser(architecture, recompute=recompute)
    tokens = torch.randint(0, 50, (3, 16), generator=torch.Generator().manual_seed(0))
    every, weights = torch.arange(48), list(model.parameters())
    boundaries, found = document_boundaries(DOCUMENTS), []
    for missing in (None, "no CUDA device"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(denoiser, "missing_varlen", lambda *_, answer=missing: answer)
            patch.setattr(denoiser, "document_boundaries", None)  # not called: on a GPU it waits
            log_p = model(tokens, every, 3, DOCUMENTS, boundaries).log_softmax(-1)
        loss = -log_p[every, tokens.flatten()].mean()
        found.append([loss.detach(), *torch.autograd.grad(loss, weights)])
    assert_close(*found, rtol=1e-4, atol=1e-6)
    assert varlen == [len(boundaries)] * {"none": 8, "full": 16, "loop": 14}[recompute]


def test_document_ids_alone_are_enough(world, tiny, varlen):
    """For callers that may wait for the device."""
    model, tokens, every = LoopedDenoiser(tiny), torch.zeros(3, 16, dtype=torch.int64), torch.arange(48)
    given = model(tokens, every, 1, DOCUMENTS, document_boundaries(DOCUMENTS))
    assert torch.equal(model(tokens, every, 1, DOCUMENTS), given) and varlen


def test_boundaries_are_the_starts_of_documents_and_their_number_is_a_power_of_two():
    """8 documents: those of three rows, padding, and an empty one."""
    assert document_boundaries(DOCUMENTS).tolist() == [0, 5, 14, 16, 23, 28, 32, 48, 48]
    assert document_boundaries(DOCUMENTS).dtype == torch.int32
    assert document_boundaries(DOCUMENTS[2:]).tolist() == [0, 16]
    assert document_boundaries(torch.arange(5)[None]).tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5]
    assert document_boundaries(torch.arange(4)[None]).tolist() == [0, 1, 2, 3, 4]


def test_training_makes_the_boundaries_on_the_cpu_and_the_pipeline_passes_them_on(world, tiny, varlen, monkeypatch):
    clean = torch.randint(0, tiny.mask_id, (3, 16))
    batch = corrupt(clean, clean > 9, torch.full(clean.shape, 0.5), DOCUMENTS, 48, Train(), tiny.mask_id)
    assert torch.equal(batch.inputs.document_boundaries, document_boundaries(DOCUMENTS))
    assert torch.equal(batch.to(CPU).inputs.document_boundaries, document_boundaries(DOCUMENTS))
    monkeypatch.setattr(denoiser, "document_boundaries", None)
    model = LoopedDenoiser(tiny)
    (chunk,) = model.stage.chunks(2)
    piece = ModelChunk(model, chunk, transformer_config(tiny, Sharding()), 16)
    inputs = batch.inputs._asdict()
    found, expected = piece(batch.inputs), model(loops=2, **inputs)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)) and varlen
    assert _with_rows(batch.inputs, 4).document_boundaries is None  # they would miss the added row


@pytest.mark.slow
@pytest.mark.skipif(missing_compiler(CPU) is not None, reason="no C++ compiler")
def test_a_compiled_layer_is_compiled_again_for_another_power_of_two_only(world, tiny, varlen):
    model = LoopedDenoiser(tiny)
    for phase in (model.head, model.mid, model.tail):
        compile_layers(phase.layers)
    torch._dynamo.reset()
    counters.clear()
    tokens, every = torch.zeros(3, 16, dtype=torch.int64), torch.arange(48)
    for length, loops, graphs in ((5, 2, 1), (4, 3, 1), (6, 1, 1), (2, 1, 2), (5, 4, 2)):
        documents = (torch.arange(16) // length).expand(3, 16)
        model(tokens, every, loops, documents, document_boundaries(documents))[:, 0].sum().backward()
        assert counters["stats"]["unique_graphs"] == graphs, length
    assert not counters["graph_break"], counters


def test_repeated_keys_and_values_give_the_numbers_of_grouped_queries(monkeypatch):
    """As on a GPU in fp32 and with a mask, where no fused kernel takes groups."""
    inputs, seen, sdpa = states(4, 2), [], F.scaled_dot_product_attention

    def spy(query, key, value, **more):
        seen.append((key.shape[1], more["enable_gqa"]))
        return sdpa(query, key, value, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    for mask in (None, document_mask(DOCUMENTS, torch.float32)):
        found = []
        for takes in (True, False):
            monkeypatch.setattr(attention, "sdpa_takes_groups", lambda *_, takes=takes: takes)
            found.append(results(lambda *x, mask=mask: attend(*x, mask), inputs))
        assert_close(*found)
    assert seen == [(2, True), (4, False)] * 2
    assert repeated(inputs[0], 4) is inputs[0]


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_bf16_on_a_cpu_has_sdpas_output_and_more_exact_gradients(monkeypatch, kv_heads):
    """Rows of 64 tokens; a longer row uses SDPA itself."""
    inputs = [x.detach().bfloat16().requires_grad_() for x in states(4, kv_heads, length=64)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    documents = (torch.arange(64) // 20).expand(3, 64)
    for ids in (None, documents):
        masks = [None if ids is None else document_mask(ids, dtype) for dtype in (torch.bfloat16, torch.float64)]
        expected = results(lambda *x, mask=masks[1]: attend(*x, mask), exact)
        ours = results(lambda *x, mask=masks[0]: attend(*x, mask), inputs)
        with monkeypatch.context() as patch:
            patch.setattr(cpu_attention, "LONGEST_ROW", 63)
            sdpas = results(lambda *x, mask=masks[0]: attend(*x, mask), inputs)
        assert torch.equal(ours[0], sdpas[0]) and not torch.equal(ours[1], sdpas[1])
        for name, one, other, truth in zip("qkv", ours[1:], sdpas[1:], expected[1:], strict=True):
            assert (one - truth).norm() < (other - truth).norm() < 1e-2 * truth.norm(), name


@pytest.mark.parametrize(
    ("device", "dtype", "masked", "takes"),
    [
        ("cpu", torch.float32, True, True),
        ("cuda", torch.bfloat16, False, True),
        ("cuda", torch.bfloat16, True, False),
        ("cuda", torch.float32, False, False),
    ],
)
def test_sdpa_gets_groups_where_a_fused_kernel_takes_them(device, dtype, masked, takes):
    assert attention.sdpa_takes_groups(device, dtype, masked) is takes


def test_varlen_attention_needs_a_gpu_and_bf16():
    assert missing_varlen(CPU, torch.bfloat16, 64) == "no CUDA device"
    assert "no fp32" in missing_varlen(CUDA, torch.float32, 64)


@pytest.mark.parametrize(("width", "capable", "missing"), [(64, True, False), (64, False, True), (12, True, True)])
def test_torch_says_which_heads_flash_attention_takes(monkeypatch, width, capable, missing):
    monkeypatch.setattr(torch, "empty", lambda *size, dtype, **_: torch.zeros(*size, dtype=dtype))
    monkeypatch.setattr(attention, "can_use_flash_attention", lambda parameters: capable)
    missing_varlen.cache_clear()
    answer = missing_varlen(CUDA, torch.bfloat16, width)
    missing_varlen.cache_clear()
    assert (answer is not None) is missing and (not missing or f"width {width} in torch.bfloat16" in answer)
