"""Learning-rate schedules by their formulas; the moving average against its recursion."""

import itertools
import math

import pytest
import torch

from pretrain.config.settings import Optim
from pretrain.optimizer.build import build_optimizer
from pretrain.optimizer.ema import EMA_KEY, average_weights, averaged_weights
from pretrain.optimizer.schedule import learning_rate


def rates(total=100, **settings):
    optim = Optim(lr=1.0, warmup_steps=10, **settings)
    return [learning_rate(optim, step, total) for step in range(total)]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
def test_warmup_is_linear_and_ends_at_the_peak(schedule):
    assert rates(schedule=schedule)[:11] == pytest.approx([*(i / 10 for i in range(1, 11)), 1.0])


def test_cosine_goes_half_way_at_half_time_and_ends_at_the_floor():
    cosine = rates(schedule="cosine", min_lr_ratio=0.2)
    assert cosine[55] == pytest.approx(0.6)
    assert cosine[-1] == pytest.approx(0.2, abs=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(cosine[10:]))


def test_wsd_is_constant_then_linear():
    wsd = rates(schedule="wsd", decay_fraction=0.2, min_lr_ratio=0.0)
    assert wsd[10:81] == pytest.approx([1.0] * 71)
    assert wsd[90] == pytest.approx(0.5)
    assert wsd[99] == pytest.approx(0.05)


def test_constant_never_falls():
    assert rates(schedule="constant")[10:] == [1.0] * 90


def test_the_average_follows_its_recursion():
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    average_weights(optimizer, 0.5)
    history, expected = [], None
    for step in range(12):
        weight.grad = torch.full((3,), -float(step + 1))
        optimizer.step()
        history.append(weight.detach().clone())
        decay = min(0.5, (1 + step) / (10 + step))
        expected = history[-1] if expected is None else decay * expected + (1 - decay) * history[-1]
        assert torch.allclose(optimizer.state[weight][EMA_KEY], expected)
    assert not torch.equal(expected, history[-1])


def test_the_swap_gives_the_average_and_returns_the_weights():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    average_weights(optimizer, 0.9)
    for _ in range(3):
        weight.grad = torch.ones(3)
        optimizer.step()
    own, average = weight.detach().clone(), optimizer.state[weight][EMA_KEY].clone()
    with pytest.raises(OSError), averaged_weights(optimizer):
        assert torch.equal(weight, average)
        raise OSError  # even if writing the average fails
    assert torch.equal(weight, own)
    assert not torch.equal(own, average)


def test_only_matrices_decay():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    optimizer = build_optimizer(model, Optim(weight_decay=0.1), torch.device("cpu"))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decay[id(p)] == (0.1 if p.dim() == 2 else 0.0) for p in model.parameters())


def test_adamw_step_equals_its_formula():
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = build_optimizer(
        torch.nn.ParameterList([weight]),
        Optim(lr=0.1, weight_decay=0.5, beta2=0.99, ema_decay=0.0),
        torch.device("cpu"),
    )
    weight.grad = torch.tensor([[0.3, -0.4]])
    before = weight.detach().clone()
    optimizer.step()
    # First step: the bias-corrected moments are g and g^2, so the update is lr * sign(g).
    expected = before * (1 - 0.1 * 0.5) - 0.1 * weight.grad / (weight.grad.abs() + 1e-8)
    assert torch.allclose(weight, expected, atol=1e-6)
    assert math.isclose(optimizer.param_groups[0]["lr"], 0.1)
