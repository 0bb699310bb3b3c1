"""Words that a tokenizer's author added and that are no special tokens: one id each where a text has them, and named."""

import pytest
import sentencepiece
from conftest import write_jsonl
from test_huggingface_tokenizers import byte_level, saved

from data_pipeline.tokenizers.tokenizers import load_tokenizer

TEXT = "a <user>b <tool>\n<end> c"


def sentencepiece_model(folder, texts, **options):
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines()), model_prefix=str(folder / "tokenizer"),
        vocab_size=330, byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False, minloglevel=2,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, control_symbols=["<end>"], **options,
    )  # fmt: skip
    return folder / "tokenizer.model"


def huggingface_model(folder, symbols):
    model = byte_level(special=["<end>"])
    model.add_tokens([*symbols])
    return saved(model, folder)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "huggingface"])
@pytest.mark.parametrize("symbols", [(), ("<user>", "<tool>")])
def test_symbols_are_ids_and_named_and_special_tokens_stay_text(prepare, tmp_path, texts, kind, symbols):
    if kind == "huggingface":
        path = huggingface_model(tmp_path / "tokenizer", symbols)
    else:
        path = sentencepiece_model(tmp_path / "tokenizer", texts, model_type=kind, user_defined_symbols=[*symbols])
    tokenizer = load_tokenizer(path)
    (ids,) = tokenizer.encode_batch([TEXT])
    pieces = [tokenizer.decode([i]) for i in ids.tolist()]
    assert tokenizer.symbols == symbols and tokenizer.decode(ids.tolist()) == TEXT
    assert [each for each in ("<user>", "<tool>", "<end>") if each in pieces] == list(symbols)
    file = write_jsonl(tmp_path / "x.jsonl", [TEXT] * 20)
    result = prepare("--input", file, "--output", tmp_path / "data", "--tokenizer", path, "--validation-fraction", 0)
    assert result.code == 0, result.err
    line = "one token each wherever a text has them, as the tokenizer says: '<user>', '<tool>'\n"
    assert (line in result.err) == bool(symbols) and "wherever a text has them" not in result.err.replace(line, "")
