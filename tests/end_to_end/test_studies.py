"""`loopmdm study`: every shipped study at smoke scale, what is cached, going on after a kill, and what is refused."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline.atomic_files import locked
from pretrain.cli import main as loopmdm
from pretrain.errors import UserError
from pretrain.studies.definition import load_study, study_names
from tests.launching import ROOT, environment
from tests.study_runs import study

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def studies(world, tmp_path_factory):
    """A folder that all studies of this module share."""
    return tmp_path_factory.mktemp("studies")


def smoke(name, studies, *words):
    """Run a study; returns its result and what was run for it."""
    status, runner = study(name, "--scale", "smoke", "--output", studies, *words)
    assert status == 0
    return json.loads((studies / name / "smoke" / "result.json").read_text()), runner


@pytest.mark.parametrize("name", study_names())
def test_every_study_runs_and_a_finished_one_does_nothing(name, studies):
    result, _ = smoke(name, studies)
    assert (
        result["verdict"] in ("holds", "does not hold", "not at this scale")
        and result["claim"] == load_study(name).claim
    )
    for trials in result["arms"].values():
        last = trials[0]["validations"][-1]
        assert last["flops"] == trials[0]["flops"] > 0 and trials[0]["seconds"] > 0
        assert all(row["nats_per_token"] > 0 for row in last["loops"].values())
    page = (studies / name / "smoke" / "page.html").read_text()
    assert "<svg" in page and not re.search(r"https?://(?!www\.w3\.org)", page), "the page asks no host"
    written = (studies / name / "smoke" / "README.md").read_text()
    assert "## Verdict" in written and "training alone, on the machine of the tests, 1 at a time." in written
    again, runner = smoke(name, studies)
    assert runner.ran == [] and again == result


def test_studies_share_the_trainings_that_they_have_in_common(studies):
    first, second = (smoke(name, studies)[0]["arms"]["looped"][0]["key"] for name in ("sudoku", "adaptive"))
    assert first == second


def test_what_is_changed_runs_again_and_nothing_else(studies, tmp_path):
    definition = (ROOT / "pretrain" / "studies" / "definitions" / "sudoku.yaml").read_text()
    mine, words = tmp_path / "mine.yaml", ("--scale", "smoke", "--output", studies)
    unchanged, _ = smoke("sudoku", studies)

    def ran(text):
        mine.write_text(text)
        status, runner = study(mine, *words)
        assert status == 0
        return runner.verbs

    assert ran(definition) == []
    measured = definition.replace("limit: 8}", "limit: 6}")
    assert measured != definition and ran(measured) == ["evaluate", "evaluate"], "another measurement of both arms"
    arm = definition.replace("model.loop.max: 1, ", "model.loop.max: 1, optim.beta1: 0.8, ")
    assert arm != definition and ran(arm) == ["train", "evaluate", "evaluate"], "the changed arm alone"
    assert ran(arm.replace("Loops turn", "Many loops turn")) == []
    status, runner = study("sudoku", *words, "optim.beta1=0.7", "log.every=1")
    assert status == 0 and runner.verbs.count("train") == 2
    (other,) = (studies / "sudoku").glob("smoke-*/result.json")
    assert json.loads(other.read_text())["command"].endswith(" optim.beta1=0.7 log.every=1")
    assert smoke("sudoku", studies)[0] == unchanged, "its page is not replaced"


def test_the_best_learning_rate_of_an_arm_has_the_other_seeds(studies):
    base = "extends: sudoku\nscales:\n  smoke: {seeds: 2, learning_rates: [1.0e-3, 2.0e-3]}\n"
    path = studies / "rates.yaml"
    path.write_text(base)
    assert study(path, "--scale", "smoke", "--output", studies)[0] == 0
    result = json.loads((studies / "rates" / "smoke" / "result.json").read_text())
    for arm, trials in result["arms"].items():
        grid = {row["lr"]: row["nats_per_token"] for row in result["learning_rates"] if row["arm"] == arm}
        assert [t["seed"] for t in trials] == [0, 1] and {t["lr"] for t in trials} == {min(grid, key=grid.get)}
    assert "low" in result["rules"][0] and result["rules"][0]["low"] is not None
    status, runner = study(path, "--scale", "smoke", "--output", studies, "--unit", "5")
    assert status == 0 and runner.ran == []


def test_a_learning_rate_that_diverges_is_on_the_page(studies):
    path = studies / "diverges.yaml"
    path.write_text("extends: sudoku\nscales:\n  smoke: {learning_rates: [1.0e-3, 1.0e+30]}\n")
    words = (path, "--scale", "smoke", "--output", studies)
    status, runner = study(*words)
    assert status == 0 and sum("optim.lr=1e+30" in ran for ran in runner.ran) == 2 and study(*words)[1].ran == []
    folder = studies / "diverges" / "smoke"
    result = json.loads((folder / "result.json").read_text())
    assert [row["nats_per_token"] for row in result["learning_rates"] if row["lr"] == 1e30] == [None, None]
    assert {trials[0]["lr"] for trials in result["arms"].values()} == {1e-3}
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \* \| (\w+) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    assert [(arm, end) for arm, _, end in rows] == [("plain", "diverged"), ("looped", "diverged")]


def test_units_and_the_dry_run(studies, capsys):
    words = ("sudoku", "--scale", "smoke", "--output", studies, "optim.weight_decay=0.1")
    assert study(*words, "--units")[0] == 0
    listed = [line.split()[:4] for line in capsys.readouterr().out.splitlines() if " seed " in line]
    assert listed == [["0", "to", "do", "plain,"], ["1", "to", "do", "looped,"]]
    status, runner = study(*words, "--dry-run")
    printed = capsys.readouterr().out
    assert status == 0 and runner.verbs == ["train", "train"] and "by the planner" in printed
    assert "2 trainings" in printed and "this machine, 1 at a time" in printed
    said = printed.splitlines()
    assert said[0] == "measuring the speed of 2 arms by their first 20 steps, 1 at a time"
    measured = [line.rsplit(" ", 1)[0] for line in said if line.startswith("measured: ")]
    assert measured == ["measured: plain in", "measured: looped in"]
    kept = f"kept, and used by the study: the data in {studies}/data/"
    assert said[-1].startswith(kept) and said[-1].endswith(f"the first steps in {studies}/runs")
    assert study(*words, "--dry-run")[1].ran == [] and "measuring" not in capsys.readouterr().out
    status, runner = study(*words, "--unit", "1")
    assert status == 0 and runner.verbs == ["train", "evaluate", "evaluate"]
    assert "nothing to do" in capsys.readouterr().out, "the first steps were the whole training at this scale"
    assert study(*words, "--dry-run")[1].ran == []
    assert "at a time: about 0s for what is left; 2 of 2 trainings are done\n" in capsys.readouterr().out


KILLED = """\
extends: sudoku
arms: {looped: {about: the only one}}
measurements: {}
boards: ""
verdict: [{figure: nelbo_gain, arm: looped, reference: looped, holds: 0}]
scales: {smoke: {flops: 2.0e+10}}
"""


def test_a_killed_study_goes_on(tmp_path):
    """The processes themselves: SIGTERM saves the training, and the same command resumes it."""
    (tmp_path / "killed.yaml").write_text(KILLED)
    words = [
        sys.executable,
        "-m",
        "pretrain.cli",
        "study",
        str(tmp_path / "killed.yaml"),
        "--scale",
        "smoke",
        "--output",
        str(tmp_path),
    ]
    started = subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 240
    while not (metrics := [p for p in tmp_path.glob("runs/*/metrics.jsonl") if p.stat().st_size]):
        assert time.monotonic() < deadline and started.poll() is None, started.stdout.read()
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=240) == 128 + signal.SIGTERM and "run the same command again" in started.stdout.read()
    run = metrics[0].parent
    assert list(run.glob("checkpoints/step_*/COMPLETE")) and not (run / "study" / "finished.json").exists()
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed from" in (run / "study" / "log.txt").read_text() and "page.html" in done.stdout


def test_a_second_start_of_a_study_is_refused(studies):
    smoke("sudoku", studies)
    folder = studies / "sudoku" / "smoke"
    with locked(folder / ".lock", AssertionError()), pytest.raises(UserError, match="another process runs this study"):
        smoke("sudoku", studies)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_the_page_without_errors(studies, tmp_path):
    smoke("sudoku", studies)
    page = studies / "sudoku" / "smoke" / "page.html"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--enable-logging=stderr", "--v=0", "--window-size=400,900", f"--screenshot={tmp_path / 'page.png'}"]  # fmt: skip
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    assert (tmp_path / "page.png").stat().st_size > 10_000 and "CONSOLE" not in done.stderr


WRONG = {
    "sudokku": "no study 'sudokku': did you mean sudoku?",
    "sudoku --unit 9": "--unit 9: the study has the units 0 to 1",
    "sudoku --seeds 11": "--seeds 11: must be from 1 to 10",
    "sudoku --jobs 0": "--jobs 0: must be at least 1",
    "speedrun --scale cluster": "--scale cluster: the study speedrun has the scales smoke, desk",
    "sudoku train.stepps=3": "arm plain: 1 problem in the configuration",
    "sudoku run.seed=5": "run.seed is decided by the study; give seeds in scales, or --seeds",
    "sudoku optim.lr=1e-3": "optim.lr is decided by the study; give learning_rates in scales",
    "sudoku eval.loops=1": "eval.loops is decided by the study; give curve, or loops in scales",
    "": "NAME: give a study, one of: adaptive",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_run_is_refused(words, studies, capsys):
    smoke_scale = [] if "--scale" in words else ["--scale", "smoke"]
    assert loopmdm(["study", *words.split(), *smoke_scale, "--output", str(studies)]) == 2
    assert WRONG[words] in capsys.readouterr().err


def test_a_mixture_is_refused_before_training(studies, tmp_path, capsys):
    """Its evaluation writes a file per corpus."""
    smoke("sudoku", studies)
    data = next((studies / "data").iterdir())
    (tmp_path / "mixture.yaml").write_text(f"corpora: [{{path: {data}, weight: 1}}, {{path: {data}, weight: 1}}]\n")
    words = ["study", "sudoku", "--scale", "smoke", "--output", str(studies), f"data.path={tmp_path / 'mixture.yaml'}"]
    assert loopmdm(words) == 2
    assert "a study needs a prepared folder" in capsys.readouterr().err


BROKEN = {
    "extends: sudoku\nsettings: {optim.lr: 1e-3}": "settings: optim.lr is decided by the study; give learning_rates in scales",
    "extends: sudoku\nverdict: [{figure: seconds_to_target, arm: plain, holds: 1}]": "seconds_to_target: needs the key target",
    "claim: c": "recipe: Field required",
    "extends: nothing": "extends nothing, but there is no",
    "- a": "must hold keys such as",
    "extends: sudoku\nverdict: [{figure: flops_to_tie, arm: nobody, holds: 1}]": "verdict, flops_to_tie: 'nobody' is none of",
    "extends: sudoku\ngrid: {a: [1]}\narms: {b: {about: c}}": "give either arms or grid",
    "extends: sudoku\nboards: photos": "'photos' is no measurement; there are boards",
    "extends: sudoku\nscales: {smoke: {seeds: many}}": "scales.smoke.seeds: Input should be a valid integer",
    "extends: sudoku\nscales: {smoke: {sede: 1}}": "scales.smoke.sede: Extra inputs are not permitted",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_definition_with_a_problem_is_named(text, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(text + "\n")
    assert loopmdm(["study", str(path), "--output", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {path}") and BROKEN[text] in printed


def test_the_list_has_every_study(capsys):
    assert loopmdm(["study", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == study_names()
