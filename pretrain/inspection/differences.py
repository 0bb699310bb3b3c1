"""Differences of the validation loss between runs. Only evaluations of the same rows with the same masks are subtracted."""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import product
from typing import Any

from pretrain.inspection.html import table
from pretrain.inspection.run_facts import Record, RunFacts, loss_name


def differences(runs: Sequence[RunFacts]) -> str:
    """Every run against the first; errors as if the rows were independent.

    Of two runs, the newest two evaluations that can be subtracted count; without such a pair, it is said what is in the way.
    """
    evaluated = [run for run in runs if run.evaluations]
    rows, notes, shown = [], [], ""
    for run in evaluated[1:]:
        first = evaluated[0]
        if run.is_causal != first.is_causal:
            notes.append(
                f"{run.name} is not compared with {first.name}: one of them is autoregressive, whose loss is no bound."
            )
            continue
        pairs = product((r for _, r in run.evaluations), (r for _, r in first.evaluations))
        own, base = min(pairs, key=lambda pair: len(_in_the_way(*pair)))
        if reasons := _in_the_way(own, base):
            notes.append(
                f"{run.name} is not compared with {first.name}: their most similar evaluations differ in "
                f"{', '.join(reasons)}; evaluate both with the same options{' and the same --data' if 'data' in reasons else ''}."
            )
        else:
            rows += [(escape(run.name), *cells) for cells in _rows(own, base)]
    if rows:
        notes.append("Standard errors are those of independent rows.")
        what = f"{loss_name({evaluated[0].is_causal})} minus that of {escape(evaluated[0].name)}, nats per token"
        shown = table(("run", "S", what), rows)
    return shown + "".join(f"<p>{escape(note)}</p>" for note in notes)


def _rows(own: Record, base: Record) -> Iterator[tuple[str, str]]:
    """Number of loops and difference, at the loops that both were evaluated at."""
    found, other = ({row["loops"]: row for row in record["loops"]} for record in (own, base))
    for loops in sorted(found.keys() & other.keys()):
        difference = found[loops]["nats_per_token"] - other[loops]["nats_per_token"]
        errors = [rows[loops]["nats_per_token_se"] for rows in (other, found)]
        spread = "" if None in errors else f" ± {sum(e * e for e in errors) ** 0.5:.4f}"
        yield str(loops), f"{difference:+.4f}{spread}"


def _in_the_way(own: Record, base: Record) -> list[str]:
    """What keeps two evaluations from being subtracted; empty if nothing does."""
    facts, others = _facts(own), _facts(base)
    reasons = [name for name in facts if facts[name] != others[name]]
    if facts["data"] is None and others["data"] is None:
        reasons.append("data, which neither names")
    return reasons if any(_rows(own, base)) else [*reasons, "loops"]


def _facts(record: Record) -> dict[str, Any]:
    """What must be the same. The hash of the data is that of the content, so a moved folder stays the same."""
    settings = record.get("settings", {})
    return {
        "data": settings.get("data_sha256"),
        "shares of the corpora": record.get("shares"),
        "split": settings.get("split"),
        "rows": settings.get("rows"),
        "weights": record.get("weights"),
    }
