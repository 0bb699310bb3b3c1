"""Hugging Face `tokenizer.json` files."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.tokenizers.special_tokens import special_tokens, usual_name

if TYPE_CHECKING:
    import tokenizers

# Around the name of a special token in the model that encodes, so that no text spells it.
NOT_IN_TEXT = "\U0010fffe"


class HuggingFaceTokenizer:
    """A `tokenizer.json`. Its template, truncation, padding and dropout are switched off.

    The end and padding tokens are those that `tokenizer_config.json` or `special_tokens_map.json` beside the file name; without
    them, the usual names are tried. Text that spells one of them, or another special token, is encoded as any other text.

    Attributes:
        configured: names of those of the two that are not found by the usual names, by their keys in `tokenizer_config.json`.
    """

    kind: Literal["huggingface"] = "huggingface"
    method = "in batches, by the library"
    is_lossless = False

    def __init__(self, path: Path) -> None:
        self._path = path
        fields = _read(path)
        vocabulary = self._load(fields).get_vocab(with_added_tokens=True)
        # The ids may have gaps, but the embedding has a row for every id.
        self.vocab_size = max(vocabulary.values()) + 1
        names = special_tokens(path, vocabulary)
        self.configured = {key: name for key, name in names.items() if name != usual_name(key, vocabulary)}
        self.eod_id = vocabulary.get(names.get("eos_token"))
        self.pad_id = vocabulary.get(names.get("pad_token"))
        added = fields.get("added_tokens") or ()
        for token in added:
            token["special"] = token["special"] or token["content"] in names.values()
        self._model = self._load(fields)
        self.symbols = tuple(token["content"] for token in added if not token["special"])
        special = {token["content"] for token in added if token["special"]}
        unknown = _unknown_token(fields["model"])
        self.unknown_id = vocabulary.get(unknown)
        special = (special | set(names.values())) - {unknown}
        self._encoder = self._model
        if _is_reachable(self._model, {name: vocabulary[name] for name in special}):
            self._encoder = self._load(_without(fields, special))

    def _load(self, fields: Mapping[str, Any]) -> "tokenizers.Tokenizer":
        import tokenizers

        try:
            model = tokenizers.Tokenizer.from_str(json.dumps(fields))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{self._path} is not a Hugging Face tokenizer.json: {error}") from error
        model.no_truncation()
        model.no_padding()
        model.encode_special_tokens = True
        return model

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """See `Tokenizer.encode_batch`."""
        try:
            encoded = self._encoder.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library raises plain Exception, for a vocabulary without an unknown token
            unknown = "".join(sorted(set("".join(texts)) - self._model.get_vocab().keys()))[:10]
            raise DataError(f"{self._path}: has no token for {unknown!r}; the library says: {error}") from error
        return [np.asarray(item.ids, dtype=np.int32) for item in encoded]

    def encode_long(self, chunks: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """See `Tokenizer.encode_long`. The whole text is in memory, because the library only encodes whole texts."""
        yield from self.encode_batch(["".join(chunks)])

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return self._model.decode([int(i) for i in ids], skip_special_tokens=False)


def _read(path: Path) -> dict[str, Any]:
    """The content of a `tokenizer.json`, without dropout, which would give other ids each time."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        model = fields["model"]
        if model.get("dropout") is not None:
            model["dropout"] = None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a Hugging Face tokenizer.json: {error!r}") from error
    return fields


def _unknown_token(model: Mapping[str, Any]) -> str | None:
    """The token of what the vocabulary lacks."""
    if model.get("unk_id") is not None:
        return model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")


def _is_reachable(model: "tokenizers.Tokenizer", special: Mapping[str, int]) -> bool:
    """Whether text that spells a special token becomes one: the library takes such tokens out of text only where it looks them
    up itself, not where the model finds them in its vocabulary (Unigram, WordLevel).
    """
    ids = set(special.values())
    for name in special:
        for text in (name, f"a {name} b", f"a{name}b"):
            with suppress(Exception):  # the library raises plain Exception, for a vocabulary without an unknown token
                if not ids.isdisjoint(model.encode(text, add_special_tokens=False).ids):
                    return True
    return False


def _without(fields: Mapping[str, Any], special: set[str]) -> dict[str, Any]:
    """A `tokenizer.json` in which some names are replaced by ones that no text spells. All other tokens keep their ids."""
    model = dict(fields["model"])

    def renamed(name: str) -> str:
        return f"{NOT_IN_TEXT}{name}{NOT_IN_TEXT}" if name in special else name

    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {renamed(name): i for name, i in vocabulary.items()}
        known = vocabulary
    else:
        model["vocab"] = [[renamed(name), score] for name, score in vocabulary]
        known = {name for name, _ in vocabulary}
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if special.isdisjoint((*pair, "".join(pair)))]
    # A special token outside the model's vocabulary stays, so that the ids after it do.
    added = [each for each in fields["added_tokens"] if each["content"] not in special or each["content"] not in known]
    return {**fields, "model": model, "added_tokens": added}
