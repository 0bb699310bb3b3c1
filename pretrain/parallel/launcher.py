"""Reads this process's rank from the environment that its launcher set. Imports no torch.

The variables are those of torchrun and deepspeed (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Without them, a task
of a SLURM job step of several tasks is recognised by srun's variables. All other processes work alone.
"""

import os
import socket
from collections.abc import Mapping
from typing import NoReturn

from pretrain.errors import UserError

FIRST_SPECIAL_STEP = 2**32 - 16
"""SLURM numbers the steps that are not started by a user's srun from here: batch script, interactive shell, extern."""

MPI_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),  # MVAPICH
)

ALONE = (0, 1, 0)


def read_launcher(environment: Mapping[str, str] | None = None) -> tuple[int, int, int]:
    """(rank, world size, local rank) as set by `deepspeed`, `torchrun` or `srun`; (0, 1, 0) for a process of its own.

    Args:
        environment: the variables to read; None: those of this process.

    Raises:
        UserError: the variables are incomplete or contradict each other; names them and the way out.
    """
    env = os.environ if environment is None else environment
    if any(env.get(name) for name in ("RANK", "WORLD_SIZE")) or env.get("LOCAL_RANK", "0") not in ("", "0"):
        ranks = _read_torch_variables(env)
    else:
        ranks = _read_slurm_step(env)
    if ranks[1] == 1:
        _refuse_mpi(env)
    else:
        _require_address(env, ranks)
    return ranks


def _read_torch_variables(env: Mapping[str, str]) -> tuple[int, int, int]:
    if env.get("WORLD_SIZE") == "1" and not env.get("RANK") and env.get("LOCAL_RANK", "0") in ("", "0"):
        return ALONE
    for name in ("RANK", "WORLD_SIZE"):
        if not env.get(name):
            what = "empty" if name in env else "not set"
            _refuse(env, f"{name} is {what}, although {_listed(env, 'RANK', 'WORLD_SIZE', 'LOCAL_RANK')} is set")
    rank, size, local_rank = _integer(env, "RANK"), _integer(env, "WORLD_SIZE"), _local_rank(env)
    if not 0 <= rank < size or local_rank < 0:
        shown = _listed(env, "RANK", "WORLD_SIZE", "LOCAL_RANK")
        _refuse(env, f"{shown}: RANK must be at least 0 and less than WORLD_SIZE, and LOCAL_RANK must not be negative")
    return rank, size, local_rank


def _local_rank(env: Mapping[str, str]) -> int:
    """LOCAL_RANK, or its equivalent of the launcher that set RANK; 0, for one rank per node, if there is none."""
    for rank, local_rank in (
        ("RANK", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_LOCALID"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("PMI_RANK", "MPI_LOCALRANKID"),
    ):
        if env.get(local_rank) and env.get(rank) == env["RANK"]:
            return _integer(env, local_rank)
    return 0


def _read_slurm_step(env: Mapping[str, str]) -> tuple[int, int, int]:
    """The place of a task that srun started among the tasks of its step.

    SLURM_PROCID and SLURM_NTASKS are also set in a batch script and in an interactive shell, where SLURM_NTASKS is the number of
    tasks of the job. A process started there works alone.
    """
    if not env.get("SLURM_PROCID"):
        return ALONE
    procid = _integer(env, "SLURM_PROCID")
    step = _integer(env, "SLURM_STEP_ID") if env.get("SLURM_STEP_ID") else FIRST_SPECIAL_STEP
    if step >= FIRST_SPECIAL_STEP and procid == 0:
        return ALONE
    counts = [name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if env.get(name)]
    size = _integer(env, counts[0]) if counts else 1
    local_rank = _integer(env, "SLURM_LOCALID") if env.get("SLURM_LOCALID") else 0
    if not 0 <= procid < size:
        _refuse(env, f"{_listed(env, 'SLURM_PROCID', *counts)}: SLURM_PROCID must be less than the number of tasks")
    return procid, size, local_rank


def _require_address(env: Mapping[str, str], ranks: tuple[int, int, int]) -> None:
    """Several ranks meet at MASTER_ADDR:MASTER_PORT."""
    place = f"this is rank {ranks[0]} of {ranks[1]}"
    source = ("RANK", "WORLD_SIZE") if env.get("RANK") else ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not env.get(name):
            what = "empty" if name in env else "not set"
            _refuse(env, f"{place} according to {_listed(env, *source)}, but {name} is {what}")
    if not 0 < _integer(env, "MASTER_PORT") < 2**16:
        _refuse(env, f"MASTER_PORT={env['MASTER_PORT']}: must be a port number from 1 to 65535")


def _refuse_mpi(env: Mapping[str, str]) -> None:
    """mpirun without the variables of torch would start processes that each train alone, in the same run folder."""
    for rank, size in MPI_VARIABLES:
        if env.get(size) and env.get(rank) and _integer(env, size) > 1:
            raise UserError(
                f"this is one of several processes of an MPI launcher ({_listed(env, rank, size)}), which does not set RANK and "
                "WORLD_SIZE; start with torchrun or deepspeed, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and "
                f"MASTER_PORT for each process. For a single process: env -u {rank} -u {size} COMMAND"
            )


def _refuse(env: Mapping[str, str], problem: str) -> NoReturn:
    """Raise the error together with the two ways out of it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID")
    unset = " ".join(f"-u {name}" for name in names if name in env)
    ways = "start several ranks with torchrun, deepspeed or launchers/pretrain.sh"
    raise UserError(f"{problem}; {ways}, or a single process with: env {unset} COMMAND")


def _integer(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        _refuse(env, f"{name}={env[name]!r} is not an integer")


def _listed(env: Mapping[str, str], *names: str) -> str:
    """`RANK=0 WORLD_SIZE=2`: those of the variables that are set, with their values."""
    return " ".join(f"{name}={env[name]}" for name in names if env.get(name))


def require_interfaces(variable: str, environment: Mapping[str, str] | None = None) -> None:
    """Check that the network interfaces that GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME selects exist.

    Raises:
        UserError: names the variable, its value and the interfaces of this machine.
    """
    value = (os.environ if environment is None else environment).get(variable, "")
    present = [name for _, name in socket.if_nameindex()]
    if variable.startswith("GLOO"):  # opens every interface of the list
        missing = any(name not in present for name in value.split(",")) if value else False
    else:  # NCCL takes what it finds: prefixes, whole names after "=", or all but those after "^"
        wanted = [name for name in value.removeprefix("=").split(",") if name and not value.startswith("^")]
        found = present if value.startswith("=") else [one for one in present if one.startswith(tuple(wanted))]
        missing = bool(wanted) and not set(found) & set(wanted if value.startswith("=") else found)
    if missing:
        raise UserError(
            f"{variable}={value}: {socket.gethostname()} has no such network interface; it has {', '.join(present)}. Set "
            f"{variable} to one of them, or unset it to let the library choose: env -u {variable} COMMAND"
        )
