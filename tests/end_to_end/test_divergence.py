"""Skipped updates, and the way back to a checkpoint that is known to be sound."""

import json
import shutil

import pytest
import torch

from data_pipeline.dataset.blend import load_blend
from pretrain.checkpoints.folder import list_checkpoints, read_state, step_of
from pretrain.config.load import load_settings
from pretrain.config.run_folder import read_status
from pretrain.config.run_plan import make_run_plan
from pretrain.errors import UserError
from pretrain.training import divergence
from pretrain.training import step as steps
from pretrain.training.start import build_run, run_training
from tests.checkpoints import tensors_of, weights_of
from tests.launching import ROOT, metrics

pytestmark = pytest.mark.end_to_end
RECIPE = str(ROOT / "tests" / "tiny.yaml")


@pytest.fixture
def plan_of(corpus, world, tmp_path):
    def made(*words):
        common = [f"data.path={corpus}", f"run.dir={tmp_path}", "run.name=run", "train.steps=12", "checkpoint.every=2"]
        settings = load_settings(RECIPE, [*common, "checkpoint.keep=1", "optim.warmup_steps=0", *words])
        blend = load_blend(settings.data.path)
        return make_run_plan(settings, blend.manifest, 1), blend

    return made


@pytest.fixture
def start(plan_of, tmp_path):
    """One start in this process; returns the run folder."""

    def started(*words):
        plan, blend = plan_of(*words)
        assert run_training(plan, blend, resume=True) == 0
        return tmp_path / "run"

    return started


@pytest.fixture
def bad_samples(monkeypatch):
    """Makes the loss of these steps of the data NaN."""

    update = steps._update

    def spoil(*data_steps):
        def spoiled(run, loss, lr):
            return update(run, float("nan") if run.progress.data_step in data_steps else loss, lr)

        monkeypatch.setattr(steps, "_update", spoiled)

    return spoil


def checkpoints_of(folder):
    return [step_of(path) for path in list_checkpoints(folder)]


def test_a_bad_batch_is_skipped_and_counted(start, bad_samples, capsys):
    bad_samples(3)
    folder = start("log.every=2")
    assert "warning: step 4: the loss is nan at " in capsys.readouterr().out
    assert [line["skipped"] for line in metrics(folder)] == [0, 1, 1, 1, 1, 1]
    assert all(line["loss"] > 0 for line in metrics(folder))
    assert read_state(folder / "checkpoints" / "step_12")["progress"]["skipped"] == 1


def test_many_bad_batches_in_a_row_are_passed_over(start, plan_of, bad_samples, world, capsys):
    """Against the steps one by one: data of steps 0 to 3, then of steps 8 and later."""
    bad_samples(5, 6, 7)
    folder = start("train.max_skipped=2")
    out = capsys.readouterr().out
    assert "Going back to " in out and "step_4, past the samples since then" in out
    assert [line["step"] for line in metrics(folder)] == list(range(1, 13))
    assert [line["samples"] for line in metrics(folder)][3:5] == [4 * 8, 9 * 8]
    bad_samples()
    plan, blend = plan_of()
    run = build_run(plan, blend, world)
    for data_step in (0, 1, 2, 3, *range(8, 16)):
        steps.train_step(run, run.batches[data_step])
        run.progress.step += 1
    expected = {name: weight.clone() for name, weight in run.engine.full_weights()}
    got = weights_of(folder / "checkpoints" / "step_12")
    assert all(torch.equal(got[name], expected[name][: len(got[name])]) for name in got)


def test_a_resume_passes_over_the_same_samples(start, bad_samples, tmp_path):
    bad_samples(5, 6, 7)
    whole = start("train.max_skipped=2").rename(tmp_path / "whole")
    for _ in range(8):  # some steps are taken twice
        folder = start("train.max_skipped=2", "run.stop_after=2")
    expected, got = (tensors_of(path / "checkpoints" / "step_12") for path in (whole, folder))
    assert all(torch.equal(v, got[w][t]) for w, tensors in expected.items() for t, v in tensors.items())


def test_a_learning_rate_that_is_far_too_high(start, tmp_path):
    """The step that spoils the weights has a finite loss; it is saved, but does not replace the checkpoint before it."""
    sound = start("run.stop_after=4")
    undisturbed = shutil.copytree(sound, tmp_path / "other") / "checkpoints" / "step_4"
    with pytest.raises(
        UserError, match=r"again after going back.*resumes from .*step_4, the newest checkpoint that proved"
    ):
        start("optim.lr=1e30", "checkpoint.every=1")
    assert checkpoints_of(sound) == [4]
    before, after = tensors_of(undisturbed), tensors_of(sound / "checkpoints" / "step_4")
    assert all(torch.equal(v, after[w][t]) for w, tensors in before.items() for t, v in tensors.items())
    assert checkpoints_of(start()) == [12]


def test_a_run_that_ends_soon_after_its_weights_were_spoilt(start):
    """Fewer updates are skipped than allowed, but what was saved since is not sound."""
    folder = start("run.stop_after=4")
    with pytest.raises(UserError, match=r"step 8: the weights give .* to resume from .*step_4"):
        start("optim.lr=1e30", "checkpoint.every=1", "train.steps=8")
    assert checkpoints_of(folder) == [4] and read_status(folder)["diverged"]


def test_a_longer_stretch_of_bad_batches_ends_the_run(start, bad_samples, tmp_path):
    bad_samples(*range(5, 13))
    with pytest.raises(UserError, match=r"again after going back to a checkpoint.* resumes from .*step_4, the newest"):
        start("train.max_skipped=2")
    assert checkpoints_of(tmp_path / "run") == [4] and read_status(tmp_path / "run")["diverged"]


def test_the_last_step_of_a_start_is_not_saved_if_it_spoils_the_weights(start):
    folder = start("run.stop_after=4")
    with pytest.raises(UserError, match=r"step 5: the weights give no finite loss"):
        start("optim.lr=1e30", "run.stop_after=1")
    assert checkpoints_of(folder) == [4]


def test_the_check_of_the_last_weights_has_no_more_logits_than_training(plan_of, world, monkeypatch):
    """At the sizes of real runs, the logits of a whole micro-batch are several times what training needs."""
    run = build_run(*plan_of(), world)
    run.progress.step, vocab, logits, seen = 1, run.plan.settings.model.padded_vocab_size, run.engine.logits, []
    monkeypatch.setattr(run.engine, "logits", lambda *given: seen.append(logits(*given)[0]) or [seen[-1].clone()])
    divergence.loss_of_weights(run)
    monkeypatch.setattr(divergence, "LOGITS_PER_CHUNK", 5 * vocab + 1)
    loss = divergence.loss_of_weights(run)
    every, some = seen
    assert len(every) > len(some) == 5
    targets = run.batches[0][0].inputs.targets[:5]
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(every[:5], targets).item(), rel=1e-6)


def test_without_a_checkpoint_the_run_ends(start, tmp_path):
    with pytest.raises(UserError, match=r"has no checkpoint to go back to: start anew with a lower optim\.lr"):
        start("optim.lr=1e30", "checkpoint.every=null")
    assert read_status(tmp_path / "run")["diverged"]


def test_checkpoints_that_are_kept_for_good_and_the_best(start, tmp_path):
    words = ("eval.every=2", "eval.loops=3,1", "eval.rows=8", "checkpoint.keep_every=4", "checkpoint.keep_best=true")
    folder = start(*words, "optim.lr=0.05")
    losses = {step: tmp_path / "run" / "eval" / f"train_step_{step}.json" for step in range(2, 13, 2)}
    assert {4, 8, 12} <= set(checkpoints_of(folder))
    nats = {step: json.loads(path.read_text())["loops"][0]["nats_per_token"] for step, path in losses.items()}
    assert set(checkpoints_of(folder)) == {4, 8, 12, min(nats, key=nats.get)}
