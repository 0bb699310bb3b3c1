"""Which group of the optimizer a weight belongs to. Imports no torch: what layouts are possible depends on it."""

from model.placement import Stage, layers_held


def group_of(optimizer: str, name: str, dimensions: int) -> int:
    """Number of a weight's group, 0 or 1. AdamW: matrices, vectors. Muon: matrices of layers, all other weights.

    Args:
        optimizer: `optim.name`.
        name: of the weight.
        dimensions: 2 for a matrix, 1 for the weight of a norm.
    """
    return 0 if dimensions >= 2 and (optimizer == "adamw" or ".layers." in name) else 1


def groups_held(optimizer: str, stage: Stage) -> set[int]:
    """The groups of which a stage holds weights."""
    held = [("embedding.weight", 2)] if stage.first else []
    if layers_held(stage):
        held += [("mid.layers.0.mlp.linear_fc1.weight", 2), ("mid.layers.0.pre_mlp_layernorm.weight", 1)]
    if stage.last:
        held += [("final_norm.weight", 1), ("lm_head.weight", 2)]
    return {group_of(optimizer, *weight) for weight in held}
