"""This process among the ranks: its device and its process groups. `parallelize` composes the model on top of them."""

import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from data_pipeline.errors import DataError, first_line
from model.megatron_on_cpu import use_cpu_for_cuda
from pretrain.config.run_plan import Shape
from pretrain.errors import RankError, UserError
from pretrain.parallel.launcher import require_interfaces
from pretrain.parallel.rendezvous import meet
from pretrain.parallel.watchdog import Watchdog

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a collective waits for the other ranks before it fails. Longer than any `parallel.timeout_minutes`."""


@dataclass(frozen=True)
class World:
    """One rank of a run. Rank order is megatron-core's: tensor varies fastest, then data, then pipeline.

    Attributes:
        rank, size: of the whole job.
        local_rank: on this node.
        device: this rank's accelerator, or the CPU.
        shape: sizes of the groups.
        replica_group: ranks of this pipeline that hold the same layers of the mid block; None if the block is not copied.
        watchdog: names the rank that the others are waiting for; None outside training.
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
        """True on the one rank that prints and writes files."""
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
    def data_parallel_group(self) -> dist.ProcessGroup:
        """The ranks that hold the same shard of the same layers, and see different rows."""
        return parallel_state.get_data_parallel_group()

    @property
    def stage_group(self) -> dist.ProcessGroup:
        """The ranks of this rank's pipeline stage."""
        return parallel_state.get_tensor_and_data_parallel_group()

    @property
    def stage(self) -> int:
        """Which pipeline stage this rank is."""
        return parallel_state.get_pipeline_model_parallel_rank()

    @property
    def holds_loss(self) -> bool:
        """True on the one rank of each data-parallel share that contributes to sums of the loss.

        The last pipeline stage computes the loss, on every tensor-parallel rank alike: the first of them counts.
        """
        return self.stage == self.shape.pipeline - 1 and self.tensor_rank == 0

    def enter_phase(self, call: str, step: int | None = None) -> None:
        """Report to the watchdog what this rank does next. All ranks report the same phases in the same order.

        `step` None keeps the step of the previous call.
        """
        if self.watchdog is not None:
            self.watchdog.enter_phase(call, step)

    def sum(self, values: Sequence[float] | Tensor) -> Tensor:
        """Sum over all ranks in fp64, returned on the CPU; every rank gets the same numbers."""
        total = torch.as_tensor(values, dtype=torch.float64).to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    def from_main(self, value: T) -> T:
        """The main rank's value, on every rank. Collective."""
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def first(self, value: T | None) -> T | None:
        """The value of the first rank that has one, on every rank; None if none has. Collective."""
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return next((one for one in values if one is not None), None)

    def any(self, flag: bool) -> bool:
        """True on every rank when it is true on one."""
        return bool(self.sum([float(flag)]).item() > 0)

    def raise_on_all_ranks(self, error: Exception | None) -> None:
        """Raise UserError on all ranks if one of them has an error; the message names that rank. Collective.

        An error that is neither a UserError, a DataError nor an OSError is raised as it is on the rank that has it.
        """
        messages: list[str | None] = [None] * self.size
        expected = isinstance(error, UserError | DataError | OSError)
        own = error and (str(error) if isinstance(error, UserError | DataError) else f"{type(error).__name__}: {error}")
        dist.all_gather_object(messages, own)
        if error is not None and not expected:
            raise error
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
    """The `mpu` that DeepSpeed expects: megatron-core's `parallel_state` and the two functions that it lacks."""

    def __getattr__(self, name: str) -> Any:
        return getattr(parallel_state, name)

    def get_model_parallel_world_size(self) -> int:
        """Ranks that share one copy of the model."""
        return dist.get_world_size(parallel_state.get_model_parallel_group())

    def get_model_parallel_rank(self) -> int:
        """This rank's index among them."""
        return dist.get_rank(parallel_state.get_model_parallel_group())


def join_ranks(ranks: tuple[int, int, int], shape: Shape, once_met: Callable[[], None] = lambda: None) -> torch.device:
    """Connect to the other ranks (gloo on CPUs, NCCL on GPUs) and pick this rank's device.

    Args:
        ranks: (rank, world size, local rank), as from `read_launcher`; (0, 1, 0) for a single process.
        shape: how the ranks will be divided.
        once_met: called when all ranks have come, before they connect to each other, which may wait for a rank that dies.

    Raises:
        UserError: this rank has no device, or the other ranks cannot be reached.
        ReportedError: another rank has failed before the ranks met.
    """
    rank, size, local_rank = ranks
    if shape.tensor > 1:
        # megatron-core relies on kernels running in the order of their launch, which a single hardware queue guarantees.
        # CUDA reads the variable when the device is first used, so it is set before.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    device = _device(local_rank)
    if not dist.is_initialized():
        require_interfaces("GLOO_SOCKET_IFNAME" if device.type == "cpu" else "NCCL_SOCKET_IFNAME")
        _join(rank, size, device, once_met)
    else:
        once_met()
    return device


def start_world(ranks: tuple[int, int, int], shape: Shape | None = None) -> World:
    """Connect to the other ranks and create the process groups of a layout, once.

    Args:
        ranks: as for `join_ranks`.
        shape: how the ranks are divided; None: all data-parallel. A shape that differs from the previous one replaces
            the groups.

    Raises:
        UserError: as for `join_ranks`.
    """
    rank, size, local_rank = ranks
    shape = shape or Shape()
    device = join_ranks(ranks, shape)
    if parallel_state.is_initialized() and _megatron_shape() != (shape.tensor, shape.pipeline):
        parallel_state.destroy_model_parallel()
    if not parallel_state.is_initialized():
        # Its gloo groups beside those of NCCL would be used by nothing, and open a second network among the hosts.
        parallel_state.initialize_model_parallel(shape.tensor, shape.pipeline, create_gloo_process_groups=False)
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
    """This rank's group of stages that hold the same mid layers. Collective: every rank creates every group."""
    if shape.mid_replicas == 1:
        return None
    own = parallel_state.get_pipeline_model_parallel_group()
    pipelines: list[list[int]] = [[]] * dist.get_world_size()
    dist.all_gather_object(pipelines, dist.get_process_group_ranks(own))
    mine, per_copy = None, shape.pipeline // shape.mid_replicas
    for pipeline in sorted({tuple(ranks) for ranks in pipelines}):
        for offset in range(per_copy):
            ranks = list(pipeline[offset::per_copy])
            group = dist.new_group(ranks, COLLECTIVE_TIMEOUT, group_desc=f"mid block copies {ranks}")
            mine = group if dist.get_rank() in ranks else mine
    return mine


def _share_cores() -> None:
    """Divide the cores among the ranks that may run on the same ones. A number in OMP_NUM_THREADS takes precedence."""
    if re.fullmatch(r"[1-9]\d*(,\d+)*", os.environ.get("OMP_NUM_THREADS", "").strip()):
        return
    cores = (socket.gethostname(), sorted(os.sched_getaffinity(0)))
    everyone: list[tuple[str, list[int]]] = [cores] * dist.get_world_size()
    dist.all_gather_object(everyone, cores)
    torch.set_num_threads(max(1, len(cores[1]) // everyone.count(cores)))


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", device_index(local_rank, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    return device


def device_index(local_rank: int, visible: int) -> int:
    """Which of the visible devices a rank uses: the one of its local rank, or the only one where each task sees its own.

    Raises:
        UserError: more ranks than devices.
    """
    if visible == 1:
        return 0
    if local_rank >= visible:
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if chosen is None else f" (CUDA_VISIBLE_DEVICES={chosen})"
        raise UserError(
            f"local rank {local_rank} has no device: {visible} CUDA devices are visible{why}; start at most {visible} ranks per "
            "node, or make more devices visible"
        )
    return local_rank


def _join(rank: int, size: int, device: torch.device, once_met: Callable[[], None]) -> None:
    # NCCL wants to know the device now: otherwise `barrier` guesses it from the rank, and warns.
    where = {"backend": "gloo"} if device.type == "cpu" else {"backend": "nccl", "device_id": device}
    if size == 1:
        once_met()
        dist.init_process_group(**where, store=dist.HashStore(), rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)
        return
    store = meet(rank, size)
    once_met()
    store.set_timeout(COLLECTIVE_TIMEOUT)
    try:
        dist.init_process_group(
            **where, store=dist.PrefixStore("default_pg", store), rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT
        )
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"rank {rank} of {size} ({socket.gethostname()}) cannot connect to the other ranks, which it has met at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}. Check that the hosts can reach each other on every "
            f"port. The library reported: {first_line(error)}"
        ) from error


def leave_world() -> None:
    """Destroy the process groups after a success; `start_world` makes new ones.

    A failed rank must not call this: it would wait for the others.
    """
    if parallel_state.is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
