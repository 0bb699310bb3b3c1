"""The planner: legal layouts, memory, traffic and time, and what `parallel: auto` selects."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.architecture import Architecture, LoopSplit
from model.denoiser import LoopedDenoiser
from model.objective import masked_cross_entropy
from model.placement import Costs, place, weights_held
from model.weights import shards_of
from pretrain.cli import main
from pretrain.config.load import load_settings
from pretrain.config.optimizer_groups import groups_held
from pretrain.config.run_plan import layout_problems
from pretrain.config.settings import Optim
from pretrain.errors import ConfigError, UserError
from pretrain.optimizer.build import build_optimizer
from pretrain.optimizer.orthogonal import muon_direction
from pretrain.planning.estimate import estimate_all
from pretrain.planning.layouts import choose, legal_layouts, plan_of, ranked
from pretrain.planning.less_memory import less_memory
from pretrain.planning.memory import memory_of
from pretrain.planning.orthogonalization import weights_of_a_layer
from pretrain.planning.traffic import traffic_of
from tests.launching import ROOT

TINY = str(ROOT / "tests" / "tiny.yaml")
UNPREPARED = ("data.path=nowhere", "model.vocab_size=321", "data.seq_len=32")
PAPER = ("model.vocab_size=50258", "data.path=nowhere")


def plan(*overrides, ranks=1, recipe=TINY, unprepared=UNPREPARED):
    return plan_of(load_settings(recipe, [*unprepared, *overrides]), None, ranks)


def paper(*overrides, ranks=8):
    return plan(*overrides, ranks=ranks, recipe="paper_170m", unprepared=PAPER)


def test_weights_per_stage_are_those_of_the_built_model(world):
    split = LoopSplit(head=1, mid=2, tail=2, max=4, norm=True)
    architecture = Architecture(num_layers=5, hidden_size=32, num_heads=4, num_kv_heads=2, vocab_size=51, loop=split)
    for stages in (1, 2, 3):
        for stage in place(split, stages, Costs(1.0, 0.0, 0.5), [0.25] * 4):
            built = LoopedDenoiser(architecture, stage=stage)
            assert sum(p.numel() for p in built.parameters()) == weights_held(stage, architecture, 1)


def test_groups_held_by_a_stage_are_those_of_the_built_optimizer(world):
    for head, mid, tail in ((1, 2, 1), (0, 3, 0), (0, 1, 0)):
        split = LoopSplit(head=head, mid=mid, tail=tail, max=4, norm=True)
        architecture = Architecture(
            num_layers=head + mid + tail, hidden_size=32, num_heads=4, num_kv_heads=2, vocab_size=51, loop=split
        )
        for kind, stages in product(("looped", "contiguous"), (1, 2, 4)):
            for stage in place(split, stages, Costs(1.0, 0.0, 0.5), [0.25] * 4, kind):
                built = LoopedDenoiser(architecture, stage=stage)
                for name in ("adamw", "muon") if list(built.parameters()) else ():
                    groups = build_optimizer(built, Optim(name=name), torch.device("cpu")).param_groups
                    filled = {number for number, group in enumerate(groups) if group["params"]}
                    assert groups_held(name, stage) == filled


def saved_bytes(plan, loops, attention="row"):
    """Bytes that autograd saves for a micro-batch whose tokens are all masked, without weights."""
    import torch

    settings = plan.settings
    dtype = torch.float32 if settings.train.precision == "fp32" else torch.bfloat16
    model = LoopedDenoiser(settings.model, recompute=settings.parallel.recompute).to(dtype)
    seen, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = (storage.nbytes(), x)  # kept alive, so that its address is not reused
        return x

    tokens = torch.zeros(settings.train.micro_batch_size, plan.seq_len, dtype=torch.int64)
    every = torch.arange(tokens.numel())
    documents = (torch.arange(plan.seq_len) // 5).expand(tokens.shape) if attention == "document" else None
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = masked_cross_entropy(model(tokens, every, loops, documents), tokens.flatten()).sum()
    del loss
    return sum(size for size, _ in seen.values())


def planned_bytes(plan, **train):
    at = replace(plan, settings=replace(plan.settings, train=replace(plan.settings.train, **train)))
    return memory_of(at, at.placement[0], "cpu").activations


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["none", "loop", "full"])
@pytest.mark.parametrize("norm", ["false", "true"])
def test_activations_are_what_autograd_saves(world, precision, norm, recompute):
    """To the byte, as a difference of two values of S: the LM head cancels out."""
    model = (f"train.precision={precision}", f"model.loop.norm={norm}")
    one = plan("train.loops=1", "parallel.zero_stage=1", f"parallel.recompute={recompute}", *model)
    assert planned_bytes(one, loops=3) - planned_bytes(one) == saved_bytes(one, 3) - saved_bytes(one, 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_within_documents_keeps_one_mask(world, precision):
    """Its bytes on top of the other activations, exact at any S and with recomputation."""
    one = plan(f"train.precision={precision}", "train.loops=3")
    mask = planned_bytes(one, attention="document") - planned_bytes(one)
    assert mask == 2 * 32 * 32 * (4 if precision == "fp32" else 2)
    assert saved_bytes(one, 3, "document") - saved_bytes(one, 3) == mask
    for recompute in ("loop", "full"):
        again = plan(f"train.precision={precision}", "train.loops=3", f"parallel.recompute={recompute}")
        assert planned_bytes(again, attention="document") - planned_bytes(again) == mask


def test_a_pipeline_keeps_a_mask_for_every_chunk_with_layers():
    at = plan("parallel.pipeline=2", "train.loops=4", ranks=2)
    grown = planned_bytes(at, attention="document") - planned_bytes(at)
    mask = 2 * 32 * 32 * 4
    assert grown >= 3 * mask and grown % mask == 0


def test_loop_recomputation_keeps_one_hidden_state_per_pass():
    overrides = ("parallel.recompute=loop", "model.loop.max=12")
    one, twelve = (plan(*overrides, f"train.loops={s}") for s in (1, 12))
    hidden = 2 * 32 * 32 * 4  # rows x tokens x width x bytes
    grown = (
        memory_of(twelve, twelve.placement[0], "cpu").activations - memory_of(one, one.placement[0], "cpu").activations
    )
    assert grown == 11 * hidden


def test_zero_divides_what_it_should():
    def memory(stage):
        at = paper(f"parallel.zero_stage={stage}", "train.precision=fp32")
        return memory_of(at, at.placement[0])

    none, one, two, three = (memory(stage) for stage in (0, 1, 2, 3))
    assert one.optimizer == pytest.approx(
        none.optimizer * 4 / 3 / 8
    )  # master weights beside two moments and the average
    assert one.gradients == none.gradients and two.gradients == one.gradients / 8
    assert three.weights == two.weights / 8
    assert none.weights == one.weights == two.weights


def test_traffic_of_data_parallel_ranks():
    """ZeRO-0 and 1 all-reduce fp32 gradients once, ZeRO-2 once per micro-batch; ZeRO-3 gathers bf16 twice and reduces fp32."""
    weights = sum(paper().settings.model.parameter_count().values())
    plain = paper("parallel.zero_stage=0", "train.precision=fp32")
    assert traffic_of(plain, plain.placement[0], 6).data == pytest.approx(2 * 4 * weights * 7 / 8)
    one, two = (paper(f"parallel.zero_stage={z}", "train.precision=fp32") for z in (1, 2))
    assert traffic_of(one, one.placement[0], 6).data == pytest.approx((2 * 4 + 4) * weights * 7 / 8)
    assert traffic_of(two, two.placement[0], 6).data == pytest.approx((two.micro_batches * 2 * 4 + 4) * weights * 7 / 8)
    three = paper("parallel.zero_stage=3")
    assert traffic_of(three, three.placement[0], 6).data == pytest.approx(
        three.micro_batches * (2 * 2 + 4) * weights * 7 / 8
    )
    assert traffic_of(three, three.placement[0], 1) == traffic_of(three, three.placement[0], 12)


@pytest.mark.parametrize(
    "layout", [(), ("parallel.tensor=2", "parallel.zero_stage=3"), ("parallel.zero_stage=0", "train.precision=fp32")]
)
def test_muon_keeps_one_moment_of_the_layers_matrices_and_exchanges_it(layout):
    """Twice per step, there and back, over all ranks that share the matrices; without ZeRO nobody shares them here."""
    adamw, muon = paper(*layout), paper(*layout, "optim.name=muon")
    model, parallel = muon.settings.model, muon.settings.parallel
    matrices = 12 * (model.parameters_per_layer() - 2 * model.hidden_size)
    ranks = 8 if parallel.zero_stage else 1
    saved = memory_of(adamw, adamw.placement[0]).optimizer - memory_of(muon, muon.placement[0]).optimizer
    assert saved == pytest.approx(4 * matrices / ranks)
    sent = traffic_of(muon, muon.placement[0], 6).data - traffic_of(adamw, adamw.placement[0], 6).data
    assert sent == pytest.approx(2 * 4 * matrices / ranks * (ranks - 1) / ranks)


def test_flops_of_muon_are_those_that_torch_counts():
    model = paper("model.hidden_size=48", "model.num_heads=6", "model.num_kv_heads=2").settings.model
    layer = LoopedDenoiser(replace(model, num_layers=1, loop=LoopSplit(head=0, mid=1, tail=0)))
    matrices = {name: weight for name, weight in layer.mid.named_parameters() if shards_of(f"mid.{name}")}
    with FlopCounterMode(display=False) as counter:
        for name, weight in matrices.items():
            muon_direction(name, weight.detach(), model)
    assert counter.get_total_flops() == sum(weights_of_a_layer(model))


@pytest.mark.parametrize(
    "layout, ranks, share",
    [
        ((), 8, 1 / 8),
        (("parallel.zero_stage=0", "train.precision=fp32"), 8, 1),
        (("train.micro_batch_size=1",), 128, None),
    ],
)
def test_muons_products_are_divided_over_the_ranks_and_timed_in_fp32(layout, ranks, share):
    """By weights, so that with many ranks one still has the most expensive weight. Without ZeRO everyone has all."""
    adamw, muon = (paper(*layout, f"optim.name={name}", ranks=ranks) for name in ("adamw", "muon"))
    (slow, fast), hardware = estimate_all([muon, adamw]), muon.settings.hardware
    weights = weights_of_a_layer(muon.settings.model)
    flops = max(weights) if share is None else 12 * sum(weights) * share
    sent = slow.traffic.data - fast.traffic.data
    bandwidth = hardware.node_gb_per_second if ranks <= 8 else hardware.network_gb_per_second
    expected = flops / (66.9e12 * hardware.efficiency) + sent / (bandwidth * 1e9)
    assert slow.seconds - fast.seconds == pytest.approx(expected, rel=1e-6)


def test_traffic_of_tensor_and_pipeline_ranks():
    hidden = 8 * 1024 * 768 * 2
    tensor = paper("parallel.tensor=2")
    sent = traffic_of(tensor, tensor.placement[0], 4)
    assert sent.tensor == pytest.approx(tensor.micro_batches * (10 + 4 * 2) * 2 * 2 * hidden)
    assert (sent.pipeline, sent.copies) == (0, 0)
    stages = paper("parallel.pipeline=2")
    sent = [traffic_of(stages, stage, 4) for stage in stages.placement]
    chunks = len(stages.placement[0].chunks(4)) * 2
    assert sum(s.pipeline for s in sent) == stages.micro_batches * 2 * (chunks - 1) * hidden
    copied = paper("parallel.pipeline=4")
    layer = copied.settings.model.parameters_per_layer()
    assert traffic_of(copied, copied.placement[1], 4).copies == 2 * layer * 4 / 2


def test_changes_that_need_less_memory_are_those_of_the_planner():
    full = paper("train.micro_batch_size=16", "parallel.zero_stage=1")
    (word, now), *changes = less_memory(full)
    assert word == "now" and now == max(memory_of(full, stage).total for stage in full.placement) / 2**30
    found = dict(changes)
    assert list(found.values()) == sorted(found.values(), reverse=True) and all(gib < now for gib in found.values())
    for words in (
        "train.micro_batch_size=8",
        "parallel.recompute=loop",
        "parallel.zero_stage=2",
        "parallel.offload=optimizer",
    ):
        assert found[words] == less_memory(paper("train.micro_batch_size=16", "parallel.zero_stage=1", words))[0][1]
    assert "parallel.offload=parameters" not in found  # needs ZeRO-3 as well
    piped = dict(less_memory(paper("train.micro_batch_size=16", "parallel.zero_stage=1", "parallel.pipeline=2")))
    assert not any(word.startswith("parallel.zero_stage") for word in piped)


def test_flops_and_time_of_one_rank_are_a_division():
    """Without neighbours nothing waits: FLOPs at E[S] divided by the device's FLOP/s."""
    one = paper("hardware.peak_tflops=100", "hardware.efficiency=0.5", "parallel.zero_stage=1", ranks=1)
    (estimate,) = estimate_all([one])
    assert estimate.flops == pytest.approx(one.tokens_per_step * one.expected_flops_per_token)
    assert estimate.seconds == pytest.approx(estimate.flops / 50e12)
    assert max(abs(estimate.bubble), abs(estimate.bubble_largest)) < 1e-12


def test_without_a_given_peak_the_device_is_an_h100_at_the_precision_of_the_run():
    for precision, peak in (("bf16", 989.4e12), ("fp32", 66.9e12)):
        (estimate,) = estimate_all([paper(f"train.precision={precision}", "parallel.zero_stage=1", ranks=1)])
        assert estimate.seconds == pytest.approx(estimate.flops / (0.4 * peak))


@pytest.mark.parametrize(("sequence", "collectives"), [(False, 4), (True, 10)])
def test_collectives_of_tensor_parallelism_have_a_latency(sequence, collectives):
    """Of a layer's forward and backward pass over a micro-batch; without it, a small model seems fastest on many ranks."""
    words = ("parallel.tensor=2", f"parallel.sequence={sequence}", "train.loops=4", "model.loop.max=4")
    none, some = (paper(*words, f"hardware.latency_microseconds={time}", ranks=2) for time in (0, 5))
    (before,), (after,) = estimate_all([none]), estimate_all([some])
    layers = 10 + 4 * 2
    assert after.seconds - before.seconds == pytest.approx(none.micro_batches * layers * collectives * 5e-6)


def test_every_listed_layout_is_accepted():
    base = plan("train.global_batch_size=16", ranks=4)
    listed = {p.settings.parallel for p in legal_layouts(base)}
    assert listed
    for one in listed:
        assert base.world_size % (one.tensor * one.pipeline) == 0
        assert not layout_problems(replace(base, settings=replace(base.settings, parallel=one)))
        assert not (one.pipeline > 1 and one.zero_stage > 1)
    assert any(p.pipeline == 4 for p in listed) and any(p.tensor == 2 and p.sequence for p in listed)
    assert not any(p.tensor == 4 for p in listed), "2 key-value heads cannot be divided over 4 ranks"


def test_no_listed_pipeline_has_stages_that_deepspeed_would_wait_for():
    """3 mid layers on 4 stages: the last has the LM head alone, and Muon has two groups. 1 on 8: stages without weights."""
    three = ("model.num_layers=3", "model.loop.head=0", "model.loop.mid=3", "model.loop.tail=0", "optim.name=muon")
    found = {
        (p.settings.parallel.pipeline, p.settings.parallel.zero_stage) for p in legal_layouts(plan(*three, ranks=4))
    }
    assert (4, 0) in found and (2, 1) in found and (4, 1) not in found
    one = (
        "model.num_layers=1",
        "model.loop.head=0",
        "model.loop.mid=1",
        "model.loop.tail=0",
        "train.micro_batch_size=1",
    )
    assert {p.settings.parallel.pipeline for p in legal_layouts(plan(*one, ranks=8))} == {1, 2, 4}


def test_the_best_fits_and_is_the_fastest_that_does():
    estimates = ranked(legal_layouts(paper("hardware.memory_gib=7")))
    fitting = [e for e in estimates if e.fits]
    assert 0 < len(fitting) < len(estimates)
    assert estimates[0].seconds == min(e.seconds for e in fitting)
    assert estimates[0].memory.total <= 7 * 2**30
    assert all(e.memory.total > 7 * 2**30 for e in estimates[len(fitting) :])


def test_a_slow_network_moves_the_traffic_into_nodes():
    fast, slow = (
        ranked(legal_layouts(paper("train.micro_batch_size=1", *overrides, ranks=16)))[0]
        for overrides in ((), ("hardware.network_gb_per_second=0.05",))
    )
    assert slow.traffic.data < fast.traffic.data and slow.traffic.tensor > fast.traffic.tensor


def test_auto_is_replaced_by_a_layout():
    settings = load_settings(TINY, [*UNPREPARED, "parallel=auto"])
    assert settings.parallel.auto
    chosen = choose(settings, None, 2)
    assert not chosen.parallel.auto
    assert replace(chosen, parallel=settings.parallel) == settings


def test_auto_and_a_layout_exclude_each_other():
    with pytest.raises(ConfigError, match=r"chooses parallel.tensor itself"):
        load_settings(TINY, [*UNPREPARED, "parallel.auto=true", "parallel.tensor=2"])


def test_if_nothing_fits_the_smallest_need_is_named():
    settings = load_settings("paper_170m", [*PAPER, "hardware.memory_gib=0.5"])
    with pytest.raises(
        UserError, match=r"none of the \d+ legal layouts on 2 ranks fits .*smallest needs \d\.\d GiB.*micro_batch_size"
    ):
        choose(settings, None, 2)


def test_a_number_of_ranks_that_does_not_divide_the_batch_is_refused():
    settings = load_settings(TINY, [*UNPREPARED])
    with pytest.raises(ConfigError, match=r"train.global_batch_size=8"):
        choose(settings, None, 7)


def test_data_that_is_not_prepared_is_named_with_both_fixes():
    with pytest.raises(ConfigError, match=r"model.vocab_size: is taken from the prepared data, but nowhere has none"):
        plan_of(load_settings(TINY, ["data.path=nowhere"]), None, 1)


def test_the_command_prints_a_table_and_writes_every_layout(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert main(["plan", "--config", TINY, "--ranks", "4", "--json", str(out), *UNPREPARED]) == 0
    printed = capsys.readouterr().out
    records = json.loads(out.read_text())
    assert f"{len(records)} legal layouts" in printed
    assert records[0]["layout"] in printed.split("best: ")[1]
    assert all(r["memory_bytes"]["total"] > 0 and r["seconds_per_step"]["expected"] > 0 for r in records)


@pytest.mark.parametrize("ranks", ["0", "-1", "1000000000"])
def test_an_odd_number_of_ranks_is_refused(capsys, ranks):
    assert main(["plan", "--config", TINY, "--ranks", ranks, *UNPREPARED]) == 2
    assert capsys.readouterr().err == f"error: --ranks {ranks}: must be from 1 to 100,000\n"


@pytest.mark.parametrize("buffering", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_closed_pipe_causes_no_traceback(buffering):
    """`loopmdm plan ... | head`: the closed pipe is noticed at a write or at the last flush."""
    import os
    import subprocess
    import sys

    command = [sys.executable, "-m", "pretrain.cli", "plan", "--config", TINY, "--ranks", "4", "--all", *UNPREPARED]
    environment = os.environ | {"PYTHONUNBUFFERED": buffering}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
