"""Trainings of a study: what their keys depend on, their loops, their measurements, the order of the units."""

import json
import os
import shlex
import shutil
import signal
import sys
import threading
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_pipeline.errors import DataError
from data_pipeline.stop_signals import Stopped
from pretrain.cli import main as loopmdm
from pretrain.config.keys import annotations, flatten
from pretrain.config.load import load_settings
from pretrain.errors import ConfigError, UserError
from pretrain.studies import command, trials
from pretrain.studies.data import corpus_folder
from pretrain.studies.definition import Arm, Corpus, Measurement, Rule, load_study
from pretrain.studies.estimate import describe
from pretrain.studies.output import record
from pretrain.studies.report import _setup
from pretrain.studies.schedule import unit_of
from pretrain.studies.trials import Experiment, arms_of, content_key, unit_counts
from tests.launching import ROOT, run
from tests.study_runs import Stoppable

RESULTS = ROOT / "pretrain" / "studies" / "results"


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


@pytest.mark.parametrize("overrides", [(), ("train.max_flops=8e8",)])
def test_an_arm_may_be_trained_for_longer(experiment, overrides):
    """Also where the command line gives the budget of the others."""
    arms = {name: replace_arm(arm, 5.0 if name == "plain" else 1.0) for name, arm in experiment.arms.items()}
    study = experiment.study.model_copy(update={"arms": arms})
    longer = replace(experiment, study=study, overrides=overrides)
    budgets = {arm: longer.trial(arm, 2e-3, 0).plan.settings.train.max_flops for arm in ("plain", "looped")}
    flops = 8e8 if overrides else experiment.scale.flops
    assert budgets == {"plain": 5 * flops, "looped": flops}


def replace_arm(arm, factor):
    return arm.model_copy(update={"flops_factor": factor})


def test_averaged_weights_are_measured_beside_the_raw_ones_of_the_curve(experiment):
    trial = experiment.trial("looped", 2e-3, 0)
    assert "nelbo-raw" not in experiment.commands(trial)
    averaging = replace(experiment, overrides=("optim.ema_decay=0.9",))
    found = averaging.commands(averaging.trial("looped", 2e-3, 0))
    assert found["nelbo"].words == experiment.commands(trial)["nelbo"].words
    assert found["nelbo-raw"].words == (*found["nelbo"].words, "--weights", "raw")


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


def test_the_time_of_a_dry_run_is_that_of_what_is_left(experiment, tmp_path):
    """Two arms of three seeds: of the six trainings two are done and one is half done; each takes 1,000 s."""
    arms = {f"arm{i}": Arm(about="", settings={"optim.beta1": f"0.{i}"}) for i in (1, 2)}
    scale = experiment.scale.model_copy(update={"seeds": 3, "flops": 1e11})
    study = experiment.study.model_copy(update={"arms": arms})
    experiment = replace(experiment, study=study, scale=scale, runs=tmp_path)
    for arm, seed, part in (("arm1", 0, 0.5), ("arm2", 0, 1), ("arm1", 2, 1)):
        trial = experiment.trial(arm, experiment.rates(arm)[0], seed)
        trial.folder.mkdir(parents=True)
        record = {"step": int(part * trial.plan.total_steps), "flops": part * trial.flops, "elapsed": part * 1000.0}
        (trial.folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    said = describe(experiment, lambda *_: pytest.fail("the speeds are known"), 2, print)
    assert "this machine, 2 at a time: about 29m10s for what is left; 2 of 6 trainings are done\n" in said


def test_a_dry_run_takes_the_lowest_learning_rate_and_names_an_arm_that_diverges(experiment, tmp_path):
    rates = set()

    class Diverging(Stoppable):
        def __call__(self, words, log, slot, ranks=1):
            rates.add(next(word for word in words if word.startswith("optim.lr=")))
            (log.parents[1] / "status.json").write_text('{"diverged": true}')
            return 1

    grid = experiment.scale.model_copy(update={"learning_rates": (4e-3, 1e-3, 2e-3)})
    one = {"plain": experiment.study.arms["plain"]}
    study = experiment.study.model_copy(update={"arms": one})
    with pytest.raises(UserError, match=r"plain, lr 0\.001, seed 0: diverged in its first steps; give the study lower"):
        describe(replace(experiment, study=study, scale=grid, runs=tmp_path), Diverging(), 1, print)
    assert rates == {"optim.lr=0.001"}


@pytest.mark.parametrize(("study", "name"), [("sudoku", "sudoku6_120000-63febc3c"), ("text_flops", "stdlib-6691bd94")])
def test_data_that_needs_no_file_keeps_its_folder(study, name, tmp_path):
    assert corpus_folder(load_study(study).scales["desk"].data, tmp_path).name == name


def test_a_changed_file_is_other_data(tmp_path, monkeypatch):
    """By its own name, in a folder and by a pattern; a file of the same name elsewhere is another one too."""
    for place in ("here", "there"):
        (tmp_path / place / "texts").mkdir(parents=True)
        (tmp_path / place / "texts" / "a.txt").write_text("one text")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    for value in ("texts/a.txt", "texts", "texts/*.txt", "~/texts"):
        corpus, found = Corpus(input=(value,)), []
        for place, time_ns in (("here", 10**18), ("here", 10**18), ("here", 10**18 + 1), ("there", 10**18)):
            monkeypatch.chdir(tmp_path / place)
            os.utime(tmp_path / "here" / "texts" / "a.txt", ns=(time_ns, time_ns))
            os.utime(tmp_path / "there" / "texts" / "a.txt", ns=(10**18, 10**18))
            found.append(corpus_folder(corpus, tmp_path).name)
        assert found[0] == found[1] != found[2], value
        assert (found[3] == found[0]) == (value == "~/texts"), value
    with pytest.raises(DataError, match="--input missing: no such file or folder"):
        corpus_folder(Corpus(input=("missing",)), tmp_path)
    with pytest.raises(UserError, match=r"--input ~nobody_here/a: .* is not the home of a user"):
        corpus_folder(Corpus(input=("~nobody_here/a",)), tmp_path)


def test_a_measurement_of_a_changed_file_is_another_one(experiment, tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    questions, folder = tmp_path / "questions.jsonl", tmp_path / "texts"
    shutil.copytree(data[0], folder)
    (tmp_path / "sudoku4").write_text("no task")

    def names(**options):
        measured = Measurement(about="a", kind="tasks", options=options, loops=("1",))
        study = experiment.study.model_copy(update={"measurements": {"asked": measured}})
        scale = experiment.scale.model_copy(update={"options": {}, "loops": {}})
        one = replace(experiment, study=study, scale=scale)
        return [command.file for command in one.commands(one.trial("looped", 2e-3, 0)).values()]

    first = names(tasks="sudoku4")
    assert first == ["nelbo-808a88e8f6be.json", "asked-5e183dcb785a.json"]
    found = []
    for text in ("one", "other", "one"):
        questions.write_text(text)
        found.append(names(tasks="questions.jsonl"))
        assert names(tasks="sudoku4") == first
    assert found[0] == found[2] and found[0][0] == found[1][0] and found[0][1] != found[1][1]
    given = names(tasks="sudoku4", **{"few-shot": "questions.jsonl"})
    questions.write_text("changed")
    assert names(tasks="sudoku4", **{"few-shot": "questions.jsonl"}) != given
    prepared = names(tasks="texts")
    shutil.copyfile(data[1] / "manifest.json", folder / "manifest.json")
    assert names(tasks="texts") != prepared


def experiment_from(*words: str) -> Experiment:
    """That of `loopmdm study text_flops --scale smoke WORDS`, in whose place nothing is prepared."""
    return command.experiment_of(arguments_of("text_flops", "--scale", "smoke", *words), Prepared())


def arguments_of(*words: str) -> Namespace:
    parser = ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_intermixed_args(words)


class Prepared:
    """A `Runner` that writes empty manifests."""

    def __call__(self, words, log, slot, ranks=1):
        folder = Path(words[words.index("--output") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text("{}")
        return 0

    def stop(self):
        pass


def test_the_data_that_was_used_is_named(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(data[0].parent))
    monkeypatch.setenv("DATA", str(data[0].parent))
    assert experiment_from().data_name == "sudoku4:400"
    for word, name in {
        "data.path=~/0": data[0],
        "data.path=$DATA/0": data[0],
        "data={path: ~/0}": data[0],
        "data.path=mine": "mine",
    }.items():
        experiment = experiment_from(word)
        assert (experiment.data_name, experiment.data) == (str(name), tmp_path / name)
    with pytest.raises(
        ConfigError, match=r"data\.path=\$NOT_SET_HERE/x: the environment variable NOT_SET_HERE is not set"
    ):
        experiment_from("data.path=$NOT_SET_HERE/x")
    experiment = experiment_from("data.path=~/0")
    tuned = SimpleNamespace(trial=experiment.trial("looped", 2e-3, 0), where=None)
    results = SimpleNamespace(experiment=experiment, best={}, tuning=[tuned], reference="plain")
    assert f"Data: {data[0]}, 6 token ids." in _setup(results)[1].text
    results.tuning = []
    assert record(results, ("holds", []))["data"] == str(data[0])


def test_what_the_command_line_changes_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert experiment_from().folder_name == experiment_from("--seeds", "1").folder_name == "smoke"
    same = [("optim.beta1=0.8", "optim.beta2=0.9"), ("optim.beta2=0.9", "optim.beta1=0.7", "optim.beta1=0.8")]
    names = [experiment_from(*words).folder_name for words in same]
    assert names[0] == names[1] and names[0].startswith("smoke-")
    others = [("optim.beta1=0.8",), ("--seeds", "2"), ("data.path=mine",), ("data.path=yours",)]
    assert len({"smoke", names[0], *(experiment_from(*words).folder_name for words in others)}) == 6
    assert experiment_from("data.path=mine").folder_name == experiment_from(f"data.path={tmp_path}/mine").folder_name


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["sudoku"], "loopmdm study sudoku --scale desk"),
        (
            [
                "sudoku",
                "--flops",
                "blocks",
                "eval.loops=[1, 2]",
                "--output",
                "my studies",
                "--seeds",
                "2",
                "--jobs",
                "1",
            ],
            "loopmdm study sudoku --scale desk --jobs 1 --seeds 2 --output 'my studies' --flops blocks 'eval.loops=[1, 2]'",
        ),
    ],
)
def test_the_command_on_the_page_can_be_run(words, written):
    arguments = arguments_of(*words)
    assert command.command_of(arguments) == written
    assert arguments_of(*shlex.split(written)[2:]) == arguments


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_are_of_the_study_as_it_is_defined(path):
    result = json.loads(path.read_text())
    study = load_study(result["study"])
    scale = study.scales[result["scale"]]
    arms = arms_of(study, scale)
    assert result["arms"].keys() == arms.keys()
    assert {len(trainings) for trainings in result["arms"].values()} == {scale.seeds}
    for arm, trainings in result["arms"].items():
        if scale.flops is None:
            assert {str(training["steps"]) for training in trainings} == {arms[arm].settings["train.steps"]}
        else:
            assert [training["flops"] for training in trainings] == pytest.approx(
                [scale.flops * arms[arm].flops_factor] * len(trainings), rel=0.01
            )


def test_the_best_recipe_is_the_arm_that_the_results_show(data):
    study = load_study("sudoku_flops")
    experiment = Experiment(study, "desk", study.scales["desk"], (), data[0], Path("/runs"))
    (rate,) = experiment.rates("looped-norm")
    arm, recipe = experiment.trial("looped-norm", rate, 0).plan.settings, load_settings("sudoku6_best")
    assert (recipe.model, recipe.optim) == (replace(arm.model, vocab_size=recipe.model.vocab_size), arm.optim)
    assert recipe.train == arm.train


@pytest.mark.parametrize("name", ["sudoku_flops", "adaptive", "loops_at_inference"])
def test_the_rules_of_shipped_studies_are_about_what_is_measured(experiment, name):
    study = load_study(name)
    replace(experiment, study=study, scale=study.scales["smoke"]).check_rules()


@pytest.mark.parametrize(
    ("rule", "measured"),
    [
        ({"figure": "nelbo_gain", "arm": "looped", "reference_loops": "5"}, "looped is not measured at S = 5, only at 1, 6"),
        ({"figure": "nelbo_gain", "arm": "plain", "loops": "6"}, "plain is not measured at S = 6, only at 1; .* rule or curve"),
        ({"figure": "score_gain", "arm": "looped", "measurement": "boards", "loops": "adaptive:1-6"},
         "looped is not measured at S = adaptive:1-6, only at .*; correct the rule or loops of boards"),
    ],
)  # fmt: skip
def test_a_rule_about_loops_that_nothing_measures_is_refused_before_training(experiment, rule, measured):
    study = experiment.study.model_copy(update={"verdict": (Rule(holds=0, **rule),)})
    with pytest.raises(UserError, match=f"study sudoku_flops, verdict, {rule['figure']}: {measured}"):
        replace(experiment, study=study).check_rules()


def test_the_figure_of_the_readme_can_be_drawn(tmp_path):
    done = run([sys.executable, ROOT / "tests/benchmarks/study_figure.py", "--output", tmp_path / "figure.png"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    other = run([sys.executable, ROOT / "tests/benchmarks/study_figure.py", RESULTS / "sudoku.json"])
    assert other.stderr.strip().endswith("sudoku.json: not a result of loopmdm study sudoku_flops")
