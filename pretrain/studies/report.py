"""The report of a study: set-up, curves, tables, FLOPs to tie, verdict."""

from collections.abc import Sequence

import numpy as np

from pretrain.durations import format_duration
from pretrain.inspection.charts import Line, interval_chart
from pretrain.inspection.html import short
from pretrain.studies.accounting import CONVENTIONS
from pretrain.studies.blocks import Block, Chart, Drawing, Report, Section, Table, Text
from pretrain.studies.boards import drawings
from pretrain.studies.definition import Rule
from pretrain.studies.estimates import aligned
from pretrain.studies.exponent import exponent_of
from pretrain.studies.figures import Verdict, tie
from pretrain.studies.measurement_blocks import measurement_sections
from pretrain.studies.results import Results, TrialResult

MOST_CURVES = 10
"""Arms of one chart; a study with more has tables alone."""

MANY_RULES = 4
"""From so many differences on, the verdict has a picture."""


def make_report(results: Results, found: Verdict, convention: str, command: str) -> Report:
    """The report; its charts use one of `CONVENTIONS`."""
    study = results.experiment.study
    sections = [
        Section("Verdict", _verdict(results, found)),
        Section("What the models write", drawings(results) if study.boards else []),
        Section("Set-up", _setup(results)),
        Section("Training", _curves(results, convention)),
        Section("FLOPs and seconds to tie", _ties(results)),
        Section(f"{results.loss_name} by loops", _by_loops(results)),
        Section("Loss by timestep", _by_timestep(results)),
        *measurement_sections(results),
        Section("Recurrence exponent", _exponent(results) if study.grid else []),
        Section("Learning rates", _rates(results)),
    ]
    return Report(
        f"Study {study.name}, {results.experiment.scale_name}", study.claim, _cards(results, found), sections, command
    )


def _cards(results: Results, found: Verdict) -> list[tuple[str, str]]:
    figures = [(str(interval), _what(rule)) for rule, interval, _ in found[1][:3]]
    seconds = sum(r.end["seconds"] for r in _all(results))
    spent = [(format_duration(seconds), f"training, {len(_all(results))} trainings")]
    return [(found[0], f"verdict, {len(results.seeds)} seed{'s' * (len(results.seeds) > 1)}"), *figures, *spent]


def _all(results: Results) -> list[TrialResult]:
    """Every training once."""
    rest = [r for group in results.best.values() for r in group if r not in results.tuning]
    return [*results.tuning, *rest]


def _what(rule: Rule) -> str:
    """The figure of a rule in words."""
    who = f"{rule.arm}{_at(rule.loops)}{f' ({rule.option})' if rule.option else ''}"
    other = rule.reference or (rule.arm if rule.reference_loops else "")
    if other:
        who += f" against {other}{_at(rule.reference_loops)}"
    measured = f" of {rule.measurement}" if rule.measurement else ""
    return f"{rule.figure.replace('_', ' ')}{measured}: {who}" if who else rule.figure


def _at(loops: str | None) -> str:
    return f" at S = {loops}" if loops else ""


def _verdict(results: Results, found: Verdict) -> list[Block]:
    study, rows = results.experiment.study, []
    for rule, interval, judged in found[1]:
        sign = "at most" if rule.below else "at least"
        rows.append((_what(rule), str(interval), f"{sign} {rule.holds:g}", judged))
    return [
        Text(f"Source: {study.source}. Reported: {study.reported}"),
        Table(("figure", "here (95% interval)", "the claim holds from", "verdict"), rows),
        *_gains(found, results.loss_name),
    ]


def _gains(found: Verdict, loss: str) -> list[Block]:
    """A picture of the differences in the loss, if there are many."""
    gains = [
        (_what(rule).partition(": ")[2], interval) for rule, interval, _ in found[1] if rule.figure == "nelbo_gain"
    ]
    rows = [
        (name, each.value, None if each.low is None or each.high is None else (each.low, each.high))
        for name, each in gains if each.value is not None
    ]  # fmt: skip
    if len(rows) < MANY_RULES:
        return []
    return [Drawing("Gains", interval_chart(rows, f"{loss} of the second minus that of the first, nats per token"))]


def _setup(results: Results) -> list[Block]:
    experiment, rows = results.experiment, []
    for arm, group in results.best.items():
        plan, flops = group[0].trial.plan, [r.end["flops"] for r in group]
        model = plan.settings.model
        rows.append((
            f"{arm}: {experiment.arms[arm].about}", f"{model.loop.head} + {model.loop.mid} x S + {model.loop.tail}",
            short(sum(model.parameter_count().values())), f"{model.loop.max}", f"{group[0].mean_loops:.2f}",
            f"{group[0].trial.lr:g}", f"{plan.total_steps:,}", f"{np.mean(flops):.3g}",
            format_duration(float(np.mean([r.end["seconds"] for r in group]))),
        ))  # fmt: skip
    settings = results.tuning[0].trial.plan.settings
    header = ("arm", "layers", "weights", "S_max", "mean S", "lr", "steps", "FLOPs", "seconds")
    about = (
        f"Recipe {experiment.study.recipe}, width {settings.model.hidden_size}, rows of {settings.data.seq_len} tokens, batch "
        f"{settings.train.global_batch_size}, {settings.train.precision}. Data: {experiment.data_name}, "
        f"{settings.model.vocab_size} token ids. FLOPs: {CONVENTIONS['masked_head']}; a multiply-add is two. "
        f"{_about_seconds([r.where for r in _all(results)])}"
    )
    return [Table(header, rows), Text(about)]


def _about_seconds(places: Sequence[str | None]) -> str:
    """What the seconds are, and whether those of different trainings can be compared."""
    known = list(dict.fromkeys(place or "a machine that was not written down" for place in places))
    if len(known) > 1:
        return f"Seconds are those of training alone and cannot be compared: trainings ran on {'; on '.join(known)}."
    if places[0] is None:
        return "Seconds are those of training alone, while other trainings of the study ran on the same machine."
    return f"Seconds are those of training alone, on {known[0]}."


def mean_line(
    group: Sequence[TrialResult], axis: str, loops: str | None = None
) -> list[tuple[float, float, float | None]]:
    """Mean over seeds with its standard error, at about as many points as one seed has validations."""
    curves = [r.curve(axis, loops) for r in group]
    positions, values = aligned(curves)
    count = len(values)
    # Seeds are validated at shares of the training that are equal, or hardly differ.
    every = max(1, round(len(positions) / len(curves[0][0])))
    errors = values.std(axis=0, ddof=1) / count**0.5 if count > 1 else np.zeros(len(positions))
    points = list(zip(positions, values.mean(axis=0), errors, strict=True))[::-every][::-1]
    return [(float(x), float(y), float(e) if count > 1 else None) for x, y, e in points]


def _curves(results: Results, convention: str) -> list[Block]:
    if len(results.best) > MOST_CURVES:
        return []
    charts = []
    for axis, label in ((convention, f"training FLOPs: {CONVENTIONS[convention]}"), ("seconds", "seconds of training")):
        lines = [Line(arm, mean_line(g, axis), i) for i, (arm, g) in enumerate(results.best.items())]
        charts.append(Chart(f"{results.loss_name} at S_max against {axis if axis == 'seconds' else 'FLOPs'}", lines, label,
                            f"{results.loss_name}, nats per token"))  # fmt: skip
    errors = "Error bars are standard errors over seeds." if len(results.seeds) > 1 else "One seed: no error bars."
    return [*charts, Text(errors)]


def _ties(results: Results) -> list[Block]:
    """Every arm against the reference, in every convention."""
    others = [arm for arm in results.best if arm != results.reference]
    if results.experiment.study.grid or not others:
        return []
    rows = [
        (text, *(str(tie(results, arm, axis, results.reference)) for arm in others))
        for axis, text in (*CONVENTIONS.items(), ("seconds", "seconds of training"))
    ]
    note = (
        f"How many times less than {results.reference} needs for its final {results.loss_name}: its total divided by "
        "where the mean curve of the other arm, at its S_max, reaches that value (95% t interval over seeds)."
    )
    if all(arm.flops_factor == 1 for arm in results.experiment.arms.values()):
        note += " The budget is equal in the first convention only."
    return [Table(("counted", *others), rows), Text(note)]


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean ± standard error over seeds."""
    error = f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{error}"


def _by_loops(results: Results) -> list[Block]:
    if results.experiment.study.grid:
        return []  # the section of the exponent has them
    every = sorted({s for group in results.best.values() for s in group[0].end["loops"]})
    rows, lines = [], []
    for number, (arm, group) in enumerate(results.best.items()):
        known = group[0].end["loops"]
        rows.append((arm, *(spread([r.nelbo(s) for r in group]) if s in known else "" for s in every)))
        if len(known) > 1:
            lines.append(Line(arm, [(s, float(np.mean([r.nelbo(s) for r in group])), None) for s in known], number))
    table = Table(("arm, nats per token", *(f"S = {s}" for s in every)), rows)
    if not lines or len(lines) > MOST_CURVES:
        return [table]
    loss = results.loss_name
    return [table, Chart(f"{loss} against the loops at inference", lines, "loops S", f"{loss}, nats per token", True)]


def _by_timestep(results: Results) -> list[Block]:
    """The gain of S over S = 1 in each tenth of t; of more than two arms only that of S_max: more lines look alike."""
    lines, few = [], len(results.best) <= 2
    for number, (arm, group) in enumerate(results.best.items()):
        loops, most = group[0].end["loops"], group[0].trial.largest_loops
        second = few and bool(lines)
        for index, s in enumerate(s for s in loops if s != 1 and 1 in loops and (few or s == most)):
            gains = np.mean([_gain_by_timestep(r, s) for r in group], axis=0)
            places = [(i + 0.5) / len(gains) for i in range(len(gains))]
            points = [(x, float(y), None) for x, y in zip(places, gains, strict=True) if np.isfinite(y)]
            lines.append(Line(f"{arm}, S = {s}", points, index if few else number, second))
    if not lines or len(results.best) > MOST_CURVES:
        return []
    return [Chart("Gain of the loops by timestep", lines, "timestep t",
                  "cross-entropy of masked tokens at S = 1 minus that at S, nats")]  # fmt: skip


def _gain_by_timestep(result: TrialResult, loops: int) -> np.ndarray:
    first, other = (
        np.array(
            [np.nan if b["nats_per_token"] is None else b["nats_per_token"] for b in result.figures(s)["by_timestep"]]
        )
        for s in (1, loops)
    )
    return first - other


def _exponent(results: Results) -> list[Block]:
    fit = exponent_of(results)
    rows = [
        (r.trial.arm, f"{r.mean_loops:.2f}", f"{r.end['tokens']:.3g}", f"{r.end['flops']:.3g}", f"{r.nelbo():.4f}")
        for group in results.best.values() for r in group
    ]  # fmt: skip
    about = (
        f"L = E + A (N_once + r^phi N_rec)^-alpha + B D^-beta: phi = {fit.phi} (bootstrap over arms), alpha {fit.alpha:.2f}, "
        f"beta {fit.beta:.2f}, E {fit.floor:.3f}; residuals {fit.error:.4f} nats per token."
    )
    return [Text(about), Table(("arm", "mean S", "tokens", "FLOPs", f"{results.loss_name} at S_max"), rows)]


def _rates(results: Results) -> list[Block]:
    by_arm: dict[str, dict[float, TrialResult]] = {}
    for result in results.tuning:
        by_arm.setdefault(result.trial.arm, {})[result.trial.lr] = result
    rates = sorted({lr for of in by_arm.values() for lr in of})
    rows = []
    for arm, of in by_arm.items():
        best = results.best[arm][0].trial.lr
        rows.append((arm, *(_rate_cell(of[lr], best) if lr in of else "" for lr in rates)))
    note = (
        f"Final {results.loss_name} at S_max with seed 0, nats per token. Every arm had as many rates at the same budget; its "
        "best one (*) was then trained with the other seeds. Seed 0 is among the results, which favours all arms alike."
    )
    return [Table(("arm", *(f"lr {lr:g}" for lr in rates)), rows), Text(note)]


def _rate_cell(result: TrialResult, best: float) -> str:
    return "diverged" if result.diverged else f"{result.nelbo():.4f}{' *' if result.trial.lr == best else ''}"
