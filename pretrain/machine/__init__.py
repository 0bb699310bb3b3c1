"""What this machine has: optional kernels, devices, package versions, warnings of libraries."""
