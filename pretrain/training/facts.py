"""Facts about a run that all ranks, or all ranks of a share, must have in common. `parallel.consistency` compares them."""

from collections.abc import Sequence
from typing import Any

from data_pipeline.dataset.blend import Blend
from pretrain.config.keys import flatten
from pretrain.config.run_plan import RunPlan
from pretrain.machine.versions import package_version
from pretrain.parallel.consistency import checksum
from pretrain.parallel.world import World
from pretrain.training.batches import MicroBatch


def run_facts(plan: RunPlan, blend: Blend) -> dict[str, Any]:
    """Settings, hashes of the prepared data, and library versions. The data's path may differ between nodes."""
    settings = {key: value for key, value in flatten(plan.settings).items() if key != "data.path"}
    data = {f"the sha256 of the data's {name}": value for name, value in blend.identity().items()}
    versions = {f"the version of {name}": package_version(name) for name in ("torch", "deepspeed", "megatron-core")}
    return settings | data | versions


def batch_facts(batches: Sequence[MicroBatch], world: World) -> dict[str, str]:
    """Checksums of rows, masks, targets and document ids of a step, which must be equal within a data-parallel share."""
    parts = {
        "rows": [batch.inputs.tokens for batch in batches],
        "masks": [batch.inputs.logit_positions for batch in batches],
        "targets": [batch.inputs.targets for batch in batches],
        "document ids": [ids for batch in batches if (ids := batch.inputs.document_ids) is not None],
    }
    share = f"data-parallel share {world.data_parallel_rank}"
    return {
        f"the checksum of the {name} of {share}": "".join(map(checksum, tensors))
        for name, tensors in parts.items()
        if tensors
    }
