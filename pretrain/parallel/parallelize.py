"""How a model description becomes a distributed one: the ordered list, in one place.

Process groups exist already (`world.start_world`). Each step below says why it stands where it does.
"""

from torch import nn

from model.architecture import Architecture
from model.denoiser import LoopedDenoiser
from model.layers import Sharding
from model.weights import OnWeight
from pretrain.config.run_plan import RunPlan
from pretrain.config.settings import Optim
from pretrain.machine.compilation import compile_layers, missing_compiler
from pretrain.optimizer.build import build_optimizer
from pretrain.optimizer.muon import Muon
from pretrain.parallel.consistency import require_identical_on_all_ranks, weight_fact
from pretrain.parallel.engine import (
    Engine,
    gather_looped_block_once,
    initialize_deepspeed,
    mark_copied_weights,
    use_bf16_weights,
    zero3_sharding,
)
from pretrain.parallel.pieces import locate_weights
from pretrain.parallel.pipeline import Pipeline
from pretrain.parallel.world import World


def parallelize(architecture: Architecture, optim: Optim, plan: RunPlan, world: World) -> Engine:
    """Build this rank's part of the model and everything that trains it. Collective.

    Raises:
        UserError: ranks that should hold the same initial weights do not.
    """
    parallel, stage = plan.settings.parallel, plan.placement[world.stage]

    # 1. Tensor and sequence parallelism: megatron-core's layers allocate this rank's shard and no more, so the sharding
    #    must be known when they are constructed.
    size, rank, group = parallel.tensor, world.tensor_rank, world.tensor_group
    sharding = Sharding(tensor=size, rank=rank, sequence=parallel.sequence, group=group)

    # 2. Every weight is cast, moved and, by ZeRO-3, sharded before the next is created: meanwhile a rank holds what it keeps
    #    and one weight. Ranks that hold the same weight compare what they have created, in step 3.
    facts: dict[str, str] = {}
    on_weight = _finish_weight(plan, world, facts)

    # 3. Pipeline parallelism and recomputation, also at construction: a stage builds only the layers that it holds, and
    #    recomputation wraps calls inside the model's forward, where no later wrapper can reach.
    model = LoopedDenoiser(architecture, plan.settings.run.seed, parallel.recompute, stage, sharding, on_weight)
    require_identical_on_all_ranks(facts)

    # 4. Weights that several ranks hold (norms over tensor ranks, copies of the mid block over stages) are marked before
    #    DeepSpeed reads the marks, so that its gradient norm counts each weight once.
    mark_copied_weights(model)

    # 5. Compilation of single layers, which happens at their first call: neither their weights nor their names change.
    if plan.settings.train.compile and missing_compiler(world.device) is None:
        for phase in (model.head, model.mid, model.tail):
            compile_layers(phase.layers)

    # 6. The optimizer takes the model's parameters; DeepSpeed replaces them in its groups by this rank's fp32 shards.
    #    Offloaded shards are stepped on the CPU, where a CUDA kernel cannot reach them.
    optimizer = build_optimizer(model, optim, world.device, parallel.offload != "none", parallel.zero_stage)

    # 7. ZeRO-3 treats the looped block as one unit: its weights are gathered once for all S passes, not once per pass.
    #    DeepSpeed installs its hooks in step 8, so the mark comes before.
    if parallel.zero_stage == 3:
        gather_looped_block_once(model)

    # 8. DeepSpeed: ZeRO sharding, fp32 master weights, reduction, clipping, the update. Then Muon learns where the shards are.
    deepspeed_engine = initialize_deepspeed(model, optimizer, plan, world)
    if isinstance(optimizer, Muon):
        optimizer.locate(*locate_weights(model, optimizer, deepspeed_engine.optimizer, parallel.zero_stage, world))

    # 9. The pipeline schedule drives the model directly, in the dtype that DeepSpeed cast it to.
    pipeline = Pipeline(model, plan.seq_len, next(model.parameters()).dtype) if stage.count > 1 else None
    return Engine(model, optimizer, deepspeed_engine, pipeline, plan, world)


def _finish_weight(plan: RunPlan, world: World, facts: dict[str, str]) -> OnWeight:
    """What is done with a weight when it has been created: this order, and before the next one is."""
    shard = zero3_sharding(plan, world) if plan.settings.parallel.zero_stage == 3 else None

    def finish(name: str, module: nn.Module) -> None:
        # a. Its checksum, of the whole weight: afterwards a rank may have a part of it only.
        facts.update(weight_fact(name, module.weight, world))
        module.to(world.device)
        # b. bf16 with fp32 gradients. DeepSpeed would cast too, but the dtype of a gradient is fixed when the first hook is
        #    registered, and DeepSpeed registers its hooks in step 8.
        if plan.settings.train.precision == "bf16":
            use_bf16_weights(module)
        # c. ZeRO-3's shards, in the dtype and on the device that it trains with.
        if shard is not None:
            shard(module)

    return finish
