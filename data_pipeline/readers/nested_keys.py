"""Text keys such as `content.text`: the key `text` of the object under `content`, unless there is a key with the dot in it."""

from collections.abc import Iterator, Mapping
from typing import Any

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


def key_names(tree: Mapping[str, Any], depth: int = MAX_DEPTH) -> Iterator[str]:
    """All keys as they are given with `--text-key`; instead of one that holds an object, those inside it."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and depth > 1:
            yield from (f"{key}.{inner}" for inner in key_names(value, depth - 1))
        else:
            yield key
