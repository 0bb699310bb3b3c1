"""Draws samples in batches of rows of the same length, shared by the ranks."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.sampling.generate import SamplingPlan, generate
from model.sampling.query import Denoise
from pretrain.errors import UserError
from pretrain.evaluation.sampler_settings import SamplerSettings
from pretrain.parallel.world import World


@dataclass(frozen=True)
class Sample:
    """A filled row.

    Attributes:
        tokens: ids, without any [MASK]; up to the end of the document if samples stop there.
        steps: number of the step that revealed each token, from 0; -1 for given tokens.
    """

    tokens: list[int]
    steps: list[int]


def require_steps(settings: SamplerSettings, unknown: int, source: str) -> None:
    """Check that the denoising steps are enough for the blocks of a sample.

    Args:
        unknown: [MASK] tokens of the sample.
        source: where it comes from, for messages.

    Raises:
        UserError: they are not.
    """
    blocks = -(-unknown // (settings.block_length or unknown))
    if settings.steps is not None and settings.steps < blocks:
        raise UserError(
            f"--steps {settings.steps}: the {blocks} blocks of a sample of {source} need at least one step each; raise "
            "--steps or --block-length"
        )


def fill_rows(
    world: World,
    denoise: Denoise,
    rows: Sequence[Sequence[int]],
    numbers: Sequence[int],
    plan: SamplingPlan,
    mask_id: int,
    seed: int,
    batch_size: int,
) -> list[Sample]:
    """Fill the [MASK] tokens of rows. Collective: copies of the model share the batches, and every rank gets all samples.

    Args:
        rows: token ids of each row; their lengths may differ.
        numbers: number of each row's sample, see `model.sampling.query.Query`.

    Raises:
        UserError: the model's logits are not numbers.
    """
    of_length = defaultdict(list)
    for index, row in enumerate(rows):
        of_length[len(row)].append(index)
    batches = [same[i : i + batch_size] for same in of_length.values() for i in range(0, len(same), batch_size)]
    longest = max(of_length)
    # Per row: its tokens, the step of each, its length. Zero but on one rank, so that a sum over the ranks gathers them.
    found = torch.zeros(len(rows), 2 * longest + 1, dtype=torch.float64)
    error = None
    try:
        for batch in batches[world.data_parallel_rank :: world.data_parallel_size]:
            tokens = torch.tensor([rows[i] for i in batch], device=world.device)
            samples = torch.tensor([numbers[i] for i in batch], device=world.device)
            done = generate(denoise, tokens, samples, plan, mask_id, seed)
            length = tokens.shape[1]
            if world.holds_loss:
                found[batch, :length] = done.tokens.double().cpu()
                found[batch, longest : longest + length] = done.steps.double().cpu()
                found[batch, -1] = done.lengths.double().cpu()
    except FloatingPointError as caught:
        error = UserError(str(caught))
    world.raise_on_all_ranks(error)
    table = world.sum(found).long()
    return [
        Sample(table[i, : table[i, -1]].tolist(), table[i, longest : longest + table[i, -1]].tolist())
        for i in range(len(rows))
    ]
