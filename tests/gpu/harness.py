"""What every check uses: figures that are kept whatever happens next, and the two files that show them.

A check consists of parts. An error in a part is recorded and the next part runs. After every part the results of all checks so
far are written to OUTPUT, so that a killed run keeps what it has.
"""

import json
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.atomic_files import write_atomic

WRITING = threading.Lock()
"""Held while the results are written: the process that starts the checks waits for each in a thread of its own."""

STATES = {True: "ok", False: "FAILED", None: "not finished"}


@dataclass
class Check:
    """One check at work.

    Attributes:
        name: as in the table.
        output: folder of results.json, results.md and log.txt.
        scratch: folder for data, run folders and intermediate results.
        device: "cuda" or "cpu".
        quick: use the smallest sizes that still run every line.
        parts: results so far, in order.
    """

    name: str
    output: Path
    scratch: Path
    device: str
    quick: bool
    parts: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield a dictionary for the figures of one part; an exception fails this part only."""
        figures: dict[str, Any] = {}
        result = {"check": self.name, "part": name, "ok": None, "seconds": 0.0, "problems": [], "figures": figures}
        self.parts.append(result)
        begin = time.perf_counter()
        try:
            self.write()
            yield figures
        except Exception as error:
            result["traceback"] = traceback.format_exc()
            result["problems"].append(f"{type(error).__name__}: {error}"[:2000])
            if isinstance(error, TimeoutError):
                raise
        finally:
            result["ok"] = not result["problems"]
            result["seconds"] = round(time.perf_counter() - begin, 2)
            self.write()
            print(f"{self.name}, {name}: {STATES[result['ok']]} {json.dumps(figures, default=str)[:1500]}", flush=True)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Record a problem of the current part if something does not hold; the part continues."""
        if not holds:
            self.parts[-1]["problems"].append(otherwise)

    def write(self) -> None:
        """Save the parts of this check and renew the table of all checks."""
        write_atomic(self.scratch / "parts" / f"{self.name}.json", json.dumps(self.parts, default=str))
        write_results(self.output, self.scratch)


def read_results(scratch: Path) -> list[dict[str, Any]]:
    """The parts of all checks, in the order in which the checks began."""
    files = sorted((scratch / "parts").glob("*.json"))
    lists = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    order = json.loads((scratch / "order.json").read_text(encoding="utf-8"))
    return sorted((part for parts in lists for part in parts), key=lambda part: order.index(part["check"]))


def write_results(output: Path, scratch: Path) -> None:
    """OUTPUT/results.json with everything, and OUTPUT/results.md with one line per part."""
    machine = json.loads((scratch / "machine.json").read_text(encoding="utf-8"))
    parts = read_results(scratch)
    lines = [", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    lines += ["| check | part | result | seconds | figures | problems |", "|---|---|---|---|---|---|"]
    for part in parts:
        cells = [part["check"], part["part"], STATES[part["ok"]], f"{part['seconds']:.1f}"]
        cells += [short(part["figures"]), "; ".join(part["problems"])[:400]]
        lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    with WRITING:
        write_atomic(output / "results.json", json.dumps({"machine": machine, "parts": parts}, indent=1) + "\n")
        write_atomic(output / "results.md", "\n".join(lines) + "\n")


def short(figures: dict[str, Any]) -> str:
    """The figures that are single values; lists and tables are in results.json only."""
    shown = []
    for name, value in figures.items():
        if isinstance(value, float):
            shown.append(f"{name} {value:,.0f}" if abs(value) >= 1000 else f"{name} {value:.3g}")
        elif isinstance(value, int) or (isinstance(value, str) and len(value) < 80):
            shown.append(f"{name} {value}")
    return ", ".join(shown)
