"""What is learned: the looped denoiser, its objective, its noise, its loop schedule, its sampler and its oracle.

Nothing here knows of runs, checkpoints or DeepSpeed. `architecture`, `noise`, `loops` and `flops` import no torch.
"""
