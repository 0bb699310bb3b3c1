"""Training data made on the spot, from a seed: no network, no `datasets`, no SentencePiece.

small: rows of 128 bytes. large: rows of 1,024 words with a vocabulary of 32,768, the size that speed depends on. Words are drawn
with Zipf frequencies, so there is something to learn: the frequencies.
"""

import json
from pathlib import Path

import numpy as np

LARGE_VOCABULARY = 32_768
"""Ids of the large folder's tokenizer, without [MASK]."""


def make_data(folder: Path, quick: bool) -> None:
    """Prepare `folder/small` and, unless `quick`, `folder/large`. A folder that exists is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "small").exists():
        text = folder / "small.jsonl"
        write_text(text, documents=100, words=400, vocabulary=500)
        prepare(text, folder / "small", "bytes", 128)
    if not quick and not (folder / "large").exists():
        text, tokenizer = folder / "large.jsonl", folder / "tokenizer.json"
        write_text(text, documents=1500, words=700, vocabulary=LARGE_VOCABULARY - 2)
        write_word_tokenizer(tokenizer)
        prepare(text, folder / "large", str(tokenizer), 1024)


def write_text(path: Path, documents: int, words: int, vocabulary: int) -> None:
    """JSONL with documents of 1 to 2 * `words` words "w0", "w1", ..."""
    rng = np.random.default_rng(0)
    frequency = 1 / (np.arange(vocabulary) + 10.0)
    lines = []
    for length in rng.integers(1, 2 * words, documents):
        drawn = rng.choice(vocabulary, size=length, p=frequency / frequency.sum())
        lines.append(json.dumps({"text": " ".join(f"w{word}" for word in drawn)}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_word_tokenizer(path: Path) -> None:
    """A `tokenizer.json` with one id per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<|eod|>", "[UNK]", *(f"w{i}" for i in range(LARGE_VOCABULARY - 2))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(names[:2])
    tokenizer.save(str(path))


def prepare(text: Path, output: Path, tokenizer: str, seq_len: int) -> None:
    """`loopmdm prepare` in this process."""
    from pretrain.cli import main as loopmdm

    words = ["prepare", "--input", str(text), "--output", str(output), "--tokenizer", tokenizer]
    status = loopmdm([*words, "--seq-len", str(seq_len), "--validation-fraction", "0.1", "--workers", "1"])
    if status:
        raise RuntimeError(f"loopmdm prepare ended with status {status}")
