"""How often the rule will decide, and how many seeds that takes: computed for the rule as rule.py has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import numpy as np

from bnexp.analysis.rule import ALPHA, MIN_PAIRS, Decision, Rule, decide, ends_of, weigh

NODES = 4_000
MOST_SEEDS = 1_000
POWER = 0.8
Test = Literal["difference", "equivalence", "non-inferiority"]


def power_of_difference(
    num_pairs: int, *, sd: float, effect: float, margin: float, alpha: float = ALPHA, family_size: int = 1
) -> float:
    """Chance that a t interval lies beyond the margin on the side of a true effect: that its size is shown.

    With the margin at 0 this is the chance that its direction is shown: the textbook power of the paired t test, less
    its wrong side. The numbers are taken as normal, at a fixed learning rate: a choice costs power that is measured,
    not computed (results/reference/verdict-error-rates).

    Args:
        num_pairs: seeds; under six the answer is 0.
        sd: standard deviation of the per-seed numbers, at least 0.
        effect: their true mean.
        margin: in the same unit.
        family_size: comparisons in the Holm family; the level is Holm's first, alpha / family_size, so a family with
            other true effects has more power than this.
    """
    if num_pairs < MIN_PAIRS:
        return 0.0
    from scipy.stats import norm, t

    critical = float(t.isf(alpha / family_size / 2, num_pairs - 1))

    def given(error: np.ndarray, spread: float) -> np.ndarray:
        return np.asarray(norm.cdf((abs(effect) - margin - critical * error) / spread))

    return _expected(given, num_pairs, sd)


def power_of_equivalence(
    num_pairs: int, *, sd: float, margin: float, effect: float = 0.0, alpha: float = ALPHA, family_size: int = 1
) -> float:
    """Chance that the (1 − 2 alpha) t interval lies inside ±margin; the numbers are taken as normal.

    Args:
        num_pairs, sd, margin, alpha, family_size: as in `power_of_difference`.
        effect: the true mean, 0 unless said otherwise.

    Source: Phillips 1990, "Power of the two one-sided tests procedure in bioequivalence", by integration over s.
    """
    if num_pairs < MIN_PAIRS:
        return 0.0
    from scipy.stats import norm, t

    critical = float(t.isf(alpha / family_size, num_pairs - 1))

    def given(error: np.ndarray, spread: float) -> np.ndarray:
        room = np.maximum(margin - critical * error, 0.0)
        return np.asarray(norm.cdf((room - effect) / spread) - norm.cdf((-room - effect) / spread))

    return _expected(given, num_pairs, sd)


def power_of_non_inferiority(
    num_pairs: int, *, sd: float, margin: float, effect: float = 0.0, alpha: float = ALPHA, family_size: int = 1
) -> float:
    """Chance that the (1 − 2 alpha) t interval lies above −margin; the numbers are taken as normal.

    Args:
        num_pairs, sd, margin, alpha, family_size: as in `power_of_difference`.
        effect: the true mean, 0 unless said otherwise.
    """
    if num_pairs < MIN_PAIRS:
        return 0.0
    from scipy.stats import norm, t

    critical = float(t.isf(alpha / family_size, num_pairs - 1))

    def given(error: np.ndarray, spread: float) -> np.ndarray:
        return np.asarray(norm.cdf((margin + effect - critical * error) / spread))

    return _expected(given, num_pairs, sd)


def seeds_needed(
    test: Test,
    *,
    sd: float,
    effect: float,
    margin: float,
    alpha: float = ALPHA,
    family_size: int = 1,
    power: float = POWER,
    fixed_variance: float = 0.0,
) -> int | None:
    """The fewest pairs, six at least, with this chance that a test decides; None where 1,000 are not enough.

    Args:
        test: what a decision rests on; `contradicted` needs as many pairs as its mirror.
        sd, effect, margin, alpha, family_size: as in `power_of_difference`.
        power: from 0.5 to below 1.
        fixed_variance: of the mean, beside the seeds': what more of them leave as it is, such as that of test images.

    Raises:
        ValueError: a power outside its range.
    """
    if not 0.5 <= power < 1:
        raise ValueError(f"power: {power!r} is not from 0.5 to below 1")
    chances: dict[Test, Callable[..., float]] = {
        "difference": power_of_difference,
        "equivalence": power_of_equivalence,
        "non-inferiority": power_of_non_inferiority,
    }

    def enough(num: int) -> bool:
        spread = math.sqrt(sd**2 + num * fixed_variance)
        found = chances[test](num, sd=spread, effect=effect, margin=margin, alpha=alpha, family_size=family_size)
        return found >= power

    if not enough(MOST_SEEDS):
        return None
    low, high = MIN_PAIRS - 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def pilot_sd(values: Sequence[float], *, assurance: float = 0.8) -> float:
    """The spread to plan with: with this assurance the true one is no larger; a small pilot's own often is too small.

    Args:
        values: (k,) per-seed numbers of the pilot, k at least 2, taken as normal.
        assurance: 0.5 gives about the pilot's own standard deviation.

    Source: Browne 1995, "On the use of a pilot sample for sample size determination".
    """
    from scipy.stats import chi2

    degrees = len(values) - 1
    return float(np.std(values, ddof=1) * np.sqrt(degrees / chi2.ppf(1 - assurance, degrees)))


def power_from_pilot(
    decision: Decision,
    rule: Rule,
    num_pairs: int,
    *,
    pilot: Sequence[float],
    failed: Sequence[bool],
    effect: float | None = None,
    family_size: int = 1,
    num_simulations: int = 2_000,
    seed: int = 0,
) -> float:
    """Chance of a decision when seeds look like those of a pilot: the rule is run on resampled pilots.

    For what no standard deviation describes, above all failing runs: two groups of seeds, far apart. It knows no
    failure that the pilot did not meet.

    Args:
        pilot: (k,) per-seed numbers of the pilot, k at least 2.
        failed: (k,) whether a failed or censored run is behind each.
        effect: the pilot is shifted to this mean; None leaves it where it is.
        family_size: as in `power_of_difference`.
        seed: of the resampling.
    """
    numbers, flags = np.asarray(pilot, dtype=np.float64), np.asarray(failed, dtype=np.bool_)
    if len(numbers) < 2 or numbers.shape != flags.shape:
        raise ValueError("a pilot needs two numbers at least, and a flag for each")
    if num_pairs < MIN_PAIRS:
        return float(decision == "inconclusive")
    if effect is not None:
        numbers = numbers - numbers.mean() + effect
    drawn = np.random.default_rng(seed).integers(0, len(numbers), size=(num_simulations, num_pairs))
    level = replace(rule, alpha=rule.alpha / family_size)
    ends = ends_of(numbers[drawn], failed=np.asarray(flags[drawn].any(axis=-1)))
    evidence = weigh(ends, level, only_below=level.alpha)
    return float((decide(evidence, level, num_pairs=num_pairs) == decision).mean())


def _expected(given: Callable[[np.ndarray, float], np.ndarray], num_pairs: int, sd: float) -> float:
    """The mean over the sampling distribution of s of a chance that is known given s; mean and s are independent.

    Args:
        given: from (the standard errors as estimated, the true standard error) to chances.
    """
    spread = max(sd, 1e-300) / np.sqrt(num_pairs)
    return float(given(spread * _relative_errors(num_pairs), float(spread)).mean())


@lru_cache(maxsize=256)
def _relative_errors(num_pairs: int) -> np.ndarray:
    """(NODES,) quantiles of s / sigma; kept, for a search over numbers of seeds asks for the same ones again."""
    from scipy.stats import chi2

    middles = (np.arange(NODES) + 0.5) / NODES
    return np.asarray(np.sqrt(chi2.ppf(middles, num_pairs - 1) / (num_pairs - 1)))
