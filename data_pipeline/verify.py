"""`loopmdm prepare --verify`: a prepared folder against its manifest, read from disk."""

from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.indexed import Index
from data_pipeline.manifest import REPAIR_HINT, Manifest, SplitInfo, check_hash, check_size, load_manifest
from data_pipeline.packing.pack_plan import load_plan


def verify(folder: Path) -> Manifest:
    """Full check: every file's size and SHA-256, and the counts of documents, tokens and rows. Returns the manifest.

    Raises:
        DataError: names the first thing that differs, with what was found and expected.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    check_hash(folder / manifest.tokenizer.file, manifest.tokenizer.sha256)
    for name, split in manifest.splits.items():
        for file, info in split.files.items():
            check_size(folder / file, info.bytes)
            check_hash(folder / file, info.sha256)
        _check_counts(folder, name, manifest, split)
    return manifest


def _check_counts(folder: Path, name: str, manifest: Manifest, split: SplitInfo) -> None:
    """What the manifest counts against what the files hold: nothing else vouches for the manifest itself."""
    indices = [Index(folder / stem) for stem in split.shards]
    rows = load_plan(folder, name, manifest.packing, manifest.seq_len).counts
    found = {
        "documents": sum(map(len, indices)),
        "tokens": sum(index.num_tokens for index in indices),
        "rows": rows.rows,
        "dropped_tokens": rows.dropped_tokens,
        "padded_tokens": rows.padded_tokens,
    }
    for key, count in found.items():
        if count != (told := getattr(split, key)):
            raise DataError(
                f"{folder}: the manifest tells of {told:,} {key} in {name}, its files hold {count:,}; {REPAIR_HINT}"
            )
