"""The textbook parts of a verdict against scipy, statsmodels and enumeration by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from bnexp.analysis.significance import (
    equivalence_p,
    holm,
    mcnemar_p,
    sign_flip_equivalence_p,
    sign_flip_p,
    t_p,
)
from bnexp.analysis.stats import mean_interval

VALUES = np.array([0.021, -0.004, 0.013, 0.034, 0.008, 0.017, -0.011, 0.002])


def test_t_p_is_that_of_scipy_by_row() -> None:
    rows = np.stack([VALUES, VALUES - 0.02, -VALUES])
    assert t_p(rows) == pytest.approx(scipy_stats.ttest_1samp(rows, 0, axis=1).pvalue)


def test_t_p_of_equal_values_is_no_matter_of_rounding() -> None:
    rows = np.array([[0.0] * 6, [0.1] * 6, [0.1 + 0.2] * 6])
    assert t_p(rows).tolist() == [1.0, 0.0, 0.0]
    assert equivalence_p(rows, 0.2).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("margin", [0.012, 0.02, 0.05])
def test_equivalence_p_is_that_of_statsmodels(margin: float) -> None:
    expected = ttost_paired(VALUES, np.zeros(len(VALUES)), -margin, margin)[0]
    assert equivalence_p(VALUES[None], margin)[0] == pytest.approx(expected)


def test_equivalence_p_and_the_90_percent_interval_say_the_same() -> None:
    rng = np.random.default_rng(0)
    agreed = set()
    for _ in range(200):
        values = rng.normal(0.3, 1, size=9)
        interval = mean_interval(values.tolist(), confidence=0.9)
        inside = interval.low > -0.8 and interval.high < 0.8
        assert (equivalence_p(values[None], 0.8)[0] <= 0.05) == inside
        agreed.add(inside)
    assert agreed == {True, False}


@pytest.mark.parametrize("num", [6, 7, 11])
def test_sign_flip_p_is_that_of_scipy(num: int) -> None:
    values = np.random.default_rng(num).normal(0.6, 1, size=num)
    # scipy flips the signs of one sample where it permutes within pairs
    expected = scipy_stats.permutation_test(
        (values,), lambda x, axis: np.mean(x, axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(values) == pytest.approx(expected.pvalue)


def test_sign_flip_p_by_hand() -> None:
    assert sign_flip_p([1.0] * 6) == pytest.approx(2 / 64)
    assert sign_flip_p([1.0, 1.0, 1.0, 1.0, 0.0, 0.0]) == pytest.approx(2 / 16)
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1.0  # the observed sum is the 0 that every assignment reaches
    assert sign_flip_p([0.0] * 6) == 1.0


def test_sign_flip_p_of_many_pairs_is_drawn_and_near_the_exact_one() -> None:
    values = np.random.default_rng(3).normal(0.3, 1, size=40)
    # the sum of 40 signed numbers is close to normal: an independent route to the same p
    z = abs(values.sum()) / np.sqrt((values**2).sum())
    assert sign_flip_p(values) == pytest.approx(2 * scipy_stats.norm.sf(z), abs=0.01)
    assert sign_flip_p(np.ones(40)) == pytest.approx(2e-5)  # never 0: the observed assignment counts


def test_sign_flip_equivalence_enumerates_both_sides() -> None:
    values, margin = VALUES[:6], 0.03
    signs = np.array(list(itertools.product([-1, 1], repeat=6)))
    lower, upper = margin + values, margin - values
    expected = max((signs @ side >= side.sum() - 1e-12).mean() for side in (lower, upper))
    assert sign_flip_equivalence_p(values, margin) == pytest.approx(expected)
    assert sign_flip_equivalence_p([0.0] * 6, 1.0) == pytest.approx(1 / 64)


@pytest.mark.parametrize(("one", "other"), [(0, 5), (1, 7), (6, 2), (4, 4)])
def test_mcnemar_p_is_that_of_statsmodels(one: int, other: int) -> None:
    assert mcnemar_p(one, other) == pytest.approx(mcnemar([[20, one], [other, 3]], exact=True).pvalue)


def test_mcnemar_without_a_discordant_pair_says_nothing() -> None:
    assert mcnemar_p(0, 0) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_that_of_statsmodels(seed: int) -> None:
    p_values = np.random.default_rng(seed).uniform(0, 0.3, size=7).tolist()
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_holm_counts_what_is_missing_as_one() -> None:
    assert holm([0.01, 0.02], family_size=4) == pytest.approx(multipletests([0.01, 0.02, 1, 1], method="holm")[1][:2])
    with pytest.raises(ValueError, match="family of 1"):
        holm([0.01, 0.02], family_size=1)
