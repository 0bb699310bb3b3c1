"""The machine a run is on: optional kernels, devices, package versions, library warnings."""
