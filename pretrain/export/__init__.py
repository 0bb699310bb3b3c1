"""Folders that Hugging Face transformers loads: what `loopmdm export` writes and `loopmdm import` reads."""
