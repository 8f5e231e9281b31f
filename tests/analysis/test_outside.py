"""An effect at own best rates against those at equal rates, with numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from bnexp.analysis.outside import Outside, outside_equal_rates

EQUAL = {0.0316: -0.10, 0.1: 0.07, 0.316: 0.0}


@pytest.mark.parametrize(("own", "beyond"), [(0.34, 0.27), (-0.25, -0.15)])
def test_an_effect_beyond_the_range_says_by_how_much(own: float, beyond: float) -> None:
    found = outside_equal_rates(own, EQUAL)
    assert found is not None
    assert (found.low, found.high) == (-0.10, 0.07)
    assert found.beyond == pytest.approx(beyond)


@pytest.mark.parametrize("own", [-0.10, -0.05, 0.07, 0.07 + 1e-12, -0.10 - 1e-12])
def test_an_effect_within_the_range_or_at_its_ends_is_not_outside(own: float) -> None:
    assert outside_equal_rates(own, EQUAL) is None


@pytest.mark.parametrize("equal", [{}, {0.1: 0.0}, {0.1: 0.0, 0.3: math.nan}, {0.1: math.inf, 0.3: math.nan}])
def test_without_two_rates_there_is_no_range(equal: dict[float, float]) -> None:
    assert outside_equal_rates(5.0, equal) is None


def test_what_is_not_finite_is_no_effect_and_no_end_of_the_range() -> None:
    assert outside_equal_rates(math.nan, EQUAL) is None
    assert outside_equal_rates(math.inf, EQUAL) is None
    assert outside_equal_rates(0.2, EQUAL | {1.0: math.nan, 3.16: math.inf}) == Outside(-0.10, 0.07, 0.2 - 0.07)


def test_equal_effects_at_every_rate_are_a_range_of_one_number() -> None:
    assert outside_equal_rates(0.5, {0.1: 0.25, 0.3: 0.25}) == Outside(0.25, 0.25, 0.25)
    assert outside_equal_rates(0.25, {0.1: 0.25, 0.3: 0.25}) is None
