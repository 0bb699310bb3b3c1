"""Results of a run's `eval/` folder for its model card."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def newest_evaluations(folder: Path, step: int, weights: str) -> dict[str, Any]:
    """Name -> content of the result files of these weights, else of the newest step before them that has any.

    Args:
        folder: `eval/` of a run; it need not exist.
        step, weights: of the checkpoint; "ema" or "raw".
    """
    results = dict(_results(folder))
    of_these = {name: r for name, r in results.items() if (r["step"], r["weights"]) == (step, weights)}
    newest = max((result["step"] for result in results.values() if result["step"] <= step), default=None)
    return of_these or {name: result for name, result in results.items() if result["step"] == newest}


def _results(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every readable result that says what it belongs to."""
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if (
            isinstance(content, dict)
            and isinstance(content.get("step"), int)
            and isinstance(content.get("weights"), str)
        ):
            yield path.name, content


def result_lines(name: str, result: Mapping[str, Any]) -> list[str]:
    """Markdown for one result: what was evaluated, and the NELBO at every number of loops if it has them."""
    rows = result.get("loops")
    about = f"`{name}`: step {result['step']:,}, {result['weights']} weights"
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) and "nats_per_token" in row for row in rows)):
        return [f"{about}; the figures are in `loopmdm/run.json`.", ""]
    about += "".join(f", {result[key]}" for key in ("split", "data") if result.get(key))
    if isinstance(result.get("rows"), int):
        about += f", {result['rows']:,} rows"
    lines = [f"{about}.", "", "| loops | nats/token | bits/byte |", "|---|---|---|"]
    return [*lines, *(_row(row) for row in rows), ""]


def _row(row: Mapping[str, Any]) -> str:
    shown = []
    for unit in ("nats_per_token", "bits_per_byte"):
        value, error = row.get(unit), row.get(f"{unit}_se")
        shown.append("" if value is None else f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}"))
    return f"| {row.get('loops')} | {shown[0]} | {shown[1]} |"
