"""Checks of the places that `loopmdm prepare` reads and writes, made before its work."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.in_use import require_unused
from data_pipeline.manifest import MANIFEST_NAME, Manifest, load_manifest
from data_pipeline.readers.finding import matches, split_pattern
from data_pipeline.readers.inputs import Input
from data_pipeline.tasks.work import JOINED, KINDS, PARTIAL, work_folder

# Names that a glob would find in the output and in the work folder.
WRITTEN = (
    MANIFEST_NAME,
    "tokenizer.json",
    "tokenizer.model",
    "train-00000.bin",
    "train-00000.idx",
    "train.pack.concat-8-shuffled.json",
    "train.pack.concat-8-shuffled.starts.npy",
    "train.places.parquet",
    "sources.parquet",
)
WRITTEN_BY_TASKS = (
    f"tokens/{'0' * 32}/train.bin",
    f"tokens/{'0' * 32}/train.idx",
    f"tokens/{'0' * 32}/train.places.parquet",
    f"signatures/{'0' * 32}/signatures.parquet",
    f"samples/{'0' * 32}/sample.jsonl",
    f"shards/{'0' * 32}/shard.bin",
    f"shards/{'0' * 32}/shard.idx",
    f"{JOINED}{PARTIAL}0/{MANIFEST_NAME}",
)


def resolve_output(output: Path) -> Path:
    """The folder that `--output` names, with links followed.

    Raises:
        DataError: it is the root folder or a link to itself.
    """
    try:
        resolved = output.resolve()
    except (OSError, RuntimeError) as error:  # Python 3.11 and 3.12 raise RuntimeError for a circle of links
        raise DataError(f"--output {output}: cannot be followed ({error}); choose another folder") from error
    if resolved == resolved.parent:
        raise DataError(f"--output {output} is the root folder; give a new folder, such as data/mine")
    return resolved


def check_inputs(output: Path, inputs: Iterable[Input]) -> None:
    """Raise DataError when an input holds, or would hold at the next run, files that this command writes."""
    for found in inputs:
        if found.kind == "stdlib" or found.is_remote:
            continue
        for own in (output, work_folder(output)):
            _refuse_inside(found, own)
        _refuse_written(found)


def _refuse_inside(found: Input, own: Path) -> None:
    root = found.root.resolve() if found.root else None
    if root and (own == root or root in own.parents):
        raise DataError(
            f"--output {own} lies inside the input {root}, so it would be read as an input; choose another folder"
        )
    if found.kind == "glob" and _finds(found.value, own):
        raise DataError(
            f"--input {found.value} also finds the files of {own}, which this command writes; choose another --output or a "
            "narrower pattern"
        )
    for file in _real_files(found):
        if own in file.parents:
            raise DataError(
                f"--input {file} lies inside {own}, which this command writes; move it, or choose another --output"
            )


def _refuse_written(found: Input) -> None:
    names: dict[Path, set[str]] = {}
    for file in _real_files(found):
        names.setdefault(file.parent, set()).add(file.name)
    for folder, files in names.items():
        for work in filter(_is_work_folder, (folder, *folder.parents)):
            raise DataError(
                f"--input {found.value} holds {work}, the work folder of an unfinished `loopmdm prepare`; finish that command, or "
                "name the files to read"
            )
        manifest = _manifest_of(folder)
        if manifest is not None and (written := sorted(files & _names(manifest))):
            raise DataError(
                f"--input {found.value}: {folder / written[0]} belongs to a prepared folder, which holds tokens instead of text; "
                "move that folder elsewhere, or name the files to read"
            )


def _real_files(found: Input) -> Iterable[Path]:
    """The files of an input with links followed; each folder is followed only once."""
    folders: dict[Path, Path] = {}
    for file in found.files:
        if file.is_symlink():
            yield file.resolve()
            continue
        if file.parent not in folders:
            folders[file.parent] = file.parent.resolve()
        yield folders[file.parent] / file.name


def _finds(pattern: str, folder: Path) -> bool:
    """Whether a pattern matches files that will be in `folder`."""
    root, parts = split_pattern(os.path.abspath(pattern))  # noqa: PTH100 (follows no links: what matches may not exist yet)
    root = root.resolve()
    names = (*WRITTEN, *WRITTEN_BY_TASKS) if folder.suffix == ".work" else WRITTEN
    written = (folder / name for name in names)
    return any(path.is_relative_to(root) and matches(path.relative_to(root).parts, parts) for path in written)


def _manifest_of(folder: Path) -> Manifest | None:
    try:
        return load_manifest(folder) if (folder / MANIFEST_NAME).is_file() else None
    except (DataError, OSError):
        return None  # a manifest.json of another program


def _names(manifest: Manifest) -> set[str]:
    files = (name for info in manifest.splits.values() for name in info.files)
    return {MANIFEST_NAME, manifest.tokenizer.file, *manifest.provenance, *files}


def _is_work_folder(folder: Path) -> bool:
    """Whether a folder is the work folder of a run of `loopmdm prepare`."""
    return folder.suffix == ".work" and all((folder / kind).is_dir() for kind in KINDS)


def check_output(output: Path) -> None:
    """Check that a finished folder can be moved to `output`. An existing folder is to be replaced.

    Raises:
        DataError: says why not, and what to do.
    """
    for folder in output.parents:
        if _is_work_folder(folder) or _manifest_of(folder) is not None:
            raise DataError(
                f"--output {output} lies inside {folder}, which `loopmdm prepare` writes and replaces as a whole; choose another "
                "folder"
            )
    work = work_folder(output)
    if work.exists() and not work.is_dir():
        raise DataError(
            f"{work} is a file, and the work is done in a folder of that name; rename it, or choose another --output"
        )
    if not output.exists():
        return
    if _is_mount_point(output):
        raise DataError(
            f"--output {output} is a mount point, which cannot be replaced by the finished folder; give a new folder inside it, "
            f"such as {output / 'prepared'}"
        )
    if output in (here := Path.cwd(), *here.parents):
        raise DataError(
            f"--output {output} holds the working folder, which would be replaced; change to another folder first"
        )
    if any(output.iterdir()):
        _check_replaceable(output)


def _check_replaceable(output: Path) -> None:
    others = sorted(path.name for path in output.iterdir() if not _is_ours(path.name, load_manifest(output)))
    if others:
        raise DataError(
            f"--output {output} also holds {', '.join(others[:3])}, which --overwrite would remove; move "
            f"{'it' if len(others) == 1 else 'them'} elsewhere first"
        )
    if not os.access(output, os.W_OK) or not _may_be_renamed(output):
        raise DataError(f"--output {output} cannot be replaced: permission denied; choose another folder")
    require_unused(output)


def _is_ours(name: str, manifest: Manifest) -> bool:
    """Listed in the manifest, or left there by a repack."""
    plan = any(name.startswith(f"{split}.pack.") for split in manifest.splits)
    return plan or name.startswith(f"{MANIFEST_NAME}.partial-") or name in _names(manifest)


def _may_be_renamed(folder: Path) -> bool:
    """Whether the parent allows it: in one such as /tmp, only the owners of the two may rename a folder."""
    parent, user = folder.parent.stat(), os.geteuid()
    return not parent.st_mode & stat.S_ISVTX or user in (0, parent.st_uid, folder.stat().st_uid)


def _is_mount_point(path: Path) -> bool:
    """Whether something is mounted at a path; `os.path.ismount` misses a folder of the same disk."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().removesuffix(b"\n").split(b"\n")
    except OSError:
        return path.is_mount()
    mounted = (line.split(b" ")[4] for line in lines)
    return os.fsencode(path) in (point.decode("unicode_escape").encode("latin-1") for point in mounted)
