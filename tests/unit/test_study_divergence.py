"""Trainings of a study that diverge."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.cli import main as loopmdm
from pretrain.errors import UserError
from pretrain.studies import report
from pretrain.studies.definition import load_study
from pretrain.studies.results import best_rates, read_results
from pretrain.studies.schedule import run_all
from pretrain.studies.trials import Experiment
from pretrain.studies.unit import Workplace
from tests.study_runs import Stoppable


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
def plain(tmp_path) -> Experiment:
    """One arm, three learning rates."""
    words = ["prepare", "--input", "sudoku4:200", "--output", str(tmp_path / "data"), "--workers", "1"]
    assert loopmdm([*words, "--validation-fraction", "0.2"]) == 0
    study = load_study("sudoku_flops")
    scale = study.scales["smoke"].model_copy(update={"learning_rates": (1e-3, 2e-3, 4e-3), "seeds": 1})
    study = study.model_copy(update={"arms": {"plain": study.arms["plain"]}, "measurements": {}})
    return Experiment(study, "smoke", scale, (), tmp_path / "data", tmp_path / "runs")


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
