# SPDX-License-Identifier: Apache-2.0
"""LoopMDM, a looped masked diffusion language model (arXiv 2605.26106), for transformers 4.57 and 5.

    H(0) = head(embedding(x_t)),   H(k) = mid(H(k - 1)) for k = 1..S,   p = softmax(lm_head(norm(tail(H(S)))))

With `loop_norm`, H(k) = mid(loop_norm(H(k - 1))).

x_t is a text some of whose tokens are [MASK]; the logits predict the token behind every [MASK]. S, the number of loops, is
chosen at inference. Shapes: b rows, s tokens per row, h hidden size, n attention heads, d head width, v vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class LoopMDMConfig(PretrainedConfig):
    """The shape of the model and the default number of loops.

    Args:
        vocab_size: number of token ids; [MASK], `mask_token_id`, is the last one.
        padded_vocab_size: rows of the embedding and of the LM head; those from `vocab_size` on are not used.
        head_layers, mid_layers, tail_layers: layers before, in and after the looped block.
        max_loops: the largest S in training. More can be used.
        loops: S where the call does not give it.
        loop_tolerance: stop the loop of a row early at this change of direction, see `LoopMDMModel.forward`; None: never.
        max_position_embeddings: tokens per row in training.
        loop_norm: whether the state is normalized before every pass.
    """

    model_type = "loopmdm"
    attribute_map = {"mask_id": "mask_token_id"}  # noqa: RUF012 (declared so by transformers)

    def __init__(
        self,
        vocab_size: int = 32769,
        padded_vocab_size: int = 32832,
        hidden_size: int = 768,
        intermediate_size: int = 2048,
        head_layers: int = 1,
        mid_layers: int = 2,
        tail_layers: int = 9,
        num_attention_heads: int = 12,
        num_key_value_heads: int = 12,
        rope_base: float = 10_000.0,
        rms_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        max_position_embeddings: int = 1024,
        max_loops: int = 12,
        loops: int = 12,
        loop_tolerance: float | None = None,
        loop_norm: bool = False,
        mask_token_id: int = 32768,
        **kwargs,  # noqa: ANN003 (what every configuration of transformers has)
    ) -> None:
        self.vocab_size, self.padded_vocab_size = vocab_size, padded_vocab_size
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.head_layers, self.mid_layers, self.tail_layers = head_layers, mid_layers, tail_layers
        self.num_hidden_layers = head_layers + mid_layers + tail_layers
        self.num_attention_heads, self.num_key_value_heads = num_attention_heads, num_key_value_heads
        self.rope_base, self.rms_norm_eps, self.initializer_range = rope_base, rms_norm_eps, initializer_range
        self.max_position_embeddings = max_position_embeddings
        self.max_loops, self.loops, self.loop_tolerance = max_loops, loops, loop_tolerance
        self.loop_norm, self.mask_token_id = loop_norm, mask_token_id
        kwargs.pop("num_hidden_layers", None)
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)


@dataclass
class LoopMDMOutput(ModelOutput):
    """What `LoopMDMModel` returns.

    Attributes:
        logits: [b, s, v].
        loops: S of each row, int64 [b].
    """

    logits: Tensor | None = None
    loops: Tensor | None = None


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Bidirectional attention with RoPE (Su et al. 2021) and grouped keys and values (Ainslie et al. 2023)."""

    def __init__(self, config: LoopMDMConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        key_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        query, key, value = (
            project(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # [b, n, s, d]
        query, key = rotate(query, *rotation), rotate(key, *rotation)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return self.o_proj(context.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated feed-forward network (Shazeer 2020)."""

    def __init__(self, config: LoopMDMConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Layer(nn.Module):
    """A pre-norm transformer layer: [b, s, h] -> [b, s, h]."""

    def __init__(self, config: LoopMDMConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotation, mask)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class LoopMDMModel(PreTrainedModel):
    """p(x_0 | x_t) at every position, after S passes through the mid layers."""

    config_class = LoopMDMConfig
    _no_split_modules = ["Layer"]  # noqa: RUF012 (declared so by transformers)
    _supports_sdpa = True

    def __init__(self, config: LoopMDMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.loop_norm = RMSNorm(config.hidden_size, config.rms_norm_eps) if config.loop_norm else nn.Identity()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        loops: int | None = None,
        loop_tolerance: float | None = None,
        return_dict: bool | None = None,
    ) -> LoopMDMOutput | tuple[Tensor, ...]:
        """Logits of the clean token at every position.

        Args:
            input_ids: x_t, int64 [b, s].
            attention_mask: [b, s], 1 for tokens and 0 for padding; or, for each query, the keys that it attends to: bool
                [b, s, s] or [b, 1, s, s]. None: every token attends to its whole row.
            loops: S; None: `config.loops`.
            loop_tolerance: adaptive loops. A row stops before S passes once a pass changes the direction of its hidden states
                by less than this: the mean of |h_k / |h_k| - h_(k-1) / |h_(k-1)|| over its [MASK] tokens (over all its tokens
                if it has no [MASK]). None: `config.loop_tolerance`; 0: never.
            return_dict: False returns a tuple.

        Returns:
            Logits [b, s, v] and the loops of each row. A clean token is never [MASK], whose logit is the lowest finite
            number: its probability is exactly 0, and differences of logits, as in classifier-free guidance, stay finite.
        """
        config = self.config
        loops = config.loops if loops is None else loops
        if loops < 1:
            raise ValueError(f"loops={loops}: must be at least 1")
        tolerance = config.loop_tolerance if loop_tolerance is None else loop_tolerance
        hidden = self.embed_tokens(input_ids)
        rotation = rotary_angles(hidden, config.hidden_size // config.num_attention_heads, config.rope_base)
        mask = attention_bias(attention_mask, len(input_ids))
        middle, tail = config.head_layers, config.head_layers + config.mid_layers
        for layer in self.layers[:middle]:
            hidden = layer(hidden, rotation, mask)
        hidden, used = self.run_loop(hidden, rotation, mask, loops, tolerance, self.watched(input_ids, attention_mask))
        for layer in self.layers[tail:]:
            hidden = layer(hidden, rotation, mask)
        logits = self.lm_head(self.norm(hidden))[..., : config.vocab_size]
        logits[..., config.mask_token_id] = torch.finfo(logits.dtype).min
        output = LoopMDMOutput(logits=logits, loops=used)
        return output.to_tuple() if return_dict is False else output

    def run_loop(
        self,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        loops: int,
        tolerance: float | None,
        watched: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Up to `loops` passes through the mid layers: [b, s, h] -> [b, s, h], and the passes of each row, int64 [b].

        Args:
            tolerance: see `forward`. Rows that have settled leave the batch.
            watched: the tokens whose change of direction counts, bool [b, s].
        """
        config, rows = self.config, torch.arange(len(hidden), device=hidden.device)
        mid, used = self.layers[config.head_layers :][: config.mid_layers], torch.full_like(rows, loops)
        for number in range(1, loops + 1):
            before = hidden[rows]
            after = self.loop_norm(before)
            for layer in mid:
                after = layer(after, rotation, mask if mask is None else mask[rows])
            hidden = hidden.index_copy(0, rows, after)
            if tolerance:
                change = (F.normalize(after.float(), dim=-1) - F.normalize(before.float(), dim=-1)).norm(dim=-1)
                counted = watched[rows]
                settled = (change * counted).sum(-1) < tolerance * counted.sum(-1)
                used[rows[settled]] = number
                rows = rows[~settled]
                if not len(rows):
                    break
        return hidden, used

    def watched(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The [MASK] tokens of each row, or all tokens of a row without any, bool [b, s]."""
        masked = input_ids == self.config.mask_token_id
        tokens = torch.ones_like(masked)
        if attention_mask is not None and attention_mask.dim() == 2:
            tokens = attention_mask.bool()
        return (masked | ~masked.any(-1, keepdim=True)) & tokens


def attention_bias(attention_mask: Tensor | None, batch_size: int) -> Tensor | None:
    """A mask as the caller gives it -> as SDPA takes it: bool [b, 1, 1 or s, s], True where a query attends to a key."""
    if attention_mask is None:
        return None
    if attention_mask.dim() == 2:
        attention_mask = attention_mask.bool()[:, None, None, :]
    elif attention_mask.dim() == 3:
        attention_mask = attention_mask[:, None]
    return attention_mask.expand(batch_size, -1, -1, -1)


def rotary_angles(hidden: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the RoPE angles of all positions, [s, d], for [b, s, h]; computed in fp32."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=hidden.device) / width
    positions = torch.arange(hidden.shape[1], dtype=torch.float32, device=hidden.device)
    angles = torch.outer(positions, base**-exponents).repeat(1, 2)
    return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of every head by the angle of its position: [b, n, s, d] -> [b, n, s, d]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
