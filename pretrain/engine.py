"""The DeepSpeed adapter: the only file that imports deepspeed. Written against DeepSpeed 0.19.8.

DeepSpeed reduces, shards, clips and steps; it does not own the accumulation: with `managed_gradient_accumulation: false`
`backward` only adds to the gradients and `step` is the boundary, so that a pipeline schedule can take the place of the
plain loop without a second training step.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.checks import ds_config_path, read_ds_config
from pretrain.derive import Plan
from pretrain.world import World

EMA_KEY = "ema"
"""Name of the averaged weights inside the optimiser's state, beside AdamW's `exp_avg`."""


class Engine:
    """A model under DeepSpeed.

    Attributes:
        model: the wrapped module, for evaluation; under ZeRO-3 call it only through `forward`.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, plan: Plan, world: World) -> None:
        deepspeed = _import_deepspeed(world)
        self.model, self.optimizer, self.zero_stage = model, optimizer, plan.settings.parallel.zero_stage
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(plan))
        self._data_parallel_size = plan.data_parallel_size
        self._norm: Tensor | None = None
        if self.zero_stage == 0:
            self._clip_without_zero(plan.settings.optim.clip_norm)

    def forward(self, *inputs: Any) -> Tensor:
        """The model's forward pass, with ZeRO's gathering where it is needed."""
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add this rank's gradients of its share of the global mean.

        DeepSpeed averages over the data-parallel ranks, and the loss is a share of a mean already: undo the division.
        """
        self._engine.backward(loss * self._data_parallel_size, scale_wrt_gas=False)

    def step(self, lr: float) -> float:
        """Reduce, clip and update; returns the global gradient norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if self._norm is None else self._norm)

    def _clip_without_zero(self, clip_norm: float) -> None:
        """Clip between DeepSpeed's reduction and the update: without ZeRO it clips fp32 gradients but tells no norm."""

        def clip(optimizer: Optimizer, *_: Any) -> None:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            self._norm = torch.nn.utils.clip_grad_norm_(weights, clip_norm or float("inf"))

        self.optimizer.register_step_pre_hook(clip)

    def set_training(self, training: bool) -> None:
        """Switch between training and evaluation mode."""
        self._engine.train(training)

    def save(self, folder: Path, tag: str) -> None:
        """Write weights, optimiser state and averaged weights of all ranks under `folder/tag`. Collective."""
        self._engine.save_checkpoint(str(folder), tag=tag, save_latest=False)

    def load(self, folder: Path, tag: str) -> None:
        """Read what `save` wrote on the same layout. Collective."""
        self._engine.load_checkpoint(str(folder), tag=tag)

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor on the CPU) of every weight, gathered one by one over the ranks. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.model.named_parameters():
            full = parameter if self.zero_stage == 0 else safe_get_full_fp32_param(parameter)
            yield name, full.detach().float().cpu().clone()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, `full_weights` yields the moving average.

        The master weights of this rank hold the average for the while and get their own bits back. DeepSpeed offers
        `safe_get_full_optimizer_state` for this, but in 0.19.8 ZeRO-1/2 link the states of the first parameter group only.
        """
        kept = {master: master.detach().clone() for master, state in self.optimizer.state.items() if EMA_KEY in state}
        with torch.no_grad():
            for master in kept:
                master.copy_(self.optimizer.state[master][EMA_KEY])
            try:
                yield
            finally:
                for master, own in kept.items():
                    master.copy_(own)


def deepspeed_config(plan: Plan) -> dict[str, Any]:
    """DeepSpeed's configuration: the file's own keys, and everything that follows from the recipe."""
    settings = plan.settings
    config = read_ds_config(ds_config_path(settings))
    config |= {
        "train_batch_size": settings.train.global_batch_size,
        "train_micro_batch_size_per_gpu": settings.train.micro_batch_size,
        "gradient_accumulation_steps": plan.micro_batches,
        "managed_gradient_accumulation": False,
        "gradient_clipping": settings.optim.clip_norm if settings.parallel.zero_stage else 0.0,
        "zero_allow_untested_optimizer": True,  # apex's FusedAdam is not on DeepSpeed's list
        "steps_per_print": 2**62,
    }
    if settings.train.precision == "bf16":
        config["bf16"] = {"enabled": True, "immediate_grad_update": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def deepspeed_fused_adam() -> tuple[type[Optimizer] | None, str]:
    """DeepSpeed's FusedAdam where its kernel can be built, and the reason."""
    from deepspeed.ops.op_builder import FusedAdamBuilder

    if not FusedAdamBuilder().is_compatible(verbose=False):
        return None, "DeepSpeed's FusedAdam cannot be built here (CUDA toolkit or compiler missing)"
    from deepspeed.ops.adam import FusedAdam

    return FusedAdam, "DeepSpeed builds FusedAdam"


def _import_deepspeed(world: World) -> Any:
    """Import and initialise DeepSpeed's communication on the process group that is already there."""
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # DeepSpeed insists; srun and plain python set none
    import deepspeed

    if world.device.type == "cpu":
        # On CPUs DeepSpeed would compile a shared-memory all-reduce for inference at start-up. Training does not use
        # it, and a machine without a compiler must still run.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo" if world.device.type == "cpu" else "nccl", verbose=False)
    return deepspeed
