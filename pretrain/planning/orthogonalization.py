"""FLOPs of Muon's orthogonalization (`pretrain/optimizer/orthogonal.py`). Imports no torch."""

from model.architecture import Architecture
from model.placement import Stage, layers_held
from pretrain.config.run_plan import RunPlan

ITERATIONS = 5
"""Newton-Schulz iterations; `pretrain/optimizer/orthogonal.py` has the same number, but imports torch."""


def orthogonalization_flops(plan: RunPlan, stage: Stage) -> float:
    """fp32 FLOPs of the rank of a stage that has most to do in a step; 0 with AdamW.

    The matrices are divided over the ranks that hold pieces of them, weight by weight.
    """
    if plan.settings.optim.name != "muon":
        return 0.0
    parallel = plan.settings.parallel
    ranks = parallel.tensor * (plan.data_parallel_size if parallel.zero_stage else 1)
    layers = layers_held(stage)
    weights = weights_of_a_layer(plan.settings.model)
    return max(layers * sum(weights) / ranks, max(weights) if layers else 0.0)


def weights_of_a_layer(model: Architecture) -> tuple[float, ...]:
    """FLOPs of the weights of one layer: of queries, keys and values, attention output, gate and up, and down projection."""
    hidden, ffn = model.hidden_size, model.ffn_size
    queries, keys = model.num_heads * model.head_dim, model.kv_heads * model.head_dim
    projections = newton_schulz(queries, hidden) + 2 * newton_schulz(keys, hidden)
    return projections, newton_schulz(hidden, queries), 2 * newton_schulz(ffn, hidden), newton_schulz(hidden, ffn)


def newton_schulz(rows: int, columns: int) -> float:
    """FLOPs for one matrix: X X^T, its square, and the product of both with X, per iteration."""
    short, long = sorted((rows, columns))
    return ITERATIONS * (4 * short * short * long + 2 * short**3)
