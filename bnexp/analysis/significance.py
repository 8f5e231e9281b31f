"""p values on plain arrays: paired t, equivalence, exact sign flips, exact McNemar, Holm; scipy does the work."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EXACT_PAIRS = 36  # beyond it two halves of the sign assignments no longer fit into a few MiB
RANDOM_FLIPS = 99_999
TIE = 1e-9  # relative: two sums that differ by less are the same number but for rounding


def t_p(values: Array) -> Array:
    """Two-sided p of Student's one-sample t test of mean 0; equal values give 0, or 1 where all are 0; nan gives nan.

    Args:
        values: (rows, n) per-seed numbers, n at least 2.
    """
    from scipy.stats import t as student

    mean, error, num = mean_and_error(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(error > 0, np.abs(mean) / error, np.where(mean == 0, 0.0, np.inf))
    return np.asarray(np.where(np.isnan(mean), np.nan, 2 * student.sf(statistic, num - 1)), dtype=np.float64)


def above_p(mean: Array, error: Array, degrees: Array, least: float) -> Array:
    """One-sided p of the t test that a mean is at most `least`; without an error it is 0 or 1.

    Args:
        mean, error, degrees: of one shape, or shapes that broadcast.
    """
    from scipy.stats import t as student

    room = mean - least
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(error > 0, room / error, np.where(room > 0, np.inf, -np.inf))
    return np.asarray(np.where(np.isnan(room), np.nan, student.sf(statistic, degrees)), dtype=np.float64)


def sign_flip_p(values: Sequence[float] | Array) -> float:
    """Two-sided p of the sign-flip test: the share of all 2^n sign assignments whose |sum| is at least the observed.

    It is exact wherever a pair's arms could swap places, so for every distribution of A against A. Above 36 pairs it
    draws 99,999 assignments and counts the observed one among them, which stays valid.

    Args:
        values: (n,) per-seed numbers.

    Source: Fisher 1935, "The design of experiments", §21; Phipson & Smyth 2010 for the drawn assignments.
    """
    array = np.asarray(values, dtype=np.float64)
    return min(1.0, 2 * _share_of_sums(array, abs(float(array.sum()))))


def sign_flip_above_p(values: Sequence[float] | Array, least: float) -> float:
    """One-sided p of the sign-flip test that a mean is at most `least`; exact where values spread alike to both sides.

    Args:
        values: (n,) per-seed numbers.
        least: in the unit of the values.
    """
    shifted = np.asarray(values, dtype=np.float64) - least
    return _share_of_sums(shifted, float(shifted.sum()))


def mcnemar_p(only_treatment: int, only_control: int) -> float:
    """Two-sided p of the exact McNemar test.

    Args:
        only_treatment, only_control: pairs in which that arm alone failed.

    Source: McNemar 1947; the exact form is a binomial test of the discordant pairs.
    """
    from scipy.stats import binomtest

    discordant = only_treatment + only_control
    return float(binomtest(only_treatment, discordant).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float], *, family_size: int | None = None) -> list[float]:
    """Holm's step-down adjusted p values, in the order given.

    Args:
        family_size: of the declared family, where some of it has no p yet; those count as 1. None: as many as given.

    Raises:
        ValueError: the family is smaller than the number of its p values.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    size = len(p_values) if family_size is None else family_size
    if size < len(p_values):
        raise ValueError(f"a family of {size} cannot hold {len(p_values)} comparisons")
    adjusted, reached = [0.0] * len(p_values), 0.0
    if any(math.isnan(p) for p in p_values):
        raise ValueError("a p value is nan: what has no evidence does not belong in a family")
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        reached = max(reached, min(1.0, (size - rank) * p_values[index]))
        adjusted[index] = reached
    return adjusted


def mean_and_error(values: Array) -> tuple[Array, Array, int]:
    """Mean and its standard error by row; the error of equal values is 0 and not what rounding left of it."""
    num = values.shape[-1]
    error = values.std(axis=-1, ddof=1) / np.sqrt(num)
    scale = np.abs(values).max(axis=-1)
    return values.mean(axis=-1), np.where(np.ptp(values, axis=-1) <= 1e-12 * scale, 0.0, error), num


def _share_of_sums(values: Array, least: float) -> float:
    """The share of sign assignments whose sum is at least `least`; a tie counts."""
    num = len(values)
    least -= TIE * float(np.abs(values).sum())
    if num > EXACT_PAIRS:
        signs = np.random.default_rng(0).integers(0, 2, size=(RANDOM_FLIPS, num), dtype=np.int8) * 2.0 - 1.0
        return (1 + int((signs @ values >= least).sum())) / (RANDOM_FLIPS + 1)
    # every sum is one of the first half plus one of the second: 2 · 2^(n/2) numbers stand for all 2^n
    left, right = _signed_sums(values[: num // 2]), _signed_sums(values[num // 2 :])
    reaching = len(right) - np.searchsorted(right, (least - left)[::-1], side="left")
    return float(reaching.sum()) / 2.0**num


def _signed_sums(values: Array) -> Array:
    sums = np.zeros(1)
    for size in np.abs(values):
        sums = np.concatenate([sums - size, sums + size])
        sums.sort(kind="stable")  # two sorted runs: merged, not sorted again
    return sums
