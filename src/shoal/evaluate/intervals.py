"""Intervals by resampling items, and the exact sign test of paired flips.

A figure here is a function of sums over items (an accuracy, a weighted mean, a ratio of two means). Items are drawn N of N with
replacement, the sums are taken anew, and the interval is between quantiles of the figure (percentile bootstrap). Figures that
belong together use the same draws, so teacher and student stay paired. Everything in fp64.
Shapes: N items, R resamples, K columns.
"""

import math
from collections.abc import Callable

import numpy as np

from shoal.words.records import Record

N_RESAMPLES = 1000
LEVEL = 0.95
CHUNK_ELEMENTS = 1 << 22

Figure = Callable[[np.ndarray], np.ndarray]
"""Maps sums (..., K) to values (...)."""


def mean(sums: np.ndarray) -> np.ndarray:
    """The figure for columns (value times weight, weight): their ratio."""
    return np.divide(sums[..., 0], sums[..., 1])


class Interval(Record):
    """A figure, and the bounds that hold the true one in ``level`` of all cases; bounds are NaN where no resample has one."""

    value: float
    low: float
    high: float
    level: float = LEVEL

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def resampled_sums(columns_NK: np.ndarray, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> np.ndarray:
    """(R, K) sums of every column over N items drawn with replacement; the same draws for all columns."""
    n_items, n_columns = columns_NK.shape
    draw = np.random.default_rng(seed)
    sums_RK = np.empty((n_resamples, n_columns))
    size = max(1, CHUNK_ELEMENTS // n_items)
    for start in range(0, n_resamples, size):
        n = min(size, n_resamples - start)
        drawn_RN = draw.integers(0, n_items, (n, n_items)) + n_items * np.arange(n)[:, None]
        counts_RN = np.bincount(drawn_RN.ravel(), minlength=n * n_items).reshape(n, n_items).astype(float)
        for k in range(n_columns):  # Column by column, so that equal columns have equal sums to the last bit.
            sums_RK[start : start + n, k] = counts_RN @ np.ascontiguousarray(columns_NK[:, k])
    return sums_RK


def interval_of(value: float, samples_R: np.ndarray) -> Interval:
    """The interval of a figure from its resampled values; those that do not exist (0 / 0) are left out."""
    finite_R = samples_R[np.isfinite(samples_R)]
    if not len(finite_R):
        return Interval(value=value, low=math.nan, high=math.nan)
    low, high = np.quantile(finite_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=value, low=float(low), high=float(high))


def bootstrap(columns_NK: np.ndarray, figure: Figure, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Interval:
    """A figure of sums over items, with its interval.

    Args:
        columns_NK: what is summed, one row per item.
        figure: from sums to the figure.
    Raises:
        ValueError: no items, no resamples.
    """
    if not len(columns_NK) or n_resamples < 1:
        raise ValueError(f"{len(columns_NK)} items, n_resamples={n_resamples}: a bootstrap needs items and at least 1 resample")
    columns_NK = np.asarray(columns_NK, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        samples_R = figure(resampled_sums(columns_NK, n_resamples=n_resamples, seed=seed))
        value = float(figure(np.array([math.fsum(column) for column in columns_NK.T])))
    return interval_of(value, samples_R)


def share_of(right_N: np.ndarray, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Interval:
    """The share of items that are right, with its interval.

    Where all or none are, every resample is the same, and the bound that is missing is the exact one: the share at which so
    extreme a result has the chance (1 - ``LEVEL``) / 2.
    """
    right_N = np.asarray(right_N, dtype=float)
    columns_N2 = np.column_stack([right_N, np.ones(len(right_N))])
    found = bootstrap(columns_N2, mean, n_resamples=n_resamples, seed=seed)
    exact = ((1 - LEVEL) / 2) ** (1 / len(right_N))
    low = exact if found.value == 1 else found.low
    high = 1 - exact if found.value == 0 else found.high
    return found.model_copy(update={"low": low, "high": high})


def sign_test(n_lost: int, n_won: int) -> float:
    """Two-sided exact p-value that items flip either way with equal chance (McNemar's test without approximation)."""
    n, k = n_lost + n_won, min(n_lost, n_won)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
