"""Per-seed numbers of every shape of claim, against hand formulas and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bnexp.analysis.contrasts import (
    Arm,
    Contrast,
    alone,
    arm_of,
    epochs_ratio,
    interaction,
    minus_constant,
    paired,
    ratio,
    slope,
)
from bnexp.errors import StoreError


def contrast(*values: float) -> Contrast:
    return Contrast(dict(enumerate(values)))


def test_pairs_form_by_seed_never_by_position() -> None:
    result = paired(Arm("batch", {3: 0.9, 1: 0.5}), Arm("none", {1: 0.4, 3: 0.6}))
    assert result.values == pytest.approx({1: 0.1, 3: 0.3})
    assert list(result.values) == [1, 3]
    assert result.missing == ()


def test_incomplete_pairs_are_named_and_undeclared_seeds_left_out() -> None:
    result = paired(
        Arm("batch", {0: 0.9, 1: 0.8, 2: math.nan, 9: 0.1}), Arm("none", {0: 0.7, 2: 0.6}), seeds=[0, 1, 2, 3]
    )
    assert result.missing == ("seed 1: no none", "seed 3: no batch and no none")
    assert result.undefined == ("seed 2: no value of batch",)  # its run is there
    assert list(result.values) == [0]
    assert result.undeclared == (9,)


def test_duplicate_seeds_are_refused() -> None:
    with pytest.raises(StoreError, match=r"'batch': seed 4 occurs twice"):
        arm_of("batch", [(4, 0.9, False), (5, 0.8, True), (4, 0.9, False)])
    arm = arm_of("batch", [(4, 0.9, False), (5, 0.1, True)])
    assert arm == Arm("batch", {4: 0.9, 5: 0.1}, frozenset({5}))


def test_a_failed_run_needs_a_score() -> None:
    with pytest.raises(ValueError, match="scores chance"):
        Arm("batch", {0: 0.9}, frozenset({1}))


def test_failures_are_counted_by_pair() -> None:
    scores = dict.fromkeys(range(8), 0.9)
    result = paired(Arm("batch", scores, frozenset({0})), Arm("none", scores, frozenset({0, 1, 2, 3, 4, 5})))
    assert result.failed == frozenset(range(6))
    assert result.failures is not None
    counted = result.failures
    assert (counted.treatment, counted.control, counted.only_treatment, counted.only_control) == (1, 6, 0, 5)
    assert counted.p == pytest.approx(2 * 0.5**5)


def test_gain_is_the_ratio_of_variances() -> None:
    shared = np.random.default_rng(0).normal(size=50)
    own = np.random.default_rng(1).normal(scale=0.1, size=(2, 50))
    arms = [Arm(name, dict(enumerate(shared + part))) for name, part in zip("ab", own, strict=True)]
    one, other = shared + own[0], shared + own[1]
    assert paired(*arms).gain == pytest.approx((one.var(ddof=1) + other.var(ddof=1)) / (one - other).var(ddof=1))
    assert paired(*arms).gain > 20


def test_interaction_is_the_difference_of_differences() -> None:
    assert interaction(contrast(0.3, 0.1), contrast(0.1, 0.4)).values == pytest.approx({0: 0.2, 1: -0.3})


def test_a_seed_missing_in_one_part_is_missing_and_named_once() -> None:
    declared = Contrast({0: 0.1}, missing=("seed 1: no batch",), failed=frozenset({0}))
    result = interaction(declared, contrast(0.3, 0.4))
    assert list(result.values) == [0]
    assert result.missing == ("here, seed 1: no batch",)
    assert result.failed == frozenset({0})
    assert interaction(contrast(0.1), contrast(0.3, 0.4)).missing == ("here, seed 1",)
    nameless = interaction(Contrast({0: 0.1}, undefined=("seed 1: no value of batch",)), contrast(0.3, 0.4))
    assert (nameless.missing, nameless.undefined) == ((), ("here, seed 1: no value of batch",))


def test_a_seed_of_which_only_some_runs_are_there_is_missing_whatever_else_it_lacks() -> None:
    arm = Arm("batch", {0: math.nan, 1: math.nan, 2: 0.9}, partial=frozenset({0}))
    assert paired(arm, Arm("none", {0: 0.1, 1: math.nan, 2: 0.1})).missing == ("seed 0: not all of batch",)
    assert paired(arm, Arm("none", {0: math.nan, 1: 0.1, 2: 0.1})).missing == (
        "seed 0: not all of batch and no value of none",
    )
    assert alone(arm).missing == ("seed 0: not all of batch",)
    assert alone(arm).undefined == ("seed 1: no value of batch",)


def test_numbers_behind_which_every_run_failed_are_hopeless_in_every_combination() -> None:
    scores = dict.fromkeys(range(3), 0.1)
    dead, half = Arm("dead", scores, frozenset(range(3))), Arm("half", scores, frozenset({0, 1}))
    both, one = paired(dead, dead), paired(dead, half)
    assert (both.hopeless, one.hopeless, alone(dead).hopeless, alone(half).hopeless) == (True, False, True, False)
    assert (interaction(both, both).hopeless, interaction(both, one).hopeless) == (True, False)
    assert (slope({1.0: both, 2.0: both}).hopeless, slope({1.0: both, 2.0: one}).hopeless) == (True, False)
    assert not paired(dead, dead, seeds=[7]).hopeless  # nothing there is no failure
    assert not minus_constant(alone(dead), 0.5).hopeless  # a constant does not fail


def test_ratio_is_a_natural_logarithm() -> None:
    result = ratio(
        Arm("batch", {0: 4.0, 1: 0.0, 2: -1.0, 3: 2.0}, frozenset({3})), Arm("none", dict.fromkeys(range(4), 2.0))
    )
    assert result.values == pytest.approx({0: math.log(2), 3: 0.0})
    assert (result.undefined, result.failed) == (("seed 1: no value of batch", "seed 2: no value of batch"), {3})


def test_minus_constant_moves_the_numbers_alone() -> None:
    part = alone(Arm("batch", {0: 0.9, 1: 0.8, 2: math.nan}, frozenset({1})))
    moved = minus_constant(part, 0.5)
    assert moved.values == pytest.approx({0: 0.4, 1: 0.3})
    assert (moved.failed, moved.undefined) == (part.failed, part.undefined)


def test_slope_is_that_of_least_squares_per_doubling() -> None:
    factors = [200.0, 1000.0, 50_000.0, 3000.0]
    rows = np.random.default_rng(0).normal(size=(4, 5))
    result = slope({factor: contrast(*row) for factor, row in zip(factors, rows, strict=True)})
    for seed in range(5):
        expected = scipy_stats.linregress(np.log2(factors), rows[:, seed]).slope
        assert result.values[seed] == pytest.approx(expected)


def test_slope_refuses_levels_without_a_logarithm() -> None:
    with pytest.raises(ValueError, match="above 0"):
        slope({0.0: contrast(1.0), 1.0: contrast(2.0)})
    with pytest.raises(ValueError, match="two levels"):
        slope({1.0: contrast(1.0)})


def test_epochs_ratio_without_censoring_is_a_log_ratio() -> None:
    result = epochs_ratio(Arm("batch", {0: 4, 1: 6}), Arm("none", {0: 8, 1: 6}), budget=20)
    assert result.values == pytest.approx({0: math.log(0.5), 1: 0.0})
    assert (result.bounds, result.failed) == ((), frozenset())


def test_epochs_ratio_brackets_what_censoring_leaves_open() -> None:
    result = epochs_ratio(Arm("batch", {0: 5, 1: math.inf, 2: math.inf}), Arm("none", {0: 25, 1: 10, 2: 21}), budget=20)
    low, high = result.bounds
    assert result.values == pytest.approx({0: math.log(5 / 20), 1: math.log(20 / 10), 2: 0.0})
    assert low == pytest.approx({0: math.log(5 / 200), 1: math.log(20 / 10), 2: -math.log(10)})
    assert high == pytest.approx({0: math.log(5 / 20), 1: math.log(200 / 10), 2: math.log(10)})
    assert result.failed == frozenset({0, 1, 2})
    assert result.failures is not None
    assert (result.failures.treatment, result.failures.control) == (2, 2)


def test_epochs_ratio_refuses_no_time_and_keeps_missing_runs_missing() -> None:
    with pytest.raises(ValueError, match="above 0"):
        epochs_ratio(Arm("batch", {0: 0}), Arm("none", {0: 3}), budget=20)
    arms = Arm("batch", {0: math.nan, 1: 3, 3: math.inf}), Arm("none", {0: 3, 1: 3, 2: math.inf, 3: 3})
    lost = epochs_ratio(*arms, budget=20)
    assert (lost.missing, lost.undefined) == (("seed 2: no batch",), ("seed 0: no value of batch",))
    assert [set(numbers) for numbers in (lost.values, *lost.bounds)] == [{1, 3}] * 3
    with pytest.raises(ValueError, match="censored"):
        interaction(epochs_ratio(Arm("batch", {0: math.inf}), Arm("none", {0: 3}), budget=20), contrast(0.1))


def test_an_arm_alone_names_the_seeds_it_lacks() -> None:
    result = alone(Arm("batch", {0: 0.9, 5: 0.8}), seeds=[0, 1])
    assert (dict(result.values), result.missing, result.undeclared) == ({0: 0.9}, ("seed 1: no batch",), (5,))
    assert math.isnan(result.gain)
