import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import Document
from data_pipeline.errors import DataError
from data_pipeline.manifest import load_manifest
from data_pipeline.tasks.sampling import HashSample
from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer, load_tokenizer
from data_pipeline.tokenizers.training import train_sentencepiece

NASTY = [
    "",
    " ",
    "   leading",
    "trailing   ",
    "\tdef f():\n\t\treturn 1\n",
    "    if x:\n        y = 1\n\n\n",
    "a\r\nb\rc\n",
    "▁",
    " ▁ ▁▁a▁",
    "a\x00b",
    "<|eod|> <unk> </s> <0x41> [MASK]",
    "e\u0301 é ﬁ \uff12 \u3000 \u00a0 \u200b \u2028 \ufeff",
    "👨‍👩‍👧 \U0010ffff \ud7ff ▅ ⁇ \ufffd",
    "12345 3.14e-10",
]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file):
    return load_tokenizer(tokenizer_file)


def round_trip(tokenizer, text):
    return tokenizer.decode(tokenizer.encode_batch([text])[0])


@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_survives(tokenizer, text):
    assert round_trip(tokenizer, text) == text


@settings(max_examples=400, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("▁ \t\r\n"), max_size=60))
def test_any_text_survives(tokenizer_file, text):
    assert round_trip(_cached(tokenizer_file), text) == text


_LOADED = {}


def _cached(path):
    return _LOADED.setdefault(path, load_tokenizer(path))


def test_a_batch_gives_each_text_its_own_ids(tokenizer):
    batch = tokenizer.encode_batch(NASTY)
    assert [ids.dtype for ids in batch] == [np.int32] * len(NASTY)
    assert all(np.array_equal(ids, tokenizer.encode_batch([text])[0]) for ids, text in zip(batch, NASTY, strict=True))


def test_special_ids_come_only_from_the_pipeline(tokenizer):
    assert (tokenizer.vocab_size, tokenizer.eod_id, tokenizer.pad_id) == (400, 1, None)
    assert not any(tokenizer.eod_id in ids or 0 in ids for ids in tokenizer.encode_batch(NASTY))


def test_digits_are_single_and_indentation_is_short(tokenizer):
    digits, indented = tokenizer.encode_batch(["12345", "        x"])
    assert digits.size == 5
    assert indented.size < 5


def test_training_is_deterministic(texts, tokenizer_file, tmp_path):
    train_sentencepiece(texts, 400, tmp_path / "elsewhere.model")
    assert (tmp_path / "elsewhere.model").read_bytes() == tokenizer_file.read_bytes()


def test_training_prints_nothing(texts, tmp_path, capfd):
    train_sentencepiece(texts, 380, tmp_path / "x.model")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("vocab_size", "message"), [(20_000, r"at most \d+"), (100, r"too small.* at least 2\d\d"), (0, "--vocab-size")]
)
def test_a_vocabulary_that_does_not_fit_names_the_limit(tmp_path, texts, vocab_size, message):
    with pytest.raises(DataError, match=message):
        train_sentencepiece(texts, vocab_size, tmp_path / "x.model")
    assert not (tmp_path / "x.model").exists()


def document(i, size=100):
    text = f"{i:0{size}}"
    return Document(text, size, i.to_bytes(16, "big"))


def test_the_sample_is_the_lowest_hashes_in_any_order():
    documents = [document(i * 7919 % 1000) for i in range(1000)]
    for order in (documents, documents[::-1], sorted(documents, key=lambda d: d.text)):
        sample = HashSample(max_bytes=1000)
        for each in order:
            sample.add(each)
        assert list(sample.texts()) == [document(i).text for i in range(10)]


def test_the_sample_takes_only_the_head_of_a_long_document():
    sample = HashSample(max_bytes=300_000)
    for i in range(5):
        sample.add(document(i, size=1_000_000))
    assert [len(text) for text in sample.texts()] == [100_000] * 3


@pytest.fixture
def huggingface(tmp_path):
    """A byte-level BPE with an end token, a template that adds it, padding and truncation."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|stop|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(NASTY, trainer)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    model.enable_truncation(5)
    model.enable_padding(length=5)
    model.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("text", NASTY)
def test_huggingface_text_survives_and_adds_nothing(huggingface, text):
    assert round_trip(load_tokenizer(huggingface), text) == text


def test_huggingface_text_never_yields_special_ids(huggingface):
    tokenizer = load_tokenizer(huggingface)
    assert tokenizer.eod_id == 0
    assert 0 not in tokenizer.encode_batch(["a <|endoftext|> b"])[0]


@pytest.mark.parametrize("eos", ["<|stop|>", {"content": "<|stop|>"}])
def test_huggingface_config_names_the_end_token(huggingface, eos):
    huggingface.with_name("tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "pad_token": None}))
    assert load_tokenizer(huggingface.parent).eod_id == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "{}", "not a Hugging Face"),
        ("x.model", "abc", "not a SentencePiece"),
        ("x.txt", "abc", "expected a SentencePiece"),
        ("missing.model", None, "no tokenizer at"),
        ("folder/readme", "", "has no tokenizer"),
    ],
)
def test_a_bad_tokenizer_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(path.parent if path.parent != tmp_path else path)


def test_prepared_tokenizer_shows_the_special_ids(prepared):
    manifest = load_manifest(prepared)
    tokenizer = load_prepared_tokenizer(prepared, manifest)
    assert (tokenizer.vocab_size, tokenizer.mask_id, tokenizer.eod_id, tokenizer.pad_id) == (401, 400, 1, 1)
    hello, world = (ids.tolist() for ids in tokenizer.encode_batch(["the loop", " return\n"]))
    ids = [*hello, 400, 400, *world, 1, *hello]
    assert tokenizer.decode(ids) == "the loop[MASK][MASK] return\n<|eod|>the loop"
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(ids)


def test_a_tokenizer_without_an_end_token_gets_one_before_the_mask(prepare, jsonl, tmp_path, huggingface):
    fields = json.loads(huggingface.read_text().replace("<|endoftext|>", "<|start|>"))
    huggingface.write_text(json.dumps(fields))
    result = prepare("--input", jsonl, "--output", tmp_path / "data", "--tokenizer", huggingface)
    assert result.code == 0, result.err
    manifest = load_manifest(tmp_path / "data")
    ids = manifest.tokenizer
    assert (ids.vocab_size, ids.eod_id, ids.mask_id, ids.pad_id, manifest.vocab_size) == (300, 300, 301, 300, 302)
    assert load_prepared_tokenizer(tmp_path / "data", manifest).decode([300, 301]) == "<|eod|>[MASK]"
