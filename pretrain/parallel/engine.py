"""The DeepSpeed adapter: the only file that imports deepspeed. Written against DeepSpeed 0.19.8.

DeepSpeed reduces, shards, clips and steps, but does not own gradient accumulation: with `managed_gradient_accumulation: false`,
`backward` only adds to the gradients and `step` is the boundary. A pipeline schedule can therefore replace the plain loop over
micro-batches without a second training step.
"""

import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from model.denoiser import Inputs, LoopedBlock, LoopedDenoiser, Output
from model.weights import shards_of
from pretrain.config.deepspeed_file import ds_config_path
from pretrain.config.run_plan import RunPlan
from pretrain.errors import UserError
from pretrain.optimizer.muon import Muon
from pretrain.parallel.deepspeed_config import deepspeed_config
from pretrain.parallel.gather import gather_weight
from pretrain.parallel.gradient_norm import count_no_weights_as_zero, infinite_norm
from pretrain.parallel.only_data import only_data
from pretrain.parallel.pieces import Pieces, locate_weights
from pretrain.parallel.pipeline import Pipeline
from pretrain.parallel.world import DeepSpeedMpu, World

Record = Callable[[int, Tensor, Tensor], None]
"""(index of the micro-batch, its share of the loss, cross-entropy of its masked tokens [m]): takes in the figures of a step."""


class Engine:
    """A model under DeepSpeed, and under a pipeline schedule if it has stages. `parallelize` builds it.

    Attributes:
        model: the wrapped module.
        optimizer: the client optimizer, whose groups DeepSpeed fills with this rank's shards.
    """

    def __init__(
        self,
        model: LoopedDenoiser,
        optimizer: Optimizer,
        deepspeed_engine: Any,
        pipeline: Pipeline | None,
        plan: RunPlan,
        world: World,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._engine, self._pipeline, self._plan, self._world = deepspeed_engine, pipeline, plan, world
        self.zero_stage = plan.settings.parallel.zero_stage
        self._names = _names_by_stage(model, world)
        self._norm: float | None = None
        if self.zero_stage == 0:
            self._clip_without_zero()

    def forward_backward(self, inputs: Sequence[Inputs], loops: int, record: Record) -> None:
        """Add the gradients of all micro-batches of a step.

        Args:
            inputs: of each micro-batch, with targets and loss weights.
            record: called on the ranks that hold the LM head.
        """

        def finish(number: int, output: Output) -> Tensor:
            loss, cross_entropy = output
            record(number, loss.detach(), cross_entropy)
            return loss * scale

        # DeepSpeed averages over the data-parallel ranks, but the loss is already a share of the mean: undo the division.
        scale = self._plan.data_parallel_size
        if self._pipeline is None:
            for number, one in enumerate(inputs):
                output = self._engine(one.tokens, one.logit_positions, loops, *one[2:])
                self._engine.backward(finish(number, output), scale_wrt_gas=False)
            return
        self._pipeline.run(inputs, loops, finish, backward=True)
        if self._world.replica_group is not None:
            self._sum_over_copies(loops)

    @torch.no_grad()
    def logits(self, inputs: Sequence[Inputs], loops: int) -> list[Tensor | None]:
        """Logits at each micro-batch's `logit_positions`; None on stages before the last."""
        if self._pipeline is None:
            return [self._engine(one.tokens, one.logit_positions, loops, *one[2:]) for one in inputs]
        return self._pipeline.logits(inputs, loops)

    def step(self, lr: float) -> float:
        """Reduce, clip and update; returns the global gradient norm before clipping.

        Raises:
            FloatingPointError: the norm is not finite. Weights, moments and the average are as before the step: under ZeRO
                DeepSpeed skips such an update, without ZeRO `_clip_without_zero` raises before it. The gradients are gone.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        try:
            self._engine.step()
        except FloatingPointError:
            self._engine.zero_grad()
            self._engine._running_engine_step = False  # DeepSpeed's own end of `step` was not reached
            raise
        norm = float(self._engine.get_global_grad_norm()) if self._norm is None else self._norm
        if not math.isfinite(norm):
            self._forget_offloaded_gradients()
        _require_finite(norm)
        return norm

    def discard_gradients(self) -> None:
        """Drop the gradients of a step. DeepSpeed does so when their norm is not finite, so it gets such a norm. Collective."""
        if self.zero_stage == 0:
            self._engine.zero_grad()
            return
        with infinite_norm(self._engine.optimizer, self._world.device):
            self._engine.step()
        self._forget_offloaded_gradients()

    def _forget_offloaded_gradients(self) -> None:
        """After a step that DeepSpeed skipped: with the optimizer on the CPU, stages 1 and 2 keep the sums in fp32 (a bug)."""
        if self.zero_stage in (1, 2) and self._plan.settings.parallel.offload != "none":
            for group in getattr(self._engine.optimizer, "averaged_gradients", {}):
                self._engine.optimizer.averaged_gradients[group] = None

    def _sum_over_copies(self, loops: int) -> None:
        """Sum the gradients over the mid block's copies in this pipeline, so that they remain one block.

        In DeepSpeed's sum over data-parallel ranks, which comes later, each copy has a group and a buffer of its own. Three or more
        numbers may be added up in another order there, and the copies would differ in their last bits. `train.deterministic` pays
        for one more sum: over these ranks first and over the copies last, so that all have the same numbers when DeepSpeed
        averages them.
        """
        weights = list(self.model.mid.parameters())
        rows_first = self._plan.settings.train.deterministic and self._world.data_parallel_size > 2
        if weights and not self.model.stage.passes(loops):
            # This copy made no pass: give it zero gradients, which DeepSpeed then reduces like those of the others.
            torch.stack([weight.sum() * 0.0 for weight in weights]).sum().backward()
        for weight in weights:
            # bf16 with ZeRO-1 moves gradients into fp32 sums as they arrive (DeepSpeed's BF16_Optimizer).
            gradient = weight.grad if getattr(weight, "_hp_grad", None) is None else weight._hp_grad
            if rows_first:
                dist.all_reduce(gradient, group=self._world.data_parallel_group)
                gradient /= self._world.data_parallel_size
            dist.all_reduce(gradient, group=self._world.replica_group)

    def _clip_without_zero(self) -> None:
        """Clip between DeepSpeed's reduction and the update: without ZeRO it clips fp32 gradients but reports no norm."""
        counted = [weight for weight in self.model.parameters() if _counts_here(weight, self._world)]
        every = list(self.model.parameters())

        def clip(*_: Any) -> None:
            squares = [weight.grad.float().square().sum() for weight in counted]
            squares = squares or [torch.zeros((), device=self._world.device)]  # a stage may hold copies alone
            norm = self._world.sum_over_model(torch.stack(squares).sum()).sqrt()
            self._norm = norm.item()
            _require_finite(self._norm)
            limit = self._plan.settings.optim.clip_norm or float("inf")
            torch.nn.utils.clip_grads_with_norm_(every, limit, norm)

        self.optimizer.register_step_pre_hook(clip)

    def set_training(self, training: bool) -> None:
        """Switch between training and evaluation mode."""
        self._engine.train(training)

    def load(self, folder: Path, tag: str) -> None:
        """Read what DeepSpeed's `save_checkpoint` wrote on the same layout: the older format. Collective.

        States come from the checkpoint, hyperparameters from the settings of this start: `load_checkpoint` would bring
        back the old betas, epsilon and weight decay, and with ZeRO-1, ZeRO-2 and bf16 the old `optim.clip_norm`.
        """
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        current = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        with only_data(LossScaler, ZeroStageEnum, fragment_address):
            self._engine.load_checkpoint(str(folder), tag=tag)
        for group, hyperparameters in zip(self.optimizer.param_groups, current, strict=True):
            group.update(hyperparameters)
        if self.zero_stage:
            self._engine.optimizer.clip_grad = self._plan.settings.optim.clip_norm

    def pieces(self) -> Pieces:
        """Where the weights are in the tensors that the optimizer steps."""
        zero_optimizer = self._engine.optimizer if self.zero_stage else None
        return locate_weights(self.model, self.optimizer, zero_optimizer, self.zero_stage, self._world)[0]

    @property
    def counts_steps_by_group(self) -> bool:
        """Whether the optimizer keeps the number of its steps in its groups, as apex does, not in the states of the weights."""
        adamw = self.optimizer.adamw if isinstance(self.optimizer, Muon) else self.optimizer
        return type(adamw).__module__.startswith("apex")

    def shard_shapes(self) -> dict[str, torch.Size]:
        """Shape of every weight as this tensor-parallel rank would hold it without ZeRO."""
        return {name: getattr(weight, "ds_shape", weight.shape) for name, weight in self.model.named_parameters()}

    def owns(self, name: str) -> bool:
        """Whether this rank is the one that saves its pieces of a weight: of the ranks that hold the same numbers, the first."""
        weight = self.model.get_parameter(name)
        copied = weight.ds_pipe_replicated or (shards_of(name) is None and self._world.tensor_rank > 0)
        return not copied and (self.zero_stage > 0 or self._world.data_parallel_rank == 0)

    def refresh_weights(self) -> None:
        """Give the model the weights that the optimizer's tensors hold, as DeepSpeed does after an update. Collective."""
        zero_optimizer = self._engine.optimizer
        if self.zero_stage in (1, 2):
            zero_optimizer.update_lp_params()
        elif self.zero_stage == 3:
            zero_optimizer.checkpoint_event_prologue()  # no weight is gathered
            for number in range(len(zero_optimizer.fp16_groups)):
                zero_optimizer._reassign_or_swap_out_partitioned_parameters(number)
            zero_optimizer.checkpoint_event_epilogue()

    def full_weights(self) -> Iterator[tuple[str, Tensor | None]]:
        """(name, fp32 tensor on the CPU) of every weight of the model, gathered one at a time. Collective.

        The main rank gets the tensors, the others None.
        """
        parameters = dict(self.model.named_parameters())
        for stage, names in enumerate(self._names):
            for name in names:
                self._world.enter_phase("gathering weights")
                part = self._unsharded(parameters[name]) if self._world.stage == stage else None
                yield name, gather_weight(self._world, name, stage, part)

    def _unsharded(self, parameter: nn.Parameter) -> Tensor:
        """A weight as this tensor-parallel rank would hold it without ZeRO, in fp32."""
        from deepspeed.utils import safe_get_full_fp32_param

        full = parameter if self.zero_stage == 0 else safe_get_full_fp32_param(parameter)
        return full.detach().float()


def mark_copied_weights(model: LoopedDenoiser) -> None:
    """Mark weights that other ranks of the model also hold, so that DeepSpeed's gradient norm counts each once.

    DeepSpeed counts a weight that is neither sharded nor marked on the first tensor-parallel rank of every stage.
    """
    for name, weight in model.named_parameters():
        weight.tensor_model_parallel = shards_of(name) is not None
        weight.ds_pipe_replicated = name.startswith("mid.") and model.stage.replica > 0


def gather_looped_block_once(model: LoopedDenoiser) -> None:
    """Make the looped block a leaf of ZeRO-3: gathered once per call of the block, which makes all passes."""
    from deepspeed.utils import set_z3_leaf_modules

    set_z3_leaf_modules(model, [LoopedBlock])


def use_bf16_weights(module: nn.Module) -> None:
    """Cast the weights to bf16 and give them fp32 gradients: autograd then converts each contribution before it adds it.

    A weight of the looped block receives one gradient per pass. By default autograd sums them in the dtype of the weight:
    at S = 12 the sum is off by about 3e-3 of its norm, more than by the rounding of a single gradient.

    Raises:
        UserError: this torch cannot do that. Setting the attribute would have no effect there.
    """
    if not hasattr(torch.Tensor, "grad_dtype"):
        raise UserError(
            f"train.precision=bf16: torch {torch.__version__} cannot sum gradients of bf16 weights in fp32; install torch 2.11 or "
            "newer, or set train.precision=fp32"
        )
    for weight in module.bfloat16().parameters():
        weight.grad_dtype = torch.float32


def zero3_sharding(plan: RunPlan, world: World) -> Callable[[nn.Module], None]:
    """A function that shards the weights of a module as ZeRO-3 holds them, in the memory that `parallel.offload` names.

    DeepSpeed would do that to the whole model when the engine is made, after every rank has held all of it. The function is
    collective over the data-parallel ranks, which get the weights of the first of them.
    """
    deepspeed = _import_deepspeed(world)
    mpu, config = DeepSpeedMpu(), deepspeed_config(plan, plan.placement[world.stage])

    def shard(module: nn.Module) -> None:
        with _file_errors(plan):
            deepspeed.zero.Init(
                module=module, data_parallel_group=mpu.get_data_parallel_group(), config_dict_or_path=config, mpu=mpu
            )

    return shard


def initialize_deepspeed(model: LoopedDenoiser, optimizer: Optimizer, plan: RunPlan, world: World) -> Any:
    """DeepSpeed's engine over the model and the optimizer, on the process groups that exist already. Collective."""
    deepspeed = _import_deepspeed(world)
    config = deepspeed_config(plan, model.stage)
    with redirect_stdout(io.StringIO()), _file_errors(plan):  # BF16_Optimizer prints its memory use at every start
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, mpu=DeepSpeedMpu())
    count_no_weights_as_zero(engine.optimizer, world.device)
    return engine


@contextmanager
def _file_errors(plan: RunPlan) -> Iterator[None]:
    """Report a value that DeepSpeed refuses with the file that has it. Every rank reads the same."""
    try:
        yield
    except ValidationError as error:
        raise UserError(f"{ds_config_path(plan.settings)}: {_refused(error)}; correct the file") from error


def _refused(error: ValidationError) -> str:
    """Such as `DeepSpeed refuses ratio=2: Input should be less than or equal to 1`."""
    first = error.errors()[0]
    return f"DeepSpeed refuses {'.'.join(map(str, first['loc']))}={first['input']}: {first['msg']}"


def _require_finite(norm: float) -> None:
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient norm is {norm}")


def _names_by_stage(model: LoopedDenoiser, world: World) -> list[list[str]]:
    """Weights that each stage contributes to a checkpoint: its own, without later copies of the mid block. Collective."""
    own = [name for name, weight in model.named_parameters() if not weight.ds_pipe_replicated]
    everyone: list[tuple[int, list[str]]] = [(0, [])] * world.size
    dist.all_gather_object(everyone, (world.stage, own))
    return [names for _, names in sorted(dict(everyone).items())]


def _counts_here(weight: nn.Parameter, world: World) -> bool:
    """Whether this rank adds a weight's gradient to the norm: the marks of `mark_copied_weights`, read as ZeRO reads them."""
    return not weight.ds_pipe_replicated and (weight.tensor_model_parallel or world.tensor_rank == 0)


def device_number(world: World) -> int:
    """What DeepSpeed must find in LOCAL_RANK, by which it selects its device.

    srun and plain python do not set the variable, and where each task sees only its own device, that is device 0 for every local
    rank.
    """
    return world.local_rank if world.device.index is None else world.device.index


def _import_deepspeed(world: World) -> Any:
    """Import DeepSpeed and initialize its communication on the existing process group."""
    device = world.device.type
    if (asked := os.environ.setdefault("DS_ACCELERATOR", device)) != device:
        raise UserError(
            f"DS_ACCELERATOR={asked} is set, but this run is on {device}, and DeepSpeed must use the same; unset it: env -u "
            "DS_ACCELERATOR COMMAND"
        )
    os.environ["LOCAL_RANK"] = str(device_number(world))
    import deepspeed

    if world.device.type == "cpu":
        # On CPUs DeepSpeed would compile a shared-memory all-reduce for inference at start-up. Training does not use
        # it and must also start on a machine without a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo" if world.device.type == "cpu" else "nccl", verbose=False)
    return deepspeed
