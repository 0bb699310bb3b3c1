"""Files of results: a result of other settings is never overwritten, and a folder that cannot be written loses none."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.atomic_files import write_atomic, write_output
from data_pipeline.json_text import json_text


def keep_result(folder: Path, stem: str, content: Mapping[str, Any], output: Path | None = None) -> str:
    """Save a result that has been printed; returns the line that says where, or why it could not be saved.

    Args:
        folder, stem, content: see `save_result`.
        output: the file to write instead.

    Raises:
        DataError: `output` cannot be written.
    """
    if output is None:
        try:
            return f"wrote {save_result(folder, stem, content)}"
        except OSError as error:
            return (
                f"not saved: {folder} cannot be written ({error.strerror}); to save the result, give --output FILE.json"
            )
    write_output("--output", output, json_text(content, indent=2) + "\n")
    return f"wrote {output}"


def save_result(folder: Path, stem: str, content: Mapping[str, Any]) -> Path:
    """Write `STEM.json`, or the first of `STEM_2.json`, `STEM_3.json`, ... that holds no result of other settings.

    Args:
        content: its key `settings` says what was asked for; the same settings replace their earlier result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json_text(content, indent=2) + "\n"
    settings = json.loads(text)["settings"]
    names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    for path in (folder / f"{name}.json" for name in names):
        if path.exists():
            if _settings_of(path) == settings:
                write_atomic(path, text)
                return path
        elif _create(path, text):
            return path
    raise AssertionError("the names never end")


def _settings_of(path: Path) -> Any:
    """What an existing file was made with; None if it does not say."""
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("settings")
    except (ValueError, AttributeError):
        return None


def _create(path: Path, text: str) -> bool:
    """Write a new file; False if another process, such as another job of an array, has created it meanwhile."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True
