"""Reports of studies: what breaks a board, both forms of a report, lines of progress, merged definitions."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipeline.generators.boards import Sudoku
from data_pipeline.generators.names import find_generator
from pretrain.errors import UserError
from pretrain.evaluation.item_files import ItemFile
from pretrain.inspection.charts import Line
from pretrain.studies import schedule
from pretrain.studies.blocks import Chart, Drawing, Report, Section, Table, Text, html_page, markdown
from pretrain.studies.boards import broken, picture, texts
from pretrain.studies.definition import load_study
from pretrain.studies.estimate import CALIBRATION_STEPS, _missing_steps
from pretrain.studies.report import _about_seconds, _by_timestep, mean_line
from pretrain.studies.schedule import Progress
from pretrain.studies.unit import last_record

VALID = "1234341221434321"


def test_cells_that_break_a_rule_are_found():
    sudoku = Sudoku(2, 2)
    assert broken(sudoku, VALID) == set()
    changed = "3" + VALID[1:]  # 3 is also in the first row, the first column and the first box
    assert broken(sudoku, changed) == {0, 2, 4}
    assert broken(sudoku, "·" + VALID[1:]) == {0}


def test_a_picture_has_every_cell_and_marks_the_broken_ones():
    generator = find_generator("sudoku4")
    drawn = picture(generator, [VALID, "3" + VALID[1:], "12"])
    assert drawn.count('class="cell"') == 48 and drawn.count('class="box"') == 12
    first, second, _ = drawn.split("<g ")[1:]
    assert first.count("--wrong") == 0 and second.count("--wrong") == 3
    assert re.findall(r'class="symbol">(.)<', first) == list(VALID)


def test_boards_are_found_beside_answers_with_line_separators(tmp_path):
    for name, settings, record in (("a", {}, {"answer": "a\u2028b"}), ("b", {"loops": 2}, {"board": VALID})):
        ItemFile(tmp_path / "eval", name, settings).add([{"item": 0, **record}], [])
    result = SimpleNamespace(trial=SimpleNamespace(folder=tmp_path))
    assert texts(result, {"settings": {"compute": [{"loops": 2}]}}, 2) == [VALID]


REPORT = Report(
    title="Study <one>",
    claim="a < b",
    cards=[("3.2 (2.9 to 3.5)", "FLOPs to tie")],
    sections=[
        Section("Tables", [Text("x & y"), Table(("arm", "S | T"), [("<plain>", "1")])]),
        Section(
            "Charts",
            [Chart("Loss", [Line("a", [(1, 2, None), (2, 1, None)])], "FLOPs", "NELBO"), Drawing("Board", "<svg/>")],
        ),
        Section("Nothing", []),
    ],
    command="loopmdm study one",
)


def test_both_forms_of_a_report():
    page, text = html_page(REPORT), markdown(REPORT)
    assert "<h1>Study &lt;one&gt;</h1>" in page and "&lt;plain&gt;" in page and "x &amp; y" in page
    assert page.count("<svg") == 2 and "Nothing" not in page + text
    assert "| arm | S \\| T |\n| --- | --- |\n| <plain> | 1 |" in text and "Charts\n" not in text
    assert "```bash\nloopmdm study one\n```" in text


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (["a", "a"], "training alone, on a."),
        ([None, None], "training alone, while other trainings of the study ran on the same machine."),
        (
            ["a", "b", "a", None],
            "cannot be compared: trainings ran on a; on b; on a machine that was not written down.",
        ),
    ],
)
def test_seconds_of_different_machines_are_not_to_be_compared(places, said):
    assert _about_seconds(places).endswith(said)


@pytest.mark.parametrize(
    ("arms", "lines"),
    [
        (("one", "two"), [("one, S = 2", 0, False), ("one, S = 6", 1, False), ("two, S = 2", 0, True), ("two, S = 6", 1, True)]),
        (("one", "two", "three"), [("one, S = 6", 0, False), ("two, S = 6", 1, False), ("three, S = 6", 2, False)]),
    ],
)  # fmt: skip
def test_lines_of_the_gain_by_timestep_can_be_told_apart(arms, lines):
    def figures(s):
        return {"by_timestep": [{"nats_per_token": 1 / s}, {"nats_per_token": 2.0}]}

    trained = SimpleNamespace(
        end={"loops": {1: {}, 2: {}, 6: {}}}, trial=SimpleNamespace(largest_loops=6), figures=figures
    )
    (chart,) = _by_timestep(SimpleNamespace(best={arm: [trained] for arm in arms}))
    assert [(line.name, line.colour, line.dashed) for line in chart.lines] == lines
    assert chart.lines[0].points == [
        (0.25, pytest.approx(1 - 1 / (2 if len(arms) == 2 else 6)), None),
        (0.75, 0.0, None),
    ]


@pytest.mark.parametrize("shift", [0.0, 0.01], ids=["equal shares", "shares that differ"])
def test_a_curve_has_as_many_points_as_there_are_validations(shift):
    shares = np.linspace(0.1, 1, 10)
    seeds = [
        SimpleNamespace(curve=lambda axis, loops, seed=seed: (shares ** (1 + shift * seed), 1 / shares + seed))
        for seed in range(3)
    ]
    points = mean_line(seeds, "flops")
    assert len(points) == (10 if shift == 0 else 9), "not all seeds have a value at the first shares"
    assert points[-1] == pytest.approx((1.0, 2.0, 3**-0.5)), "the mean of 1, 2 and 3"


def test_progress_and_the_time_that_is_left(monkeypatch):
    clock, shares, lines = [1000.0], {"a": 0.1, "b": 0.0}, []
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(schedule, "share", lambda trial: shares[trial.name])
    trials = [SimpleNamespace(name=name, flops=100.0) for name in shares]
    progress = Progress(400.0, lines.append)
    progress.report(trials, trials[:1])
    clock[0] += 1
    progress.report(trials, trials[:1])
    assert lines == ["2% of 4e+02 training FLOPs | a 10%"], "once in 30 s"
    clock[0] += 59
    shares["a"] = 0.5
    progress.report(trials, [])
    assert lines[1] == "12% of 4e+02 training FLOPs, eta 8m45s | measuring", "40 in 60 s, 350 are left"
    clock[0] += 60
    shares |= {"a": 1.0, "b": 1.0}
    trials[1].flops = 500.0
    progress.report(trials, [])
    assert lines[2] == "100% of 4e+02 training FLOPs, eta 0s | measuring", (
        "no negative time when an estimate was too low"
    )


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("", None),
        ('{"step": 1}\n{"step": 2}\n{"st', 2),
        ('{"step": 1}\n', 1),
        ("3\n", None),
        ('{"step": 1}\n{"step": 2, "texts": "a\u2028{}\u2028"}\n', 2),
    ],
)
def test_the_last_record_of_a_file_that_is_being_written(tmp_path, text, step):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text, encoding="utf-8")
    assert last_record(path).get("step") == step
    assert last_record(tmp_path / "missing") == {}


def test_a_measurement_that_was_stopped_goes_on(tmp_path):
    trial = SimpleNamespace(folder=tmp_path, plan=SimpleNamespace(total_steps=100))
    assert _missing_steps(trial) == CALIBRATION_STEPS
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "flops": 1.0, "elapsed": 9.0}\n')
    assert _missing_steps(trial) == CALIBRATION_STEPS - 2
    trial.plan.total_steps = 2
    assert _missing_steps(trial) == 0


def test_the_last_record_may_be_long(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2, "texts": "x" * 200_000}) + "\n")
    assert last_record(path)["step"] == 2
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "texts": "' + "x" * 200_000)
    assert last_record(path)["step"] == 1


def test_what_a_definition_takes_over(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "claim: c\nsource: s\nreported: r\nrecipe: smoke\narms: {one: {about: a}}\n"
        "measurements: {boards: {about: b, kind: tasks}}\nverdict: [{figure: nelbo_gain, arm: one, holds: 0}]\n"
        "scales:\n  smoke: {data: {input: [x]}, seeds: 2, flops: 1e9, options: {boards: {steps: 4}}, loops: {curve: [1]}}\n"
    )
    (tmp_path / "own.yaml").write_text(
        "extends: base\nclaim: d\narms: {two: {about: a}}\nmeasurements: {}\n"
        "verdict: [{figure: nelbo_gain, arm: two, holds: 0}]\nscales: {smoke: {seeds: 3}, desk: {data: {input: [y]}}}\n"
    )
    study = load_study(str(tmp_path / "own.yaml"))
    smoke = study.scales["smoke"]
    assert (study.name, study.claim, study.recipe, list(study.arms)) == ("own", "d", "smoke", ["two"])
    assert (smoke.seeds, smoke.flops, smoke.options, smoke.loops) == (3, 1e9, {}, {"curve": ("1",)})
    assert study.scales["desk"].data.input == ("y",)


BROKEN = {
    'curve: [1, "adaptive:1-12"]': "curve: 'adaptive:1-12' is no number of loops from 1 on, such as 4",
    "curve: [1-6-1]": "curve: '1-6-1' is no number of loops",
    "scales: {smoke: {loops: {curve: [0]}}}": "scales.smoke.loops.curve: '0' is no number of loops",
    "scales: {smoke: {loops: {boards: [1, six]}}}": "scales.smoke.loops.boards: 'six' is no number of loops such as 4, schedule",
    "scales: {desk: {loops: {attention: [adaptive]}}}": (
        "scales.desk.loops.attention: 'adaptive' is no number of loops such as 4, schedule such as 1-6-1, or adaptive:MIN-MAX"
    ),
    "verdict: [{figure: nelbo_gain, holds: 0}]": "verdict, nelbo_gain: needs the key arm",
    "verdict: [{figure: score_gain, arm: looped, holds: 0}]": "verdict, score_gain: needs the key measurement",
    "verdict: [{figure: score_gain, arm: looped, measurement: boards, option: 64, holds: 0}]": (
        "verdict, score_gain: option '64' is none of those of boards: 4, 8"
    ),
    "verdict: [{figure: loops_spent, arm: looped, measurement: boards, holds: 0}]": (
        "verdict, loops_spent: option '' is none of those of boards: 4, 8"
    ),
    "verdict: [{figure: attention_gain, arm: looped, measurement: attention, option: 4, holds: 0}]": (
        "verdict, attention_gain: option '4', but nothing varies in attention"
    ),
    "verdict: [{figure: attention_gain, arm: plain, measurement: attention, holds: 0}]": (
        "verdict, attention_gain: attention is not measured on plain"
    ),
    "verdict: [{figure: score_gain, arm: looped, measurement: attention, holds: 0}]": (
        "verdict, score_gain: needs a measurement of kind tasks, unlike attention"
    ),
}
MEASURED = """extends: sudoku
boards: ""
measurements:
  boards: {about: b, kind: tasks, vary: {steps: [4, 8]}}
  attention: {about: a, kind: probe, arms: [looped]}
"""


@pytest.mark.parametrize("text", BROKEN)
def test_what_would_fail_after_all_trainings_is_refused_before(text, tmp_path):
    path = tmp_path / "mine.yaml"
    verdict = "" if text.startswith("verdict") else "verdict: [{figure: nelbo_gain, arm: looped, holds: 0}]\n"
    path.write_text(f"{MEASURED}{verdict}{text}\n")
    with pytest.raises(UserError) as caught:
        load_study(str(path))
    assert str(caught.value).startswith(f"{path}: {BROKEN[text]}")


def test_a_factor_of_flops_that_are_not_given_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    arms = "arms: {plain: {about: a, flops_factor: 5}, looped: {about: b}}"
    path.write_text(f"extends: exponent\n{arms}\nverdict: [{{figure: nelbo_gain, arm: looped, holds: 0}}]\n")
    with pytest.raises(UserError, match=r"arms\.plain: flops_factor has no effect without scales\.smoke\.flops"):
        load_study(str(path))


def test_studies_that_extend_each_other_are_refused(tmp_path):
    for name, other in (("one", "two"), ("two", "three"), ("three", "two")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {other}\n")
    with pytest.raises(UserError, match=r"three\.yaml: extends two, which extends three; remove one of the two"):
        load_study(str(tmp_path / "one.yaml"))
    (tmp_path / "above.yaml").write_text("extends: ../above\n")
    with pytest.raises(UserError, match=r"extends \.\./above, but there is no "):
        load_study(str(tmp_path / "above.yaml"))
    (tmp_path / "sudoku.yaml").write_text("extends: sudoku\nclaim: mine\n")
    assert load_study(str(tmp_path / "sudoku.yaml")).claim == "mine", "the shipped one of the same name"
