"""Checks of the training system on one GPU. Entry: `bash tests/gpu/check.sh`."""
