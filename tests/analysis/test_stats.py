"""The statistics against scipy, textbook formulas and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bnexp.analysis.stats import largest_healthy, mean_interval, paired_difference
from bnexp.metrics import METRICS

VALUES = [0.91, 0.95, 0.93, 0.97, 0.90, 0.94]


def test_mean_interval_is_that_of_scipy() -> None:
    estimate = mean_interval(VALUES)
    low, high = scipy_stats.t.interval(0.95, len(VALUES) - 1, np.mean(VALUES), scipy_stats.sem(VALUES))
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((np.mean(VALUES), low, high))


def test_paired_interval_agrees_with_the_paired_t_test() -> None:
    treatment = dict(enumerate(VALUES))
    control = {
        seed: value - shift
        for (seed, value), shift in zip(treatment.items(), [0.01, 0.03, -0.01, 0.02, 0.04, 0.0], strict=True)
    }
    result = paired_difference(treatment, control)
    assert result is not None
    test = scipy_stats.ttest_rel(list(treatment.values()), list(control.values()))
    interval = test.confidence_interval(0.95)
    assert (result.t.low, result.t.high) == pytest.approx((interval.low, interval.high))
    # gain: how many times larger the variance of the mean difference would be without pairing
    unpaired = np.var(list(treatment.values()), ddof=1) + np.var(list(control.values()), ddof=1)
    assert result.gain == pytest.approx(unpaired / np.var(result.differences, ddof=1))


def test_pairs_form_by_seed_never_by_position() -> None:
    result = paired_difference({3: 0.9, 1: 0.5, 7: 0.1}, {1: 0.4, 3: 0.6, 9: 0.0})
    assert result is not None
    assert result.seeds == (1, 3)
    assert result.differences == pytest.approx((0.1, 0.3))
    assert result.unpaired == (7, 9)
    assert paired_difference({1: 0.5}, {2: 0.5}) is None


def test_too_few_values_give_no_interval_and_no_error() -> None:
    assert math.isnan(mean_interval([0.5]).low)
    single = paired_difference({0: 0.6}, {0: 0.5})
    assert single is not None
    assert single.t.mean == pytest.approx(0.1)
    assert all(math.isnan(value) for value in (single.t.low, single.t.high, single.sd, single.gain))


def test_equal_differences_give_an_interval_of_no_width() -> None:
    result = paired_difference({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5})
    assert result is not None
    assert (result.t.low, result.t.high, result.sd) == (0, 0, 0)


def test_t_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        estimate = mean_interval(rng.normal(0.3, 1, size=6).tolist())
        covered += estimate.low <= 0.3 <= estimate.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("healthy", "expected"),
    [
        ({0.1: [True] * 5, 1.0: [True] * 4 + [False], 10.0: [False] * 5}, 1.0),
        ({0.1: [False] * 5, 1.0: [True] * 5, 10.0: [False] * 5}, 1.0),  # 0.1 was too small to learn
        ({0.1: [True, False]}, None),
        ({0.1: [True], 1.0: [True]}, 1.0),
    ],
)
def test_largest_healthy_learning_rate(healthy: dict[float, list[bool]], expected: float | None) -> None:
    assert largest_healthy(healthy) == expected


def test_an_interval_does_not_leave_what_can_be() -> None:
    values = [1.0, 1.0, 1.0, 0.1]
    free, bound = mean_interval(values), mean_interval(values, within=METRICS["test_accuracy"].possible)
    assert free.high > 1
    assert (bound.mean, bound.low, bound.high) == (free.mean, max(0.0, free.low), 1.0)
    assert METRICS["test_loss"].possible == (-math.inf, math.inf)
