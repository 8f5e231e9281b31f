"""Textbook statistics on plain arrays; scipy does the work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

HEALTHY_SHARE = 0.8
VOTE_DECIMALS = 12  # of mean votes: what differs by less is a tie, in whatever order a sum was rounded


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; the interval is nan where fewer than two values give none."""

    mean: float
    low: float
    high: float
    num: int


@dataclass(frozen=True)
class PairedDifference:
    """Treatment − control over the seeds that both have.

    Attributes:
        seeds, differences: (n,) in the order of the seeds.
        t: mean and t interval.
        sd: standard deviation of the differences, nan for n = 1.
        gain: how many times smaller pairing made the variance of the mean difference; nan where undefined.
        unpaired: seeds that only one arm has.
    """

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    t: Estimate
    sd: float
    gain: float
    unpaired: tuple[int, ...]


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95, within: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """Mean and Student's t interval.

    Args:
        values: (n,) finite numbers, n at least 1.
        within: what the numbers can be, as an accuracy lies between 0 and 1: the interval does not leave it.
    """
    from scipy.stats import t as student

    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return Estimate(mean, math.nan, math.nan, len(array))
    half = float(student.ppf((1 + confidence) / 2, len(array) - 1)) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Estimate(mean, max(within[0], mean - half), min(within[1], mean + half), len(array))


def paired_difference(treatment: Mapping[int, float], control: Mapping[int, float]) -> PairedDifference | None:
    """Differences by seed, never by position; None where no seed is in both.

    Args:
        treatment, control: seed -> value.
    """
    seeds = sorted(set(treatment) & set(control))
    if not seeds:
        return None
    t_values = np.array([treatment[s] for s in seeds], dtype=np.float64)
    c_values = np.array([control[s] for s in seeds], dtype=np.float64)
    differences = t_values - c_values
    return PairedDifference(
        seeds=tuple(seeds),
        differences=tuple(float(d) for d in differences),
        t=mean_interval(differences.tolist()),
        sd=float(differences.std(ddof=1)) if len(seeds) > 1 else math.nan,
        gain=pairing_gain(t_values.tolist(), c_values.tolist()),
        unpaired=tuple(sorted(set(treatment) ^ set(control))),
    )


def pairing_gain(treatment: Sequence[float], control: Sequence[float]) -> float:
    """How many times smaller pairing made the variance of the mean difference; nan where it is undefined.

    Args:
        treatment, control: (n,) values of the same seeds, in the same order.
    """
    one, other = np.asarray(treatment, dtype=np.float64), np.asarray(control, dtype=np.float64)
    if len(one) < 2:
        return math.nan
    paired = float((one - other).var(ddof=1))
    return float(one.var(ddof=1) + other.var(ddof=1)) / paired if paired > 0 else math.nan


def unhealthy_rates(healthy: Mapping[float, Sequence[bool]]) -> list[float]:
    """The learning rates with less than 80 % healthy runs, ascending."""
    return sorted(lr for lr, flags in healthy.items() if np.mean(flags) < HEALTHY_SHARE)


def largest_healthy(healthy: Mapping[float, Sequence[bool]]) -> float | None:
    """The largest learning rate with at least 80 % healthy runs; None if none has.

    A smaller one may be unhealthy: a rate that is too small to learn anything in the budget collapses as well.

    Args:
        healthy: learning rate -> one flag a run.
    """
    return max((lr for lr, flags in healthy.items() if np.mean(flags) >= HEALTHY_SHARE), default=None)
