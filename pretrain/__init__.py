"""Runs: configuration, engine, step, loop, hooks, checkpoints, evaluation and the commands."""
