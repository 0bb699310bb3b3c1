"""Checkpoints that any layout can load: canonical tensors, of which every rank writes what it owns."""
