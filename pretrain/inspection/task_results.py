"""Results of `loopmdm evaluate RUN --tasks` and `--lm-eval` on the page: quality against FLOPs, and tables."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pretrain.inspection.charts import COLOURS, Line, line_chart
from pretrain.inspection.html import short, table
from pretrain.inspection.run_facts import Record, RunFacts
from pretrain.proportions import INTERVAL_NOTE, Interval, interval_of, with_error

POLICY = {"loop_criterion": "{}", "loop_threshold": "below {:g}", "cache": "{} cache", "refresh": "refresh {:g}"}
"""Setting of what is computed -> how it is named after the loops."""
COUNTS = {"denoising_steps": "{} steps", "tokens_per_step": "{} per step"}
"""Setting of a sampler -> how it is named, if not by its own name."""
COST = {
    "tokens_per_forward": "tokens per forward",
    "loops_per_forward": "mean S",
    "block_passes_per_token": "block passes per token",
    "flops_per_token": "FLOPs per token",
    "tokens_per_second": "tokens/s",
}


@dataclass(frozen=True)
class Result:
    """A figure of a task with one way to sample.

    Attributes:
        task: name and number of items; figures of the same task can be compared.
        sampler: its name and options; empty for likelihoods.
        policy: loops, cache and warm start.
        value: NaN if there is none, such as nats per token of samples without any token.
        error: standard error; None if there is none.
        interval: 95% interval of a proportion; None of other figures.
        cost: see `model.sampling.tally.Cost`; empty for likelihoods.
    """

    run: str
    task: str
    metric: str
    sampler: str
    policy: str
    value: float
    error: float | None
    interval: Interval | None
    cost: Mapping[str, Any]

    @property
    def adaptive(self) -> bool:
        """Whether S depends on the row or is a schedule, or something is kept from earlier steps."""
        return not self.policy.isdecimal()

    @property
    def is_drawn(self) -> bool:
        """Whether it has a place in a chart."""
        return bool(self.cost.get("flops_per_token")) and not math.isnan(self.value)


def task_results(runs: Sequence[RunFacts]) -> list[str]:
    """HTML of all tasks, each with the results of all runs; of results that differ in seed or step only, the newest."""
    newest: dict[tuple[str, ...], Result] = {}
    for run in runs:
        for r in sorted(_of_run(run), key=lambda r: (r.task, r.metric, r.sampler)):
            newest.setdefault((r.run, r.task, r.metric, r.sampler, r.policy), r)
    found = sorted(newest.values(), key=lambda r: (r.task, r.metric))
    parts = []
    for task, metric in dict.fromkeys((r.task, r.metric) for r in found):
        results = [r for r in found if (r.task, r.metric) == (task, metric)]
        parts.append(f"<h3>{escape(task)}: {escape(metric)}</h3>")
        if any(r.is_drawn for r in results):
            parts.append(_chart(results, metric, len(runs) > 1))
        parts.append(_table(results, metric, len(runs) > 1))
        if any(r.interval for r in results):
            parts.append(f"<p>{INTERVAL_NOTE}</p>")
    return parts


def _of_run(run: RunFacts) -> Iterator[Result]:
    for name, record in run.task_results:
        if "metric" in record:
            yield from _of_task(run, record)
        elif "lm_eval" in record.get("settings", {}):
            yield from _of_harness(run, record, name)


def _of_task(run: RunFacts, record: Record) -> Iterator[Result]:
    metric, sampler = record["metric"], _sampler(record["settings"].get("sampler", {}))
    task = f"{record['task']}, {record['items']:,} items"
    for row in record["loops"]:
        value = math.nan if row[metric] is None else row[metric]
        yield Result(
            run.name, task, metric.replace("_", " "), sampler, _policy(row), value, row.get(f"{metric}_se"),
            interval_of(row, metric), row.get("cost") or {},
        )  # fmt: skip


def _of_harness(run: RunFacts, record: Record, name: str) -> Iterator[Result]:
    """Every metric of every task; lm-eval calls them such as `acc,none`, and their errors `acc_stderr,none`."""
    for task, figures in record["results"].items():
        for key, value in figures.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, float):
                continue
            error = figures.get(f"{metric}_stderr,{filtered}")
            interval = record.get("intervals", {}).get(task, {}).get(key)
            shots = record.get("n_shot", {}).get(task, 0)
            title = f"lm-eval {task}, {shots}-shot, {record['n_samples'][task]['effective']:,} items"
            shown = metric if filtered == "none" else f"{metric} ({filtered})"
            policy = str(record["settings"].get("loops", name))
            error = error if isinstance(error, float) else None
            yield Result(run.name, title, shown, "", policy, value, error, tuple(interval) if interval else None, {})


def _sampler(record: Mapping[str, Any]) -> str:
    """A sampler in a few words, without what is usual."""
    usual = {"temperature": 1.0, "stop": False}
    sampler = record.get("sampler", "")
    options = {name: value for name, value in record.items() if name != "sampler" and usual.get(name) != value}
    words = [sampler.replace("_", " ")] if sampler else []
    if sampler in options:  # such as --sampler threshold --threshold 0.9
        words[0] += f" {options.pop(sampler):g}"
    for name, value in options.items():
        shown = name.replace("_", " ") + ("" if value is True else f" {value:g}")
        words.append(COUNTS[name].format(value) if name in COUNTS else shown)
    return ", ".join(words)


def _policy(row: Mapping[str, Any]) -> str:
    words = [str(row["loops"])] + [text.format(row[name]) for name, text in POLICY.items() if row.get(name)]
    return ", ".join(words + ["warm start"] * bool(row.get("warm_start")))


def _chart(results: Sequence[Result], metric: str, several: bool) -> str:
    """A line per sampler; what is not a fixed S has a dashed line of its own."""
    lines: dict[tuple[str, str, bool], list[Result]] = {}
    for r in results:
        if r.is_drawn:
            lines.setdefault((r.run, r.sampler, r.adaptive), []).append(r)
    samplers = list(dict.fromkeys((run, sampler) for run, sampler, _ in lines))
    drawn = []
    for (run, sampler, adaptive), found in lines.items():
        words = [run] * several + [sampler, "other loops" if adaptive else "fixed S"]
        points = [(r.cost["flops_per_token"], r.value, r.interval or r.error) for r in found]
        colour = samplers.index((run, sampler)) % COLOURS
        labels = ["adaptive" if r.policy.startswith("adaptive") else r.policy.split(",")[0] for r in found]
        drawn.append(Line(", ".join(words), points, colour, adaptive, labels))
    return line_chart(drawn, "FLOPs per token", metric, logarithmic=True)


def _table(results: Sequence[Result], metric: str, several: bool) -> str:
    shown = {key: title for key, title in COST.items() if any(r.cost.get(key) is not None for r in results)}
    sampled = any(r.sampler for r in results)
    header = ["run"] * several + ["sampler"] * sampled + ["loops", escape(metric), *shown.values()]
    rows = []
    for r in results:
        value = with_error(r.value, r.error, r.interval)
        costs = ["" if r.cost.get(key) is None else _figure(r.cost[key]) for key in shown]
        rows.append([escape(r.run)] * several + [_wrapped(r.sampler)] * sampled + [_wrapped(r.policy), value, *costs])
    return table(header, rows)


def _wrapped(text: str) -> str:
    return f'<span class="wrap">{escape(text)}</span>'


def _figure(value: float) -> str:
    return short(value) if value >= 10_000 else f"{value:,.4g}"
