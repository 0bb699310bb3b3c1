"""Recipe + `key=value` words -> checked `Settings`, or every problem at once. Imports no torch.

Order of precedence: defaults of `settings`, then the recipe (one YAML file), then the words, from left to right.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from pretrain.config.rules import problems_of
from pretrain.config.settings import Settings
from pretrain.errors import ConfigError, UserError

RECIPES = Path(__file__).parent.parent / "recipes"


def load_settings(recipe: str, words: Sequence[str] = ()) -> Settings:
    """Read, merge and check a configuration.

    Args:
        recipe: name of a shipped recipe (`smoke`) or path of a YAML file.
        words: overrides such as `optim.lr=3e-4`.

    Raises:
        ConfigError: with all problems found, each naming its key and the fix.
        UserError: the recipe cannot be read.
    """
    path = find_recipe(recipe)
    tree = _read_yaml(path)
    problems = _apply_words(tree, words)
    if tree.get("parallel") == "auto":
        tree["parallel"] = {"auto": True}
    if isinstance(tree.setdefault("run", {}), dict):
        tree["run"].setdefault("name", path.stem)
    problems += _remove_unknown_keys(tree)
    settings, invalid = _validate(tree)
    problems += [f"{key}{shown}" for key, shown in invalid.items()]
    # Rules are checked on what is valid; one that speaks of a key told above would only repeat the complaint.
    told = {p.partition(":")[0] for p in problems} | invalid.keys()
    problems += [p for p in problems_of(settings) if not any(key in p for key in told)]
    if problems:
        raise ConfigError(problems)
    return settings


def _validate(tree: dict[str, Any]) -> tuple[Settings, dict[str, str]]:
    """Settings from the valid part of the tree, and what is wrong with each other key."""
    adapter = TypeAdapter(Settings)
    try:
        return adapter.validate_python(tree), {}
    except ValidationError as error:
        known = {key for key, *_ in describe_keys()}
        invalid: dict[str, str] = {}
        for one in error.errors():
            key = _key_of(one["loc"], known)
            told = one["msg"].removeprefix("Input should be ")
            invalid[key] = f"{invalid[key]} or {told}" if key in invalid else f"{_shown(one)}: should be {told}"
    for key in invalid:
        _delete(tree, key.split("."))
    return adapter.validate_python(tree), invalid


def _key_of(location: tuple[int | str, ...], known: set[str]) -> str:
    """The setting that an error of pydantic's is about: its path also names list items and members of unions."""
    for length in range(len(location), 0, -1):
        key = ".".join(str(part) for part in location[:length])
        if key in known:
            return key
    return str(location[0])


def _shown(error: Any) -> str:
    value = error["input"]
    return f"={value}" if isinstance(value, str | int | float | bool) else ""


def find_recipe(recipe: str) -> Path:
    """Path of a recipe given by name or by path. Raises UserError that lists the names there are."""
    for candidate in (Path(recipe), RECIPES / f"{recipe}.yaml"):
        if candidate.is_file():
            return candidate
    names = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    close = difflib.get_close_matches(recipe, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"no recipe {recipe!r}: {hint}give the path of a YAML file or one of: {', '.join(names)}")


def dump_settings(settings: Settings) -> str:
    """YAML of every key, as `config.yaml` holds it; reading it again gives the same settings."""
    return yaml.safe_dump(to_jsonable_python(settings), sort_keys=False)


def describe_keys() -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default, help text) of every key, in order."""
    yield from _walk(Settings, "")


def flatten(settings: Settings) -> dict[str, Any]:
    """Dotted key -> plain value of every key."""
    return dict(_leaves(to_jsonable_python(settings)))


def _walk(section: type, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    documented = section.__pydantic_fields__
    for field in fields(section):
        key, info = f"{prefix}{field.name}", documented[field.name]
        if is_dataclass(info.annotation):
            yield from _walk(info.annotation, f"{key}.")
        else:
            default = to_jsonable_python(info.default)
            yield key, _type_name(info.annotation), "" if default is None else str(default), info.description or ""


def _type_name(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return "|".join(str(a) for a in get_args(annotation))
    if origin in (Union, UnionType):
        return "|".join(_type_name(a) for a in get_args(annotation) if a is not type(None))
    if origin is tuple:
        return "int,int,..."
    if hasattr(annotation, "__metadata__"):
        return _type_name(get_args(annotation)[0])
    return getattr(annotation, "__name__", str(annotation)).lower()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}; mend that line") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold sections such as `train:`, not a {type(tree).__name__}")
    return tree


def _apply_words(tree: dict[str, Any], words: Sequence[str]) -> list[str]:
    """Write `a.b=value` into the tree; return the problems."""
    problems = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            problems.append(f"{word!r}: not of the form key=value, such as optim.lr=3e-4")
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            problems.append(f"{key}={text}: the value is not valid YAML; quote it")
            continue
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            child = node.get(section)
            if not isinstance(child, dict):
                child = node[section] = {}
            node = child
        node[leaf] = value
    return problems


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _remove_unknown_keys(tree: dict[str, Any]) -> list[str]:
    """Take keys that no setting has out of the tree, so that the rest can be checked too; return the problems."""
    known = [key for key, *_ in describe_keys()]
    problems = []
    for key, value in list(_leaves(tree)):
        if key in known or (value is None and any(k.startswith(f"{key}.") for k in known)):
            continue
        _delete(tree, key.split("."))
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        inside = [k for k in known if k.startswith(f"{key}.")]
        if inside:
            problems.append(f"{key}: is a section, not a value; give one of its keys, such as {inside[0]}")
        else:
            hint = f"did you mean {close[0]}?" if close else "`--help` lists the keys"
            problems.append(f"{key}: unknown key; {hint}")
    return problems


def _delete(tree: dict[str, Any], path: list[str]) -> None:
    """Remove a key, and the sections that it leaves empty."""
    if len(path) > 1 and isinstance(tree.get(path[0]), dict):
        _delete(tree[path[0]], path[1:])
        if tree[path[0]]:
            return
    tree.pop(path[0], None)
