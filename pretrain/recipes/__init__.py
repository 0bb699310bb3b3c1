"""Shipped recipes: one YAML file per run that somebody has a reason to start."""
