"""Estimates of what a layout costs, without starting it: memory, FLOPs, communication, time. Imports no torch."""
