"""Records of single items, one JSON object per line, so that an evaluation that was stopped can go on.

The first line has the settings. A file of other settings is left alone, and the next name is taken.
"""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.json_text import json_text, lines_of


class ItemFile:
    """Items that are done.

    Attributes:
        path: the file; None if the folder cannot be written, then records are kept in memory only.
        records: number of an item -> its record.
        spent: what items that were done together have cost, any figures that add up.
    """

    def __init__(self, folder: Path, stem: str, settings: Mapping[str, Any]) -> None:
        self.records: dict[int, dict[str, Any]] = {}
        self.spent: list[list[float]] = []
        self.path: Path | None = None
        header = json_text({"settings": settings})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path = self._open(folder, stem, header)
        except OSError:
            return

    def add(self, records: Sequence[Mapping[str, Any]], spent: Sequence[float]) -> None:
        """Append records and what they have cost. Where they cannot be written, on a full disk, they are kept in memory only."""
        self.records |= {record["item"]: dict(record) for record in records}
        self.spent.append(list(spent))
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json_text(record) + "\n" for record in [*records, {"spent": spent}]))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self.path = None

    def _open(self, folder: Path, stem: str, header: str) -> Path:
        for name in itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2))):
            path = folder / f"{name}.items.jsonl"
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(header + "\n")
            except FileExistsError:
                if not self._read(path, header):
                    continue
            return path
        raise AssertionError("the names never end")

    def _read(self, path: Path, header: str) -> bool:
        """Take over the records of a file with these settings; False if it has others. A line cut off by a kill is removed."""
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = lines_of(whole.decode("utf-8", errors="replace"))
        try:
            if not lines or json.loads(lines[0]) != json.loads(header):
                return False
            found = [json.loads(line) for line in lines[1:]]
        except ValueError:
            return False
        self.records = {record["item"]: record for record in found if "item" in record}
        self.spent = [record["spent"] for record in found if "spent" in record]
        if len(whole) < len(content) and os.access(path, os.W_OK):
            os.truncate(path, len(whole))
        return True
