"""YAML files and values that people write, read as text: the meaning of a word is decided by who asks for it.

YAML 1.1 reads `010` as 8, `1:30` as 90, `yes` as true and `2024-06-01` as a date. Here every word stays as it was typed
(`Word`); `typed_words` converts it to the type that a key has.
"""

from collections.abc import Iterator
from pathlib import Path

import yaml

from data_pipeline.errors import DataError

STRING, SEQUENCE, MAPPING = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))


class YamlError(DataError):
    """The text is not YAML that can be read without a guess; the message names the file, the line and the fix."""


class Word(str):
    """A scalar as it was typed.

    Attributes:
        line: its line, from 1; 0 outside a file.
        quoted: it stood in quotation marks, so `"null"` and `""` are texts.
    """

    line: int
    quoted: bool

    def __new__(cls, text: str, line: int = 0, quoted: bool = False) -> "Word":
        """A word with its place."""
        word = super().__new__(cls, text)
        word.line, word.quoted = line, quoted
        return word

    @property
    def is_null(self) -> bool:
        """Whether it means "no value" for a key that may have none."""
        return not self.quoted and self in ("", "~", "null", "Null", "NULL")


class Section(dict[str, "Value"]):
    """The keys and values of a mapping.

    Attributes:
        lines: line of each key.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}


Value = Word | list["Value"] | Section


class _Loader(yaml.SafeLoader):
    """Takes no word for a number, a date or a truth value."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012


def read_yaml(path: Path) -> Value:
    """Content of a YAML or JSON file; a file without content gives an empty section.

    Raises:
        OSError: the file cannot be read.
        YamlError: it is not valid YAML, has a key twice, or more than one document.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise YamlError(f"{path}, line {line}: is not UTF-8 text; save the file as UTF-8") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Value:
    """Content of a YAML text; `name` stands for it in messages. Raises YamlError."""
    try:
        node = yaml.compose(text, _Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"{name}, line {line}: not valid YAML: a control character; remove it") from None
    except yaml.MarkedYAMLError as error:
        raise YamlError(f"{name}{_what_is_wrong(error, text)}") from None
    if node is None:
        return Section()
    tree = _Tree(name)
    value = tree.build(node, ())
    if tree.repeated:
        raise YamlError("; ".join(tree.repeated))
    return Section() if isinstance(value, Word) and value.is_null else value


def _what_is_wrong(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    written = (text.splitlines() or [""])[min(line, len(text.splitlines()) or 1) - 1]
    if "expected a single document" in str(error):
        return f", line {line}: a second document begins; a file may have one, so remove the `---` between them"
    if "\t" in written[: len(written) - len(written.lstrip())] or "\\t" in str(error.problem):
        return f", line {line}: not valid YAML: a tab, which YAML does not allow there; indent with spaces"
    return f", line {line}: not valid YAML: {error.problem or error.context}; correct that line"


class _Tree:
    """Builds values from YAML nodes.

    Attributes:
        repeated: a message for each key that a mapping has more than once.
    """

    def __init__(self, name: str) -> None:
        self.repeated: list[str] = []
        self._name = name

    def build(self, node: yaml.Node, above: tuple[yaml.Node, ...], key: str = "") -> Value:
        """Value of a node. `above` holds the nodes that contain it, `key` is its dotted key."""
        line = node.start_mark.line + 1
        if node in above:
            raise YamlError(f"{self._name}, line {line}: {key} contains itself; remove the alias")
        if node.tag not in (STRING, SEQUENCE, MAPPING):
            raise YamlError(f"{self._name}, line {line}: tags such as {_short(node.tag)} are not supported; remove it")
        if isinstance(node, yaml.ScalarNode):
            return Word(node.value, line, quoted=node.style is not None)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*above, node), key) for child in node.value]
        return self._section(node, (*above, node), key)

    def _section(self, node: yaml.MappingNode, above: tuple[yaml.Node, ...], key: str) -> Section:
        section, merged = Section(), []
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                raise YamlError(f"{self._name}, line {line}: a key must be a word; correct that line")
            name = name_node.value
            dotted = f"{key}.{name}" if key else name
            value = self.build(value_node, above, dotted)
            if name == "<<" and name_node.style is None:
                merged += self._merged(value, line)
            elif name in section:
                first = section.lines[name]
                self.repeated.append(
                    f"{self._name}, line {line}: {dotted} is already on line {first}; keep one of them"
                )
            else:
                section[name], section.lines[name] = value, line
        for base in merged:  # own keys first, then those of the first base
            for name in base.keys() - section.keys():
                section[name], section.lines[name] = base[name], base.lines[name]
        return section

    def _merged(self, value: Value, line: int) -> Iterator[Section]:
        for base in value if isinstance(value, list) else [value]:
            if not isinstance(base, Section):
                raise YamlError(
                    f"{self._name}, line {line}: `<<` must name sections, such as `<<: *base`; correct that line"
                )
            yield base


def _short(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")
