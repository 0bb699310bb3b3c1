"""Runs: configuration, engine, step, loop, hooks, checkpoints, evaluation and the commands."""

from pretrain.machine.own_packages import prefer_own_packages

prefer_own_packages()
