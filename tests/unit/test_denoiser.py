"""The denoiser built on megatron-core equals the plain-PyTorch reference with the same weights."""

import math
from dataclasses import replace

import pytest
import torch

from model.architecture import Architecture, LoopSplit
from model.denoiser import LoopedDenoiser, positions_of
from model.layers import RMSNorm, Sharding, transformer_config
from model.objective import token_weights
from model.reference import copied_weights, reference_logits, reference_loss


def split_of(head, mid, tail, norm=False, **changes) -> Architecture:
    shape = {"hidden_size": 32, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 51} | changes
    loop = LoopSplit(head=head, mid=mid, tail=tail, max=4, norm=norm)
    return Architecture(num_layers=head + mid + tail, loop=loop, **shape)


SPLITS = {
    "1-2-1": split_of(1, 2, 1),
    "0-1-0": split_of(0, 1, 0),
    "0-2-1": split_of(0, 2, 1),
    "2-1-0": split_of(2, 1, 0),
    "one-kv-head": split_of(1, 1, 1, num_kv_heads=1),
    "all-kv-heads": split_of(1, 1, 1, num_kv_heads=4, vocab_size=64),
    "1-2-1 norm": split_of(1, 2, 1, norm=True),
    "0-1-0 norm": split_of(0, 1, 0, norm=True),
}


def build(architecture, recompute="none", scale=1.0) -> LoopedDenoiser:
    model = LoopedDenoiser(architecture, seed=3, recompute=recompute)
    with torch.no_grad():  # moves norm weights away from 1 and makes every part matter
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * 0.1 * scale)
    return model


def batch(architecture, rows=3, length=16):
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, architecture.mask_id, (rows, length), generator=generator)
    timesteps = torch.tensor([0.2, 0.5, 0.9])[:rows, None].double().expand(rows, length)
    masked = torch.rand(rows, length, generator=generator) < timesteps
    return clean, masked, timesteps


DOCUMENTS = torch.tensor([[0] * 5 + [1] * 9 + [2] * 2, [0] * 7 + [1] * 5 + [-1] * 4, [0] * 16])
"""Document ids of the rows of `batch`: three documents; two documents and padding; one document."""


def loss_of(model, clean, masked, timesteps, loops, document_ids=None):
    noisy = clean.masked_fill(masked, model.architecture.mask_id)
    weights = token_weights(timesteps[masked], 0.0, clean.numel())
    loss, _ = model(noisy, positions_of(masked), loops, document_ids, targets=clean[masked], loss_weights=weights)
    return loss


def weights_of(model):
    return {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}


@pytest.mark.parametrize("loops", [1, 2, 5])
@pytest.mark.parametrize("architecture", SPLITS.values(), ids=SPLITS.keys())
def test_forward_loss_and_every_gradient_equal_the_oracle(world, architecture, loops):
    model = build(architecture)
    clean, masked, timesteps = batch(architecture)
    loss = loss_of(model, clean, masked, timesteps, loops)
    loss.backward()
    weights = weights_of(model)
    expected = reference_loss(weights, architecture, clean, masked, timesteps, loops)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, weights[name].grad, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("loops", [1, 3])
@pytest.mark.parametrize("architecture", SPLITS.values(), ids=SPLITS.keys())
def test_attention_within_documents_equals_the_oracle(world, architecture, loops):
    """Loss and every gradient; the loss differs from that of attention over whole rows."""
    model = build(architecture)
    clean, masked, timesteps = batch(architecture)
    loss = loss_of(model, clean, masked, timesteps, loops, DOCUMENTS)
    loss.backward()
    weights = weights_of(model)
    expected = reference_loss(weights, architecture, clean, masked, timesteps, loops, DOCUMENTS)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, weights[name].grad, rtol=1e-3, atol=1e-5), name
    whole = loss_of(model, clean, masked, timesteps, loops)
    assert abs(loss.item() / whole.item() - 1) > 1e-4


@pytest.mark.parametrize("loops", [1, 3])
@pytest.mark.parametrize("architecture", SPLITS.values(), ids=SPLITS.keys())
def test_an_autoregressive_model_equals_the_oracle(world, architecture, loops):
    """Every logit and gradient; and no logit depends on a later token."""
    model = build(replace(architecture, causal=True))
    tokens, _, _ = batch(architecture)
    every = positions_of(torch.ones_like(tokens, dtype=torch.bool))
    logits = model(tokens, every, loops).view(*tokens.shape, -1)[..., : architecture.mask_id]
    logits.square().mean().backward()
    weights = weights_of(model)
    expected = reference_logits(weights, model.architecture, tokens, loops)
    expected.square().mean().backward()
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, weights[name].grad, rtol=1e-3, atol=1e-5), name
    changed = torch.cat([tokens[:, :9], (tokens[:, 9:] + 1) % architecture.mask_id], dim=1)
    others = model(changed, every, loops).view(*tokens.shape, -1)[..., : architecture.mask_id]
    assert torch.equal(others[:, :9], logits[:, :9])
    assert not torch.isclose(others[:, 9:], logits[:, 9:]).all(dim=-1).any()


@pytest.mark.parametrize("loops", [1, 3])
def test_documents_of_a_row_are_computed_as_if_alone(world, tiny, loops):
    """Logits of a document in a row of several documents equal those of the document in its own row, from position 0."""
    model = build(tiny)
    clean, _, _ = batch(tiny)
    every = torch.ones_like(clean, dtype=torch.bool)
    together = model(clean, positions_of(every), loops, DOCUMENTS).view(*clean.shape, -1)
    for row, owners, logits in zip(clean, DOCUMENTS, together, strict=True):
        for document in owners.unique():
            inside = owners == document
            alone = model(row[inside][None], positions_of(every[:1, : inside.sum()]), loops)
            assert torch.allclose(logits[inside], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loops", [1, 2, 5])
@pytest.mark.parametrize("split", ["1-2-1", "1-2-1 norm"])
def test_loops_equal_tied_copies(world, split, loops):
    """The gradient of the shared block, and of the norm between passes, is the sum over S copies."""
    model, architecture = build(SPLITS[split]), SPLITS[split]
    clean, masked, timesteps = batch(architecture)
    loss_of(model, clean, masked, timesteps, loops).backward()
    copies = {k: v.requires_grad_() for k, v in copied_weights(weights_of(model), loops).items()}
    reference_loss(copies, architecture, clean, masked, timesteps, loops).backward()
    for name, parameter in model.mid.named_parameters():
        summed = sum(copies[f"pass.{k}.mid.{name}"].grad for k in range(1, loops + 1))
        assert torch.allclose(parameter.grad, summed, rtol=1e-3, atol=1e-5), name


def test_recomputation_changes_no_number_with_a_norm_between_passes(world):
    inputs = batch(SPLITS["1-2-1 norm"])
    gradients = []
    for mode in ("none", "loop", "full"):
        model = build(SPLITS["1-2-1 norm"], mode)
        loss_of(model, *inputs, 3).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*gradients, strict=True))


@pytest.mark.parametrize(("split", "equal"), [("1-2-1", False), ("1-2-1 norm", True)])
def test_with_a_norm_a_pass_does_not_depend_on_the_size_of_the_state(world, split, equal):
    model, (clean, masked, _) = build(SPLITS[split]), batch(SPLITS[split])
    expected = model(clean, positions_of(masked), 2)
    model.mid.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 10, *inputs[1:]))
    assert torch.allclose(model(clean, positions_of(masked), 2), expected, rtol=1e-3, atol=1e-3) == equal


def test_logits_of_selected_positions_only_and_in_order(world, tiny):
    model = build(tiny)
    clean, masked, _ = batch(tiny)
    every = model(clean, positions_of(torch.ones_like(masked)), 2).view(*clean.shape, -1)
    some = model(clean, positions_of(masked), 2)
    assert torch.allclose(some, every[masked], atol=1e-5)
    oracle = reference_logits(weights_of(model), tiny, clean, 2)
    assert torch.allclose(every[..., : tiny.mask_id], oracle, atol=1e-4)


def test_mask_and_padding_of_the_vocabulary_have_probability_zero(world, tiny):
    clean, masked, _ = batch(tiny)
    logits = build(tiny)(clean, positions_of(masked), 1)
    assert logits.shape == (masked.sum(), tiny.padded_vocab_size)
    assert torch.isinf(logits[:, tiny.mask_id :]).all()
    assert torch.isfinite(logits[:, : tiny.mask_id]).all()
    assert torch.allclose(logits.softmax(dim=-1).sum(dim=-1), torch.ones(len(logits)))


def test_a_norm_sums_its_gradient_over_the_group_it_is_given(world, tiny):
    """The group here has one rank, so the sum is counted instead of compared."""
    config = transformer_config(tiny, Sharding())
    with pytest.MonkeyPatch.context() as patch:
        groups = []
        patch.setattr("torch.distributed.all_reduce", lambda gradient, group: groups.append(group))
        for group in (None, world.tensor_group):
            norm = RMSNorm(config, 32, 1e-5, group)
            norm.sum_gradients()
            norm(torch.randn(4, 32)).sum().backward()
    assert groups == [world.tensor_group]


def test_only_sequence_parallelism_sums_gradients_of_norms(world):
    group = world.tensor_group
    assert Sharding(tensor=2, rank=1, group=group).norm_gradient_group is None
    assert Sharding(tensor=2, rank=1, sequence=True, group=group).norm_gradient_group is group


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"tensor": 2, "rank": 2}, "rank 2 is not in a group of 2"), ({"sequence": True}, "set Sharding.group")],
)
def test_wrong_sharding_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sharding(**wrong)


def test_a_batch_without_masked_tokens_has_zero_loss_and_gradients(world, tiny):
    model = build(tiny)
    clean, masked, timesteps = batch(tiny)
    loss = loss_of(model, clean, torch.zeros_like(masked), timesteps, 2)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("document_ids", [None, DOCUMENTS], ids=["row", "document"])
@pytest.mark.parametrize("recompute", ["full", "loop"])
def test_recompute_changes_no_number(world, tiny, recompute, document_ids):
    inputs = batch(tiny)
    losses, gradients = [], []
    for mode in ("none", recompute):
        model = build(tiny, mode)
        loss = loss_of(model, *inputs, 3, document_ids)
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad for p in model.parameters()])
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_recompute_keeps_fewer_activations(world, tiny):
    """Bytes that autograd keeps: with `loop`, each further pass adds at most about one hidden state."""
    clean, masked, timesteps = batch(tiny)

    def kept(recompute, loops):
        seen: dict[int, int] = {}

        def pack(x):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = loss_of(build(tiny, recompute), clean, masked, timesteps, loops)
        del loss
        return sum(seen.values())

    hidden_state = clean.numel() * tiny.hidden_size * 4
    assert kept("loop", 12) - kept("loop", 1) <= 12 * hidden_state
    assert kept("none", 12) - kept("none", 1) > 60 * hidden_state


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_one_mask_serves_all_layers_and_passes(world, tiny, precision):
    """Autograd keeps a single tensor of the size of the mask, for any number of passes."""
    model = build(tiny).to(precision)
    clean, masked, timesteps = batch(tiny)
    length = clean.shape[1]
    addresses = set()

    def pack(x):
        if x.shape[-2:] == (length, length):
            addresses.add((x.untyped_storage().data_ptr(), x.dtype, x.untyped_storage().nbytes()))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = loss_of(model, clean, masked, timesteps, 4, DOCUMENTS)
    assert torch.isfinite(loss)
    assert [(kind, size) for _, kind, size in addresses] == [(precision, clean.numel() * length * precision.itemsize)]


def test_a_hook_on_the_last_mid_layer_sees_every_pass(world, tiny):
    """The documented way to look at H(1), ..., H(S); H(k) does not depend on S."""
    model = build(tiny)
    clean, masked, _ = batch(tiny)
    seen = []
    model.mid.layers[str(tiny.loop.mid - 1)].register_forward_hook(lambda layer, inputs, output: seen.append(output[0]))
    model(clean, positions_of(masked), 3)
    model(clean, positions_of(masked), 1)
    assert [states.shape for states in seen] == [(16, 3, tiny.hidden_size)] * 4
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_parameter_formula_equals_the_model(world):
    for architecture in SPLITS.values():
        model = LoopedDenoiser(architecture)
        counted = dict.fromkeys(architecture.parameter_count(), 0)
        for name, parameter in model.named_parameters():
            counted[name.split(".")[0]] += parameter.numel()
        assert counted == architecture.parameter_count()


def test_initial_weights_depend_on_seed_and_name_only(world, tiny):
    first, again, other = (LoopedDenoiser(tiny, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first if first[k] is not None)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])
    assert not torch.equal(first["embedding.weight"], first["lm_head.weight"])
    assert first["lm_head.weight"].std().item() == pytest.approx(tiny.init_std, rel=0.1)
    residual = first["tail.layers.0.mlp.linear_fc2.weight"].std().item()
    assert residual == pytest.approx(tiny.init_std / math.sqrt(2 * tiny.num_layers), rel=0.1)


def test_attention_sees_both_directions_and_position(world, tiny):
    model = build(tiny)
    clean, _, _ = batch(tiny)
    last = torch.zeros_like(clean, dtype=torch.bool)
    last[:, 0] = True
    changed, swapped = clean.clone(), clean.clone()
    changed[:, -1] = (clean[:, -1] + 1) % tiny.mask_id
    swapped[:, 5], swapped[:, 9] = clean[:, 9], clean[:, 5]
    outputs = [model(x, positions_of(last), 1)[:, : tiny.mask_id] for x in (clean, changed, swapped)]
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-4)
