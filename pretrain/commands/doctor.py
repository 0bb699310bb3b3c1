"""`loopmdm doctor`: versions, device, and which implementation is used where an optional one is missing."""

import argparse
import platform
import shutil

from pretrain.machine.versions import package_version

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
OPTIONAL = ("apex", "transformer-engine", "lm-eval")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb takes no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Print the report; returns 1 if a package that training needs is missing."""
    versions = {name: package_version(name) for name in PACKAGES}
    rows = [("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    rows += [(name, version or "MISSING: run bash launchers/install.sh") for name, version in versions.items()]
    rows += [(name, package_version(name) or "not installed (optional)") for name in OPTIONAL]
    if versions["torch"]:
        rows += _device_rows()
    rows += [
        ("compiler", shutil.which("c++") or "none (not needed: nothing is compiled on a CPU)"),
        ("SLURM", shutil.which("sbatch") or "not installed: start training with python, deepspeed or torchrun"),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {text}" for name, text in rows))
    missing = [name for name, version in versions.items() if version is None]
    print(f"\nmissing packages that are required: {', '.join(missing)}" if missing else "\nready to train")
    return 1 if missing else 0


def _device_rows() -> list[tuple[str, str]]:
    import torch

    from pretrain.machine.devices import device_name, peak_flops
    from pretrain.machine.kernels import choose_kernels

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    peak = peak_flops(device, "bf16", None)
    name = device_name(device)
    return [
        ("device", f"{torch.cuda.device_count()} x {name}" if cuda else f"{name} (no CUDA device found)"),
        ("peak bf16", f"{peak / 1e12:g} TFLOP/s" if peak else "unknown, so MFU is null (set hardware.peak_tflops)"),
        ("collectives", "NCCL" if cuda else "gloo"),
        *((kernel.operation, f"{kernel.implementation} ({kernel.reason})") for kernel in choose_kernels(device)),
    ]
