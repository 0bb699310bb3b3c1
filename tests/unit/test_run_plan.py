"""Arithmetic that follows from the settings."""

import itertools
import math
import time
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest

from data_pipeline.dataset.shuffle import SampleOrder
from data_pipeline.manifest import load_manifest
from pretrain.config.load import load_settings
from pretrain.config.run_plan import RunPlan, make_run_plan
from pretrain.errors import ConfigError
from pretrain.optimizer.schedule import learning_rate
from tests.launching import ROOT

BF16 = "train.precision=bf16"
TINY = str(ROOT / "tests" / "tiny.yaml")


@pytest.fixture
def plan_of(corpus):
    def make(*overrides, ranks=1):
        return make_run_plan(load_settings(TINY, [f"data.path={corpus}", *overrides]), load_manifest(corpus), ranks)

    return make


SIZES = {
    (
        "parallel.tensor=2 model.num_kv_heads=1",
        2,
    ): "parallel.tensor=2: does not divide model.num_kv_heads=1; set it to 1, or model.num_kv_heads to 2",
    (
        "parallel.tensor=4",
        4,
    ): "parallel.tensor=4: does not divide model.num_kv_heads=2; set it to 2, or model.num_kv_heads to 4",
    (
        "parallel.tensor=2 model.ffn_hidden_size=65",
        2,
    ): "parallel.tensor=2: does not divide model.ffn_hidden_size=65; set it to 1",
    (
        "parallel.tensor=8 model.hidden_size=128 model.num_heads=8 model.num_kv_heads=8 model.ffn_hidden_size=12",
        8,
    ): "parallel.tensor=8: does not divide model.ffn_hidden_size=12; set it to 4",
    (
        "parallel.tensor=5 model.hidden_size=80 model.num_heads=20 model.num_kv_heads=20 model.ffn_hidden_size=160",
        5,
    ): "parallel.tensor=5: does not divide the vocabulary, which is padded to 384 ids; set it to 4",
    (
        "train.global_batch_size=6 train.micro_batch_size=2",
        2,
    ): "train.global_batch_size=6: 2 ranks with train.micro_batch_size=2 "
    "need a multiple of 4; set it to 4 or 8, or change the micro-batch",
    ("train.global_batch_size=8 train.micro_batch_size=3", 1): "train.micro_batch_size=3: does not divide "
    "train.global_batch_size=8; set it to 2 or 4",
    (
        "train.global_batch_size=8 train.micro_batch_size=16",
        1,
    ): "train.micro_batch_size=16: does not divide train.global_batch_size=8; set it to 8",
    (
        "parallel.pipeline=2 train.micro_batch_size=8",
        2,
    ): "parallel.pipeline=2: needs at least as many micro-batches as stages; a "
    "step has 1 (batch 8 / 1 data-parallel / train.micro_batch_size=8); set train.micro_batch_size to 4 or less, or raise the "
    "batch size",
    (
        "parallel.pipeline=4 train.global_batch_size=2 train.micro_batch_size=1",
        4,
    ): "parallel.pipeline=4: needs at least as many "
    "micro-batches as stages; a step has 2 (batch 2 / 1 data-parallel / train.micro_batch_size=1); set train.global_batch_size "
    "to 4 or more",
    (
        "parallel.pipeline=4 parallel.pipeline_split=contiguous",
        4,
    ): "parallel.pipeline=4: stage 0 would hold no layer, and so only 1 of the optimizer's 2 groups of weights, but ZeRO-1 in "
    "fp32 needs the same groups on all stages; set parallel.zero_stage=0, lower it, or change parallel.pipeline_split or "
    "parallel.mid_replicas",
    (
        "parallel.pipeline=4 model.num_layers=3 model.loop.head=0 model.loop.mid=3 model.loop.tail=0 optim.name=muon",
        4,
    ): "parallel.pipeline=4: stage 3 would hold no layer, and so only 1 of the optimizer's 2 groups of weights, but ZeRO-1 in "
    "fp32 needs the same groups on all stages; set parallel.zero_stage=0, lower it, or change parallel.pipeline_split or "
    "parallel.mid_replicas",
    (
        "parallel.pipeline=4 parallel.mid_replicas=1 model.num_layers=2 model.loop.head=0 model.loop.tail=0",
        4,
    ): "parallel.pipeline=4: stage 2 would hold no weights; lower it, or change parallel.pipeline_split or parallel.mid_replicas",
    (
        "model.num_heads=5 model.num_kv_heads=5",
        1,
    ): "model.num_heads=5: does not divide model.hidden_size=32; set it to 4 or 8",
    (
        "model.num_heads=32",
        1,
    ): "model.num_heads=32: with model.hidden_size=32 a head has 1 components, but RoPE needs an even "
    "number; set it to 16",
    ("model.num_kv_heads=3", 1): "model.num_kv_heads=3: does not divide model.num_heads=4; set it to 2 or 4",
    (
        "model.num_layers=5",
        1,
    ): "model.num_layers=5: model.loop has 1 + 2 + 1 = 4 layers (head + mid + tail); set it to 4, or change model.loop",
    (
        "data.seq_len=4096",
        1,
    ): "data.seq_len=4096: {data} holds rows of 32 tokens; set it to 32 or leave it empty, or repack the "
    "data (`loopmdm repack FOLDER --seq-len 4096`)",
    (
        "parallel.tensor=2",
        1,
    ): "parallel.tensor=2: with parallel.pipeline=1, one copy of the model needs 2 ranks, but 1 is not a "
    "multiple of that; start 2 ranks, or set parallel.tensor to 1",
    (
        "parallel.pipeline=3",
        2,
    ): "parallel.pipeline=3: with parallel.tensor=1, one copy of the model needs 3 ranks, but 2 is not a "
    "multiple of that; start 3 ranks, or set parallel.pipeline to 2",
    (
        "parallel.tensor=2 parallel.pipeline=2",
        3,
    ): "parallel.tensor=2: with parallel.pipeline=2, one copy of the model needs 4 "
    "ranks, but 3 is not a multiple of that; start 4 ranks, or lower parallel.pipeline",
    (
        "parallel.tensor=2 parallel.pipeline=2",
        6,
    ): "parallel.tensor=2: with parallel.pipeline=2, one copy of the model needs 4 "
    "ranks, but 6 is not a multiple of that; start 8 ranks, or set parallel.tensor to 1",
    (
        "parallel.pipeline=4 parallel.mid_replicas=3",
        4,
    ): "parallel.mid_replicas=3: does not divide parallel.pipeline=4; set it to 2 or 4",
    (
        "train.loop_start=0.8 train.loop_ramp=0.3",
        1,
    ): "train.loop_ramp=0.3: with train.loop_start=0.8 the ramp would end after the run; set it to 0.2 or less",
    ("train.loops=2 train.loop_tail=0.1", 1): "train.loop_tail=0.1: train.loops=2 is the only S of the run; set "
    "train.loop_tail=0, or train.loops=uniform",
    (
        "train.complementary_masks=true train.global_batch_size=7 train.micro_batch_size=1",
        1,
    ): "train.complementary_masks=true: needs "
    "an even number of rows in a step, but train.global_batch_size=7; set it to 8",
    ("train.loops=9", 1): "train.loops=9: is larger than model.loop.max=4; set it to 4, or model.loop.max to 9",
    (
        "optim.warmup_steps=20",
        1,
    ): "optim.warmup_steps=20: the run has only train.steps=20; set it to 19 or less, or train longer",
    ("eval.rows=1", 1): "eval.rows=1: should be greater than or equal to 2",
    (
        "train.steps=5e18",
        1,
    ): "train.steps=5000000000000000000: with train.global_batch_size=8 the samples cannot be counted in 63 "
    "bits; set it to 1152921504606846975 or less",
}


@pytest.mark.parametrize(("overrides", "ranks"), SIZES)
def test_sizes_that_do_not_fit_name_the_key_both_numbers_and_a_value_that_would_do(plan_of, corpus, overrides, ranks):
    with pytest.raises(ConfigError) as caught:
        plan_of(*overrides.split(), ranks=ranks)
    assert [str(problem) for problem in caught.value.problems] == [SIZES[overrides, ranks].format(data=corpus)]


def test_stages_may_have_different_groups_where_the_norm_is_not_summed_by_group(plan_of):
    split = ("parallel.pipeline=4", "parallel.pipeline_split=contiguous")
    assert plan_of(*split, "parallel.zero_stage=0", ranks=4).placement == plan_of(*split, BF16, ranks=4).placement
    for stages in (2, 3):
        assert plan_of(f"parallel.pipeline={stages}", split[1], "train.micro_batch_size=1", ranks=stages)


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


@pytest.mark.parametrize("loops", ["uniform", "inverse_flops", "3"])
@pytest.mark.parametrize(("start", "ramp"), [("0", "0"), ("0", "0.5"), ("0.25", "0"), ("0.25", "0.4")])
def test_the_steps_of_a_budget_are_those_of_adding_up_step_by_step(plan_of, loops, start, ramp):
    """Also where the budget ends exactly with a step, or beyond train.steps. Start and ramp are shares of the run that results."""
    words = (f"train.loops={loops}", f"train.loop_start={start}", f"train.loop_ramp={ramp}", "train.steps=120")
    plain = plan_of(*words)
    spent = list(accumulate(plain.step_flops(step) for step in range(120)))
    for budget in (spent[0] / 2, spent[0], spent[39], spent[80] * 1.0001, spent[119], spent[119] * 3):
        plan = plan_of(*words, f"train.max_flops={budget!r}")
        assert plan.total_steps == next(n for n in range(1, 121) if steps_with_ramp_of(plain, n, budget) == n)
        assert plan.loops.ramp_steps == math.ceil(float(ramp) * plan.total_steps)
        assert plan.loops.start_steps == math.ceil(float(start) * plan.total_steps)
        alone = plan_of(*words, f"train.max_flops={budget!r}", "train.steps=null", "optim.warmup_steps=0")
        assert alone.total_steps == plan.total_steps or plan.total_steps == 120


def steps_with_ramp_of(plan: RunPlan, total_steps: int, budget: float) -> int:
    """Steps until the budget is reached, one by one, if start and ramp belong to a run of `total_steps`."""
    start, ramp = (
        math.ceil(share * total_steps) for share in (plan.settings.train.loop_start, plan.settings.train.loop_ramp)
    )
    schedule = replace(plan.loops, start_steps=start, ramp_steps=ramp)
    costs = [plan.tokens_per_step * plan.flops.training(int(loops)) for loops in schedule.between(0, 120)]
    return next((step + 1 for step, spent in enumerate(accumulate(costs)) if spent >= budget), 120)


def test_a_resume_with_other_loops_counts_what_was_spent(plan_of):
    """10 steps at S = 4, then S = 1: what is left of the budget lasts for more steps than it would have."""
    cost = {loops: plan_of(f"train.loops={loops}").step_flops(0) for loops in (1, 4)}
    budget = 30 * cost[4]
    before, after = (plan_of(f"train.loops={n}", f"train.max_flops={budget!r}", "train.steps=null") for n in (4, 1))
    assert before.total_steps == 30 and before.resumed(10, 10 * cost[4]) is before
    assert after.resumed(10, 10 * cost[4]).total_steps == 10 + math.ceil(20 * cost[4] / cost[1])
    assert after.resumed(10, 2 * budget).total_steps == 10


def test_expected_flops_include_the_ramp(plan_of):
    plan = plan_of("train.steps=4000", "train.loop_ramp=0.5")
    done = sum(plan.step_flops(step) for step in range(4000))
    assert plan.expected_flops(0, 4000) == pytest.approx(done, rel=0.02)
    assert plan.expected_flops(0, 4000) < 0.93 * 4000 * plan.tokens_per_step * plan.expected_flops_per_token
    assert plan.expected_flops(100, 3000) == pytest.approx(plan.expected_flops(0, 3000) - plan.expected_flops(0, 100))


def test_a_tail_counts_in_flops_and_in_the_largest_loops(plan_of):
    """E[S] of 1..4 is 2.5, of the tail 5..8 it is 6.5."""
    plain, tailed = plan_of(), plan_of("train.loop_tail=0.2")
    assert (plain.largest_loops, tailed.largest_loops, plan_of("train.loops=3").largest_loops) == (4, 8, 3)
    assert tailed.loops.mean(0) == pytest.approx(0.8 * 2.5 + 0.2 * 6.5)
    one_pass = plain.flops.training(2) - plain.flops.training(1)
    assert tailed.expected_flops_per_token == pytest.approx(plain.expected_flops_per_token + 0.8 * one_pass)


def test_a_budget_above_the_expected_flops_of_all_steps_can_still_end_the_run(plan_of):
    """With a seed whose first steps draw the largest S."""
    first_steps = plan_of().loops
    seed = next(seed for seed in range(20_000) if (replace(first_steps, seed=seed).between(0, 5) == 4).all())
    words = (f"run.seed={seed}", "train.steps=6", "optim.warmup_steps=0")
    plain = plan_of(*words)
    budget = sum(plain.step_flops(step) for step in range(5))
    assert budget > 6 * plain.tokens_per_step * plain.expected_flops_per_token
    assert plan_of(*words, f"train.max_flops={budget!r}").total_steps == 5


FAR = {
    "train.max_flops=1e20 train.steps=null": "would take about 510,000,000,000 steps of ",
    "train.max_flops=1e300 train.steps=null": "would take about 5.1e+291 steps of ",
    "train.max_flops=1e20 train.steps=null train.loops=2": "would take about 590,000,000,000 steps of ",
    "train.max_flops=1e18 train.steps=6000000000": "would take about 5,100,000,000 steps of ",
}


@pytest.mark.parametrize("words", FAR)
def test_a_budget_far_beyond_the_model_is_refused_at_once_with_its_steps(plan_of, words):
    begin = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        plan_of(*words.split())
    assert time.perf_counter() - begin < 2
    (problem,) = caught.value.problems
    assert problem.key == "train.max_flops" and problem.text.startswith(FAR[words])
    assert "at most 10,000,000 are counted; set it to " in problem.text
    enough = problem.text.partition("set it to ")[2].partition(" or less")[0]
    assert plan_of("train.steps=null", f"train.max_flops={enough}", *words.split()[2:])


@pytest.mark.parametrize(
    "words", ["train.steps=5000000000", "train.steps=5e9 train.loop_ramp=0.5 train.max_flops=1e30"]
)
def test_billions_of_steps_need_no_time_and_no_memory(plan_of, words):
    begin = time.perf_counter()
    plan = plan_of(*words.split(), "optim.schedule=wsd")
    assert plan.total_steps == 5 * 10**9
    step = 3 * 10**9
    assert 1 <= plan.loops(step) <= 4 and plan.step_flops(step) > 0
    assert learning_rate(plan.settings.optim, step, plan.total_steps) == plan.settings.optim.lr
    rows = SampleOrder(0, 1000).rows(np.arange(step * 8, step * 8 + 8))
    assert rows.min() >= 0 and rows.max() < 1000 and len(set(rows.tolist())) == 8
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_learning_rate_may_decay_to_zero(plan_of, schedule):
    """The last step still has a positive rate, and the step after it would have none."""
    words = ("optim.min_lr_ratio=0", f"optim.schedule={schedule}", "optim.decay_fraction=0.5", "train.steps=40")
    optim = plan_of(*words).settings.optim
    rates = [learning_rate(optim, step, 40) for step in range(4, 41)]
    assert rates[0] == optim.lr and rates[-1] == pytest.approx(0, abs=1e-12)
    assert 0 < rates[-2] < 0.06 * optim.lr
    assert all(one >= other for one, other in itertools.pairwise(rates))


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
