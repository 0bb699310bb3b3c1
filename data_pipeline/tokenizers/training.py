"""Train a SentencePiece tokenizer on texts."""

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from data_pipeline.atomic_files import write_atomic
from data_pipeline.errors import DataError
from data_pipeline.tokenizers.special_tokens import EOD_TEXT

ModelType = Literal["bpe", "unigram"]
# The SentencePiece trainer skips lines longer than max_sentence_length bytes; a character has at most 4 bytes.
MAX_LINE_CHARS = 4096


def train_sentencepiece(texts: Iterable[str], vocab_size: int, model_path: Path, model_type: ModelType = "bpe") -> None:
    """Train a byte-fallback model of exactly `vocab_size` pieces and write it to `model_path`.

    The model is lossless: `decode(encode(text)) == text` for every text that UTF-8 can encode, because nothing is normalized,
    no space is added or removed, unknown characters become bytes, and `SentencePieceTokenizer` encodes a literal U+2581
    (which SentencePiece uses for a space) as bytes. Digits are single pieces; the end-of-document piece has id 1; there is no
    beginning-of-text or padding piece. Training uses one thread, so that equal texts in equal order give equal bytes.

    Raises:
        DataError: the vocabulary is too large or too small for the text; the message gives the limit.
    """
    import sentencepiece

    model = io.BytesIO()  # written to memory: a path would become part of the model's bytes
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            unk_id=0,
            eos_id=1,
            eos_piece=EOD_TEXT,
            bos_id=-1,
            pad_id=-1,
            max_sentence_length=4 * MAX_LINE_CHARS,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(_explain_training(str(error), vocab_size)) from error
    write_atomic(model_path, model.getvalue())


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Non-empty lines without line ends, because the trainer works on single lines."""
    for text in texts:
        for line in re.split(r"[\r\n]+", text):
            for start in range(0, len(line), MAX_LINE_CHARS):
                yield line[start : start + MAX_LINE_CHARS]


def _explain_training(message: str, vocab_size: int) -> str:
    """SentencePiece's error about a vocabulary size, in terms of the options."""
    if limit := re.search(r"size too high.*value <= (\d+)", message):
        return f"--vocab-size {vocab_size} is more than the text supports; use at most {limit[1]} or give more text"
    if limit := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return (
            f"--vocab-size {vocab_size} is too small: the 256 byte pieces and the characters of the text need "
            f"at least {limit[1]}"
        )
    return f"training a tokenizer with --vocab-size {vocab_size} failed: {message}"
