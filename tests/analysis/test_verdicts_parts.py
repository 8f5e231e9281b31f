"""The textbook parts of a verdict against scipy, statsmodels and enumeration by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from bnexp.analysis.rule import Rule, ends_of, weigh
from bnexp.analysis.significance import above_p, holm, mcnemar_p, sign_flip_above_p, sign_flip_p, t_p

VALUES = np.array([0.021, -0.004, 0.013, 0.034, 0.008, 0.017, -0.011, 0.002])


def test_t_p_is_that_of_scipy_by_row() -> None:
    rows = np.stack([VALUES, VALUES - 0.02, -VALUES])
    assert t_p(rows) == pytest.approx(scipy_stats.ttest_1samp(rows, 0, axis=1).pvalue)


def test_t_p_of_equal_values_is_no_matter_of_rounding() -> None:
    rows = np.array([[0.0] * 6, [0.1] * 6, [0.1 + 0.2] * 6])
    assert t_p(rows).tolist() == [1.0, 0.0, 0.0]
    ends = ends_of(rows, failed=np.zeros(3, dtype=bool))
    low, high = ends.interval(0.05)
    assert (low == high).all()
    assert low == pytest.approx([0.0, 0.1, 0.3])


@pytest.mark.parametrize("least", [-0.02, 0.0, 0.01])
@pytest.mark.parametrize("num", [2, 8])
def test_above_p_is_that_of_scipy(least: float, num: int) -> None:
    values = VALUES[:num]
    expected = scipy_stats.ttest_1samp(values, least, alternative="greater").pvalue
    found = above_p(values.mean(), scipy_stats.sem(values), np.array(num - 1.0), least)
    assert float(found) == pytest.approx(expected)


def test_above_p_without_an_error_is_sure() -> None:
    mean = np.array([0.2, 0.1, 0.0, math.nan])
    found = above_p(mean, np.zeros(4), np.array(5.0), 0.1)
    assert found[:3].tolist() == [0.0, 1.0, 1.0]
    assert math.isnan(found[3])


@pytest.mark.parametrize("margin", [0.012, 0.02, 0.05])
def test_the_p_of_an_equivalence_is_twice_that_of_statsmodels(margin: float) -> None:
    """Twice, for its level is that of a two-sided interval: alpha for 1 − alpha instead of 1 − 2 alpha."""
    expected = ttost_paired(VALUES, np.zeros(len(VALUES)), -margin, margin)[0]
    evidence = weigh(ends_of(VALUES[None], failed=np.array([False])), Rule("same", margin))
    assert evidence.equivalence[0] == pytest.approx(min(1.0, 2 * expected))


@pytest.mark.parametrize("direction", ["higher", "same", "not lower"])
def test_each_p_and_the_interval_at_its_level_say_the_same(direction: str) -> None:
    rule = Rule(direction, 0.8)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, size=(400, 1)) + rng.normal(0, 0.5, size=(400, 9))
    ends = ends_of(rows, failed=np.zeros(400, dtype=bool))
    evidence = weigh(ends, rule)
    for alpha in (0.05, 0.01):
        low, high = scipy_stats.ttest_1samp(rows, 0, axis=1).confidence_interval(1 - alpha)
        found = ends.interval(alpha)
        assert (found[0], found[1]) == (pytest.approx(low), pytest.approx(high))
        inside = low > -0.8 if direction == "not lower" else (low > -0.8) & (high < 0.8)
        for p, shown in (
            (evidence.direction, (low > 0) | (high < 0)),
            (evidence.size, (low >= 0.8) | (high <= -0.8)),
            (evidence.equivalence, inside),
        ):
            assert ((p <= alpha) == shown).all()
            assert 0 < shown.sum() < 400


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


@pytest.mark.parametrize("least", [-0.03, -0.005, 0.0, 0.01])
def test_sign_flip_above_p_enumerates_every_assignment(least: float) -> None:
    shifted = VALUES[:6] - least
    signs = np.array(list(itertools.product([-1, 1], repeat=6)))
    expected = (signs @ shifted >= shifted.sum() - 1e-12).mean()
    assert sign_flip_above_p(VALUES[:6], least) == pytest.approx(expected)


def test_sign_flip_above_p_by_hand() -> None:
    assert sign_flip_above_p([0.0] * 6, -1.0) == pytest.approx(1 / 64)
    assert sign_flip_above_p([0.0] * 6, 0.0) == 1.0
    assert sign_flip_above_p([0.0] * 6, 1.0) == 1.0
    # two sides at once are the two-sided test
    assert 2 * sign_flip_above_p(VALUES, 0.0) == pytest.approx(sign_flip_p(VALUES))


@pytest.mark.parametrize("direction", ["higher", "not lower"])
def test_where_the_signs_have_to_agree_each_p_is_the_larger_of_the_two_tests(direction: str) -> None:
    margin, rows = 0.6, np.random.default_rng(1).normal(0.5, 0.5, size=(30, 7))
    evidence = weigh(ends_of(rows, failed=np.ones(30, dtype=bool)), Rule(direction, margin))  # type: ignore[arg-type]
    signs = np.array(list(itertools.product([-1, 1], repeat=7)))

    def above(row: np.ndarray, least: float) -> float:
        shifted = row - least
        flips = (signs @ shifted >= shifted.sum() - 1e-9).mean()
        return max(float(flips), float(scipy_stats.ttest_1samp(row, least, alternative="greater").pvalue))

    for k, row in enumerate(rows):
        assert evidence.direction[k] == pytest.approx(min(1, 2 * min(above(row, 0), above(-row, 0))))
        assert evidence.size[k] == pytest.approx(min(1, 2 * min(above(row, margin), above(-row, margin))))
        sides = [above(row, -margin)] + ([] if direction == "not lower" else [above(-row, -margin)])
        assert evidence.equivalence[k] == pytest.approx(min(1, 2 * max(sides)))


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
