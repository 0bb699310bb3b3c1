"""Inputs to documents: what `--input` means, files and datasets of every kind, which records are left out."""
