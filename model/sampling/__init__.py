"""Samplers: how a denoiser fills the [MASK] tokens of a row. One file per idea; `generate.py` has the loop over steps."""
