"""The training run: build, step, loop, hooks, checkpoints."""
