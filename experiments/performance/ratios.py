"""Paired ratios of times, with a distribution-free interval of their median."""

from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray


def median_interval(sample: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Median, and the order statistics x_(k), x_(n+1−k) that enclose the median of the population
    with probability 1 − 2 P[Bin(n, ½) < k] ≥ ``level``, for the largest such k (Wilcox 2012,
    section 4.6); k = 1, the extremes, where n is too small for any.
    """
    ordered: NDArray = np.sort(np.asarray(sample, float))
    size = len(ordered)
    tail_probability, k = 0.0, 0
    while k < size // 2 and 1 - 2 * (tail_probability + comb(size, k) / 2**size) >= level:
        tail_probability += comb(size, k) / 2**size
        k += 1
    k = max(k, 1)
    return float(np.median(ordered)), float(ordered[k - 1]), float(ordered[size - k])


def geometric_mean(values: ArrayLike) -> float:
    return float(np.exp(np.mean(np.log(np.asarray(values, float)))))
