"""Shipped recipes, one YAML file each; `--config NAME` finds them."""
