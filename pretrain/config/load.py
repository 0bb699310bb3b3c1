"""Recipe + `key=value` overrides -> checked `Settings`, or every problem at once. Imports no torch.

Precedence, lowest first: the defaults in `settings`, the recipe (one YAML file), the overrides from left to right.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from data_pipeline.dataset.blend import Blend, load_blend
from data_pipeline.errors import DataError
from data_pipeline.typed_words import path_of
from data_pipeline.yaml_files import Section, Value, Word, YamlError, read_yaml
from pretrain.config.keys import annotations, hint, inside
from pretrain.config.overrides import parse_overrides
from pretrain.config.rules import AUTO_CHOOSES, problems_of
from pretrain.config.settings import Parallel, Settings
from pretrain.config.typed import MistypedError, typed
from pretrain.errors import ConfigError, Problem, UserError

RECIPES = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True)
class Given:
    """A value that somebody typed.

    Attributes:
        place: such as `line 3 of mine.yaml`; empty for an override.
    """

    value: Value
    place: str = ""

    @property
    def word(self) -> Word | None:
        """The value for a message, if it is a single word."""
        return self.value if isinstance(self.value, Word) and self.value else None


def load_settings(recipe: str, overrides: Sequence[str] = ()) -> Settings:
    """Read, merge and check a configuration.

    Args:
        recipe: name of a shipped recipe (`smoke`) or path of a YAML file.
        overrides: such as `optim.lr=3e-4`.

    Raises:
        ConfigError: with all problems found, each naming its key and the fix.
        UserError: the recipe cannot be read.
    """
    settings, problems = _read_settings(recipe, overrides)
    if problems:
        raise ConfigError(problems)
    return settings


def load_run(recipe: str, overrides: Sequence[str] = ()) -> tuple[Settings, Blend]:
    """`load_settings`, and the data that the settings name.

    Raises:
        ConfigError, UserError: as `load_settings`; a problem of the data is reported with those of the settings.
        DataError: only the data is wrong.
    """
    settings, problems = _read_settings(recipe, overrides)
    try:
        blend = load_blend(settings.data.path)
    except DataError as error:
        if not problems:
            raise DataError(f"{error}{_own_command(recipe, settings.data.path)}") from None
        if not any(problem.involves("data.path") for problem in problems):
            problems.append(Problem("data.path", settings.data.path, str(error)))
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return settings, blend


def _own_command(recipe: str, data: Path) -> str:
    """The command that a recipe names for its data, in a line `# Data: COMMAND`, if they are missing."""
    lines = find_recipe(recipe).read_text(encoding="utf-8").splitlines()
    own = [
        line.removeprefix("# Data: ")
        for line in lines
        if line.startswith("# Data: loopmdm prepare ") and f"--output {data} " in f"{line} "
    ]
    return f"; the data of this recipe: {own[0]}" if own and not data.exists() else ""


def override_of(key: str, overrides: Sequence[str]) -> Any:
    """The value that overrides give to a key, of its type; None if they do not. Raises ConfigError: it has another type."""
    given = _given_by(parse_overrides(overrides)[0])
    values, problems = _typed({key: given[key]} if key in given else {})
    if problems:
        raise ConfigError(problems)
    return values.get(key)


def find_recipe(recipe: str) -> Path:
    """Path of a recipe given by name or by path. Raises UserError that lists the shipped recipes."""
    try:
        given = path_of(recipe)
    except ValueError as error:
        raise UserError(f"--config {recipe}: {error}") from None
    for candidate in (given, RECIPES / f"{recipe}.yaml"):
        if candidate.is_file():
            return candidate
    if given.is_dir():
        raise UserError(f"--config {recipe}: is a folder; give a YAML file, such as {given / 'config.yaml'}")
    names = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    close = difflib.get_close_matches(recipe, names, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"no recipe {recipe!r}: {meant}give the path of a YAML file or one of: {', '.join(names)}")


def dump_settings(settings: Settings) -> str:
    """Every key as YAML, the content of `config.yaml`; loading it gives the same settings."""
    return yaml.safe_dump(to_jsonable_python(settings), sort_keys=False)


def _read_settings(recipe: str, overrides: Sequence[str]) -> tuple[Settings, list[Problem]]:
    """Settings from what is valid, and all problems."""
    path = find_recipe(recipe)
    words, unreadable = parse_overrides(overrides)
    given = _read_recipe(path) | _given_by(words)
    if not given.get("run.name", Given(Word(""))).value:
        given["run.name"] = Given(Word(_legal_name(path.stem)))
    values, wrong = _typed(given)
    settings, invalid = _validate(values, given)
    problems = wrong + invalid + _layout_beside_auto(values, given)
    # The rules see defaults in the place of what was invalid, so those that involve such a key say nothing of use.
    reported = [problem.key for problem in unreadable + problems]
    problems += [p for p in problems_of(settings) if not any(p.involves(key) for key in reported)]
    return settings, unreadable + [replace(p, place=given[p.key].place) if p.key in given else p for p in problems]


def _read_recipe(path: Path) -> dict[str, Given]:
    """Every value of a recipe by its dotted key. Raises UserError."""
    try:
        tree = read_yaml(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except YamlError as error:
        raise UserError(str(error)) from None
    if not isinstance(tree, Section):
        kind = "list" if isinstance(tree, list) else "single value"
        raise UserError(f"{path}: must hold sections such as `train:`, not a {kind}")
    given: dict[str, Given] = {}
    for name, value in tree.items():
        for key, one in _flat(name, value, str(path), tree.lines[name]).items():
            if key in given:
                raise UserError(f"{path}: {key} is on {given[key].place} and on {one.place}; keep one of them")
            given[key] = one
    return given


def _flat(key: str, value: Value, path: str, line: int = 0) -> dict[str, Given]:
    """The values of a key by dotted key; an empty section gives none, so that its defaults stay."""
    if key == "parallel" and value == "auto":  # `parallel: auto` is short for `parallel: {auto: true}`
        key, value = "parallel.auto", Word("true")
    if isinstance(value, Section) and key not in annotations() and (value or inside(key)):
        found: dict[str, Given] = {}
        for name, child in value.items():
            found |= _flat(f"{key}.{name}", child, path, value.lines[name])
        return found
    if inside(key) and isinstance(value, Word) and value.is_null:
        return {}
    return {key: Given(value, f"line {line} of {path}" if path else "")}


def _given_by(words: Sequence[tuple[str, Value]]) -> dict[str, Given]:
    """Every value of the words of overrides by its dotted key; of a key given twice, the last one."""
    given: dict[str, Given] = {}
    for key, value in words:
        given |= _flat(key, value, "")
    return given


def _legal_name(stem: str) -> str:
    """A run name from the name of a file: other characters than letters, digits, `_`, `-` and `.` become `_`."""
    name = re.sub(r"[^\w.\-]+", "_", unicodedata.normalize("NFC", stem))
    return name if name.strip(".") else "run"


def _typed(given: dict[str, Given]) -> tuple[dict[str, Any], list[Problem]]:
    """Values of the right types by dotted key, and one problem for each other key."""
    values, problems = {}, []
    for key, one in given.items():
        if (annotation := annotations().get(key)) is None:
            problems.append(Problem(key, None, _unknown(key, one.value)))
            continue
        try:
            values[key] = typed(one.value, annotation)
        except MistypedError as error:
            problems.append(Problem(key, error.word or None, str(error)))
    return values, problems


def _unknown(key: str, value: Value) -> str:
    """What is wrong with a key that takes no value."""
    if keys := inside(key):
        colon = re.fullmatch(r"(\w+)\s*[:=]\s*(\S.*)", value) if isinstance(value, Word) else None
        if colon:
            return f"is a section; write its keys as `{colon[1]}: {colon[2]}`, with a space after the colon"
        return f"is a section and has no value; set one of its keys, such as {keys[0]}"
    for leaf in annotations():
        if key.startswith(f"{leaf}."):
            return f"unknown key; {leaf} takes a value and has no keys below it"
    return f"unknown key; {hint(key)}"


def _validate(values: dict[str, Any], given: dict[str, Given]) -> tuple[Settings, list[Problem]]:
    """Settings from the valid values, and one problem for each other value."""
    adapter = TypeAdapter(Settings)
    try:
        return adapter.validate_python(_nested(values)), []
    except ValidationError as error:
        problems: dict[str, Problem] = {}
        for one in error.errors():
            key = next(key for key in _prefixes(one["loc"]) if key in values)
            item = one["input"] if isinstance(one["loc"][-1], int) else given[key].word
            problems.setdefault(key, Problem(key, item, _expectation(one)))
    rest = {key: value for key, value in values.items() if key not in problems}
    return adapter.validate_python(_nested(rest)), list(problems.values())


def _layout_beside_auto(values: dict[str, Any], given: dict[str, Given]) -> list[Problem]:
    """A default that was typed beside `parallel=auto`, which would replace it; the rule about other values is in `rules`.

    A recipe's own default gives way to `parallel=auto` on the command line.
    """
    if not values.get("parallel.auto"):
        return []
    keys = [
        key
        for key in (f"parallel.{name}" for name in AUTO_CHOOSES)
        if values.get(key) is not None and (given["parallel.auto"].place or not given[key].place)
        and values[key] == getattr(Parallel(), key.removeprefix("parallel."))
    ]  # fmt: skip
    text = "chooses {0} itself, but {0}={1} is given; leave one of the two out"
    return [Problem("parallel.auto", True, text.format(key, given[key].value)) for key in keys[:1]]


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        node, (*sections, leaf) = tree, key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def _prefixes(location: tuple[int | str, ...]) -> Iterator[str]:
    """Dotted keys that an error's place may belong to, longest first: it also names list items and members of unions."""
    for length in range(len(location), 0, -1):
        yield ".".join(str(part) for part in location[:length])


def _expectation(error: Any) -> str:
    """`should be greater than 0` of pydantic's `Input should be greater than 0`."""
    if error["type"] == "string_pattern_mismatch":
        return "may hold letters, digits, `_`, `-` and `.`, and not dots alone"
    message = error["msg"]
    for subject in ("Input ", "Value ", "String ", "Tuple "):
        message = message.removeprefix(subject)
    return message.partition(" after validation")[0]
