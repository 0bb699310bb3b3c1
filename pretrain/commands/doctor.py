"""`loopmdm doctor`: what was found, what is used instead of what is missing, and why."""

import argparse
import platform
import shutil

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
    """Print the report; 1 when a package that training needs is missing."""
    from pretrain.machine.kernels import package_version

    versions = {name: package_version(name) for name in PACKAGES}
    rows = [("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    rows += [
        (name, version or "MISSING: pip install loopmdm, or bash launchers/quickstart.sh")
        for name, version in versions.items()
    ]
    rows += [(name, package_version(name) or "not installed (optional)") for name in OPTIONAL]
    if versions["torch"] and versions["deepspeed"] and versions["megatron-core"]:
        rows += _device_rows()
    rows += [("compiler", shutil.which("c++") or "none (not needed: no kernel is compiled on a CPU)")]
    rows += [
        ("SLURM", shutil.which("sbatch") or "none: use deepspeed, torchrun or python instead of launchers/pretrain.sh")
    ]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {text}" for name, text in rows))
    missing = [name for name, version in versions.items() if version is None]
    print(f"\n{len(missing)} required packages are missing: {', '.join(missing)}" if missing else "\nready to train")
    return 1 if missing else 0


def _device_rows() -> list[tuple[str, str]]:
    import torch

    from pretrain.machine.devices import device_name, peak_flops
    from pretrain.machine.kernels import find_accelerations

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    peak = peak_flops(device, "bf16", None)
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    rows = [
        ("device", f"{count} x {device_name(device)}" if count else f"{device_name(device)} (no CUDA device found)"),
        (
            "peak bf16",
            f"{peak / 1e12:g} TFLOP/s" if peak else "unknown, so MFU is not reported (give hardware.peak_tflops)",
        ),
        ("collectives", "NCCL" if device.type == "cuda" else "gloo"),
    ]
    return rows + [(found.capability, f"{found.used} ({found.reason})") for found in find_accelerations(device)]
