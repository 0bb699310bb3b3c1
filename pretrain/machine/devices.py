"""Names and peak FLOP/s of devices. MFU is null for a device whose peak is unknown."""

import torch

# Dense bf16 TFLOP/s from NVIDIA's data sheets, keyed by the name that the driver reports.
BF16_TFLOPS = {
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H200": 989.4,
    "NVIDIA B200": 2250.0,
}


def peak_flops(device: torch.device, precision: str, given_tflops: float | None) -> float | None:
    """Peak FLOP/s of one rank's device at `precision`: as given, else from the table; None if unknown."""
    if given_tflops is not None:
        return given_tflops * 1e12
    if device.type != "cuda" or precision != "bf16":
        return None
    tflops = BF16_TFLOPS.get(torch.cuda.get_device_name(device))
    return None if tflops is None else tflops * 1e12


def device_name(device: torch.device) -> str:
    """Name of a device as its driver reports it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, threads per rank: {torch.get_num_threads()}"
