"""`loopmdm repack DIR`: another row length or packing for a prepared folder, without tokenizing again."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from data_pipeline.atomic_files import lock_prepared_folder, sync
from data_pipeline.errors import DataError
from data_pipeline.exit_status import exit_status
from data_pipeline.in_use import users
from data_pipeline.indexed import Shard
from data_pipeline.manifest import (
    MANIFEST_NAME,
    FileInfo,
    Manifest,
    Packing,
    RowFormat,
    SplitInfo,
    check_files,
    load_manifest,
    sha256_of,
    write_manifest,
)
from data_pipeline.packing.pack_plan import lacks_text, plan_files, require_seq_len, write_plan
from data_pipeline.paths import user_path
from data_pipeline.split_table import split_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `loopmdm repack`."""
    parser.description = (
        "Change the rows of a prepared folder in place. Nothing is tokenized again. A training run that uses the folder keeps "
        "its rows. Without options, missing or damaged pack plans are made again."
    )
    parser.add_argument("folder", type=user_path, metavar="DIR", help="folder that `loopmdm prepare` wrote")
    parser.add_argument("--seq-len", type=int, metavar="L", help="tokens per row (default: unchanged)")
    parser.add_argument(
        "--pack",
        choices=get_args(Packing),
        help="concat: cut the stream of documents into rows; best_fit: keep documents whole, with padding at the end of rows "
        "(default: unchanged)",
    )
    parser.add_argument(
        "--shuffle",
        action=argparse.BooleanOptionalAction,
        help="pack the documents in shuffled order, or in that of the inputs (default: unchanged)",
    )


def run(args: argparse.Namespace) -> int:
    """Repack the folder and print its new table; returns the exit status."""
    return exit_status(lambda: repack_and_report(args.folder, args.pack, args.seq_len, args.shuffle))


def repack_and_report(folder: Path, packing: Packing | None, seq_len: int | None, shuffle: bool | None = None) -> None:
    """Repack a folder and print the new rows. Raises DataError as `repack` does."""
    if seq_len is not None:
        require_seq_len(seq_len)
    print("\n".join(split_table(repack(folder, packing, seq_len, shuffle), folder)))


def repack(folder: Path, packing: Packing | None, seq_len: int | None, shuffle: bool | None = None) -> Manifest:
    """Plan the rows of every split again and return the new manifest.

    New plans have their own names and the manifest is replaced last, so whenever the process ends, the folder has either the
    old rows or the new ones. A run that has mapped the old plan keeps using it; the plan is removed by the next repack when no
    process holds the folder. A plan that is missing or damaged is made again even if its packing and length do not change.

    Args:
        packing, seq_len, shuffle: None keeps those of the folder.

    Raises:
        DataError: not a prepared folder, files that differ from its manifest, too little text for one row of each split, or
            another process is repacking the same folder.
    """
    folder = Path(folder)
    load_manifest(folder)  # fails early, before the lock
    with lock_prepared_folder(folder) as descriptor:
        if os.fstat(descriptor).st_ino != folder.stat().st_ino:
            raise DataError(f"{folder} has just been prepared again; run the command again")
        manifest = load_manifest(folder)
        old = manifest.row_format
        new = RowFormat(packing or old.packing, seq_len or old.seq_len, old.shuffle if shuffle is None else shuffle)
        check_files(folder, _without_plans(manifest))
        shards = {split: manifest.shards(split) for split in manifest.splits}
        if new == old and _is_intact(folder, manifest):
            _remove_leftovers(folder, manifest)
            return manifest
        try:
            splits = {
                split: _planned(folder, split, info, shards[split], old, new) for split, info in manifest.splits.items()
            }
            rows = new._asdict()
            update = {**rows, "splits": splits, "options": manifest.options | rows}
            # The modification time says when the inputs were read, so it stays.
            inputs_read = (folder / MANIFEST_NAME).stat().st_mtime_ns
            # The new plan must be on the disk before the manifest that needs it, and that before the old plan is removed.
            os.fsync(descriptor)
            write_manifest(folder, manifest.model_copy(update=update), inputs_read)
        finally:
            manifest = load_manifest(folder)
            _remove_leftovers(folder, manifest)
    return manifest


def _planned(
    folder: Path,
    split: str,
    info: SplitInfo,
    shards: Sequence[Shard],
    old: RowFormat,
    new: RowFormat,
) -> SplitInfo:
    """Write a split's new plan and flush it to the disk; returns the split's new entry in the manifest."""
    if lacks_text(split, info.tokens, new):
        raise DataError(
            f"the {split} split of {folder} has {info.tokens:,} tokens, fewer than one row of {new.seq_len:,}; "
            "choose a smaller --seq-len"
        )
    for name in plan_files(split, *new):
        (folder / name).unlink(missing_ok=True)  # a run that has mapped the old file keeps it
    plan = write_plan(folder, split, shards, *new)
    files = {name: file for name, file in info.files.items() if name not in plan_files(split, *old)}
    for name in plan_files(split, *new):
        sync(folder / name)
        files[name] = FileInfo(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
    counts = {"rows": plan.rows, "dropped_tokens": plan.dropped_tokens, "padded_tokens": plan.padded_tokens}
    return info.model_copy(update={**counts, "files": files})


def _without_plans(manifest: Manifest) -> Manifest:
    plans = {name for split in manifest.splits for name in plan_files(split, *manifest.row_format)}
    splits = {
        split: info.model_copy(update={"files": {name: f for name, f in info.files.items() if name not in plans}})
        for split, info in manifest.splits.items()
    }
    return manifest.model_copy(update={"splits": splits})


def _is_intact(folder: Path, manifest: Manifest) -> bool:
    try:
        check_files(folder, manifest)
    except DataError:
        return False
    return True


def _remove_leftovers(folder: Path, manifest: Manifest) -> None:
    """Remove plans that the manifest does not list, unless a process may have mapped them, and the remains of killed attempts."""
    if users(folder, manifest) is not None:
        return
    listed = {name for info in manifest.splits.values() for name in info.files}
    plans = (path for split in manifest.splits for path in folder.glob(f"{split}.pack.*"))
    for path in (*plans, *folder.glob(f"{MANIFEST_NAME}.partial-*")):
        if path.name not in listed:
            path.unlink()
