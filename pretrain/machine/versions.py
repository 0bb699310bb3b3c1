"""Versions of installed packages. Imports no torch."""

from importlib.metadata import PackageNotFoundError, version


def package_version(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
