"""A tokenizer that changes texts: told before the work, and recorded."""

import json

import pytest
import sentencepiece
from conftest import make_texts, write_jsonl

from data_pipeline.manifest import load_manifest

tokenizers = pytest.importorskip("tokenizers")
WORDS = ["[UNK]", "[SEP]", "[PAD]", "hello", "world", "def", "return", "x", ":", "(", ")"]


def lower_casing(folder):
    """BERT's pipeline, with a vocabulary of a few words."""
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    model.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    model.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def byte_level(folder):
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(make_texts(20), trainer)
    model.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def normalizing(folder):
    """A SentencePiece model with the trainer's defaults: NFKC, no line ends, no two spaces in a row."""
    lines = [line for text in make_texts(100) for line in text.splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "m"), vocab_size=300, model_type="bpe",
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder / "m.model"


@pytest.mark.parametrize(("make", "unknown"), [(lower_casing, True), (normalizing, False)])
def test_a_lossy_tokenizer_is_told_and_recorded(prepare, tmp_path, make, unknown):
    texts = [*make_texts(30), "def hello(x):\n    return WORLD  # \U0001f600"]
    path = write_jsonl(tmp_path / "x.jsonl", texts)
    words = ("--input", path, "--tokenizer", make(tmp_path), "--validation-fraction", 0, "--seq-len", 8)
    result = prepare(*words, "--output", tmp_path / "data")
    assert result.code == 0, result.err
    loss = load_manifest(tmp_path / "data").text_loss
    assert (loss.texts, loss.changed) == (31, 31) and bool(loss.unknown > 10) == unknown
    assert f"is lossy: {loss}; for example, " in result.err and f"lossy tokenizer: {loss}" in result.out
    assert f"{loss.unknown / loss.tokens:.1%} of the tokens are unknown" in str(loss)
    # The same from several processes, phase by phase.
    for stage in ("tokens", "join"):
        assert prepare(*words, "--output", tmp_path / "again", "--stage", stage, "--workers", 2).code == 0
    first, again = ((tmp_path / name / "manifest.json").read_bytes() for name in ("data", "again"))
    assert first == again


@pytest.mark.parametrize("tokenizer", [byte_level, lambda folder: "bytes"])
def test_nothing_is_said_where_texts_come_back(prepare, jsonl, tmp_path, tokenizer):
    result = prepare("--input", jsonl, "--output", tmp_path / "data", "--tokenizer", tokenizer(tmp_path))
    assert result.code == 0 and "lossy" not in result.out + result.err
    assert "text_loss" not in json.loads((tmp_path / "data" / "manifest.json").read_text())
