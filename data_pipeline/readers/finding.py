"""Files of folders and patterns. Links to folders are followed, and each file is found once however many links lead to it."""

import errno
import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG

from data_pipeline.readers.kinds import describes_data

ANY_FOLDERS = "**"


@dataclass(frozen=True)
class FoundFiles:
    """Files, sorted by name.

    Attributes:
        files: to be read.
        unread: those that are no data by their names, links that lead nowhere, and what is no file.
        repeated: other paths to the same files, through links, each with the one that is read.
    """

    files: tuple[Path, ...]
    unread: tuple[Path, ...]
    repeated: tuple[tuple[Path, Path], ...] = ()


def files_of_folder(root: Path) -> FoundFiles:
    """All files under `root`, hidden ones left out."""
    return _sorted_out(_walk(root, hidden=False), all_are_data=False)


def files_of_pattern(pattern: str) -> FoundFiles:
    """The files that a pattern matches, as the shell does; `**` stands for any folders."""
    root, parts = split_pattern(pattern)
    names_files = not glob.has_magic(parts[-1][:1])
    return _sorted_out(_matches_under(root, parts), all_are_data=names_files)


def split_pattern(pattern: str) -> tuple[Path, tuple[str, ...]]:
    """The longest beginning of a pattern that exists as it is written, also with brackets in it, and the parts after it."""
    parts = Path(pattern).parts
    fixed = next(i for i in range(len(parts) - 1, -1, -1) if Path(*parts[:i]).exists())
    return Path(*parts[:fixed]), parts[fixed:]


def matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the parts of a path match those of a pattern. Wildcards match no hidden names, as in a shell."""
    if not pattern:
        return not parts
    if pattern[0] == ANY_FOLDERS:
        if matches(parts, pattern[1:]) or (len(pattern) == 1 and not any(map(_is_hidden, parts))):
            return True
        return bool(parts) and not _is_hidden(parts[0]) and matches(parts[1:], pattern)
    if not parts or (_is_hidden(parts[0]) and not _is_hidden(pattern[0])):
        return False
    return fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def _matches_under(root: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    if ANY_FOLDERS not in parts:
        yield from (root / name for name in glob.glob(os.path.join(*parts), root_dir=root))  # noqa: PTH118, PTH207
        return
    # Not glob.glob, which follows a circle of links until the system refuses: 40 times, or 2^40 with two of them.
    before = parts.index(ANY_FOLDERS)
    folders = glob.glob(os.path.join(*parts[:before]), root_dir=root) if before else [""]  # noqa: PTH118, PTH207
    hidden = any(map(_is_hidden, parts[before:]))
    for folder in (root / name for name in folders):
        if folder.is_dir():
            yield from (p for p in _walk(folder, hidden) if matches(p.relative_to(folder).parts, parts[before:]))


def _walk(folder: Path, hidden: bool, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """All entries under a folder that are no folders. A link to a folder that it lies in is not followed.

    Args:
        hidden: include hidden ones.
        above: device and inode of the folders that it lies in.
    """
    stat = folder.stat()
    if (here := (stat.st_dev, stat.st_ino)) in above:
        return
    with os.scandir(folder) as entries:
        found = [(entry.name, _is_folder(entry)) for entry in entries if hidden or not _is_hidden(entry.name)]
    for name, is_folder in found:
        if is_folder:
            yield from _walk(folder / name, hidden, above | {here})
        else:
            yield folder / name


def _sorted_out(paths: Iterable[Path], all_are_data: bool) -> FoundFiles:
    ways: dict[Path, list[tuple[bool, int, Path]]] = {}
    unread = []
    for entry, to_entry in _entries(paths).items():
        path = min(to_entry, key=lambda each: (len(each.parts), each))
        mode, target = _followed(path, entry)
        if S_ISDIR(mode):
            continue
        if S_ISREG(mode) and (all_are_data or not describes_data(path.name)):
            # The file itself comes before links to it, then the path of the fewest parts.
            ways.setdefault(target, []).extend((entry != target, len(each.parts), each) for each in to_entry)
        else:
            unread.append(path)
    found = sorted(([path for *_, path in sorted(each)] for each in ways.values()), key=lambda paths: str(paths[0]))
    repeated = tuple((other, read) for read, *others in found for other in others)
    return FoundFiles(tuple(read for read, *_ in found), tuple(sorted(unread, key=str)), repeated)


def _followed(path: Path, entry: Path) -> tuple[int, Path]:
    """The mode of what a path leads to, 0 for nothing, and its name without links. `entry` is the path with its folder's."""
    try:
        mode = path.lstat().st_mode
        return (path.stat().st_mode, path.resolve()) if S_ISLNK(mode) else (mode, entry)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return 0, entry


def _entries(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    """Entries of folders, named without links to the folders -> the paths that lead to them."""
    folders: dict[Path, Path] = {}
    found: dict[Path, list[Path]] = {}
    for path in paths:
        if path.parent not in folders:
            folders[path.parent] = path.parent.resolve()
        to_entry = found.setdefault(folders[path.parent] / path.name, [])
        if path not in to_entry:
            to_entry.append(path)
    return found


def _is_folder(entry: os.DirEntry) -> bool:
    # Of a link to itself, entry.is_dir() raises an error.
    return Path(entry).is_dir() if entry.is_symlink() else entry.is_dir()


def _is_hidden(name: str) -> bool:
    return name.startswith(".")
