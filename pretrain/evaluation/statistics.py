"""Estimates with their standard errors, and the units in which they are reported. Works on numpy arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.dataset.packed_dataset import PackedDataset
from data_pipeline.manifest import SplitInfo
from pretrain.proportions import wilson_interval

TIMESTEP_BINS = 10


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens with its standard error, in nats per token.

    Attributes:
        standard_error: None where one row tells nothing about the spread.
        residuals: contribution of every row, fp64 [n]: their mean is the estimate, their spread its error.
        nats_per_row: estimate of each row in nats per token, fp64 [n].
    """

    loops: int
    nats_per_token: float
    standard_error: float | None
    residuals: np.ndarray
    nats_per_row: np.ndarray


def estimate_from_rows(loops: int, nats_per_row: np.ndarray, weights: np.ndarray, strata: np.ndarray) -> Estimate:
    """The estimate of all rows together: a ratio of sums over rows, nats over tokens.

    Its error is that of the linearized rows (Cochran, "Sampling Techniques", 1977, section 6.3), which are the rows' own
    estimates if all rows have the same length.

    Args:
        nats_per_row: estimate of each row in nats per token, fp64 [n].
        weights: weight of each row, 1 on average, fp64 [n].
        strata: the stratified quantity of each row, here its share of masked tokens, fp64 [n].
    """
    mean = float((weights * nats_per_row).mean())
    residuals = weights * nats_per_row - mean * (weights - 1)
    return Estimate(loops, mean, collapsed_strata_error(residuals, strata), residuals, nats_per_row)


def estimates_by_timestep(whole: Estimate, weights: np.ndarray, strata: np.ndarray) -> list[Estimate | None]:
    """The estimate of the rows of each of `TIMESTEP_BINS` equal intervals of t, the share of masked tokens; None without rows.

    A bin's figure is the mean -log p of its masked tokens. The mean over the bins is the NELBO, up to the unequal numbers of
    their rows.
    """
    bins = np.ceil(strata * TIMESTEP_BINS).astype(int) - 1  # t is above 0 and at most 1
    parts = (bins == number for number in range(TIMESTEP_BINS))
    return [
        estimate_from_rows(whole.loops, whole.nats_per_row[part], weights[part] / weights[part].mean(), strata[part])
        if part.any()
        else None
        for part in parts
    ]


def collapsed_strata_error(values: np.ndarray, strata: np.ndarray) -> float | None:
    """Standard error of the mean of one draw per stratum: neighbours in stratum order form pairs.

    Cochran, "Sampling Techniques" (1977), section 5A.12: the variance is estimated from differences inside pairs of
    neighbouring strata, so the systematic change of the loss with the noise level is not counted as uncertainty,
    but the spread between rows and masks is. Slightly conservative. None for a single draw, which has no neighbour.
    """
    if len(values) < 2:
        return None
    ordered = values[np.argsort(strata, kind="stable")]
    differences = np.diff(ordered)
    # All neighbouring pairs instead of disjoint ones: each value is in two pairs, which halves the estimate's own noise.
    return float(math.sqrt((differences**2).sum() / (2 * len(differences) * len(values))))


def standard_error_of_mean(values: np.ndarray) -> float | None:
    """Standard error of the mean of independent values; None for a single one."""
    return None if len(values) < 2 else float(values.std(ddof=1) / math.sqrt(len(values)))


def mean_and_error(values: np.ndarray) -> tuple[float, float | None]:
    """Mean of independent values and its standard error."""
    return float(values.mean()), standard_error_of_mean(values)


def proportion(name: str, values: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    """Figures of independent items with the values 0 and 1 [n]: the share of ones as `name`, its standard error as `name_se`, and
    the ends of its 95% interval as `name_low` and `name_high`.
    """
    share, error = mean_and_error(np.asarray(values, dtype=float))
    low, high = wilson_interval(share, len(values))
    return {name: share, f"{name}_se": error, f"{name}_low": low, f"{name}_high": high}


def ratio_residuals(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """What each item contributes to sum(values) / sum(by), fp64 [n]: the ratio is their mean, and their spread is its error.

    The linearized ratio of Cochran, "Sampling Techniques" (1977), section 6.3. NaN if the sum of `by` is 0: there is no ratio.
    """
    if not by.any():
        return np.full(len(by), np.nan)
    ratio = values.sum() / by.sum()
    return ratio + (values - ratio * by) / by.mean()


def ratio_and_error(values: np.ndarray, by: np.ndarray) -> tuple[float, float | None]:
    """sum(values) / sum(by) of independent items, and its standard error."""
    return mean_and_error(ratio_residuals(values, by))


def unigram_entropy(dataset: PackedDataset) -> float:
    """Entropy of the split's own token frequencies in nats per token: the best that a model without context could reach."""
    counts = np.zeros(dataset.manifest.vocab_size, dtype=np.int64)
    for start in range(0, dataset.num_rows, 1024):
        indices = np.arange(start, min(start + 1024, dataset.num_rows))
        real = np.arange(dataset.seq_len) < dataset.lengths(indices)[:, None]
        counts += np.bincount(dataset.rows(indices)[real], minlength=len(counts))
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def bits_per_byte(nats_per_token: float, split: SplitInfo) -> float:
    """Nats per token -> bits per UTF-8 byte of the split's text; end-of-document tokens cost bits and add no bytes."""
    return nats_per_token / math.log(2) * split.tokens / split.bytes
