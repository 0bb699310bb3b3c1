"""Text keys such as `content.text`: the key `text` of the object under `content`, unless there is a key with the dot in it."""

from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from operator import getitem
from shlex import quote
from typing import Any

from data_pipeline.rejects import listed

# Of objects inside objects, whose keys are suggested.
MAX_DEPTH = 3


def key_path(tree: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    """The keys that lead to `key` in nested objects; a key that is written like this comes first. None if there is none.

    Where null stands in place of an object, the path ends there: the text is null.
    """
    if key in tree:
        return (key,)
    for i, character in enumerate(key):
        if character == "." and (first := key[:i]) in tree:
            inner = tree[first]
            if inner is None:
                return (first,)
            if isinstance(inner, Mapping) and (rest := key_path(inner, key[i + 1 :])):
                return (first, *rest)
    return None


def described(value: object, key: str) -> str:
    """What `key` holds that is not what was asked for, and how to read it, for messages."""
    if isinstance(value, list):
        of_texts = " | {text: .}" if any(isinstance(item, str) for item in value) else ""
        return f"a list; write its items as one object per line, for example with jq -c '.{key}[]{of_texts}'"
    if isinstance(value, Mapping):
        names = [f"{key}.{name}" for name in key_names(value)]
        return f"an object; name one of its keys with --text-key: {listed(names)}"
    return f"a text, which --text-key {quote(key)} reads" if isinstance(value, str) else type(value).__name__


def obstacle(tree: Mapping[str, Any], key: str, describe: Callable[[Any, str], str] = described) -> str:
    """What the longest beginning of `key` that leads to a value holds; "" where none does."""
    for i in (i for i in range(len(key) - 1, 0, -1) if key[i] == "."):
        if path := key_path(tree, key[:i]):
            return f"{key[:i]!r} holds {describe(reduce(getitem, path, tree), key[:i])}"
    return ""


def key_names(tree: Mapping[str, Any], depth: int = MAX_DEPTH) -> Iterator[str]:
    """All keys as they are given with `--text-key`; instead of one that holds an object, those inside it."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and depth > 1:
            yield from (f"{key}.{inner}" for inner in key_names(value, depth - 1))
        else:
            yield key
