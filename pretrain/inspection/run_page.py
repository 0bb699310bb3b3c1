"""Runs as one self-contained HTML page: training, NELBO by loops, the looped block pass by pass, samples."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from pretrain.inspection.charts import Line, line_chart
from pretrain.inspection.differences import differences
from pretrain.inspection.html import cards, document, section, short, visible
from pretrain.inspection.pieces import pieces_of
from pretrain.inspection.run_facts import RunFacts, loss_name
from pretrain.inspection.task_results import task_results

MEASURES = (
    (
        "attention_over_share",
        "Attention of masked tokens to masked tokens, divided by their share (1: uniform attention)",
    ),
    ("attention", "The same, not divided"),
    ("change_of_direction", "Change of the hidden state's direction"),
    ("relative_change", "Change of the hidden state relative to its norm"),
)
LONGEST_CURVE = 300
"""Points of a training curve; longer ones are thinned."""


def run_page(runs: Sequence[RunFacts]) -> str:
    """The page."""
    names, noisy = ", ".join(run.name for run in runs), [run for run in runs if not run.is_causal]
    parts = [
        f"<h1>{escape(names)}</h1>\n<p>{len(runs)} run{'s' * (len(runs) > 1)}</p>",
        *(_head(run) for run in runs),
        section("Training loss", _training(runs)),
        section("Validation during training", _validation(runs)),
        *([section("Loss by timestep", _by_timestep(noisy))] if noisy else []),
        section(f"{_loss_name(runs)} by loops", _by_loops(runs), differences(runs)),
        section("Tasks", *(task_results(runs) or [_absent([run.name for run in runs], "evaluate", " --tasks TASK")])),
        section("The looped block, pass by pass", *_passes(runs)),
        section("Samples", *_samples(runs)),
    ]
    return document(names, parts)


def _loss_name(runs: Sequence[RunFacts]) -> str:
    return loss_name({run.is_causal for run in runs})


def _head(run: RunFacts) -> str:
    model, train = run.settings["model"], run.settings["train"]
    loop, last = model["loop"], run.steps[-1] if run.steps else {}
    figures = [
        (f"{last.get('step', 0):,}", "steps"),
        (short(last.get("tokens", 0)), "tokens"),
        (f"{last.get('flops', 0):.2e}", "training FLOPs"),
        (f"{loop['head']}-{loop['mid']}-{loop['tail']} x {model['hidden_size']}", "head-mid-tail layers x width"),
        (str(train["loops"]), f"loops S, S_max {loop['max']}"),
        (f"{last.get('tokens_per_second', 0):,.0f}", "tokens/s at the end"),
    ]
    return f"<h3>{escape(str(run.folder))}</h3>\n{cards(figures)}"


def _training(runs: Sequence[RunFacts]) -> str:
    lines = [
        Line(run.name, [(r["tokens"], r["loss"], None) for r in _thinned(run.steps) if r["loss"] is not None], number)
        for number, run in enumerate(runs)
    ]
    noisy = [run for run in runs if not run.is_causal]
    unweighted = [run.name for run in noisy if run.settings["train"].get("loss_weight") == "uniform"]
    notes = []
    if len(unweighted) < len(noisy):
        notes.append("The loss leaves out t below train.min_timestep, so it is lower than the NELBO.")
    if unweighted:
        whose = "" if len(unweighted) == len(noisy) else f" of {' and '.join(unweighted)}"
        notes.append(f"The loss{whose} is the mean cross-entropy of masked tokens, not a bound.")
    return line_chart(lines, "tokens", "loss, nats per token") + f"<p>{escape(' '.join(notes))}</p>"


def _thinned(records: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    return records[:: -(-len(records) // LONGEST_CURVE) or 1]


def _validation(runs: Sequence[RunFacts]) -> str:
    lines = []
    for number, run in enumerate(runs):
        seen: dict[int, list[tuple[float, float, float | None]]] = {}
        for record in run.validations:
            for row in record["validation"].get("loops", []):
                point = (record["tokens"], row["nats_per_token"], row["nats_per_token_se"])
                seen.setdefault(row["loops"], []).append(point)
        lines += [Line(f"{run.name}, S={s}", points, number, i % 2 == 1) for i, (s, points) in enumerate(seen.items())]
    return line_chart(lines, "tokens", f"{_loss_name(runs)}, nats per token")


def _by_timestep(runs: Sequence[RunFacts]) -> str:
    lines = []
    for number, run in enumerate(runs):
        bins = run.steps[-1].get("loss_by_timestep", []) if run.steps else []
        points = [((i + 0.5) / len(bins), value, None) for i, value in enumerate(bins) if value is not None]
        lines.append(Line(run.name, points, number))
    return line_chart(lines, "timestep t", "cross-entropy of masked tokens at the end of training, nats")


def _by_loops(runs: Sequence[RunFacts]) -> str:
    missing = [run.name for run in runs if not run.evaluations]
    lines = [
        Line(f"{run.name}, {run.main_evaluation[0]}", [
            (row["loops"], row["nats_per_token"], row["nats_per_token_se"]) for row in run.main_evaluation[1]["loops"]
        ], number)
        for number, run in enumerate(runs) if run.evaluations
    ]  # fmt: skip
    return (line_chart(lines, "loops S", f"{_loss_name(runs)}, nats per token", whole=True) if lines else "") + _absent(
        missing, "evaluate"
    )


def _passes(runs: Sequence[RunFacts]) -> list[str]:
    missing = [run.name for run in runs if not run.probes]
    parts = []
    for measure, title in MEASURES:
        lines = []
        for number, run in enumerate(run for run in runs if run.probes):
            for i, figures in enumerate(run.probes[0][1]["timesteps"]):
                pairs = zip(figures[measure]["mean"], figures[measure]["standard_error"], strict=True)
                points = [(k, mean, error) for k, (mean, error) in enumerate(pairs, 1)]
                colour = i if len(runs) == 1 else number
                lines.append(Line(f"{run.name}, t={figures['t']:g}", points, colour, len(runs) > 1 and i % 2 == 1))
        if lines:
            parts.append(f"<h3>{escape(title)}</h3>\n" + line_chart(lines, "pass k", "mean over rows", whole=True))
    return [*parts, _absent(missing, "probe")]


def _samples(runs: Sequence[RunFacts]) -> list[str]:
    parts = []
    for run in runs:
        for name, record in run.samples[:2]:
            texts = "".join(f'<div class="text">{escape(text)}</div>' for text in record["texts"][:2])
            parts.append(
                f'<h3>{escape(run.name)} <span class="soft">{escape(name)}</span></h3>\n<div class="beside">{texts}</div>'
            )
            parts += [_strip(run, record)]
    return [*parts, _absent([run.name for run in runs if not run.samples], "sample")]


def _strip(run: RunFacts, record: dict[str, Any]) -> str:
    """The first sample, each piece of text coloured by the step that revealed it; empty for results without steps."""
    if run.tokenizer is None or not record.get("revealed_at_step"):
        return ""
    tokens, steps = record["tokens"][0], record["revealed_at_step"][0]
    last = max([*steps, 1])
    shown = "".join(
        f'<i style="--a:{0 if piece.draw < 0 else 12 + 60 * piece.draw / last:.0f}%" '
        f'title="{"given" if piece.draw < 0 else f"step {piece.draw + 1:.0f}"}">{visible(piece.text)}</i>'
        for piece in pieces_of(run.tokenizer, tokens, np.array(steps))
    )
    note = "<p>The first sample by step: the stronger the colour, the later it was revealed; point at a token to see its step.</p>"
    return f'{note}\n<div class="text strip">{shown}</div>'


def _absent(names: Sequence[str], verb: str, options: str = "") -> str:
    if not names:
        return ""
    runs = " and ".join(f"<code>{escape(name)}</code>" for name in names)
    return f"<p>Nothing yet of {runs}: run <code>loopmdm {verb} RUN{options}</code> first.</p>"
