"""The table of a prepared folder's splits that the commands print."""

from collections.abc import Iterable
from pathlib import Path

from data_pipeline.manifest import Manifest


def split_table(manifest: Manifest, folder: Path) -> list[str]:
    """A table of what each split holds and how full its rows are, and the folder, as lines."""
    header = ("split", "documents", "bytes", "tokens", "bytes/token", "rows", "filled", "padding", "dropped tokens")
    table = [
        (
            name,
            f"{split.documents:,}",
            f"{split.bytes:,}",
            f"{split.tokens:,}",
            f"{split.bytes / split.tokens:.3f}",
            f"{split.rows:,}",
            f"{1 - split.padded_tokens / (split.rows * manifest.seq_len):.3%}",
            f"{split.padded_tokens:,}",
            f"{split.dropped_tokens:,}",
        )
        for name, split in manifest.splits.items()
    ]
    sizes = f"{manifest.vocab_size:,} ids, {'shuffled ' * manifest.shuffle}{manifest.packing} rows of {manifest.seq_len:,} tokens"
    return [*aligned([header, *table]), f"wrote {folder} ({sizes})"]


def aligned(rows: list[tuple[str, ...]]) -> Iterable[str]:
    """Format rows of cells as lines, the first column left-aligned and the others right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells)
