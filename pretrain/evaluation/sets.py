"""What is evaluated: the split of every corpus of a blend, and their mixture."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_pipeline.dataset.blend import Blend
from data_pipeline.dataset.packed_dataset import PackedDataset
from pretrain.errors import UserError
from pretrain.evaluation.nelbo import Evaluator
from pretrain.evaluation.report import figures_of
from pretrain.evaluation.statistics import Estimate, unigram_entropy

MIXTURE = "mixture"
"""Name of the figures over all sets."""


@dataclass(frozen=True)
class EvaluationSet:
    """Rows to evaluate.

    Attributes:
        name: in figures and file names; "" if there is only one set.
        weight: share of the tokens that training draws from this corpus, not normalized.
    """

    name: str
    rows: PackedDataset
    weight: float

    @cached_property
    def unigram_entropy(self) -> float:
        """Entropy of the split's token frequencies in nats per token. Reads the whole split, once."""
        return unigram_entropy(self.rows)


def evaluation_sets(blend: Blend, split: str, check: bool = True) -> list[EvaluationSet]:
    """The split of every corpus that has it; a single corpus has no name.

    Args:
        check: check the files of the corpora; not needed after `Blend.check` on any rank.

    Raises:
        DataError: the only corpus has no such split. UserError: none of several corpora has it.
    """
    if len(blend.corpora) == 1:
        only = blend.corpora[0]
        return [EvaluationSet("", PackedDataset(only.path, split, only.manifest, check), 1.0)]
    named = [(f"{i}_{c.path.name}", c) for i, c in enumerate(blend.corpora, 1) if split in c.manifest.splits]
    if not named:
        raise UserError(
            f"no corpus of {blend.path} has a {split} split; evaluate another split, or leave eval.every empty"
        )
    return [EvaluationSet(name, PackedDataset(c.path, split, c.manifest, check), c.token_weight) for name, c in named]


def evaluate_sets(evaluator: Evaluator, sets: Sequence[EvaluationSet], loops: Sequence[int]) -> list[dict[str, Any]]:
    """Figures of every set, and of their mixture if there are several, as written to `eval/*.json`. Collective.

    The main rank gets them, the others an empty list.
    """
    estimates = estimates_of_sets(evaluator, sets, loops)
    return figures_of_sets(evaluator, sets, estimates) if evaluator.world.is_main else []


def estimates_of_sets(
    evaluator: Evaluator, sets: Sequence[EvaluationSet], loops: Sequence[int]
) -> list[list[Estimate]]:
    """Estimates of every set at every number of loops. Collective: all ranks get them."""
    return [evaluator.estimates(one.rows, loops) for one in sets]


def figures_of_sets(
    evaluator: Evaluator, sets: Sequence[EvaluationSet], estimates: Sequence[Sequence[Estimate]]
) -> list[dict[str, Any]]:
    """Figures of every set, and of their mixture if there are several."""
    results = [
        {"name": one.name} | figures_of(one.rows, evaluator.noise(one.rows), of_set, one.unigram_entropy)
        for one, of_set in zip(sets, estimates, strict=True)
    ]
    return results if len(sets) == 1 else [*results, {"name": MIXTURE} | mixed_figures(sets, results)]


def mixed_figures(sets: Sequence[EvaluationSet], parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a mixture from those of its corpora.

    The mean over the tokens of the mixture is the mean of the corpora's means weighted by their shares. The squared errors add
    up with the squared shares, because no row belongs to two corpora; a corpus of one row leaves the mixture without an error.
    """
    weights = np.array([one.weight for one in sets])
    shares = weights / weights.sum()
    rows = []
    for same in zip(*(part["loops"] for part in parts), strict=True):
        nats = np.array([row["nats_per_token"] for row in same])
        errors = [row["nats_per_token_se"] for row in same]
        error = None if None in errors else float(np.sqrt(((shares * np.array(errors)) ** 2).sum()))
        rows.append({"loops": same[0]["loops"], "nats_per_token": float(shares @ nats), "nats_per_token_se": error})
    return {"corpora": [one.name for one in sets], "shares": shares.tolist(), "loops": rows}
