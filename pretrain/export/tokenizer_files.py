"""The tokenizer of an exported folder: files from which `AutoTokenizer` makes the same ids as training did.

Every kind becomes a `tokenizer.json`. A SentencePiece model that the `tokenizers` library does not reproduce exactly, such as
a unigram model, keeps its own file and comes with `tokenization_loopmdm.py`, which calls the SentencePiece library.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from data_pipeline.errors import DataError
from data_pipeline.json_text import json_text
from data_pipeline.manifest import Manifest, TokenizerInfo
from data_pipeline.tokenizers.tokenizers import EOD_TEXT, MASK_TEXT, Tokenizer, load_tokenizer
from pretrain.errors import UserError
from pretrain.export.sentencepiece_bpe import bpe_fields, piece_names

CODE = Path(__file__).with_name("tokenization_loopmdm.py")
EOD_NAMES = (EOD_TEXT, "<|loopmdm_eod|>")
MASK_NAMES = (MASK_TEXT, "<|mask|>", "<|loopmdm_mask|>")
"""Names of ids that the pipeline added; the first that the tokenizer does not have."""

PROBES = 64
ODD_TEXTS = (
    "", " ", "  a  b   ", "\tdef f():\n\t\treturn 1\r\n\n\n", "a\x00b\x01\x7f", "\u2581 \u2581\u2581a\u2581", "12345 3.14e-10",
    "\u00e9 e\u0301 \ufb01 \u3000\u00a0\u200b\u2028\ufeff",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u6f22\u5b57 \U0010ffff \ud7ff \ufffd",
    "<unk> <s> </s> <|eod|> <|endoftext|> [MASK] [PAD] [UNK] <0x41> <|mask|>",
)  # fmt: skip


class Written(NamedTuple):
    """What the model card says about the tokenizer.

    Attributes:
        mask_token: name of [MASK].
        needs_sentencepiece: it is code that needs the SentencePiece library.
    """

    mask_token: str
    needs_sentencepiece: bool


def write_tokenizer(tokenizer_folder: Path, manifest: Manifest, output: Path) -> Written:
    """Write the files into an exported folder.

    Args:
        tokenizer_folder: a run's copy of its tokenizer.

    Raises:
        UserError: the `tokenizers` library gives other ids.
        DataError: the tokenizer cannot be read.
    """
    file, info = tokenizer_folder / manifest.tokenizer.file, manifest.tokenizer
    base = load_tokenizer(file)
    fast = _fast_tokenizer(base, file.read_bytes(), info)
    difference = "the model" if fast is None else _difference(base, fast, info)
    if difference and info.kind != "sentencepiece":
        raise UserError(
            f"{file}: cannot be exported, because Hugging Face's tokenizers library treats {difference} differently than "
            "training did"
        )
    if fast is None or difference:
        config = _write_sentencepiece(file.read_bytes(), manifest, output)
    else:
        fast.save(str(output / "tokenizer.json"), pretty=False)
        config = _config({i: name for name, i in fast.get_vocab(with_added_tokens=True).items()}, manifest)
    text = json_text(config, indent=2) + "\n"
    (output / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return Written(config["mask_token"], needs_sentencepiece="auto_map" in config)


def _fast_tokenizer(base: Tokenizer, content: bytes, info: TokenizerInfo) -> tokenizers.Tokenizer | None:
    """The tokenizer with the ids that the pipeline added; None for a SentencePiece model that cannot be converted."""
    special: list[str] = []
    if info.kind == "huggingface":
        fields = _stripped(content.decode("utf-8"), base.vocab_size)
    elif info.kind == "bytes":
        fields = _fields(_byte_model(), _byte_level(), _byte_level())
    else:
        bpe = bpe_fields(content)
        if bpe is None:
            return None
        fields = _fields(
            bpe.model, None, {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
        )
        special = bpe.special
    fast = tokenizers.Tokenizer.from_str(json.dumps(fields))
    names = {i: name for name, i in fast.get_vocab(with_added_tokens=True).items()}
    is_own = info.kind == "huggingface"  # its end token may not be a special one in its file
    special += [name for i, name in _named(names, info).items() if is_own or i >= base.vocab_size]
    fast.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in special])
    return fast


def _fields(model: dict[str, Any], pre_tokenizer: dict[str, Any] | None, decoder: dict[str, Any]) -> dict[str, Any]:
    """A `tokenizer.json` that adds nothing to a text."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _byte_model() -> dict[str, Any]:
    """BPE without merges over the characters that stand for bytes in byte-level tokenizers (GPT-2, Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    character = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {"type": "BPE", "vocab": {character[byte]: byte for byte in range(256)}, "merges": []}


def _byte_level() -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def _stripped(text: str, vocab_size: int) -> dict[str, Any]:
    """A `tokenizer.json` without truncation, padding, template and dropout, and with a name for every id.

    The library gives a new token the number of known tokens as its id, so gaps between the ids would move it.
    """
    model = tokenizers.Tokenizer.from_str(text)
    model.no_truncation()
    model.no_padding()
    fields = json.loads(model.to_str())
    fields["post_processor"] = None
    if fields["model"].get("dropout") is not None:
        fields["model"]["dropout"] = None
    vocabulary = fields["model"].get("vocab")
    if isinstance(vocabulary, dict):
        names = {i: name for name, i in model.get_vocab(with_added_tokens=True).items()}
        if len(names) < vocab_size:
            vocabulary |= {names.get(i, f"<|unused_{i}|>"): i for i in range(vocab_size)}
    return fields


def _named(names: Mapping[int, str], info: TokenizerInfo) -> dict[int, str]:
    """Names of the end-of-document, padding and mask ids, lowest id first: the tokenizer's own where it has them."""
    known, named = set(names.values()), {info.pad_id: names.get(info.pad_id)}
    for i, choices in ((info.eod_id, EOD_NAMES), (info.mask_id, MASK_NAMES)):
        named[i] = names.get(i) or next(name for name in choices if name not in known)
    return dict(sorted(named.items()))


def _difference(base: Tokenizer, fast: tokenizers.Tokenizer, info: TokenizerInfo) -> str:
    """The first text or id that the two treat differently; empty if there is none.

    The texts are some odd ones and random ids as text.
    """
    rng = random.Random(0)
    ids = [i for i in range(base.vocab_size) if i not in (base.eod_id, base.pad_id)]
    odd = [text for text in ODD_TEXTS if _writes(base, text)]
    texts = [*odd, *(base.decode(rng.choices(ids, k=4 * length)) for length in range(PROBES))]
    fast.encode_special_tokens = True
    found = fast.encode_batch_fast(texts, add_special_tokens=False)
    for text, wanted, got in zip(texts, base.encode_batch(texts), found, strict=True):
        if wanted.tolist() != got.ids:
            return f"the text {text!r}"
    names = {i: name for name, i in fast.get_vocab(with_added_tokens=True).items()}
    return next((f"the id {i}" for i in (info.eod_id, info.mask_id) if i not in names or i > info.mask_id), "")


def _writes(base: Tokenizer, text: str) -> bool:
    """Whether a tokenizer has tokens for a text: that of a generated task has its characters alone."""
    try:
        base.encode_batch([text])
    except DataError:
        return False
    return True


def _config(names: Mapping[int, str], manifest: Manifest) -> dict[str, Any]:
    """`tokenizer_config.json`. With `split_special_tokens`, "[MASK]" in a text is text, as it was in training."""
    info = manifest.tokenizer
    named = _named(names, info)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "mask_token": named[info.mask_id],
        "eos_token": named[info.eod_id],
        "pad_token": named[info.pad_id],
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": manifest.seq_len,
    }


def _write_sentencepiece(content: bytes, manifest: Manifest, output: Path) -> dict[str, Any]:
    """Write the model itself and the code that loads it; returns `tokenizer_config.json`."""
    (output / "tokenizer.model").write_bytes(content)
    (output / CODE.name).write_bytes(CODE.read_bytes())
    names = piece_names(content)
    flags = {"special": True} | dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
    added = {str(i): {"content": name} | flags for i, name in _named(names, manifest.tokenizer).items()}
    code = {"AutoTokenizer": [f"{CODE.stem}.LoopMDMTokenizer", None]}
    return _config(names, manifest) | {
        "tokenizer_class": "LoopMDMTokenizer",
        "auto_map": code,
        "added_tokens_decoder": added,
    }
