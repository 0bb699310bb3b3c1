"""The sections of a report for the measurements of a study: task scores and the probe."""

from typing import Any

import numpy as np

from pretrain.inspection.charts import Error, Line
from pretrain.proportions import interval_of, wilson_interval, with_error
from pretrain.studies.blocks import Block, Chart, Section, Table, Text
from pretrain.studies.definition import Measurement
from pretrain.studies.results import Results, TrialResult


def measurement_sections(results: Results) -> list[Section]:
    """One section for each measurement."""
    return [
        Section(name.replace("_", " ").capitalize(), [Text(measurement.about), *_blocks(results, name, measurement)])
        for name, measurement in results.experiment.study.measurements.items()
    ]


def _blocks(results: Results, name: str, measurement: Measurement) -> list[Block]:
    if measurement.kind == "probe":
        return [_probe(results, name)]
    table, points = _scores(results, name)
    varied = next(iter(measurement.vary), "")
    note = "±: standard error over seeds, or over items with one seed; in parentheses, the 95% interval of a proportion over items."
    return [table, Text(note), *_charts(points, varied)]


def _groups(results: Results, name: str) -> dict[str, list[TrialResult]]:
    return {arm: group for arm, group in results.best.items() if name in group[0].measured}


Scores = dict[tuple[str, str, str], tuple[float, Error]]
"""(arm, value of the varied option, loops) -> mean over seeds and its error, see `_mean`."""


def _scores(results: Results, name: str) -> tuple[Table, Scores]:
    """Every score of a task, with the loops that were spent."""
    rows, points, metric = [], {}, ""
    for arm, group in _groups(results, name).items():
        for option, content in group[0].measured[name].items():
            metric = content["metric"]
            for number, row in enumerate(content["loops"]):
                same = [r.measured[name][option]["loops"][number] for r in group]
                value, error = _mean(same, metric, content["items"])
                points[arm, option, str(row["loops"])] = value, error
                spent = np.mean([_spent(each) for each in same])
                rows.append((arm, option, str(row["loops"]), f"{spent:.2f}", _shown(value, error)))
    return Table(("arm", "option", "loops", "mean loops", metric.replace("_", " ")), rows), points


def _mean(rows: list[dict[str, Any]], metric: str, items: int) -> tuple[float, Error]:
    """Over seeds, with the standard error over seeds, or over items with one seed.

    Where all seeds agree, which says nothing about their spread, and with one seed: the 95% interval of a proportion, over the
    items of all seeds.
    """
    values = [row[metric] for row in rows]
    mean = float(np.mean(values))
    alone = len(values) == 1
    error = rows[0].get(f"{metric}_se") if alone else float(np.std(values, ddof=1) / len(values) ** 0.5)
    # Equal values have a deviation of up to 1e-16 for rounding.
    if interval_of(rows[0], metric) and (alone or error < 1e-9):
        return mean, wilson_interval(mean, items * len(values))
    return mean, error


def _shown(value: float, error: Error) -> str:
    return with_error(value, None, error) if isinstance(error, tuple) else with_error(value, error or None)


def _spent(row: dict[str, Any]) -> float:
    if "cost" in row:
        return row["cost"]["loops_per_forward"]
    return float(row["loops"]) if str(row["loops"]).isdecimal() else float("nan")


def _charts(points: Scores, varied: str) -> list[Block]:
    """Against the loops and, if the option that varies is a number, against that."""
    arms = list(dict.fromkeys(arm for arm, *_ in points))
    by_loops: dict[str, Line] = {}
    options = list(dict.fromkeys(option for _, option, _ in points))
    for arm in arms:
        for option in options:
            line = [
                (float(s), v, e) for (a, o, s), (v, e) in points.items() if (a, o) == (arm, option) and s.isdecimal()
            ]
            if line:
                label = f"{arm}, {option}" if option else arm
                colour = arms.index(arm) if len(options) == 1 else options.index(option)
                by_loops[label] = Line(label, line, colour, arms.index(arm) % 2 == 1 and len(options) > 1)
    charts: list[Block] = [Chart("By loops", list(by_loops.values()), "loops S", "score", True)]
    if varied and all(option.replace(".", "", 1).isdecimal() for option in options):
        loops = list(dict.fromkeys((arm, s) for arm, _, s in points))
        lines = [
            Line(f"{arm}, S = {s}", [(float(o), *points[arm, o, s]) for o in options if (arm, o, s) in points],
                 number, arms.index(arm) % 2 == 1)
            for number, (arm, s) in enumerate(loops)
        ]  # fmt: skip
        charts.append(Chart(f"By {varied}", lines, varied, "score"))
    return charts


def _probe(results: Results, name: str) -> Chart:
    """Attention from masked to masked tokens by pass, for every t."""
    lines = []
    for arm_number, (arm, group) in enumerate(_groups(results, name).items()):
        for number, at in enumerate(group[0].measured[name][""]["timesteps"]):
            means = [r.measured[name][""]["timesteps"][number]["attention_over_share"]["mean"] for r in group]
            values = np.mean(means, axis=0)
            errors = np.std(means, axis=0, ddof=1) / len(means) ** 0.5 if len(means) > 1 else [None] * len(values)
            points = [(k, float(v), e and float(e)) for k, (v, e) in enumerate(zip(values, errors, strict=True), 1)]
            lines.append(Line(f"{arm}, t = {at['t']:g}", points, number, arm_number % 2 == 1))
    title = "Attention of masked tokens to masked tokens, divided by their share (1: uniform)"
    return Chart(title, lines, "pass", "mean over rows", whole=True)
