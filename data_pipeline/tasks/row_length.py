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
    if not all(found.kind in PLAIN and all(_is_plain(found, path) for path in found.files) for found in inputs):
        return
    num_bytes = sum(found.num_bytes for found in inputs)
    if max(num_bytes, FEW_BYTES) * MOST_TOKENS_PER_BYTE < seq_len:
        raise DataError(
            f"--seq-len {seq_len}: the inputs have {num_bytes:,} bytes, which cannot fill one row; give more text or a "
            "smaller --seq-len"
        )


def few_documents_note(inputs: Sequence[Input], fraction: float) -> str | None:
    """What to expect of the validation split where each file is one document and they are few; None if they are enough."""
    files = [(found, path) for found in inputs if found.kind in PLAIN for path in found.files]
    are_all = all(found.kind in PLAIN for found in inputs) and all(
        found.kind_of(path) == "text" for found, path in files
    )
    if not are_all or not 0 < len(files) * fraction < 1:
        return None
    return (
        f"note: each of the {len(files):,} files is one document, and the validation split gets {fraction:g} of them, chosen by "
        f"hash: with a probability of {(1 - fraction) ** len(files):.0%} none, which is an error after the work; give a larger "
        "--validation-fraction, or 0 for no such split"
    )


def _is_plain(found: Input, path: Path) -> bool:
    return found.kind_of(path) != "parquet" and not is_compressed(path)
