"""Peak arithmetic rates of known devices, for MFU. An unknown device has no peak, and then MFU is null."""

import torch

# Dense bf16 TFLOP/s from NVIDIA's data sheets, by the name that the driver reports.
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
    """FLOP/s of one rank's device at `precision`, or None when nobody knows it."""
    if given_tflops is not None:
        return given_tflops * 1e12
    if device.type != "cuda" or precision != "bf16":
        return None
    tflops = BF16_TFLOPS.get(torch.cuda.get_device_name(device))
    return None if tflops is None else tflops * 1e12


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, threads per rank: {torch.get_num_threads()}"
