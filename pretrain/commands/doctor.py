"""`loopmdm doctor`: files in use, versions, device, and which implementation is used where an optional one is missing."""

import argparse
import platform
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from pretrain.machine.own_packages import OWN_FOLDER, foreign_files
from pretrain.machine.versions import changed_files, package_version, source_version, unsupported_versions

PACKAGES = (
    "torch",
    "deepspeed",
    "megatron-core",
    "datasets",
    "sentencepiece",
    "tokenizers",
    "tensorboard",
    "safetensors",
    "pydantic",
    "numpy",
)
IMPORTED_AS = {"megatron-core": "megatron"}
"""Distribution -> module, where their names differ."""

OPTIONAL = ("apex", "transformer-engine", "lm-eval")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb takes no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Print the report; returns 1 if a package that training needs is missing or has a version that is not supported."""
    versions = {name: package_version(name) for name in PACKAGES}
    rows = [
        ("loopmdm", f"{OWN_FOLDER} ({source_version(OWN_FOLDER)})"),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"),
    ]
    rows += [("libraries", f"{sysconfig.get_path('purelib')}, where no other folder is given")]
    rows += [(name, f"{version}{_place(name)}" if version else _missing(name)) for name, version in versions.items()]
    rows += [(name, package_version(name) or "not installed (optional)") for name in OPTIONAL]
    if versions["torch"]:
        rows += _device_rows()
    rows += [
        ("compiler", shutil.which("c++") or "none (not needed: nothing is compiled on a CPU)"),
        ("SLURM", shutil.which("sbatch") or "not installed: start training with python, deepspeed or torchrun"),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {text}" for name, text in rows))
    for note in _notes():
        print(f"\n{note}")
    missing = [name for name, version in versions.items() if version is None]
    problems = [f"missing packages that are required: {', '.join(missing)}"] if missing else []
    problems += unsupported_versions()
    print("\n" + ("\n".join(problems) or "ready to train"))
    return 1 if problems else 0


def _place(name: str) -> str:
    """Where a package would be imported from, if that is not the usual folder."""
    spec = find_spec(IMPORTED_AS.get(name, name))
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if not folders:
        return f", but its files are missing: run {sys.executable} -m pip install --force-reinstall --no-deps {name}"
    return "" if folders[0].parent == Path(sysconfig.get_path("purelib")) else f", {folders[0]}"


def _missing(name: str) -> str:
    if (OWN_FOLDER / "launchers" / "install.sh").is_file():
        return f"MISSING: run bash {OWN_FOLDER / 'launchers' / 'install.sh'}"
    return f"MISSING: run {sys.executable} -m pip install {name}"


def _notes() -> list[str]:
    """Files of others with the names of our packages, and our own files that others have overwritten."""
    notes = []
    if foreign := foreign_files():
        listed = "".join(f"\n  {name}: {file}" for name, file in foreign)
        notes.append(
            f"other files with the names of packages of loopmdm, which does not use them:{listed}\n`python -m pretrain.main` fails "
            "where another `pretrain` comes first: use loopmdm train, or torchrun --no-python loopmdm train"
        )
    if changed := changed_files(OWN_FOLDER):
        listed = "".join(f"\n  {file}" for file in changed)
        notes.append(f"files of loopmdm that were changed or removed since the installation; install it again:{listed}")
    return notes


def _device_rows() -> list[tuple[str, str]]:
    import torch

    from pretrain.machine.devices import device_name, peak_flops
    from pretrain.machine.kernels import choose_document_attention, choose_kernels

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    peak = peak_flops(device, "bf16", None)
    name = device_name(device)
    kernels = [*choose_kernels(device), choose_document_attention(device, torch.bfloat16, head_dim=64)]
    return [
        ("device", f"{torch.cuda.device_count()} x {name}" if cuda else f"{name} (no CUDA device found)"),
        ("peak bf16", f"{peak / 1e12:g} TFLOP/s" if peak else "unknown, so MFU is null (set hardware.peak_tflops)"),
        ("collectives", "NCCL" if cuda else "gloo"),
        *((kernel.operation, f"{kernel.implementation} ({kernel.reason})") for kernel in kernels),
    ]
