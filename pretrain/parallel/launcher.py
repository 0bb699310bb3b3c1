"""Reads this process's rank from the environment that its launcher set. Imports no torch."""

import os
from collections.abc import Mapping

from pretrain.errors import UserError


def read_launcher(environment: Mapping[str, str] | None = None) -> tuple[int, int, int]:
    """(rank, world size, local rank) as set by `deepspeed`, `torchrun` or `srun`; (0, 1, 0) under plain `python`.

    Args:
        environment: the variables to read; None: those of this process.

    Raises:
        UserError: RANK is set but WORLD_SIZE is not.
    """
    env = os.environ if environment is None else environment
    for rank, size, local in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")):
        if rank in env and size in env:
            return int(env[rank]), int(env[size]), int(env.get(local, "0"))
        if rank in env and rank == "RANK":
            raise UserError("RANK is set but WORLD_SIZE is not; start with deepspeed, torchrun, srun or plain python")
    return 0, 1, 0
