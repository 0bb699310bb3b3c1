"""Arithmetic that follows from the settings."""

from dataclasses import replace

import pytest

from data_pipeline.manifest import load_manifest
from pretrain.config.load import load_settings
from pretrain.config.run_plan import RunPlan, make_run_plan
from pretrain.errors import ConfigError
from tests.launching import ROOT

TINY = str(ROOT / "tests" / "tiny.yaml")


@pytest.fixture
def plan_of(corpus):
    def make(*overrides, ranks=1):
        return make_run_plan(load_settings(TINY, [f"data.path={corpus}", *overrides]), load_manifest(corpus), ranks)

    return make


def test_batch_arithmetic(plan_of):
    plan = plan_of(ranks=2)
    assert (plan.rows_per_rank, plan.micro_batches, plan.tokens_per_step) == (4, 2, 8 * 32)
    assert plan.settings.model.vocab_size == load_manifest(plan.settings.data.path).vocab_size


def test_flops_budget_ends_at_the_step_that_reaches_it(plan_of):
    unlimited = plan_of("train.steps=100")
    cost = [unlimited.step_flops(step) for step in range(100)]
    plan = plan_of(f"train.max_flops={sum(cost[:30]) * 0.9999}", "train.steps=null", "optim.warmup_steps=1")
    assert plan.total_steps == 30
    assert plan_of(f"train.max_flops={sum(cost)}", "train.steps=12").total_steps == 12


def test_a_batch_that_does_not_divide_names_the_nearest_that_do(plan_of):
    with pytest.raises(ConfigError) as caught:
        plan_of("train.global_batch_size=10", ranks=4)
    assert [str(problem) for problem in caught.value.problems] == [
        "train.global_batch_size=10: 4 ranks with train.micro_batch_size=2 need a multiple of 8; set it to 8 or 16, or change "
        "the micro-batch"
    ]


def test_settings_that_contradict_the_data(plan_of):
    with pytest.raises(ConfigError) as caught:
        plan_of("data.seq_len=64", "model.vocab_size=1000")
    first, second = caught.value.problems
    assert (first.key, first.value) == ("data.seq_len", 64) and "holds rows of 32 tokens" in first.text
    assert (second.key, second.value) == ("model.vocab_size", 1000)


def test_the_papers_recipe_ends_at_a_million_plain_steps():
    """Its budget: training FLOPs of the same weights at S = 1, batch 512 x 1024, with GPT-2's vocabulary and [MASK]."""
    settings = load_settings("paper_170m")
    architecture = replace(settings.model, vocab_size=50_258)
    plan = RunPlan(replace(settings, model=architecture), world_size=8)
    assert settings.train.max_flops == pytest.approx(1e6 * 512 * 1024 * plan.flops.training(1), rel=1e-4)
    assert sum(architecture.parameter_count().values()) == pytest.approx(162.2e6, rel=1e-3)
    assert plan.total_steps == pytest.approx(1e6 * plan.flops.training(1) / plan.expected_flops_per_token, rel=2e-3)


def test_expected_flops_are_the_mean_over_steps(plan_of):
    plan = plan_of("train.steps=4000")
    mean = sum(plan.step_flops(step) for step in range(4000)) / 4000 / plan.tokens_per_step
    assert mean == pytest.approx(plan.expected_flops_per_token, rel=0.02)
