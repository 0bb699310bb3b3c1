"""Files that are either the old or the new one, never half of either."""

import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
