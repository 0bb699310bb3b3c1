"""Which tokens end and pad texts, as the files beside a `tokenizer.json` name them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.json_text import json_text

EOD_TEXT = "<|eod|>"
MASK_TEXT = "[MASK]"
PAD_TEXT = "[PAD]"
CONFIG_NAME = "tokenizer_config.json"
# In the order in which they are asked.
CONFIG_NAMES = (CONFIG_NAME, "special_tokens_map.json")
# Keys of those files, and the usual names in published tokenizers, the most specific first.
USUAL_NAMES = {
    "eos_token": (EOD_TEXT, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]"),
    "pad_token": ("<|pad|>", "<pad>", "[PAD]", "<|padding|>"),
}


def special_tokens(tokenizer_file: Path, vocabulary: Mapping[str, int]) -> dict[str, str]:
    """Names of the `eos_token` and the `pad_token` of a `tokenizer.json`, without those that it does not have.

    A name in the configuration beside the file is taken before the usual ones.

    Raises:
        DataError: a configuration is not valid, or its `eos_token` is not in the vocabulary.
    """
    configured = _configured(tokenizer_file)
    found = {}
    for key, usual in USUAL_NAMES.items():
        path, name = configured.get(key, (None, None))
        if name not in vocabulary:
            if path and key == "eos_token":
                raise DataError(
                    f"{path}: the {key} {name!r} is not in the vocabulary of {tokenizer_file.name}; correct the name, or "
                    f"remove the key to use the first of {', '.join(usual)} that is"
                )
            name = usual_name(key, vocabulary)
        if name is not None:
            found[key] = name
    return found


def usual_name(key: str, vocabulary: Mapping[str, int]) -> str | None:
    """The first usual name of a special token that a vocabulary has."""
    return next((name for name in USUAL_NAMES[key] if name in vocabulary), None)


def config_of(names: Mapping[str, str]) -> str:
    """The content of a `tokenizer_config.json` with these names."""
    return json_text(dict(names), indent=2) + "\n"


def _configured(tokenizer_file: Path) -> dict[str, tuple[Path, str]]:
    """The file that names each special token, and the name."""
    found: dict[str, tuple[Path, str]] = {}
    manifest = tokenizer_file.with_name("manifest.json")
    sources = [(manifest, _options(manifest, tokenizer_file.name))]
    sources += [(path, _read(path)) for path in map(tokenizer_file.with_name, CONFIG_NAMES)]
    for path, content in sources:
        for key in USUAL_NAMES:
            # A token is given as a string or as an object with its "content".
            value = content.get(key)
            name = value.get("content") if isinstance(value, dict) else value
            if isinstance(name, str):
                found.setdefault(key, (path, name))
    return found


def _options(manifest: Path, tokenizer_name: str) -> dict[str, Any]:
    """The options in the manifest of a prepared folder, or of a run's tokenizer: they name tokens that no other file names."""
    content = _read(manifest)
    info, options = content.get("tokenizer"), content.get("options")
    is_ours = isinstance(info, dict) and isinstance(options, dict) and info.get("file") == tokenizer_name
    return options if is_ours else {}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: should hold one JSON object, not a {type(content).__name__}")
    return content
