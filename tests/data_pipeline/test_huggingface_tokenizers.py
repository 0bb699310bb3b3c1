"""`tokenizer.json` files: which tokens end texts, and text that spells special tokens."""

import json
import random

import numpy as np
import pytest
from conftest import write_jsonl

from data_pipeline.errors import DataError
from data_pipeline.manifest import load_manifest
from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer, load_tokenizer

tokenizers = pytest.importorskip("tokenizers")
TEXT = "some text to learn from, and <fin> in it </s> <pad>"


def byte_level(special=("<blank>", "<fin>"), **options):
    model = tokenizers.Tokenizer(tokenizers.models.BPE(**options))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator([TEXT] * 50, trainer)
    return model


def unigram():
    """Its end and padding tokens are pieces of the model, as in T5."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<pad>", 0.0), *((c, -3.0) for c in sorted(set(TEXT + "ab▁")))]
    model = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    model.decoder = tokenizers.decoders.Metaspace(prepend_scheme="never")
    model.add_special_tokens(["</s>", "<pad>"])
    model.add_tokens(["<extra>"])
    return model


def word_level():
    words = ["[UNK]", "[SEP]", *["a", "b", "ab", "some", "text", "to", "learn"]]
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return model


def merged():
    """A BPE model in which the end token is the product of merges."""
    vocabulary = ["<", "/", "s", ">", "a", "b", " ", "</", "s>", "</s>", "ab"]
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("a", "b")]
    model = tokenizers.Tokenizer(tokenizers.models.BPE({w: i for i, w in enumerate(vocabulary)}, merges))
    model.decoder = tokenizers.decoders.Fuse()
    return model


def saved(model, folder, **config):
    folder.mkdir(exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    for name, content in config.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / "tokenizer.json"


@pytest.mark.parametrize("give", ["file", "folder"])
@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_config": {"eos_token": "<fin>", "pad_token": {"content": "<blank>"}}},
        {"special_tokens_map": {"eos_token": {"content": "<fin>"}, "pad_token": "<blank>"}},
        {"tokenizer_config": {"eos_token": None, "pad_token": "<blank>"}, "special_tokens_map": {"eos_token": "<fin>"}},
    ],
)
def test_the_configuration_decides_the_end_of_documents_from_prepare_to_training(
    prepare, jsonl, tmp_path, give, config
):
    path = saved(byte_level(), tmp_path / "tok", **config)
    words = ("--input", jsonl, "--tokenizer", path if give == "file" else path.parent)
    for stage in ("start", "tokens", "join"):
        result = prepare(*words, "--output", tmp_path / "data", "--stage", stage)
        assert result.code == 0, result.err
    manifest = load_manifest(tmp_path / "data")
    info = manifest.tokenizer
    assert (info.eod_id, info.pad_id, info.mask_id, manifest.vocab_size) == (1, 0, info.vocab_size, info.vocab_size + 1)
    assert load_prepared_tokenizer(tmp_path / "data", manifest).decode([1, 0]) == "<|eod|>[PAD]"
    assert "nothing to do" in prepare(*words, "--output", tmp_path / "data").out
    # A second corpus with the tokenizer of the first has the same ids, also after the original has gone.
    path.rename(tmp_path / "elsewhere.json")
    again = prepare("--input", jsonl, "--tokenizer", tmp_path / "data", "--output", tmp_path / "second")
    assert again.code == 0, again.err
    assert (tmp_path / "second" / "manifest.json").read_bytes() == (tmp_path / "data" / "manifest.json").read_bytes()


def test_another_end_token_is_another_tokenizer(prepare, jsonl, tmp_path):
    path = saved(byte_level(), tmp_path / "tok", tokenizer_config={"eos_token": "<fin>"})
    words = ("--input", jsonl, "--output", tmp_path / "data", "--tokenizer", path)
    assert prepare(*words, "--stage", "tokens").code == 0
    saved(byte_level(), tmp_path / "tok", tokenizer_config={"eos_token": "<blank>"})
    assert "tasks are not done" in (failed := prepare(*words, "--stage", "join")).err or "no tokenizer" in failed.err
    assert prepare(*words).code == 0 and load_manifest(tmp_path / "data").tokenizer.eod_id == 0
    saved(byte_level(), tmp_path / "tok", tokenizer_config={"eos_token": "<fin>"})
    assert "with eos_token <blank> instead of <fin>" in prepare(*words).err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"eos_token": "<gone>"}', r"tokenizer_config\.json: the eos_token '<gone>' is not in the vocabulary"),
        ("[1, 2]", "should hold one JSON object, not a list"),
        ("{", r"tokenizer_config\.json is not valid JSON"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path, content, message):
    path = saved(byte_level(), tmp_path / "tok")
    path.with_name("tokenizer_config.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(path)


def test_a_padding_token_that_is_missing_does_not_matter(tmp_path):
    path = saved(byte_level(), tmp_path / "tok", tokenizer_config={"eos_token": "<fin>", "pad_token": "<gone>"})
    assert (load_tokenizer(path).eod_id, load_tokenizer(path).pad_id) == (1, None)


def test_dropout_is_switched_off(tmp_path):
    plain = byte_level()
    dropping = tokenizers.Tokenizer.from_str(plain.to_str().replace('"dropout":null', '"dropout":0.5'))
    wanted = load_tokenizer(saved(plain, tmp_path / "plain")).encode_batch([TEXT])[0]
    tokenizer = load_tokenizer(saved(dropping, tmp_path / "dropping"))
    for _ in range(20):
        assert np.array_equal(tokenizer.encode_batch([TEXT])[0], wanted)


def not_special():
    model = byte_level()
    model.add_tokens([tokenizers.AddedToken("<|endoftext|>", special=False, normalized=False)])
    return model


def without_regex():
    model = byte_level(ignore_merges=True)
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return model


@pytest.mark.parametrize(
    ("model", "config", "special"),
    [
        (not_special, {}, ["<|endoftext|>", "<blank>"]),
        (without_regex, {"eos_token": "<fin>"}, ["<fin>", "<blank>"]),
        (unigram, {}, ["</s>", "<pad>"]),
        (merged, {}, ["</s>"]),
        (word_level, {}, ["[SEP]"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_text_that_spells_a_special_token_stays_text(tmp_path, model, config, special):
    library = model()
    tokenizer = load_tokenizer(saved(library, tmp_path / "tok", tokenizer_config=config))
    ids = [library.token_to_id(name) for name in special]
    assert tokenizer.eod_id == ids[0]
    for name in special:
        for text in (name, f"a {name} b", f"a{name}b", f"{name}{name}"):
            found = tokenizer.encode_batch([text])[0].tolist()
            assert not set(ids) & set(found), (text, found)
            if model is not word_level:
                assert tokenizer.decode(found) == text
    assert tokenizer.decode(ids) in ("".join(special), " ".join(special))
    rng = random.Random(0)
    for _ in range(50):  # all other texts are as the library encodes them
        text = " ".join(rng.choices(["a", "b", "ab", "some", "text", "to", "learn"], k=6))
        if model is merged:
            text = text.replace("some", "").replace("text", "").replace("to", "").replace("learn", "")
        assert tokenizer.encode_batch([text])[0].tolist() == library.encode(text, add_special_tokens=False).ids


def test_tokens_after_a_renamed_one_keep_their_ids(tmp_path):
    tokenizer = load_tokenizer(saved(unigram(), tmp_path / "tok"))
    ids = tokenizer.encode_batch(["a <extra>"])[0].tolist()
    assert tokenizer.vocab_size - 1 in ids and tokenizer.decode(ids) == "a <extra>"


def test_a_special_token_in_the_corpus_does_not_end_a_document(prepare, tmp_path, texts):
    path = saved(not_special(), tmp_path / "tok")
    corpus = write_jsonl(tmp_path / "x.jsonl", ["before <|endoftext|> after, [MASK] and <|eod|> too", *texts[:50]])
    words = ("--input", corpus, "--output", tmp_path / "data", "--tokenizer", path, "--validation-fraction", 0)
    assert prepare(*words).code == 0
    from test_prepare import all_texts

    assert all_texts(tmp_path / "data") == sorted(["before <|endoftext|> after, [MASK] and <|eod|> too", *texts[:50]])
