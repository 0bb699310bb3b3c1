"""Word by word gives the ids that SentencePiece gives, for many kinds of models and any text."""

import io
import random
from functools import cache

import numpy as np
import pytest
import sentencepiece
from conftest import make_texts, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tokenizers import tokenizers, word_table, words
from data_pipeline.tokenizers.tokenizers import load_tokenizer
from data_pipeline.tokenizers.training import train_sentencepiece
from data_pipeline.tokenizers.words import WordEncoder, word_encoder

LOSSLESS = {
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
}
# What each model is trained with, and why it cannot be encoded word by word (None where it can).
MODELS = {
    "ours": (LOSSLESS | {"allow_whitespace_only_pieces": True, "split_digits": True}, None),
    "the trainer's defaults": ({}, None),
    "dummy prefix and bytes, as Llama has it": (LOSSLESS | {"add_dummy_prefix": True}, None),
    "unknown characters": (LOSSLESS | {"byte_fallback": False, "character_coverage": 0.98}, None),
    "case folding": ({"normalization_rule_name": "nmt_nfkc_cf"}, None),
    "symbols of the user": (LOSSLESS | {"user_defined_symbols": ["loop", "<|x|>", "\n\n", "=="]}, None),
    "symbols of spaces": (LOSSLESS | {"user_defined_symbols": ["  "]}, "cross words"),
    "symbols across words": (LOSSLESS | {"user_defined_symbols": ["the loop"]}, "cross words"),
    "letters with punctuation": (LOSSLESS | {"split_by_unicode_script": False}, None),
    "pieces across words": (LOSSLESS | {"split_by_whitespace": False}, "cross words"),
    "space at the end of words": (LOSSLESS | {"treat_whitespace_as_suffix": True}, "cross words"),
    "unigram": (LOSSLESS | {"model_type": "unigram"}, "not a BPE"),
}


@cache
def model(name):
    """The model, its serialised form, and its word encoder or the reason for having none."""
    out = io.BytesIO()
    lines = [line for text in make_texts(200) for line in text.splitlines()]
    lines += ["don't x=f(a[1], b.c); snake_case CamelCase «ça»"] * 20
    options = {"model_type": "bpe", "vocab_size": 420, "hard_vocab_limit": False, "minloglevel": 2} | MODELS[name][0]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, **options)
    loaded = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    return loaded, out.getvalue(), word_encoder(loaded, out.getvalue())


FAST = [name for name, (_, why) in MODELS.items() if why is None]


@pytest.mark.parametrize("name", MODELS)
def test_the_way_is_chosen_by_the_model(name):
    reason, (_, _, encoder) = MODELS[name][1], model(name)
    assert isinstance(encoder, WordEncoder) if reason is None else reason in encoder


ANY = st.characters(exclude_categories=["Cs"])
COMMON = st.sampled_from("  \n\n\t\r▁_'.,0aé漢\u0301\u00a0\u3000\u200d\x00ﬁ½\uff21¨ﷺ")
PHRASES = st.sampled_from(["the loop", " mask token", "<|x|>", "naïve 12", "\n\n  ", "don't", "loop=="])
TEXTS = st.lists(st.one_of(COMMON, ANY, PHRASES), max_size=40).map("".join)


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
def test_any_text_gets_the_librarys_ids(name, text):
    library, _, encoder = model(name)
    assert encoder.encode_batch([text])[0].tolist() == library.encode(text)


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=50, deadline=None)
@given(texts=st.lists(TEXTS, max_size=6))
def test_a_batch_gives_each_text_its_own_ids(name, texts):
    library, _, encoder = model(name)
    assert [ids.tolist() for ids in encoder.encode_batch(texts)] == [library.encode(text) for text in texts]


@pytest.mark.parametrize("name", FAST)
def test_long_texts_in_blocks_get_the_librarys_ids(name, monkeypatch):
    monkeypatch.setattr(word_table, "BLOCK_BYTES", 50)
    library, _, encoder = model(name)
    rng = random.Random(1)
    for _ in range(50):
        text = "".join(rng.choices(["the", " ", "  ", "\n", "loop", "漢字", ".", "▁", " a", "x" * 60], k=300))
        assert encoder.encode_batch([text])[0].tolist() == library.encode(text)


@pytest.mark.parametrize("name", FAST)
def test_a_crowded_table_that_starts_anew_gives_the_librarys_ids(name, monkeypatch):
    """Few slots, so that words want the same, and a table that starts anew for almost each text."""
    monkeypatch.setattr(word_table, "SLOTS", 1 << 13)
    monkeypatch.setattr(word_table, "MAX_WORDS", 16)
    library, content, _ = model(name)
    encoder = word_encoder(library, content)
    lines = "\n".join(make_texts(40, seed=5)).splitlines()
    for text in lines:
        assert encoder.encode_batch([text])[0].tolist() == library.encode(text)
    assert len(encoder._table._begins) < 50


def distinct_words(count, rng):
    """Different words of 3 to 20 letters, each on a line of its own."""
    found = dict.fromkeys("".join(rng.choices("abcdeloprstxyzé", k=rng.randrange(3, 21))) for _ in range(count))
    return "\n".join(found) + "\n"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", FAST)
def test_one_document_with_more_words_than_slots_gives_the_librarys_ids(name, monkeypatch):
    """As one text, after a word longer than a block, in several blocks, and in chunks."""
    monkeypatch.setattr(word_table, "SLOTS", 1 << 10)
    monkeypatch.setattr(word_table, "MAX_WORDS", 1 << 8)
    library, content, _ = model(name)
    encoder = word_encoder(library, content)
    text = distinct_words(3000, random.Random(2))
    for block_bytes in (1 << 20, 1000):
        monkeypatch.setattr(word_table, "BLOCK_BYTES", block_bytes)
        assert encoder.encode_batch([text])[0].tolist() == library.encode(text)
        assert encoder.encode_batch(["z" * 12_000 + "\n" + text])[0].tolist() == library.encode(
            "z" * 12_000 + "\n" + text
        )
    if encoder.takes_chunks:
        stream = encoder.stream()
        parts = [stream.feed(text[i : i + 7000]) for i in range(0, len(text), 7000)]
        assert np.concatenate([*parts, stream.finish()]).tolist() == library.encode(text)


def test_long_words_are_forgotten_before_they_take_much_memory(monkeypatch):
    monkeypatch.setattr(word_table, "MAX_BYTES", 20_000)
    library, content, _ = model("ours")
    encoder = word_encoder(library, content)
    rng = random.Random(3)
    for _ in range(50):
        text = " ".join("".join(rng.choices("abcdelop", k=500)) for _ in range(10))
        assert encoder.encode_batch([text])[0].tolist() == library.encode(text)
        assert sum(map(len, encoder._table._long)) + encoder._table._ids.nbytes < 2 * 20_000 + 30_000


def test_a_table_is_whole_after_a_failure(monkeypatch):
    """The words of the failed text have no ids, and must not be taken for known when the text comes again."""
    library, content, _ = model("ours")
    encoder = word_encoder(library, content)
    table, encode = encoder._table, encoder._table._encode

    def fail(words):
        raise MemoryError

    table._encode = fail
    with pytest.raises(MemoryError):
        encoder.encode_batch(["one new word after another one"])
    table._encode = encode
    for text in ("a few other words first", "one new word after another one"):
        assert encoder.encode_batch([text])[0].tolist() == library.encode(text)


def test_a_model_that_disagrees_in_a_test_is_left_to_the_library(monkeypatch):
    library, content, _ = model("pieces across words")
    assert word_encoder(library, content) == "its pieces cross words"
    monkeypatch.setattr(words, "_holds_every_piece", lambda classes, proto: True)
    assert "gave other ids in a test" in word_encoder(library, content)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
def test_a_trained_tokenizer_encodes_as_its_model_and_comes_back(trained, model_type, texts):
    tokenizer, library = trained[model_type]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.dtype == np.int32
        if "▁" not in text:  # spelled as bytes, since the library takes it for a space
            assert ids.tolist() == library.encode(text)
        assert tokenizer.decode(ids) == text


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    found = {}
    for model_type in ("bpe", "unigram"):
        path = tmp_path_factory.mktemp("trained") / f"{model_type}.model"
        train_sentencepiece(make_texts(200), 330, path, model_type)
        found[model_type] = (
            load_tokenizer(path),
            sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes()),
        )
    return found


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_bytes_come_back(bytes_tokenizer, text):
    (ids,) = bytes_tokenizer.encode_batch([text])
    assert ids.tolist() == list(text.encode()) and bytes_tokenizer.decode(ids) == text


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.bytes"
    path.touch()
    return load_tokenizer(path)


def chinese(count, rng):
    return ["".join(chr(0x4E00 + rng.randrange(3000)) for _ in range(300)) for _ in range(count)]


def dna(count, rng):
    return ["".join(rng.choices("ACGT", k=5000)) for _ in range(count)]


@pytest.mark.parametrize("make", [chinese, dna])
def test_texts_that_hardly_repeat_words_are_left_to_the_library(tokenizer_file, make):
    """In batches and in chunks, with the ids of the table of words."""
    tokenizer, table, rng = load_tokenizer(tokenizer_file), load_tokenizer(tokenizer_file), random.Random(7)
    texts = make(1000, rng)
    tokenizer.choose_method(texts)
    assert not tokenizer.keeps_words
    assert tokenizer.method == "document by document (0% of a sample are words that came before)"
    texts = [*texts[:20], *make_texts(5), "a ▁ b"]
    wanted = [ids.tolist() for ids in table.encode_batch(texts)]
    assert table.keeps_words and [ids.tolist() for ids in tokenizer.encode_batch(texts)] == wanted
    for text, ids in zip(texts, wanted, strict=True):
        chunks = [text[i : i + 100] for i in range(0, len(text), 100)]
        assert np.concatenate(list(tokenizer.encode_long(chunks))).tolist() == ids


@pytest.mark.parametrize("sample", [make_texts(600), chinese(100, random.Random(0))])
def test_words_that_come_again_are_kept_and_a_small_sample_changes_nothing(tokenizer_file, sample):
    tokenizer = load_tokenizer(tokenizer_file)
    tokenizer.choose_method(sample)
    assert tokenizer.keeps_words and tokenizer.method.startswith("word by word")


def test_the_share_of_known_words(tokenizer_file):
    """Parts of 4,096 characters: every other one is counted, and its first words of a kind are new."""
    encoder = load_tokenizer(tokenizer_file)._words
    one, other = "ab " * 1365 + "a", "cd " * 1365 + "c"
    assert encoder.share_known([one, one]) > 0.999
    assert encoder.share_known([one, other]) == pytest.approx(1 - 8 / 4096, abs=2e-3)
    distinct = distinct_words(2000, random.Random(0))
    assert encoder.share_known([distinct]) == pytest.approx(distinct.count("\n") / len(distinct.encode()), abs=0.02)
    assert encoder.share_known([]) == 1


def test_very_long_words_are_not_kept(monkeypatch):
    monkeypatch.setattr(word_table, "MAX_KNOWN_BYTES", 30)
    library, content, _ = model("ours")
    encoder = word_encoder(library, content)
    rng = random.Random(4)
    for _ in range(20):
        words = ["".join(rng.choices("abcdelop", k=rng.choice([3, 20, 29, 30, 31, 90]))) for _ in range(30)]
        text = " ".join([*words, *words])
        assert encoder.encode_batch([text])[0].tolist() == library.encode(text)
    assert encoder._table._long and max(map(len, encoder._table._long)) == 30
    assert len(encoder._table._begins) - 1 == len(encoder._table._long) + np.count_nonzero(encoder._table._keys[:, 1])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_corpus_without_spaces_gives_the_bytes_of_the_table(prepare, tmp_path, workers, monkeypatch):
    path = write_jsonl(tmp_path / "x.jsonl", chinese(1200, random.Random(8)))
    output = tmp_path / "data"
    assert "document by document (0% of" in prepare("--input", path, "--output", output, "--workers", workers).err
    monkeypatch.setattr(tokenizers, "LEAST_KNOWN", 0)
    kept = prepare("--input", path, "--output", tmp_path / "kept")
    assert "word by word, each distinct word once (0% of" in kept.err
    for file in output.iterdir():
        assert file.read_bytes() == (tmp_path / "kept" / file.name).read_bytes()
