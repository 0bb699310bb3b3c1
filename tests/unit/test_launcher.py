"""Which rank a process is, from the variables of its launcher; whatever is incomplete or contradictory is refused by name."""

import pytest

from pretrain.errors import UserError
from pretrain.parallel.launcher import read_launcher, require_interfaces

MEETING = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
STEP = {
    "SLURM_STEP_ID": "3",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}

STARTS = {
    "plain python": ({}, (0, 1, 0)),
    "torchrun": ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **MEETING}, (3, 4, 1)),
    "a world of one": ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (0, 1, 0)),
    "a world of one without RANK": ({"WORLD_SIZE": "1"}, (0, 1, 0)),
    "empty variables": ({"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""}, (0, 1, 0)),
    "one rank per node": ({"RANK": "1", "WORLD_SIZE": "2", **MEETING}, (1, 2, 0)),
    "RANK from SLURM, without LOCAL_RANK": ({"RANK": "5", "WORLD_SIZE": "8", **STEP, **MEETING}, (5, 8, 1)),
    "RANK wins over SLURM": ({"RANK": "0", "WORLD_SIZE": "2", **STEP, **MEETING}, (0, 2, 0)),
    "RANK from Open MPI": (
        {"RANK": "3", "WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1", **MEETING},
        (3, 4, 1),
    ),
    "srun": ({**STEP, **MEETING}, (5, 8, 1)),
    "srun, old": ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", **MEETING}, (5, 8, 1)),
    "srun of one task in a larger job": (
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        (0, 1, 0),
    ),
    "salloc": ({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4"}, (0, 1, 0)),
    "sbatch": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, (0, 1, 0)),
    "interactive": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "4294967290"}, (0, 1, 0)),
    "batch step": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "4294967291"}, (0, 1, 0)),
    "one MPI process": ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, (0, 1, 0)),
}


@pytest.mark.parametrize("start", STARTS)
def test_starts(start):
    variables, ranks = STARTS[start]
    assert read_launcher(variables) == ranks


TWO = {"RANK": "0", "WORLD_SIZE": "2"}
REFUSED = {
    "no WORLD_SIZE": (
        {"RANK": "0"},
        "WORLD_SIZE is not set, although RANK=0 is set; start several ranks with torchrun",
    ),
    "empty WORLD_SIZE": ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE is empty, although RANK=0 is set"),
    "no RANK": ({"WORLD_SIZE": "2"}, "RANK is not set, although WORLD_SIZE=2 is set"),
    "only LOCAL_RANK": ({"LOCAL_RANK": "1"}, "RANK is not set, although LOCAL_RANK=1 is set"),
    "a word": ({"RANK": "zero", "WORLD_SIZE": "2"}, "RANK='zero' is not an integer"),
    "a fraction": ({"RANK": "0", "WORLD_SIZE": "2.0"}, "WORLD_SIZE='2.0' is not an integer"),
    "too large": (
        {"RANK": "2", "WORLD_SIZE": "2"},
        "RANK=2 WORLD_SIZE=2: RANK must be at least 0 and less than WORLD_SIZE",
    ),
    "negative": ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1 WORLD_SIZE=2: RANK must be at least 0"),
    "an empty world": ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 WORLD_SIZE=0: RANK must be at least 0"),
    "negative local": ({**TWO, "LOCAL_RANK": "-1", **MEETING}, "RANK=0 WORLD_SIZE=2 LOCAL_RANK=-1: RANK must be"),
    "no address": (TWO, "this is rank 0 of 2 according to RANK=0 WORLD_SIZE=2, but MASTER_ADDR is not set"),
    "empty port": ({**TWO, "MASTER_ADDR": "a", "MASTER_PORT": ""}, "this is rank 0 of 2 .* but MASTER_PORT is empty"),
    "port": ({**TWO, "MASTER_ADDR": "a", "MASTER_PORT": "tcp"}, "MASTER_PORT='tcp' is not an integer"),
    "large port": (
        {**TWO, "MASTER_ADDR": "a", "MASTER_PORT": "65536"},
        "MASTER_PORT=65536: must be a port number from 1",
    ),
    "srun": (
        STEP,
        "rank 5 of 8 according to SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=8 .* single .* env -u SLURM_PROCID COMMAND",
    ),
    "srun without a count": ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}, "SLURM_PROCID=1: SLURM_PROCID must be less"),
    "Open MPI": (
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"},
        "an MPI launcher .OMPI_COMM_WORLD_RANK=1 OMPI",
    ),
    "MPICH": (
        {"PMI_RANK": "0", "PMI_SIZE": "2"},
        "MPI launcher .PMI_RANK=0 PMI_SIZE=2.*env -u PMI_RANK -u PMI_SIZE COMMAND",
    ),
}


@pytest.mark.parametrize("start", REFUSED)
def test_refused_with_the_variable_and_the_way_out(start):
    variables, message = REFUSED[start]
    with pytest.raises(UserError, match=message) as caught:
        read_launcher(variables)
    assert "COMMAND" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "exists"),
    [
        ("GLOO_SOCKET_IFNAME", "eth99", False),
        ("GLOO_SOCKET_IFNAME", "lo", True),
        ("GLOO_SOCKET_IFNAME", "lo,eth99", False),  # gloo opens all of them
        ("GLOO_SOCKET_IFNAME", "l", False),
        ("GLOO_SOCKET_IFNAME", "", True),
        ("NCCL_SOCKET_IFNAME", "eth99", False),
        ("NCCL_SOCKET_IFNAME", "eth99,lo", True),
        ("NCCL_SOCKET_IFNAME", "l", True),  # a prefix
        ("NCCL_SOCKET_IFNAME", "=l", False),
        ("NCCL_SOCKET_IFNAME", "=lo", True),
        ("NCCL_SOCKET_IFNAME", "^eth99", True),
    ],
)
def test_network_interfaces(variable, value, exists):
    if exists:
        require_interfaces(variable, {variable: value})
        return
    with pytest.raises(UserError, match=f"{variable}={value}: .* no such network interface; it has .*lo"):
        require_interfaces(variable, {variable: value})
