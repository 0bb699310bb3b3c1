"""The JSON file with DeepSpeed's own keys: which one a run reads, and which keys it may not hold. Imports no torch.

Keys that follow from the recipe are added in `pretrain/parallel/engine.py`.
"""

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pretrain.config.deepspeed_keys import (
    DEEPSPEED_KEYS,
    DERIVED_DEEPSPEED_KEYS,
    FAULTY_WHEN_TRUE,
    OFFLOAD_DEVICES,
    REMOVED_DEEPSPEED_KEYS,
    UNUSED_DEEPSPEED_KEYS,
)
from pretrain.config.settings import Settings
from pretrain.errors import Problem

DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"

OFFLOAD_LEVELS = ("none", "optimizer", "parameters")
"""`parallel.offload`: each level also offloads what the one before it does."""

DEFAULT_REDUCE_BUCKET = 500_000_000
"""DeepSpeed's default for `reduce_bucket_size`: how many gradients it reduces at once."""


def ds_config_path(settings: Settings) -> Path:
    """The DeepSpeed file of a run: `parallel.ds_config`, or the shipped file for its ZeRO stage."""
    return settings.parallel.ds_config or DS_CONFIGS / f"zero{settings.parallel.zero_stage}.json"


def read_ds_config(path: Path) -> dict[str, Any]:
    """Content of a DeepSpeed file. Raises OSError, or ValueError that says what is wrong and where."""
    text = path.read_text(encoding="utf-8-sig")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                lines = " and ".join(str(line) for line in _lines_of(name, text))
                raise ValueError(f"has the key {name!r} twice, on lines {lines}; keep one of them")
        return dict(pairs)

    def finite(constant: str) -> NoReturn:
        raise ValueError(f"has {constant}, which is no JSON number; give a finite one")

    try:
        content = json.loads(text, object_pairs_hook=unique, parse_constant=finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON: line {error.lineno}: {_what_is_wrong(error)}") from None
    if not isinstance(content, dict):
        raise ValueError("is not a DeepSpeed configuration: the top level must be an object; correct the file")
    return content


def _what_is_wrong(error: json.JSONDecodeError) -> str:
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip(", \t\r\n")
    if after.startswith(("//", "#", "/*")):
        return "JSON has no comments; remove it"
    if after.startswith(("}", "]")) and (before.endswith(",") or error.doc[error.pos : error.pos + 1] == ","):
        return "a comma before the closing bracket; remove it"
    if after.startswith(("True", "False", "None")):
        return "write true, false or null in lower case"
    return f"{error.msg}; correct that line"


def _lines_of(key: str, text: str) -> list[int]:
    return [text.count("\n", 0, found.start()) + 1 for found in re.finditer(rf'"{re.escape(key)}"\s*:', text)]


def deepspeed_file_problems(settings: Settings) -> Iterator[Problem]:
    """A rule (see `rules`): the file can be read, has only keys that DeepSpeed reads, no derived one, and suits `parallel`."""
    path, stage = ds_config_path(settings), settings.parallel.zero_stage

    def problem(text: str) -> Problem:
        return Problem("parallel.ds_config", path, text, related=("parallel.zero_stage", "parallel.offload"))

    if str(path).lstrip().startswith("{"):
        yield problem("is the text of a file; save it as a JSON file and give its path")
        return
    try:
        content = read_ds_config(path)
    except OSError as error:
        yield problem(f"cannot be read ({error.strerror}); give an existing file")
        return
    except UnicodeDecodeError:
        yield problem("is not UTF-8 text; save the file as UTF-8")
        return
    except ValueError as error:
        yield problem(str(error))
        return
    text = path.read_text(encoding="utf-8-sig")
    zero = content.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    for name, mistake in [*_mistakes(content, DEEPSPEED_KEYS, ""), *_offload_mistakes(zero, settings.parallel.offload)]:
        (line, *_) = [*_lines_of(name.rpartition(".")[2], text), 1]
        yield problem(f"line {line}: {mistake}")
    if zero.get("stage", stage) != stage:
        yield problem(f"has ZeRO stage {zero['stage']}, but parallel.zero_stage={stage}; make them equal")
    elif zero.get("overlap_comm") is True and stage < 2:
        yield problem(
            "has overlap_comm=true, which needs ZeRO-2 or ZeRO-3: with a lower stage, gradients are reduced after the last "
            "backward pass; remove it, or set parallel.zero_stage to 2 or 3"
        )


def _mistakes(content: dict[str, Any], known: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """(dotted key, what is wrong) of every key that DeepSpeed would ignore, refuse or take from elsewhere."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if name not in known:
            yield key, f"the key {key!r} {_unknown(name, known, prefix)}"
        elif isinstance(known[name], dict):
            if isinstance(value, dict):
                yield from _mistakes(value, known[name], f"{key}.")
            else:
                yield key, f"the key {key!r} must be an object; correct the file"
        elif not _has_type(value, known[name]):
            if value in ("auto", None):
                wrong = "has no value that DeepSpeed itself could use; give one or remove the key"
            else:
                wrong = f"should be {_named(known[name])}"
            yield key, f"{key}={json.dumps(value)} {wrong}"
        elif value is True and key in FAULTY_WHEN_TRUE:
            yield key, f"{key}=true: {FAULTY_WHEN_TRUE[key]}; remove it from the file"


def _offload_mistakes(zero: dict[str, Any], offload: str) -> Iterator[tuple[str, str]]:
    """The same of every device that contradicts `parallel.offload`, from which the planner and the optimizer's kernel follow."""
    for level, name in enumerate(("offload_optimizer", "offload_param")):
        section, wanted = zero.get(name), OFFLOAD_LEVELS.index(offload) > level
        device = section.get("device") if isinstance(section, dict) else None
        if device in OFFLOAD_DEVICES and (device != "none") != wanted:
            setting = OFFLOAD_LEVELS[level if wanted else level + 1]
            yield (
                name,
                f'zero_optimization.{name}.device="{device}", but parallel.offload={offload}; remove it from the file, or set '
                f"parallel.offload={setting}",
            )


def _unknown(name: str, known: dict[str, Any], prefix: str) -> str:
    if not prefix and name in DERIVED_DEEPSPEED_KEYS:
        return f"follows from {DERIVED_DEEPSPEED_KEYS[name]}; remove it from the file"
    if not prefix and name in UNUSED_DEEPSPEED_KEYS + REMOVED_DEEPSPEED_KEYS:
        return "has no effect on this training; remove it from the file"
    for section, keys in {
        "": DEEPSPEED_KEYS,
        **{k: v for k, v in DEEPSPEED_KEYS.items() if isinstance(v, dict)},
    }.items():
        if name in keys and keys is not known:
            return f"belongs {f'into {section!r}' if section else 'to the top level'}; move it there"
    names = [*known, *(() if prefix else DERIVED_DEEPSPEED_KEYS)]
    close = difflib.get_close_matches(name, names, n=1)
    return f"does not exist in DeepSpeed; {f'did you mean {close[0]!r}?' if close else 'remove it from the file'}"


def _has_type(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, tuple):
        return any(value == one or (isinstance(one, type) and _has_type(value, one)) for one in wanted)
    if wanted in (int, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and value >= 0 and (wanted is float or value == int(value))
    return isinstance(value, wanted) and value != "auto"


def _named(wanted: Any) -> str:
    """Such as `true or false`."""
    if isinstance(wanted, tuple):
        return " or ".join(_named(one) if isinstance(one, type) else json.dumps(one) for one in wanted)
    names = {bool: "true or false", int: "a whole number from 0", float: "a number from 0", str: "a text"}
    return names.get(wanted, "a list" if wanted is list else "an object")


def reduce_bucket(settings: Settings, weights: int) -> int:
    """Number of gradients that DeepSpeed reduces at once.

    Args:
        weights: number of weights of this rank's pipeline stage. A larger bucket would only take memory.
    """
    zero = read_ds_config(ds_config_path(settings)).get("zero_optimization", {})
    return min(int(zero.get("reduce_bucket_size", DEFAULT_REDUCE_BUCKET)), weights)
