"""How samples differ from texts as distributions: kernel distance of features, entropy, repetition. Works on numpy arrays."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

NGRAM = 4


def token_entropy(tokens: Sequence[int]) -> float:
    """Entropy of the frequencies of a sample's tokens, in nats: low where a sample repeats few words."""
    counts = np.array(list(Counter(tokens).values()), float)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def repetition(tokens: Sequence[int]) -> float:
    """Share of the 4-grams of a sample that occurred before in it (Welleck et al. 2020, arXiv 1908.04319, seq-rep-4)."""
    grams = [tuple(tokens[i : i + NGRAM]) for i in range(len(tokens) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def kernel_distance(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Squared maximum mean discrepancy of two sets of features, and its standard error.

    The unbiased estimator (Gretton et al. 2012, "A kernel two-sample test", lemma 6) with the kernel (x y / d + 1)^3 of the
    kernel inception distance (Binkowski et al. 2018, arXiv 1801.01401): 0 on average for two samples of one distribution. Its
    error is the jackknife's over pairs. Unlike perplexity under a model it also notices missing variety.

    Args:
        first, second: fp64 [n, d], n at least 3.
    """
    count, width = first.shape

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / width + 1) ** 3

    cross = kernel(first, second)
    terms = kernel(first, first) + kernel(second, second) - cross - cross.T
    np.fill_diagonal(terms, 0.0)
    total = float(terms.sum())
    without = (total - 2 * terms.sum(axis=1)) / ((count - 1) * (count - 2))
    error = math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    return total / (count * (count - 1)), error
