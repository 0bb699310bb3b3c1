"""Recipe + `key=value` overrides -> checked `Settings`, or every problem at once. Imports no torch.

Precedence, lowest first: the defaults in `settings`, the recipe (one YAML file), the overrides from left to right.
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
from pretrain.errors import ConfigError, Problem, UserError

RECIPES = Path(__file__).parent.parent / "recipes"


def load_settings(recipe: str, overrides: Sequence[str] = ()) -> Settings:
    """Read, merge and check a configuration.

    Args:
        recipe: name of a shipped recipe (`smoke`) or path of a YAML file.
        overrides: such as `optim.lr=3e-4`.

    Raises:
        ConfigError: with all problems found, each naming its key and the fix.
        UserError: the recipe cannot be read.
    """
    path = find_recipe(recipe)
    tree = _read_yaml(path)
    problems = _apply_overrides(tree, overrides)
    if isinstance(tree.setdefault("run", {}), dict):
        tree["run"].setdefault("name", path.stem)
    problems += _remove_unknown_keys(tree)
    settings, invalid = _validate(tree)
    problems += invalid
    # The rules see defaults in the place of what was invalid, so those that involve such a key say nothing of use.
    reported = [problem.key for problem in problems]
    problems += [p for p in problems_of(settings) if not any(p.involves(key) for key in reported)]
    if problems:
        raise ConfigError(problems)
    return settings


def _validate(tree: dict[str, Any]) -> tuple[Settings, list[Problem]]:
    """Settings from the valid part of the tree, and one problem for each other key."""
    adapter = TypeAdapter(Settings)
    try:
        return adapter.validate_python(tree), []
    except ValidationError as error:
        known = {key for key, *_ in describe_keys()}
        invalid: dict[str, Problem] = {}
        for one in error.errors():
            key, text = _key_of(one["loc"], known), _expectation(one["msg"])
            if key in invalid:  # one error for each member of a union
                text = f"{invalid[key].text} or {text.removeprefix('should be ')}"
            value = one["input"] if isinstance(one["input"], str | int | float) else None
            invalid[key] = Problem(key, value, text)
    for key in invalid:
        _delete(tree, key.split("."))
    return adapter.validate_python(tree), list(invalid.values())


def _expectation(message: str) -> str:
    """`should be a valid integer` of pydantic's `Input should be a valid integer, unable to parse string as an integer`."""
    for subject in ("Input ", "Value ", "String "):
        message = message.removeprefix(subject)
    return message.partition(", unable to parse")[0]


def _key_of(location: tuple[int | str, ...], known: set[str]) -> str:
    """The setting that an error of pydantic's belongs to: its path also names list items and members of unions."""
    for length in range(len(location), 0, -1):
        key = ".".join(str(part) for part in location[:length])
        if key in known:
            return key
    return str(location[0])


def find_recipe(recipe: str) -> Path:
    """Path of a recipe given by name or by path. Raises UserError that lists the shipped recipes."""
    for candidate in (Path(recipe), RECIPES / f"{recipe}.yaml"):
        if candidate.is_file():
            return candidate
    names = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    close = difflib.get_close_matches(recipe, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"no recipe {recipe!r}: {hint}give the path of a YAML file or one of: {', '.join(names)}")


def dump_settings(settings: Settings) -> str:
    """Every key as YAML, the content of `config.yaml`; loading it gives the same settings."""
    return yaml.safe_dump(to_jsonable_python(settings), sort_keys=False)


def describe_keys() -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default, help text) of every key, in the order of `settings`."""
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
            yield key, _type_name(info.annotation), _as_override(info.default), info.description or ""


def _as_override(default: Any) -> str:
    """A default as it would be written on the command line; empty for None."""
    match to_jsonable_python(default):
        case None:
            return ""
        case bool(value):
            return str(value).lower()
        case list(values):
            return ",".join(map(str, values))
        case value:
            return str(value)


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
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}; correct that line") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold sections such as `train:`, not a {type(tree).__name__}")
    _expand_auto(tree)
    return tree


def _apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> list[Problem]:
    """Write each `a.b=value` into the tree; return the problems."""
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            problems.append(Problem(repr(override), None, "is not of the form key=value, such as optim.lr=3e-4"))
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            problems.append(Problem(key, text, "the value is not valid YAML; quote it"))
            continue
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            child = node.get(section)
            if not isinstance(child, dict):
                child = node[section] = {}
            node = child
        node[leaf] = value
        _expand_auto(tree)
    return problems


def _expand_auto(tree: dict[str, Any]) -> None:
    """`parallel: auto` stands for `parallel: {auto: true}`."""
    if tree.get("parallel") == "auto":
        tree["parallel"] = {"auto": True}


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _remove_unknown_keys(tree: dict[str, Any]) -> list[Problem]:
    """Delete the keys that no setting has, so that the others can be checked too; return the problems."""
    known = [key for key, *_ in describe_keys()]
    problems = []
    for key, value in list(_leaves(tree)):
        inside = [k for k in known if k.startswith(f"{key}.")]
        if key in known or (value is None and inside):
            continue
        _delete(tree, key.split("."))
        if inside:
            text = f"is a section and has no value; set one of its keys, such as {inside[0]}"
        else:
            meant = _nearest_key(key, known)
            text = f"unknown key; {f'did you mean {meant}?' if meant else '`--help` lists all keys'}"
        problems.append(Problem(key, None, text))
    return problems


OTHER_NAMES = {
    "learning_rate": "lr", "batch_size": "global_batch_size", "max_steps": "steps", "num_steps": "steps",
    "gradient_clipping": "clip_norm", "max_grad_norm": "clip_norm", "dtype": "precision", "num_loops": "loops",
    "max_loops": "loop.max", "sequence_length": "seq_len",
}  # fmt: skip
"""Last parts of keys as other systems call them -> ours."""


def _nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The known key that a wrong one stands for: the same last part, by our name or another's, else similar letters."""
    last = key.rpartition(".")[2].lower()
    last = OTHER_NAMES.get(last, last)
    same = [k for k in known if k == last or k.endswith(f".{last}")]
    close = difflib.get_close_matches(key, same or known, n=1, cutoff=0.0 if same else 0.5)
    return close[0] if close else None


def _delete(tree: dict[str, Any], path: list[str]) -> None:
    """Remove a key, and every section that this leaves empty."""
    if len(path) > 1 and isinstance(tree.get(path[0]), dict):
        _delete(tree[path[0]], path[1:])
        if tree[path[0]]:
            return
    tree.pop(path[0], None)
