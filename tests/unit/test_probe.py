"""`loopmdm probe` against attention and hidden states computed in plain PyTorch, and the report page."""

from dataclasses import replace

import pytest
import torch

from data_pipeline.dataset.packed_dataset import PackedDataset
from model.attention import AttentionInputs, document_mask
from model.denoiser import LoopedDenoiser
from model.rope import rotate, rotation
from pretrain.evaluation.probe import attention_to_masked, probe, watching

MASK_SEED = 5


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("with_documents", [False, True])
def test_attention_to_masked_tokens_is_that_of_a_plain_loop(kv_heads, with_documents):
    rows, length, heads, width = 2, 7, 4, 8
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(length, rows, heads, width, generator=generator)
    key = torch.randn(length, rows, kv_heads, width, generator=generator)
    masked = torch.rand(rows, length, generator=generator) < 0.6
    documents = (torch.arange(length) // 3).expand(rows, length)
    angles = rotation(length, width, 10_000.0, torch.device("cpu"), torch.float32)
    given = AttentionInputs(angles, document_mask(documents, torch.float32) if with_documents else None)
    found = attention_to_masked(query, key, given, masked)
    turned_q, turned_k = (rotate(x.transpose(0, 1), angles) for x in (query, key))
    for row in range(rows):
        values = []
        for head in range(heads):
            for i in masked[row].nonzero().flatten().tolist():
                seen = [j for j in range(length) if not with_documents or documents[row, i] == documents[row, j]]
                key_head = head * kv_heads // heads
                scores = torch.stack([turned_q[row, i, head] @ turned_k[row, j, key_head] for j in seen]) / width**0.5
                weights = scores.double().softmax(dim=0)
                values.append(sum(w for w, j in zip(weights, seen, strict=True) if masked[row, j]))
        assert found[row].item() == pytest.approx(float(torch.stack(values).mean()), rel=1e-5)


def test_every_pass_is_seen_and_nothing_is_changed(world, tiny):
    model = LoopedDenoiser(tiny, seed=1)
    generator = torch.Generator().manual_seed(MASK_SEED)
    tokens = torch.randint(0, tiny.mask_id, (3, 16), generator=generator)
    masked = torch.rand(tokens.shape, generator=generator) < 0.5
    where = masked.flatten().nonzero().squeeze(1)
    with torch.no_grad():
        expected = model(tokens, where, 4)
        with watching(model, masked) as passes:
            assert torch.equal(model(tokens, where, 4), expected)
        figures = passes.figures()
        assert all(values.shape == (4, 3) for values in figures.values())
        before, after = passes.states[1].double(), passes.states[2].double()
        moved = [
            ((after - before)[masked[row], row].norm(dim=-1) / after[masked[row], row].norm(dim=-1)).mean()
            for row in range(3)
        ]
        assert torch.allclose(figures["relative_change"][1], torch.stack(moved), rtol=1e-6)
        with watching(model, masked) as again:
            model(tokens, where, 2)
        assert torch.allclose(again.figures()["norm"], figures["norm"][:2])
        assert torch.equal(model(tokens, where, 4), expected), "the hooks are gone"


@pytest.mark.parametrize("documents", [False, True])
def test_uniform_attention_over_its_share_is_1(tiny, short_documents, documents):
    """Rows have several documents, and padding, which is never masked."""
    dataset = PackedDataset(short_documents, "validation")
    model = LoopedDenoiser(replace(tiny, vocab_size=dataset.manifest.vocab_size), seed=1)
    for layer in model.mid.layers.values():
        layer.self_attention.linear_qkv.weight.data.zero_()
    some, every = probe(model, dataset, [0.4, 1.0], 2, 12, 5, documents)
    for figures in (some, every):
        assert figures["attention_over_share"]["mean"] == pytest.approx([1, 1])
        assert figures["attention_over_share"]["standard_error"] == pytest.approx([0, 0], abs=1e-7)
    assert dataset.has_padding and every["masked_share"] == 1 and some["masked_share"] < 0.6
    assert (every["attention"]["mean"][0] == pytest.approx(1)) is documents, "rows also attend to their padding"


def test_uniform_attention_gives_the_masked_share():
    masked = torch.tensor([[True, False, True, True, False]])
    zeros = torch.zeros(5, 1, 2, 8)
    given = AttentionInputs(rotation(5, 8, 10_000.0, torch.device("cpu"), torch.float32))
    assert attention_to_masked(zeros, zeros, given, masked).item() == pytest.approx(3 / 5)
