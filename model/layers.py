"""The transformer layer: megatron-core's `TransformerLayer` with bidirectional attention that also runs on a CPU.

Shapes in this package: b rows (batch), s tokens per row (sequence), h hidden size, n attention heads, d head width, v
vocabulary, m selected positions. megatron-core's layers take and return hidden states as [s, b, h]; with sequence
parallelism, s is this rank's share of the row.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from model.architecture import Architecture
from model.attention import BidirectionalAttention


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019) with the constructor that megatron-core's specs call.

    megatron-core's own wrapper of torch's norm (`WrappedTorchNorm`) refuses sequence parallelism. There every
    tensor-parallel rank normalizes different tokens with the same weight, so the weight's gradients must be summed over
    the group. A hook on the weight does this once per backward pass, before DeepSpeed takes the gradient: ZeRO-2 and
    ZeRO-3 reduce gradients during the backward pass. `sum_gradients` registers it.

    Args:
        hidden_size: h.
        eps: added to the mean square.
        gradient_group: the process group to sum the weight's gradient over; None for no sum.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float, gradient_group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__()
        self.eps, self.gradient_group = eps, gradient_group
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))

    def sum_gradients(self) -> None:
        """Sum the weight's gradients over `gradient_group` from now on. The weight must not be replaced afterwards."""
        if self.gradient_group is not None:
            self.weight.register_hook(partial(_sum_over_ranks, group=self.gradient_group))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., h] -> [..., h]."""
        return F.rms_norm(hidden_states, (hidden_states.shape[-1],), self.weight, self.eps)


def _sum_over_ranks(gradient: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = gradient.clone()
    dist.all_reduce(total, group=group)
    return total


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How the tensor-parallel ranks of one pipeline stage share its layers. The defaults describe a single rank.

    Attributes:
        tensor: tensor-parallel size.
        rank: this process's rank in the tensor-parallel group.
        sequence: also split the sequence between the tensor-parallel matrix products (sequence parallelism,
            Korthikanti et al. 2022, section 4.2.2).
        group: the tensor-parallel process group. Needed with `sequence` only; megatron-core's own layers find it by
            themselves.
    """

    tensor: int = 1
    rank: int = 0
    sequence: bool = False
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.tensor:
            raise ValueError(f"tensor-parallel rank {self.rank} is not in a group of {self.tensor} ranks")
        if self.sequence and self.group is None:
            raise ValueError("sequence parallelism needs the tensor-parallel process group: set Sharding.group")

    @property
    def norm_gradient_group(self) -> dist.ProcessGroup | None:
        """The group that sums the gradients of the norms' weights; None where every rank sees all tokens."""
        return self.group if self.sequence else None


def transformer_config(architecture: Architecture, sharding: Sharding) -> TransformerConfig:
    """megatron-core's configuration of our layer: no bias, no dropout, SwiGLU, RMSNorm, nothing that needs CUDA.

    Weights are allocated on the CPU and not initialized: `model.weights` fills them.
    """
    return TransformerConfig(
        tensor_model_parallel_size=sharding.tensor,
        sequence_parallel=sharding.sequence,
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        num_attention_heads=architecture.num_heads,
        num_query_groups=architecture.kv_heads,
        ffn_hidden_size=architecture.ffn_size,
        kv_channels=architecture.head_dim,
        layernorm_epsilon=architecture.norm_eps,
        normalization="RMSNorm",
        activation_func=F.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        perform_initialization=False,
        # Fused kernels need apex or Transformer Engine; the unfused code runs everywhere.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
    )


def build_layer(config: TransformerConfig, sharding: Sharding, layer_number: int) -> TransformerLayer:
    """One transformer layer. megatron-core's process groups must be initialized.

    Args:
        config: as from `transformer_config`.
        layer_number: counts from 1, as in megatron-core.
    """
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    parts = spec.submodules
    norm = ModuleSpec(module=RMSNorm, params={"gradient_group": sharding.norm_gradient_group})
    parts.input_layernorm = parts.pre_mlp_layernorm = norm
    parts.self_attention.params["attn_mask_type"] = AttnMaskType.no_mask
    parts.self_attention.submodules.core_attention = ModuleSpec(module=BidirectionalAttention)
    return build_module(spec, config=config, layer_number=layer_number)
