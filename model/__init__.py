"""The model and its mathematics: looped denoiser, objective, noise, loop schedule, samplers, FLOPs, reference model.

Nothing in this package depends on runs, checkpoints or DeepSpeed. `architecture`, `noise`, `loops`, `flops` and
`placement` do not import torch. README.md explains the mathematics beside the code.
"""
