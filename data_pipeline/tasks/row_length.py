"""Whether the inputs can fill one row, as far as their sizes tell it before they are read."""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.readers.compression import is_compressed
from data_pipeline.readers.inputs import Input

# More than any tokenizer makes of a byte of input: one token per byte and one per document, and some more where normalization
# spells out a character.
MOST_TOKENS_PER_BYTE = 16
# Fewer bytes are read at once, and may turn out to be no text at all.
FEW_BYTES = 64
PLAIN = ("file", "folder", "glob", "stdlib")


def require_text_for_a_row(inputs: Sequence[Input], seq_len: int) -> None:
    """Raise DataError when plain files have fewer bytes than one row needs. Compressed files and datasets may hold any amount."""
    if not all(found.kind in PLAIN and all(map(_is_plain, found.files)) for found in inputs):
        return
    num_bytes = sum(found.num_bytes for found in inputs)
    if max(num_bytes, FEW_BYTES) * MOST_TOKENS_PER_BYTE < seq_len:
        raise DataError(
            f"--seq-len {seq_len}: the inputs have {num_bytes:,} bytes, which cannot fill one row; give more text or a "
            "smaller --seq-len"
        )


def _is_plain(path: Path) -> bool:
    return path.suffix.lower() != ".parquet" and not is_compressed(path)
