"""Make sure that `pretrain`, `model`, `data_pipeline` and `ds_configs` are this project's, whatever else has these names.

The names are generic. A `model.py` in the working folder, a `data_pipeline/` on PYTHONPATH or a `pretrain/` in site-packages
would otherwise be imported instead, depending on how the process was started. Imports nothing but the standard library.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGES = ("data_pipeline", "ds_configs", "model", "pretrain")
OWN_FOLDER = Path(__file__).resolve().parents[2]
"""The folder that has the packages: the checkout, or site-packages."""


class OwnPackageFinder:
    """An entry of `sys.meta_path` that looks for the four names in one folder only, and knows no other names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Called by Python for every import.

        Raises:
            ImportError: the package is missing in the folder.
        """
        if path is not None or name not in PACKAGES:
            return None
        spec = PathFinder.find_spec(name, [str(self.folder)])
        if spec is None or spec.origin is None:
            raise ImportError(
                f"{self.folder / name}: this package of loopmdm is missing; install loopmdm again", name=name
            )
        return spec


def prefer_own_packages() -> None:
    """From now on import the four packages from the folder of this file. Called when `pretrain` is imported.

    Raises:
        ImportError: one of the names is already imported from another place.
    """
    for name in PACKAGES:
        file = module_file(sys.modules.get(name))
        if file is not None and not _is_own(name, file):
            raise ImportError(
                f"{file} is already imported as '{name}', but loopmdm needs {OWN_FOLDER / name}; rename the former, or start a "
                "new process that does not import it",
                name=name,
            )
    if not any(getattr(finder, "folder", None) == OWN_FOLDER for finder in sys.meta_path):
        sys.meta_path.insert(0, OwnPackageFinder(OWN_FOLDER))


def foreign_files() -> list[tuple[str, Path]]:
    """(name, file or folder) of everything on the module path, or in the working folder, that has the name of a package."""
    found = []
    folders = dict.fromkeys(Path(entry or os.curdir).resolve() for entry in (os.curdir, *sys.path))
    for folder in folders:
        for name in PACKAGES:
            spec = PathFinder.find_spec(name, [str(folder)])
            if spec is not None:
                place = Path(spec.origin or next(iter(spec.submodule_search_locations or ())))
                if not _is_own(name, place):
                    found.append((name, place))
    return found


def module_file(module: ModuleType | None) -> Path | None:
    """The file of a module, or the folder of a package without `__init__.py`; None if there is none."""
    if module is None:
        return None
    if getattr(module, "__file__", None):
        return Path(str(module.__file__))
    return next((Path(entry) for entry in getattr(module, "__path__", ())), None)


def _is_own(name: str, file: Path) -> bool:
    return (OWN_FOLDER / name) in (file.resolve(), *file.resolve().parents)
