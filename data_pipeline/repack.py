"""`loopmdm prepare --repack`: another row length or packing for tokens that stay as they are."""

import os
from pathlib import Path

from data_pipeline.atomic_files import lock_rows
from data_pipeline.errors import DataError
from data_pipeline.manifest import (
    MANIFEST_NAME,
    FileInfo,
    Manifest,
    Packing,
    SplitInfo,
    check_files,
    load_manifest,
    sha256_of,
    write_manifest,
)
from data_pipeline.packing.pack_plan import plan_files, write_plan


def repack(folder: Path, packing: Packing | None, seq_len: int | None) -> Manifest:
    """Plan the rows of every split anew and return the new manifest; None keeps what the folder has.

    A plan that is missing or damaged is made again too, even if it is the one that is asked for.

    New plans have names of their own and the manifest is replaced last, so the folder is as before or as asked whenever the
    process ends. A run that has mapped the old plan goes on with it.

    Raises:
        DataError: no prepared folder, files that differ from its manifest, too little text for a row of each split, or
            another process packs the same folder.
    """
    folder = Path(folder)
    load_manifest(folder)  # says what is wrong, before anything is held
    with lock_rows(folder) as descriptor:
        if os.fstat(descriptor).st_ino != folder.stat().st_ino:
            raise DataError(f"{folder} has just been prepared anew; run the command again")
        manifest = load_manifest(folder)
        old = (manifest.packing, manifest.seq_len)
        new = (packing or manifest.packing, seq_len or manifest.seq_len)
        check_files(folder, _without_plans(manifest))
        if new == old and _is_whole(folder, manifest):
            return manifest
        try:
            splits = {split: _planned(folder, split, info, old, new) for split, info in manifest.splits.items()}
            options = manifest.options | {"packing": new[0], "seq_len": new[1]}
            update = {"packing": new[0], "seq_len": new[1], "splits": splits, "options": options}
            # The date says when the inputs were read, which was then.
            dated = (folder / MANIFEST_NAME).stat().st_mtime_ns
            os.fsync(descriptor)  # the names of the new plan reach the disk before the manifest that needs them,
            write_manifest(folder, manifest.model_copy(update=update), dated)
            os.fsync(descriptor)  # and that one before the old plan goes
        finally:
            manifest = load_manifest(folder)
            _remove_unlisted_plans(folder, manifest)
    return manifest


def _planned(
    folder: Path, split: str, info: SplitInfo, old: tuple[Packing, int], new: tuple[Packing, int]
) -> SplitInfo:
    """Write a split's new plan, through to the disk; returns its entry for the manifest."""
    for name in plan_files(split, *new):
        (folder / name).unlink(missing_ok=True)  # whoever has mapped what was there keeps it
    plan = write_plan(folder, split, info.shards, *new)
    if plan.rows == 0:
        raise DataError(
            f"the {split} split of {folder} has {info.tokens:,} tokens, fewer than one row of {plan.seq_len:,}; "
            "give a smaller --seq-len"
        )
    files = {name: file for name, file in info.files.items() if name not in plan_files(split, *old)}
    for name in plan_files(split, *new):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        files[name] = FileInfo(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
    counts = {"rows": plan.rows, "dropped_tokens": plan.dropped_tokens, "padded_tokens": plan.padded_tokens}
    return info.model_copy(update={**counts, "files": files})


def _without_plans(manifest: Manifest) -> Manifest:
    plans = {name for split in manifest.splits for name in plan_files(split, manifest.packing, manifest.seq_len)}
    splits = {
        split: info.model_copy(update={"files": {name: f for name, f in info.files.items() if name not in plans}})
        for split, info in manifest.splits.items()
    }
    return manifest.model_copy(update={"splits": splits})


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    try:
        check_files(folder, manifest)
    except DataError:
        return False
    return True


def _remove_unlisted_plans(folder: Path, manifest: Manifest) -> None:
    """The plan that was replaced, or the one that came to nothing, and those of earlier attempts that were killed."""
    listed = {name for info in manifest.splits.values() for name in info.files}
    for split in manifest.splits:
        for path in folder.glob(f"{split}.pack.*"):
            if path.name not in listed:
                path.unlink()
