"""Versions of installed packages and of this one. Imports no torch."""

import base64
import hashlib
import subprocess
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path


def package_version(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def source_version(folder: Path) -> str:
    """What the packages in `folder` are: a checkout at a commit, an installed version, or a copy."""
    if (folder / ".git").exists():
        commit = _git(folder, "rev-parse", "--short", "HEAD")
        if commit:
            return f"checkout at commit {commit}{', changed since' if _git(folder, 'status', '--porcelain') else ''}"
    installed = _installed_in(folder)
    return f"installed, loopmdm {installed.version}" if installed else "a copy, without version"


def changed_files(folder: Path) -> list[Path]:
    """Files of loopmdm as installed in `folder` that are missing or differ: another package may have overwritten them."""
    installed = _installed_in(folder)
    changed = []
    for file in (installed and installed.files) or ():
        path = Path(str(file.locate()))
        if file.hash is not None and file.suffix != ".pyc":
            digest = hashlib.new(file.hash.mode, path.read_bytes()).digest() if path.is_file() else b""
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                changed.append(path)
    return changed


def _installed_in(folder: Path) -> Distribution | None:
    """The distribution whose files are in `folder`; None for a checkout, also an installed one (`pip install -e`)."""
    found = [each for each in distributions(name="loopmdm", path=[str(folder)]) if each.read_text("RECORD")]
    return next((each for each in found if any(str(file) == "pretrain/cli.py" for file in each.files or ())), None)


def _git(folder: Path, *words: str) -> str:
    """What git answers; empty if it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
