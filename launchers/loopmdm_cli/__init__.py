"""The entry point of the console command `loopmdm`, under a module name that no other project uses.

The names of this project's packages are generic: `pretrain`, `model` and others may also exist on the module path (PYTHONPATH,
site-packages) as somebody else's. So this module first finds the folder that has this project's packages, and imports
`pretrain` from there; `pretrain` then takes care of the other names (`pretrain/machine/own_packages.py`).
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import NoReturn

SIGNATURE = (
    "pretrain/machine/own_packages.py",
    "model/denoiser.py",
    "data_pipeline/prepare.py",
    "ds_configs/zero1.json",
)
"""Files that only a folder with this project's packages has. Worker processes that are spawned import this module too."""


def import_own_pretrain() -> None:
    """Import `pretrain` from the first folder of the module path that has this project's packages, else from this checkout.

    Raises:
        ImportError: there is no such folder, or another `pretrain` is already imported.
    """
    if "pretrain.machine.own_packages" in sys.modules:
        return
    if "pretrain" in sys.modules:
        raise ImportError(
            f"{sys.modules['pretrain']!r} is already imported, but loopmdm has a package of that name; rename it"
        )
    for folder in (*map(Path, sys.path), *Path(__file__).resolve().parents):
        if all((folder / name).is_file() for name in SIGNATURE):
            break
    else:
        raise ImportError(
            f"the packages of loopmdm are neither on the module path nor above {__file__}; install it again"
        )
    spec = PathFinder.find_spec("pretrain", [str(folder.resolve())])
    assert spec is not None and spec.loader is not None
    sys.modules["pretrain"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)


try:
    import_own_pretrain()
except ImportError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def command() -> NoReturn:
    """The console command."""
    from pretrain.cli import command as run_command

    run_command()
