"""`loopmdm verify DIR`: compare a prepared folder, read completely, with its manifest."""

import argparse
from contextlib import nullcontext
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.exit_status import exit_status
from data_pipeline.in_use import hold
from data_pipeline.manifest import REPAIR_HINT, Manifest, SplitInfo, check_hash, check_size
from data_pipeline.packing.pack_plan import load_plan
from data_pipeline.paths import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `loopmdm verify`."""
    parser.description = (
        "Read every byte of a prepared folder and compare sizes, SHA-256 hashes and counts with its manifest. "
        "A training run checks sizes and the smaller files only."
    )
    parser.add_argument("folder", type=user_path, metavar="DIR", help="folder that `loopmdm prepare` wrote")


def run(args: argparse.Namespace) -> int:
    """Verify the folder and print the result; returns the exit status."""
    return exit_status(lambda: verify_and_report(args.folder))


def verify_and_report(folder: Path) -> None:
    """Verify a folder and print what was checked. Raises DataError as `verify` does."""
    manifest = verify(folder)
    files = [
        *(info for split in manifest.splits.values() for info in split.files.values()),
        *manifest.provenance.values(),
    ]
    size = sum(info.bytes for info in files)
    print(f"{folder}: the tokenizer and {len(files)} files of {size / 1e6:,.1f} MB match the manifest")


def verify(folder: Path) -> Manifest:
    """Check every file's size and SHA-256, and the counts of documents, tokens and rows. Returns the manifest.

    Raises:
        DataError: names the first difference, with what was found and what was expected.
    """
    folder = Path(folder)
    manifest, held = hold(folder)
    with held or nullcontext():
        _check_content(folder, manifest)
    return manifest


def _check_content(folder: Path, manifest: Manifest) -> None:
    check_hash(folder / manifest.tokenizer.file, manifest.tokenizer.sha256)
    for file, info in manifest.provenance.items():
        check_size(folder / file, info.bytes)
        check_hash(folder / file, info.sha256)
    for name, split in manifest.splits.items():
        for file, info in split.files.items():
            check_size(folder / file, info.bytes)
            check_hash(folder / file, info.sha256)
        _check_counts(folder, name, manifest, split)


def _check_counts(folder: Path, name: str, manifest: Manifest, split: SplitInfo) -> None:
    """Compare the manifest's counts with the files; no hash protects the manifest itself."""
    shards = manifest.shards(name)
    for shard in shards:
        shard.index(folder)
    rows = load_plan(folder, name, *manifest.row_format).counts
    found = {
        "documents": sum(shard.documents for shard in shards),
        "tokens": sum(shard.tokens for shard in shards),
        "rows": rows.rows,
        "dropped_tokens": rows.dropped_tokens,
        "padded_tokens": rows.padded_tokens,
    }
    for key, count in found.items():
        if count != (expected := getattr(split, key)):
            raise DataError(
                f"{folder}: the manifest says {expected:,} {key} in the {name} split, its files hold {count:,}; {REPAIR_HINT}"
            )
