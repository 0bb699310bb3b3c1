"""Intervals of proportions against published values and by enumeration, and the places that show them."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from pretrain.commands.evaluate_harness import share_intervals
from pretrain.commands.evaluate_tasks import _difference
from pretrain.evaluation.statistics import proportion
from pretrain.evaluation.tasks.report import format_task
from pretrain.inspection.charts import Line, line_chart
from pretrain.inspection.task_results import task_results
from pretrain.proportions import difference_interval, paired_difference_interval, wilson_interval, with_error
from pretrain.studies.definition import Rule
from pretrain.studies.figures import figure
from pretrain.studies.measurement_blocks import _scores


@pytest.mark.parametrize(
    ("ones", "count", "interval"),
    [(0, 256, (0.0, 0.014783856425871)), (256, 256, (0.985216143574128, 1.0)), (39, 256, (0.113488771253, 0.201478128918)),
     (3, 20, (0.052368745896217, 0.360418864740757)), (1, 2, (0.094531205734, 0.905468794266)), (0, 1, (0.0, 0.793450685623))],
)  # fmt: skip
def test_wilson_intervals_of_statsmodels(ones, count, interval):
    """Expected: statsmodels 0.14, `proportion_confint(ones, count, method="wilson")`."""
    assert wilson_interval(ones / count, count) == pytest.approx(interval, abs=1e-11)


@pytest.mark.parametrize(
    ("own", "other", "count", "interval"),
    [(0, 0, 256, (-0.014783856426, 0.014783856426)), (30, 20, 100, (-0.020249362153, 0.216734354018)),
     (3, 0, 20, (-0.038396333126, 0.360418864741))],
)  # fmt: skip
def test_differences_without_correlation_as_of_statsmodels(own, other, count, interval):
    """Expected: statsmodels 0.14, `confint_proportions_2indep(..., method="newcomb", compare="diff")`."""
    assert difference_interval(own / count, other / count, count) == pytest.approx(interval, abs=1e-11)


def pairs(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of the same items: how many are 1 in both, in the first only, in the second only, and in neither."""
    counts = [both, first, second, neither]
    return np.repeat([1.0, 1.0, 0.0, 0.0], counts), np.repeat([1.0, 0.0, 1.0, 0.0], counts)


def test_paired_differences():
    """Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014), airway hyper-responsiveness: -0.507 to -0.026."""
    assert paired_difference_interval(*pairs(1, 1, 7, 12)) == pytest.approx((-0.507, -0.026), abs=5e-4)
    assert paired_difference_interval(*pairs(0, 0, 0, 256)) == pytest.approx((-0.0147839, 0.0147839), abs=1e-6)
    low, high = paired_difference_interval(*pairs(128, 0, 0, 128))
    assert low == -high and 0 < high < 0.01, "equal answers to the same items: much closer than independent ones"


@pytest.mark.parametrize("cells", [(0.0, 0.02, 0.01, 0.97), (0.3, 0.1, 0.2, 0.4), (0.5, 0.05, 0.0, 0.45)])
def test_paired_intervals_hold_the_difference_as_often_as_they_say(cells):
    """Probability of all outcomes of 12 items whose interval holds the true difference; that of mean ± 1.96 SE is below 40% for
    the first cells.
    """
    count, covered = 12, 0.0
    for ones in itertools.product(range(count + 1), repeat=3):
        if (rest := count - sum(ones)) < 0:
            continue
        found = [*ones, rest]
        ways = math.factorial(count) / math.prod(map(math.factorial, found))
        low, high = paired_difference_interval(*pairs(*found))
        if low <= cells[1] - cells[2] <= high:
            covered += ways * math.prod(p**k for p, k in zip(cells, found, strict=True))
    assert 0.93 < covered <= 1.0 + 1e-9


def test_what_is_shown():
    assert with_error(0.25, 0.02, (0.2, 0.3)) == "0.2500 ± 0.0200 (0.2000 to 0.3000)"
    assert with_error(0.0, 0.0, (0.0, 0.0148)) == "0.0000 (0.0000 to 0.0148)"
    assert with_error(0.0, 0.0, (-0.01, 0.01), "+") == "+0.0000 (-0.0100 to +0.0100)"
    assert with_error(12.0, 0.0) == "12.0000 ± 0.0000"


def no_valid_board(items: int = 256) -> dict:
    """The result of a task at two S that no item solves."""
    zeros = np.zeros(items)
    rows = [{"loops": "1", **proportion("valid_boards", zeros)}, {"loops": "4", **proportion("valid_boards", zeros)}]
    rows[1] |= _difference("change_from_first", zeros, zeros, True)
    for row in rows:
        row["cost"] = {"flops_per_token": 1e6, "loops_per_forward": float(row["loops"])}
    return {"task": "sudoku6", "metric": "valid_boards", "items": items, "loops": rows, "settings": {}}


def test_a_task_that_nothing_solves():
    result = no_valid_board()
    for row in result["loops"]:
        del row["cost"]
    assert format_task(result, []).splitlines() == [
        "sudoku6: 256 items",
        "S=1    valid boards 0.0000 (0.0000 to 0.0148)",
        "S=4    valid boards 0.0000 (0.0000 to 0.0148)",
        "       valid boards against S=1: +0.0000 (-0.0148 to +0.0148)",
        "±: standard error; in parentheses: 95% interval of a proportion",
    ]
    assert result["loops"][0]["valid_boards_se"] == 0.0, "existing keys keep their meaning"


HARNESS = {
    "results": {
        "board": {"alias": "board", "acc,none": 0.0, "acc_stderr,none": 0.0, "acc_norm,none": 0.25,
                  "acc_norm_stderr,none": math.sqrt(0.25 * 0.75 / 39), "f1,none": 0.5, "f1_stderr,none": 0.01,
                  "perplexity,none": 12.0, "perplexity_stderr,none": 1.0, "bleu,none": 0.5, "bleu_stderr,none": "N/A"},
    },
    "n-samples": {"board": {"original": 40, "effective": 40}},
}  # fmt: skip


def test_shares_of_lm_eval_are_told_by_their_errors():
    assert share_intervals(HARNESS) == {
        "board": {"acc,none": wilson_interval(0.0, 40), "acc_norm,none": wilson_interval(0.25, 40)}
    }


def test_the_page_of_a_run():
    harness = {**HARNESS, "n_samples": HARNESS["n-samples"], "intervals": share_intervals(HARNESS)}
    harness["settings"] = {"lm_eval": ["board"], "loops": 4}
    records = [("one", no_valid_board()), ("two", json.loads(json.dumps(harness)))]
    page = "".join(task_results([SimpleNamespace(name="run", task_results=records)]))
    assert page.count(">0.0000 (0.0000 to 0.0148)</td>") == 2 and "0.0000 ± 0.0000" not in page
    assert ">0.0000 (0.0000 to 0.0876)</td>" in page and ">12.0000 ± 1.0000</td>" in page
    assert "0.0000 (0.0000 to 0.0148)</title>" in page, "the points of the chart have the interval"


def test_an_interval_is_drawn_from_end_to_end():
    (_, drawn), (_, symmetric) = (
        line_chart([Line("a", [(1.0, 0.0, error), (2.0, 1.0, None)])], "x", "y").split("<polyline")
        for error in ((-0.5, 0.5), 0.5)
    )
    assert drawn.replace(" (-0.5000 to 0.5000)", " ± 0.5000") == symmetric
    assert "1.4" in line_chart([Line("a", [(1.0, 0.0, (0.0, 1.4))])], "x", "y"), "the axis has room for it"


def study_results(*shares: tuple[float, ...]):
    """Arms `a0`, `a1`, ... with the valid boards of 100 items of each of their seeds."""
    best = {}
    for number, of_arm in enumerate(shares):
        best[f"a{number}"] = [
            SimpleNamespace(
                trial=SimpleNamespace(largest_loops=1),
                measured={"boards": {"": {"metric": "valid_boards", "items": 100, "loops": [
                    {"loops": 1, **proportion("valid_boards", np.arange(100) < 100 * share)}]}}},
            )
            for share in of_arm
        ]  # fmt: skip
    return SimpleNamespace(best=best, seeds=range(len(shares[0])))


def test_the_tables_of_a_study():
    """Over seeds where they differ, else over the items of all seeds."""
    table, points = _scores(study_results((0.0, 0.0), (0.5, 0.7), (1.0, 1.0)), "boards")
    assert [row[-1] for row in table.rows] == [
        "0.0000 (0.0000 to 0.0188)", "0.6000 ± 0.1000", "1.0000 (0.9812 to 1.0000)",
    ]  # fmt: skip
    assert points["a0", "", "1"] == (0.0, wilson_interval(0.0, 200)) and points["a1", "", "1"][1] == pytest.approx(0.1)
    assert _scores(study_results((0.25,)), "boards")[0].rows[0][-1] == "0.2500 (0.1755 to 0.3430)"


@pytest.mark.parametrize("share", [0.1, 0.2, 0.29, 0.7])
def test_seeds_that_agree_up_to_rounding_agree(share):
    """The standard deviation of three equal numbers may be 3e-17."""
    results = study_results((share,) * 3, (share,) * 3)
    assert " ± " not in _scores(results, "boards")[0].rows[0][-1]
    found = figure(results, Rule(figure="score_gain", measurement="boards", arm="a1", reference="a0", holds=0.1))
    assert found.high - found.low > 0.01


def test_the_verdict_on_seeds_that_agree_is_not_certain():
    rule = Rule(figure="score_gain", measurement="boards", arm="a1", reference="a0", holds=0.1)
    found = figure(study_results((0.0, 0.0), (0.0, 0.0)), rule)
    assert (found.value, found.low, found.high) == (
        0.0,
        pytest.approx(-0.0188, abs=1e-4),
        pytest.approx(0.0188, abs=1e-4),
    )
    found = figure(study_results((0.0, 0.0), (0.5, 0.7)), rule)
    assert found.low == pytest.approx(0.6 - 12.706 * 0.1), "the t interval over seeds where they differ"
