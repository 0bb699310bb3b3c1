"""A tokenizer whose tokens are the characters of an alphabet, as a `tokenizer.json`: for tasks with few symbols."""

import json

PREFIX = "characters:"
"""Begins the identity of such a tokenizer in a manifest, before its alphabet."""


def character_tokenizer(alphabet: str) -> str:
    """The content of a `tokenizer.json`: character i of the alphabet has the id i.

    Written without the library, so that the bytes do not depend on its version.
    """
    every_character = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": every_character,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {c: i for i, c in enumerate(alphabet)}, "unk_token": "[UNK]"},
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
