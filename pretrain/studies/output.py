"""The files of a study: `result.json`, `page.html`, `README.md`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.atomic_files import write_atomic
from data_pipeline.json_text import json_text
from pretrain.studies.accounting import CONVENTIONS
from pretrain.studies.blocks import html_page, markdown
from pretrain.studies.figures import Verdict, tie, verdict
from pretrain.studies.report import make_report
from pretrain.studies.results import Results, TrialResult

FIGURES = ("nats_per_token", "nats_per_token_se", "bits_per_byte")


def write_results(folder: Path, results: Results, convention: str, command: str) -> str:
    """Write the files; returns the text that says what they are."""
    found = verdict(results)
    report = make_report(results, found, convention, command)
    content = record(results, found) | {"command": command}
    write_atomic(folder / "result.json", json_text(content, indent=1) + "\n")
    write_atomic(folder / "page.html", html_page(report).encode("utf-8", "backslashreplace"))
    write_atomic(folder / "README.md", markdown(report))
    figures = "\n".join(f"{name}: {value}" for value, name in report.cards)
    return f"{report.claim}\n{figures}\nwrote {folder / 'page.html'}, README.md and result.json"


def record(results: Results, found: Verdict) -> dict[str, Any]:
    """All figures of a study."""
    experiment, (decided, rules) = results.experiment, found
    study, reference = experiment.study, results.reference
    ties = {} if study.grid else {
        arm: {axis: asdict(tie(results, arm, axis, reference)) for axis in (*CONVENTIONS, "seconds")}
        for arm in results.best if arm != reference
    }  # fmt: skip
    return {
        "study": study.name,
        "scale": experiment.scale_name,
        "data": experiment.data_name,
        "claim": study.claim,
        "verdict": decided,
        "rules": [rule.model_dump() | asdict(found) | {"verdict": judged} for rule, found, judged in rules],
        "reference": reference,
        "flops_to_tie": {arm: of["masked_head"] for arm, of in ties.items()},
        "seconds_to_tie": {arm: of["seconds"] for arm, of in ties.items()},
        "to_tie_by_convention": ties,
        "learning_rates": [{"arm": r.trial.arm, "lr": r.trial.lr, "nats_per_token": r.nelbo()} for r in results.tuning],
        "arms": {arm: [_trial(r) for r in group] for arm, group in results.best.items()},
    }


def _trial(result: TrialResult) -> dict[str, Any]:
    return {
        "seed": result.trial.seed,
        "lr": result.trial.lr,
        "key": result.trial.folder.name,
        "steps": result.end["step"],
        "flops": result.end["flops"],
        "seconds": result.end["seconds"],
        "where": result.where,
        "tokens": result.end["tokens"],
        "mean_loops": result.mean_loops,
        "validations": [
            {key: value for key, value in each.items() if key != "loops"}
            | {"loops": {str(s): {name: row.get(name) for name in FIGURES} for s, row in each["loops"].items()}}
            for each in result.validations
        ],
        "by_timestep": {
            str(s): [each["nats_per_token"] for each in row["by_timestep"]] for s, row in result.end["loops"].items()
        },
        "measured": {
            name: {option: _measured(content) for option, content in of.items()} for name, of in result.measured.items()
        },
    }


def _measured(content: dict[str, Any]) -> dict[str, Any]:
    """A result without what only says how it was asked for."""
    return {key: value for key, value in content.items() if key not in ("settings", "step", "weights")}
