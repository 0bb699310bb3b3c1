"""Where this process stands: ranks from any launcher, device, process groups. Parallelism is composed here."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from data_pipeline.errors import DataError
from model.megatron_on_cpu import use_cpu_for_cuda
from pretrain.config.run_plan import Shape
from pretrain.errors import UserError
from pretrain.parallel.watchdog import Watchdog, watch

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a collective waits for the other ranks before it fails; longer than a run's `parallel.timeout_minutes`."""


@dataclass(frozen=True)
class World:
    """One rank of a run. megatron-core's order of ranks: tensor fastest, then data, then pipeline.

    Attributes:
        rank, size: of the whole job.
        local_rank: on this node.
        device: this rank's accelerator, or the CPU.
        shape: sizes of the groups.
        replica_group: ranks of this pipeline that hold the same layers of the mid block; None where none are copied.
        watchdog: names the rank that others wait for; None outside training.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device
    shape: Shape
    replica_group: dist.ProcessGroup | None = None
    watchdog: Watchdog | None = None

    @property
    def is_main(self) -> bool:
        """True on the rank that prints and writes."""
        return self.rank == 0

    @property
    def data_parallel_rank(self) -> int:
        """Which share of every global batch this rank computes."""
        return parallel_state.get_data_parallel_rank()

    @property
    def data_parallel_size(self) -> int:
        """Ranks that see different rows."""
        return self.size // (self.shape.tensor * self.shape.pipeline)

    @property
    def tensor_rank(self) -> int:
        """Which share of every matrix this rank holds."""
        return parallel_state.get_tensor_model_parallel_rank()

    @property
    def tensor_group(self) -> dist.ProcessGroup:
        """The ranks that share every matrix with this one."""
        return parallel_state.get_tensor_model_parallel_group()

    @property
    def stage(self) -> int:
        """Which pipeline stage this rank is."""
        return parallel_state.get_pipeline_model_parallel_rank()

    @property
    def holds_loss(self) -> bool:
        """True on the one rank of each data-parallel share whose figures count: it has logits, and is the first that has."""
        return self.stage == self.shape.pipeline - 1 and self.tensor_rank == 0

    def watched(self, timeout_minutes: float, log: Path) -> Watchdog:
        """A watchdog over all ranks, for `replace(world, watchdog=...)`. Collective."""
        return watch(self.rank, self.size, 60 * timeout_minutes, log=log)

    def enter_phase(self, call: str, step: int | None = None) -> None:
        """Tell the watchdog where this rank is; all ranks say the same in the same order. `step` None: as before."""
        if self.watchdog is not None:
            self.watchdog.enter_phase(call, step)

    def sum(self, values: Sequence[float] | Tensor) -> Tensor:
        """Sum over all ranks in fp64, as a CPU tensor: every rank gets the same numbers."""
        total = torch.as_tensor(values, dtype=torch.float64).to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    def any(self, flag: bool) -> bool:
        """True on every rank when it is true on one."""
        return bool(self.sum([float(flag)]).item() > 0)

    def raise_on_all_ranks(self, error: Exception | None) -> None:
        """Let a failure on one rank fail all, naming it; the ranks leave together. Raises UserError."""
        messages: list[str | None] = [None] * self.size
        own = error and (str(error) if isinstance(error, UserError | DataError) else f"{type(error).__name__}: {error}")
        dist.all_gather_object(messages, own)
        failed = {rank: message for rank, message in enumerate(messages) if message is not None}
        if failed:
            rank, message = next(iter(failed.items()))
            raise UserError(f"rank {rank}: {message}" if self.size > 1 else str(message)) from error

    def sum_over_model(self, values: Tensor) -> Tensor:
        """Sum over the ranks that share one copy of the model (tensor and pipeline), in place."""
        dist.all_reduce(values, group=parallel_state.get_model_parallel_group())
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()


class DeepSpeedMpu:
    """What DeepSpeed asks of an `mpu`, answered by megatron-core's `parallel_state`, which lacks two names of it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(parallel_state, name)

    def get_model_parallel_world_size(self) -> int:
        """Ranks that share one copy of the model."""
        return dist.get_world_size(parallel_state.get_model_parallel_group())

    def get_model_parallel_rank(self) -> int:
        """Place among them."""
        return dist.get_rank(parallel_state.get_model_parallel_group())


def join_ranks(ranks: tuple[int, int, int]) -> torch.device:
    """Meet the other ranks (gloo on CPUs, NCCL on GPUs) and take a device.

    Args:
        ranks: (rank, world size, local rank), as from `read_launcher`; (0, 1, 0) for a process that works alone.

    Raises:
        UserError: the other ranks cannot be reached.
    """
    rank, size, local_rank = ranks
    device = _device(local_rank)
    if not dist.is_initialized():
        _join(rank, size, device)
    return device


def start_world(ranks: tuple[int, int, int], shape: Shape | None = None) -> World:
    """Join the ranks and make the groups of a layout, once.

    Args:
        ranks: as for `join_ranks`.
        shape: how the ranks are divided; None: all data-parallel. Another shape than before replaces the groups.

    Raises:
        UserError: the other ranks cannot be reached.
    """
    rank, size, local_rank = ranks
    shape = shape or Shape()
    if shape.tensor > 1:
        # megatron-core orders its overlapped reductions by the order of launches, which one hardware queue keeps.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    device = join_ranks(ranks)
    if parallel_state.is_initialized() and _megatron_shape() != (shape.tensor, shape.pipeline):
        parallel_state.destroy_model_parallel()
    if not parallel_state.is_initialized():
        parallel_state.initialize_model_parallel(shape.tensor, shape.pipeline)
    if device.type == "cpu":
        use_cpu_for_cuda()
        _share_cores()
    return World(rank, size, local_rank, device, shape, _replica_group(shape))


def _megatron_shape() -> tuple[int, int]:
    return (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
    )


def _replica_group(shape: Shape) -> dist.ProcessGroup | None:
    """The group of this rank among all groups of stages that hold the same mid layers. Collective."""
    if shape.mid_replicas == 1:
        return None
    own = parallel_state.get_pipeline_model_parallel_group()
    pipelines: list[list[int]] = [[]] * dist.get_world_size()
    dist.all_gather_object(pipelines, dist.get_process_group_ranks(own))
    mine, per_copy = None, shape.pipeline // shape.mid_replicas
    for pipeline in sorted({tuple(ranks) for ranks in pipelines}):
        for offset in range(per_copy):
            ranks = list(pipeline[offset::per_copy])
            group = dist.new_group(ranks, group_desc=f"mid block copies {ranks}")
            mine = group if dist.get_rank() in ranks else mine
    return mine


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
