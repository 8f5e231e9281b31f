"""How far a mean may lie from the truth: held against a mixed model, a bootstrap and simulation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from bnexp.analysis.spread import over_seeds, over_seeds_and_images, overlap_factor


def crossed(seed: int, *, num_seeds: int, num_images: int, by_seed: float, by_image: float, rest: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (
        0.3
        + by_seed * rng.standard_normal((num_seeds, 1))
        + by_image * rng.standard_normal((1, num_images))
        + rest * rng.standard_normal((num_seeds, num_images))
    )


def test_over_seeds_is_the_t_test_of_scipy() -> None:
    values = np.random.default_rng(0).standard_normal((3, 7))
    spread = over_seeds(values)
    expected = scipy_stats.ttest_1samp(values, 0.0, axis=1)
    assert (spread.mean / spread.error)[:, 0] == pytest.approx(expected.statistic)
    assert spread.degrees[:, 0].tolist() == [6.0] * 3


@pytest.mark.parametrize("seed", [0, 1])
def test_the_parts_are_those_of_a_mixed_model(seed: int) -> None:
    # on balanced data whose parts are above 0, REML and the mean squares agree
    from statsmodels.regression.mixed_linear_model import MixedLM

    scores = crossed(seed, num_seeds=6, num_images=12, by_seed=0.8, by_image=1.0, rest=0.6)
    table = pd.DataFrame(
        {
            "score": scores.ravel(),
            "seed": np.repeat(np.arange(6), 12).astype(str),
            "image": np.tile(np.arange(12), 6).astype(str),
            "all": 1,
        }
    )
    parts = {"seed": "0 + C(seed)", "image": "0 + C(image)"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = MixedLM.from_formula("score ~ 1", table, groups="all", vc_formula=parts, re_formula="0").fit()
    variances = dict(zip(sorted(parts), fitted.vcomp, strict=True))
    found = over_seeds_and_images(scores)
    assert found.seeds * 6 == pytest.approx(variances["seed"], rel=1e-2)
    assert found.images * 12 == pytest.approx(variances["image"], rel=1e-2)
    assert found.rest * 6 * 12 == pytest.approx(fitted.scale, rel=1e-2)
    assert math.sqrt(found.variance) == pytest.approx(fitted.bse_fe.iloc[0], rel=1e-2)


def test_the_variance_is_that_of_the_mean_by_loops() -> None:
    scores = crossed(3, num_seeds=5, num_images=9, by_seed=0.5, by_image=0.7, rest=0.4)
    n, m, mean = 5, 9, scores.mean()
    square_seeds = m * sum((scores[i].mean() - mean) ** 2 for i in range(n)) / (n - 1)
    square_images = n * sum((scores[:, j].mean() - mean) ** 2 for j in range(m)) / (m - 1)
    square_rest = sum(
        (scores[i, j] - scores[i].mean() - scores[:, j].mean() + mean) ** 2 for i in range(n) for j in range(m)
    ) / ((n - 1) * (m - 1))
    found = over_seeds_and_images(scores)
    whole = square_seeds + square_images - square_rest
    assert found.variance == pytest.approx(whole / (n * m))
    assert found.seeds + found.images + found.rest == pytest.approx(found.variance)
    freedom = square_seeds**2 / (n - 1) + square_images**2 / (m - 1) + square_rest**2 / ((n - 1) * (m - 1))
    assert found.degrees == pytest.approx(whole**2 / freedom)


def test_a_bootstrap_of_seeds_and_images_finds_the_same_variance() -> None:
    # Owen 2007: it counts what is neither seed nor image three times, so that part is taken off twice
    scores = crossed(4, num_seeds=60, num_images=80, by_seed=0.5, by_image=0.7, rest=1.0)
    rng = np.random.default_rng(0)
    seeds, images = rng.integers(0, 60, (4_000, 60)), rng.integers(0, 80, (4_000, 80))
    means = [scores[np.ix_(s, i)].mean() for s, i in zip(seeds, images, strict=True)]
    found = over_seeds_and_images(scores)
    assert np.var(means) - 2 * found.rest == pytest.approx(found.variance, rel=0.1)


def test_images_alike_for_all_seeds_add_what_the_seeds_cannot_show() -> None:
    scores = crossed(5, num_seeds=8, num_images=200, by_seed=0.1, by_image=1.0, rest=0.1)
    seeds = over_seeds(scores.mean(axis=1)[None])
    found = over_seeds_and_images(scores)
    assert found.images == pytest.approx(1 / 200, rel=0.3)
    assert found.variance > 3 * seeds.error[0, 0] ** 2


def test_images_that_do_nothing_leave_the_seeds_own_spread() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        scores = rng.standard_normal((6, 50))
        seeds = over_seeds(scores.mean(axis=1)[None])
        found = over_seeds_and_images(scores)
        assert found.variance >= seeds.error[0, 0] ** 2 * (1 - 1e-12)
        if found.images == 0:
            assert found.variance == pytest.approx(seeds.error[0, 0] ** 2)
            assert found.degrees == pytest.approx(5.0)


def test_what_never_varies_has_no_spread() -> None:
    found = over_seeds_and_images(np.ones((6, 10)))
    assert (found.variance, found.degrees) == (0.0, 5.0)


def test_the_interval_covers_new_seeds_and_new_images_where_that_of_seeds_does_not() -> None:
    covered, by_seeds, num = 0, 0, 600
    for seed in range(num):
        scores = crossed(seed, num_seeds=8, num_images=40, by_seed=0.1, by_image=1.0, rest=0.5) - 0.3
        found, seeds = over_seeds_and_images(scores), over_seeds(scores.mean(axis=1)[None])
        covered += abs(scores.mean()) <= scipy_stats.t.isf(0.025, found.degrees) * math.sqrt(found.variance)
        by_seeds += abs(scores.mean()) <= scipy_stats.t.isf(0.025, 7) * seeds.error[0, 0]
    assert covered / num >= scipy_stats.binom.ppf(0.01, num, 0.95) / num
    assert by_seeds / num < 0.8


def test_the_factor_of_splits_is_that_of_nadeau_and_bengio() -> None:
    # their corrected variance of a mean of n: (1/n + test/train) · s²
    n, test, train = 10, 360, 1_150
    values = np.random.default_rng(0).standard_normal((1, n))
    corrected = math.sqrt((1 / n + test / train) * values.var(ddof=1))
    assert over_seeds(values).error[0, 0] * overlap_factor(test / train, n) == pytest.approx(corrected)
