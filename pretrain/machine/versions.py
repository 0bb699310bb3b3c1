"""Versions of installed packages and of this one, and which are supported. Imports no torch."""

import base64
import csv
import hashlib
import subprocess
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from pretrain.errors import UserError

SUPPORTED = {
    "torch": (
        ">=2.11",
        "older versions were not tested, and before 2.10 torch cannot sum gradients of bf16 weights in fp32",
    ),
    "deepspeed": (
        ">=0.19.8,<0.20",
        "pretrain/parallel/engine.py relies on parts of DeepSpeed that other versions may change",
    ),
    "megatron-core": (">=0.16.1,<0.20", "model/megatron_on_cpu.py replaces names inside the modules of these versions"),
}
"""Distribution -> (the versions that training runs with, why no others). The same ranges as in setup.py."""


def require_supported_versions() -> None:
    """Check the installed versions before the libraries are imported: a package may be there that pip did not choose.

    Raises:
        UserError: a library has a version outside `SUPPORTED`.
    """
    if problems := unsupported_versions():
        raise UserError("\n".join(problems))


def unsupported_versions() -> list[str]:
    """What is wrong with each library whose version is outside `SUPPORTED`; libraries that are missing are left out."""
    found = {name: package_version(name) for name in SUPPORTED}
    return [
        f"{name} {found[name]} is installed, but {name}{versions} is needed: {reason}; run pip install '{name}{versions}'"
        for name, (versions, reason) in SUPPORTED.items()
        if found[name] is not None and not _within(found[name], versions)
    ]


def _within(found: str, versions: str) -> bool:
    """Whether a version is in a range. Builds of NVIDIA's containers, such as 2.11.0a0+eb65b36914.nv26.02, count as 2.11.0."""
    try:
        return SpecifierSet(versions).contains(Version(found).base_version)
    except InvalidVersion:
        return False


def package_version(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


OWN_FOLDERS = ("model", "pretrain", "data_pipeline", "ds_configs", "launchers")
"""What results depend on. Other files in a checkout, such as pages and exported folders, do not change it."""


def source_version(folder: Path) -> str:
    """What the packages in `folder` are: a checkout at a commit, an installed version, or a copy."""
    if (folder / ".git").exists():
        commit = _git(folder, "rev-parse", "--short", "HEAD")
        if commit:
            changed = _git(folder, "status", "--porcelain", "--", *OWN_FOLDERS)
            return f"checkout at commit {commit}{', changed since' if changed else ''}"
    installed = _installed_in(folder)
    return f"installed, loopmdm {installed.version}" if installed else "a copy, without version"


def changed_files(folder: Path) -> list[Path]:
    """Files of loopmdm as installed in `folder` that are missing or differ: another package may have overwritten them."""
    installed = _installed_in(folder)
    changed = []
    for file, recorded in _recorded(installed).items() if installed else ():
        path, (algorithm, _, expected) = folder / file, recorded.partition("=")
        if expected and path.suffix != ".pyc":
            digest = hashlib.new(algorithm, path.read_bytes()).digest() if path.is_file() else b""
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != expected:
                changed.append(path)
    return changed


def _installed_in(folder: Path) -> Distribution | None:
    """The distribution whose files are in `folder`; None for a checkout, also an installed one (`pip install -e`)."""
    found = distributions(name="loopmdm", path=[str(folder)])
    return next((each for each in found if "pretrain/cli.py" in _recorded(each)), None)


def _recorded(installed: Distribution) -> dict[str, str]:
    """File -> `sha256=HASH`, as RECORD lists them. `Distribution.files` leaves out missing files from Python 3.12 on."""
    return {file: recorded for file, recorded, _ in csv.reader((installed.read_text("RECORD") or "").splitlines())}


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
