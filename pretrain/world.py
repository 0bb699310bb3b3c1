"""Where this process stands: ranks from any launcher, device, process groups. Parallelism is composed here."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from data_pipeline.errors import DataError
from pretrain.errors import UserError

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a collective waits for the other ranks before it fails."""


@dataclass(frozen=True)
class World:
    """One rank of a run.

    Attributes:
        rank, size: of the whole job.
        local_rank: on this node.
        device: this rank's accelerator, or the CPU.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the rank that prints and writes."""
        return self.rank == 0

    @property
    def data_parallel_rank(self) -> int:
        """Which share of every global batch this rank computes."""
        return parallel_state.get_data_parallel_rank()

    def sum(self, values: Sequence[float] | Tensor) -> Tensor:
        """Sum over all ranks in fp64, as a CPU tensor: every rank gets the same numbers."""
        total = torch.as_tensor(values, dtype=torch.float64).to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    def any(self, flag: bool) -> bool:
        """True on every rank when it is true on one."""
        return bool(self.sum([float(flag)]).item() > 0)

    def agree(self, error: Exception | None) -> None:
        """Let a failure on one rank fail all, naming it; the ranks leave together. Raises UserError."""
        messages: list[str | None] = [None] * self.size
        own = error and (str(error) if isinstance(error, UserError | DataError) else f"{type(error).__name__}: {error}")
        dist.all_gather_object(messages, own)
        failed = {rank: message for rank, message in enumerate(messages) if message is not None}
        if failed:
            rank, message = next(iter(failed.items()))
            raise UserError(f"rank {rank}: {message}" if self.size > 1 else str(message)) from error

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()


def start_world(ranks: tuple[int, int, int]) -> World:
    """Join the process group (gloo on CPUs, NCCL on GPUs) and make megatron-core's groups.

    Args:
        ranks: (rank, world size, local rank), as from `read_launcher`; (0, 1, 0) for a process that works alone.

    Raises:
        UserError: the other ranks cannot be reached.
    """
    rank, size, local_rank = ranks
    device = _device(local_rank)
    if not dist.is_initialized():
        _join(rank, size, device)
    if not parallel_state.is_initialized():
        parallel_state.initialize_model_parallel()
    if device.type == "cpu":
        _share_cores()
    return World(rank, size, local_rank, device)


def _share_cores() -> None:
    """Divide the cores among the ranks that may run on the same ones; OMP_NUM_THREADS overrides."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = (socket.gethostname(), sorted(os.sched_getaffinity(0)))
    everyone: list[tuple[str, list[int]]] = [cores] * dist.get_world_size()
    dist.all_gather_object(everyone, cores)
    torch.set_num_threads(max(1, len(cores[1]) // everyone.count(cores)))


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _join(rank: int, size: int, device: torch.device) -> None:
    backend = "gloo" if device.type == "cpu" else "nccl"
    if size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)
        return
    for variable in ("MASTER_ADDR", "MASTER_PORT"):
        if variable not in os.environ:
            raise UserError(
                f"{size} ranks, but {variable} is not set: use deepspeed, torchrun or launchers/pretrain.sh"
            )
    try:
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"rank {rank} of {size} cannot meet the others at {address}; if another job has that port, give the launcher one of "
            f"your own (deepspeed --master_port N, torchrun --master-port N). The library said: {error}"
        ) from error


def leave_world() -> None:
    """Leave the process groups after a run that went well; one that failed must not wait for the other ranks."""
    dist.destroy_process_group()
