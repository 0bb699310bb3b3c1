"""Trainings of a study: what their keys depend on, their loops, their measurements, the order of the units, divergence."""

import json
import math
import signal
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_pipeline.stop_signals import Stopped
from pretrain.cli import main as loopmdm
from pretrain.config.keys import annotations, flatten
from pretrain.config.load import load_settings
from pretrain.errors import UserError
from pretrain.studies import report, trials
from pretrain.studies.definition import Arm, Measurement, load_study
from pretrain.studies.estimate import describe
from pretrain.studies.results import best_rates, read_results
from pretrain.studies.schedule import run_all, unit_of
from pretrain.studies.trials import Experiment, content_key, unit_counts
from pretrain.studies.unit import Workplace
from tests.study_runs import Stoppable

RESULTS = Path(__file__).resolve().parents[2] / "pretrain" / "studies" / "results"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[Path]:
    """Two folders with other boards."""
    folder = tmp_path_factory.mktemp("data")
    for seed in (0, 1):
        words = ["prepare", "--input", f"sudoku4:200@{seed}", "--output", str(folder / str(seed))]
        assert loopmdm([*words, "--validation-fraction", "0.2", "--workers", "1"]) == 0
    return [folder / "0", folder / "1"]


@pytest.fixture
def experiment(data) -> Experiment:
    study = load_study("sudoku_flops")
    return Experiment(study, "smoke", study.scales["smoke"], (), data[0], Path("/runs"))


def key(experiment, arm="looped", lr=2e-3, seed=0):
    return experiment.trial(arm, lr, seed).folder.name


def test_the_key_of_a_training_follows_from_what_it_computes(experiment, data):
    own = key(experiment)
    same = [
        replace(experiment, runs=Path("/elsewhere")),
        replace(experiment, overrides=("log.every=7", "hardware.latency_microseconds=1")),
    ]
    assert {key(one) for one in same} == {own}
    others = [
        key(experiment, arm="plain"), key(experiment, lr=1e-3), key(experiment, seed=1),
        key(replace(experiment, data=data[1])), key(replace(experiment, overrides=("optim.beta1=0.8",))),
        key(replace(experiment, overrides=("model.norm_eps=1e-6",))),
    ]  # fmt: skip
    assert len({own, *others}) == 1 + len(others)
    plan = experiment.trial("looped", 2e-3, 0).plan
    blends = [SimpleNamespace(identity=lambda text=text: {"tokens": text}, corpora=[]) for text in "ab"]
    assert content_key(plan, blends[0]) != content_key(plan, blends[1])


FIRST_SETTINGS = [
    "run.seed", "run.stop_after", "run.time_limit", "model.num_layers", "model.hidden_size", "model.num_heads",
    "model.num_kv_heads", "model.ffn_hidden_size", "model.rope_base", "model.norm_eps", "model.init_std",
    "model.vocab_size", "model.loop.head", "model.loop.mid", "model.loop.tail", "model.loop.max", "model.loop.norm",
    "data.seq_len", "train.steps", "train.max_flops", "train.global_batch_size", "train.micro_batch_size", "train.loops",
    "train.loop_start", "train.loop_ramp", "train.loop_tail", "train.min_timestep", "train.timesteps", "train.loss_weight",
    "train.complementary_masks", "train.attention", "train.noise", "train.precision", "train.max_skipped",
    "train.spike_threshold", "train.deterministic", "train.compile", "optim.name", "optim.lr", "optim.schedule",
    "optim.warmup_steps", "optim.decay_fraction", "optim.min_lr_ratio", "optim.beta1", "optim.beta2", "optim.eps",
    "optim.momentum", "optim.weight_decay", "optim.clip_norm", "optim.ema_decay", "parallel.auto", "parallel.tensor",
    "parallel.pipeline", "parallel.pipeline_split", "parallel.mid_replicas", "parallel.sequence", "parallel.zero_stage",
    "parallel.recompute", "parallel.offload", "parallel.ds_config", "eval.every", "eval.loops", "eval.rows",
    "eval.batch_size",
]  # fmt: skip
"""Settings that are in every key: those from before `NEUTRAL`. Never extended."""


def test_a_new_setting_says_at_which_value_old_trainings_count():
    new = {name for name in annotations() if trials.has_effect(name)} - set(FIRST_SETTINGS)
    assert new == set(trials.NEUTRAL), (
        "give a new setting a line in pretrain/studies/trials.py: NEUTRAL or WITHOUT_EFFECT"
    )


def test_a_new_setting_changes_no_key_at_its_neutral_value(experiment, monkeypatch):
    """As if `optim.momentum` were new: at 0.95 the key is that of a configuration without it, whatever the default is."""
    plan, blend = experiment.trial("looped", 2e-3, 0).plan, SimpleNamespace(identity=lambda: {}, corpora=[])
    changed = replace(plan, settings=replace(plan.settings, optim=replace(plan.settings.optim, momentum=0.9)))
    own, other = content_key(plan, blend), content_key(changed, blend)
    assert (
        own
        == trials._digest([{k: v for k, v in flatten(plan.settings).items() if k in FIRST_SETTINGS}, {}, [], 1])[:16]
    )
    before = {k: v for k, v in flatten(plan.settings).items() if k in FIRST_SETTINGS and k != "optim.momentum"}
    monkeypatch.setitem(trials.NEUTRAL, "optim.momentum", 0.95)
    assert content_key(plan, blend) == trials._digest([before, {}, [], 1])[:16] != own
    assert content_key(changed, blend) == other


def test_a_training_has_the_budget_and_is_validated_along_the_way(experiment):
    settings = experiment.trial("looped", 2e-3, 1).plan.settings
    assert (settings.train.max_flops, settings.train.steps, settings.optim.lr, settings.run.seed) == (
        4e8,
        None,
        2e-3,
        1,
    )
    assert settings.eval.loops == (1, 6, 12) and settings.eval.every == 3 and settings.model.loop.max == 6
    assert experiment.trial("plain", 2e-3, 0).plan.settings.eval.loops == (1,)
    budget = replace(experiment, overrides=("train.max_flops=8e8",)).trial("looped", 2e-3, 0)
    assert budget.plan.settings.train.max_flops == 8e8


@pytest.mark.parametrize(("arm", "loops"), [("plain", ["1"]), ("looped", ["1", "6", "12", "adaptive:1-12"])])
def test_a_model_is_measured_up_to_twice_its_loops(experiment, arm, loops):
    assert experiment.trial(arm, 2e-3, 0).loops_of(("1", "12", "13", "adaptive:1-12")) == loops


def test_a_measurement_is_one_command_per_value_of_what_varies(experiment):
    boards = Measurement(
        about="a", kind="tasks", options={"tasks": "sudoku6", "limit": "9"}, loops=("1",), vary={"steps": ("4", "8")}
    )
    attention = Measurement(about="a", kind="probe", options={"rows": "8"}, arms=("looped",))
    study = experiment.study.model_copy(update={"measurements": {"boards": boards, "attention": attention}})
    one = replace(experiment, study=study)
    commands = one.commands(one.trial("looped", 2e-3, 0))
    assert list(commands) == ["nelbo", "boards_4", "boards_8", "attention"]
    words = "evaluate --loops 1,6 --tasks sudoku4 --limit 8 --steps 4"
    assert " ".join(commands["boards_4"].words) == words and commands["attention"].words[:3] == (
        "probe",
        "--loops",
        "6",
    )
    assert len({command.file for command in commands.values()}) == 4
    assert "attention" not in one.commands(one.trial("plain", 2e-3, 0))


def test_units_are_numbered_learning_rates_first(experiment):
    scale = experiment.scale.model_copy(update={"learning_rates": (1e-3, 2e-3), "seeds": 3})
    one = replace(experiment, scale=scale)
    arms = len(one.arms)
    assert unit_counts(one.study, scale) == (2 * arms, 2 * arms) and one.units == 4 * arms
    assert [unit_of(one, k).name for k in range(2 * arms)] == [trial.name for trial in one.tuning]
    assert [(trial.arm, trial.lr) for trial in one.tuning[:3]] == [("plain", 1e-3), ("plain", 2e-3), ("looped", 1e-3)]
    assert [trial.lr for trial in one.tuning if trial.arm == "looped-muon"] == [3e-3, 6e-3]
    with pytest.raises(UserError, match=r"plain, lr 0\.001, seed 0 is not done"):
        unit_of(one, 2 * arms)
    alone = replace(experiment, scale=experiment.scale.model_copy(update={"seeds": 3}))
    rates = {arm: alone.rates(arm)[0] for arm in alone.arms}
    assert [unit_of(alone, k).name for k in range(arms, 3 * arms)] == [trial.name for trial in alone.repeats(rates)]


def test_a_grid_is_every_combination(experiment):
    study = load_study("exponent")
    one = replace(experiment, study=study, scale=study.scales["smoke"])
    assert list(one.arms) == ["16-1-2", "16-2-2", "32-1-2", "32-2-2"]
    settings = one.trial("16-2-2", 2e-3, 0).plan.settings
    assert (settings.model.hidden_size, settings.model.loop.max, settings.train.loops, settings.train.steps) == (
        16,
        2,
        2,
        2,
    )
    assert len(study.grid) == 3 and unit_counts(study, study.scales["desk"]) == (27, 0)


def test_a_signal_ends_a_dry_run_without_the_arms_that_wait(experiment, tmp_path):
    """The process that runs is asked to end, and no further one starts."""
    started, stopped = [], threading.Event()

    class Stopping:
        """As `Subprocesses`: the first command gets the signal, another one ends when it is asked to, no further one starts."""

        def __call__(self, words, log, slot, ranks=1):
            if stopped.is_set():
                return 1
            started.append(words)
            if len(started) == 1:
                raise Stopped(signal.SIGTERM)
            return 1 if stopped.wait(10) else 0

        def stop(self):
            stopped.set()

    arms = {f"arm{i}": Arm(about="", settings={"optim.beta1": f"0.{i}"}) for i in range(1, 8)}
    study = experiment.study.model_copy(update={"arms": arms})
    with pytest.raises(Stopped):
        describe(replace(experiment, study=study, runs=tmp_path), Stopping(), 1, print)
    assert stopped.is_set() and len(started) <= 2


def test_a_slot_is_given_on_when_its_training_ends(experiment, tmp_path):
    """In a dry run, too: the third arm does not share the GPU of the first, which takes longer than the second."""
    ended, used = threading.Event(), {}

    class Slots(Stoppable):
        def __call__(self, words, log, slot, ranks=1):
            arm = next(word[-1] for word in words if word.startswith("optim.beta1="))
            used[arm] = slot
            if arm == "1":
                assert ended.wait(10)
            elif arm == "3":
                ended.set()
            (log.parents[1] / "metrics.jsonl").write_text('{"step": 20, "flops": 1.0, "elapsed": 1.0}\n')
            return 0

    arms = {f"arm{i}": Arm(about="", settings={"optim.beta1": f"0.{i}"}) for i in range(1, 4)}
    study = experiment.study.model_copy(update={"arms": arms})
    describe(replace(experiment, study=study, runs=tmp_path), Slots(), 2, print)
    assert used == {"1": 0, "2": 1, "3": 1}


class Trainings(Stoppable):
    """As `Subprocesses`: writes what a training leaves that ends with this status, and NELBOs of 1."""

    def __init__(self, ends):
        super().__init__()
        self.ends = ends
        """Learning rate -> whether it diverged, of trainings that end with status 2."""

    def __call__(self, words, log, slot, ranks=1):
        if words[0] == "evaluate":
            rows = [{"loops": int(s), "nats_per_token": 1.0} for s in words[words.index("--loops") + 1].split(",")]
            Path(words[-1]).write_text(json.dumps({"loops": rows}))
            return 0
        folder, rate = log.parents[1], float(next(w for w in words if w.startswith("optim.lr=")).partition("=")[2])
        (folder / "config.yaml").write_text("model: {}\ntrain: {}\n")
        record = {"step": 1, "tokens": 1, "flops": 1.0, "elapsed": 1.0, "loss": 1.0}
        (folder / "metrics.jsonl").write_text("" if rate in self.ends else json.dumps(record) + "\n")
        (folder / "status.json").write_text(json.dumps({"state": "failed", "diverged": self.ends.get(rate, False)}))
        log.write_text("the reason\n")
        return 2 if rate in self.ends else 0


@pytest.fixture
def plain(experiment, tmp_path) -> Experiment:
    """One arm, three learning rates."""
    study = experiment.study.model_copy(update={"arms": {"plain": experiment.arms["plain"]}, "measurements": {}})
    scale = experiment.scale.model_copy(update={"learning_rates": (1e-3, 2e-3, 4e-3), "seeds": 1})
    return replace(experiment, study=study, scale=scale, runs=tmp_path)


def test_a_learning_rate_that_diverges_is_done_and_is_not_chosen(plain):
    said = []
    run_all(plain, Trainings({1e-3: True, 4e-3: True}), 1, said.append)
    assert [line.partition(" in ")[0] for line in said if ": plain, " in line] == [
        "diverged: plain, lr 0.001, seed 0", "done: plain, lr 0.002, seed 0", "diverged: plain, lr 0.004, seed 0",
    ]  # fmt: skip
    said.clear()
    run_all(plain, Trainings({}), 1, said.append)
    assert said == [], "nothing runs again"
    results = read_results(plain)
    assert best_rates(plain) == {"plain": 2e-3}
    assert [result.nelbo() for result in results.tuning] == [math.inf, 1.0, math.inf]
    table, _ = report._rates(results)
    assert table.rows == [("plain", "diverged", "1.0000 *", "diverged")]


def test_other_failures_are_no_divergence(plain):
    with pytest.raises(UserError, match=r"training plain, lr 0\.001, seed 0: ended with status 2(.|\n)*the reason"):
        run_all(plain, Trainings({1e-3: False}), 1, print)
    assert not Workplace(plain.tuning[0]).is_done(plain)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((1e-3, 2e-3), "arm plain: diverged at every learning rate; give the study lower"),
        ((1e-3,), r"plain, lr 0\.001, seed 0: the training diverged; give the study lower"),
    ],
)
def test_an_arm_that_always_diverges_is_an_error(rates, message, plain):
    one = replace(plain, scale=plain.scale.model_copy(update={"learning_rates": rates}))
    with pytest.raises(UserError, match=message):
        run_all(one, Trainings(dict.fromkeys(rates, True)), 1, print)
        read_results(one)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_are_of_the_study_as_it_is_defined(path):
    result = json.loads(path.read_text())
    study = load_study(result["study"])
    scale = study.scales[result["scale"]]
    assert result["arms"].keys() == study.arms.keys()
    assert {len(trainings) for trainings in result["arms"].values()} == {scale.seeds}
    flops = [training["flops"] for trainings in result["arms"].values() for training in trainings]
    assert flops == pytest.approx([scale.flops] * len(flops), rel=0.01)


def test_the_best_recipe_is_the_arm_that_the_results_show(data):
    study = load_study("sudoku_flops")
    experiment = Experiment(study, "desk", study.scales["desk"], (), data[0], Path("/runs"))
    (rate,) = experiment.rates("looped-norm")
    arm, recipe = experiment.trial("looped-norm", rate, 0).plan.settings, load_settings("sudoku6_best")
    assert (recipe.model, recipe.optim) == (replace(arm.model, vocab_size=recipe.model.vocab_size), arm.optim)
    assert recipe.train == arm.train
