"""How far two arms go on a ladder of levels, seed by seed, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bnexp.analysis.contrasts import Contrast
from bnexp.analysis.ladders import decades_held, healthy_ratio, largest_good, span
from bnexp.analysis.rule import Rule, decide, ends_of_readings, weigh
from bnexp.analysis.stats import mean_interval


def of(*tops: float, levels: tuple[float, ...] = (0.1, 1.0, 10.0)) -> dict[int, dict[float, bool]]:
    """Seeds that are good up to these levels."""
    return {seed: {level: level <= top for level in levels} for seed, top in enumerate(tops)}


def readings(contrast: Contrast) -> list[list[float]]:
    """The numbers, those that favour the treatment, those that favour the control."""
    return [list(values.values()) for values in (contrast.values, *contrast.bounds)]


@pytest.mark.parametrize(
    ("ladder", "low", "high"),
    [
        ({1.0: True, 2.0: False, 4.0: False}, 1.0, 2.0),
        ({1.0: True, 2.0: True, 4.0: False}, 2.0, 4.0),
        ({1.0: False, 2.0: True, 4.0: False}, 2.0, 4.0),  # too small a level to learn anything is no limit
        ({4.0: False, 1.0: True, 2.0: True}, 2.0, 4.0),
        ({1.0: True, 2.0: True, 4.0: True}, 4.0, 40.0),
        ({1.0: False, 2.0: False, 4.0: False}, 0.1, 1.0),
        ({1.0: False, 20.0: False}, 0.05, 1.0),
    ],
)
def test_the_largest_good_level_lies_between_two_rungs(ladder: dict[float, bool], low: float, high: float) -> None:
    assert largest_good(ladder) == pytest.approx((math.log10(low), math.log10(high)))


def test_healthy_ratio_is_open_by_a_step_either_way() -> None:
    found = healthy_ratio(of(1.0, 1.0), of(0.1, 0.01))
    assert readings(found) == [pytest.approx(each) for each in ([1.0, 2.0], [2.0, 3.0], [0.0, 1.0])]
    assert found.failed == frozenset({1})  # good nowhere
    assert healthy_ratio(of(1.0, 10.0), of(0.1, 0.1)).failed == {1}  # good at the top


def test_where_both_end_at_one_rung_either_may_go_further() -> None:
    for top in (0.1, 1.0, 10.0):
        assert readings(healthy_ratio(of(top), of(top))) == [pytest.approx([each]) for each in (0.0, 1.0, -1.0)]


def test_data_that_allow_another_ratio_never_give_an_interval_of_no_width() -> None:
    levels = (1.0, 2.0, 4.0, 8.0)
    # a limit of 7.9 against one of 1.01, or of 4 against 1.99: four ones apart, and a true ratio of 2 to 7.8
    ends = healthy_ratio(of(*[4.0] * 6, levels=levels), of(*[1.0] * 6, levels=levels)).all_ends()
    low, high = ends.interval(0.05)
    assert [10 ** each[0] for each in (ends.mean, low, high)] == pytest.approx([4.0, 2.0, 8.0])
    exact, known = Contrast({0: 1.0, 1: 2.0, 2: 4.0}).all_ends(), mean_interval([1.0, 2.0, 4.0])
    assert [each[0] for each in (exact.mean, *exact.interval(0.05))] == pytest.approx(
        [known.mean, known.low, known.high]
    )


def test_healthy_ratio_refuses_to_guess_a_level_that_was_not_run() -> None:
    whole, part = {0: {0.1: True, 1.0: True}}, {0: {0.1: True}}
    found = healthy_ratio(whole, part, names=("batch", "none"))
    assert (found.missing, dict(found.values)) == (("seed 0: not all of none",), {})
    unknown = healthy_ratio(whole, {0: {0.1: True, 1.0: None}}, names=("batch", "none"))
    assert (unknown.missing, unknown.undefined) == ((), ("seed 0: no value of none",))


@pytest.mark.parametrize("compare", [healthy_ratio, span])
def test_no_good_level_in_either_arm_is_hopeless(compare: object) -> None:
    sick = {seed: {0.1: False, 1.0: False} for seed in (0, 1)}
    one = {**sick, 1: {0.1: True, 1.0: False}}
    assert compare(sick, sick).hopeless  # type: ignore[operator]
    assert not compare(sick, one).hopeless  # type: ignore[operator]
    assert not compare(sick, sick, seeds=[7]).hopeless  # type: ignore[operator]


@pytest.mark.parametrize("compare", [healthy_ratio, span])
@pytest.mark.parametrize("ladder", [{1.0: True}, {0.0: True, 1.0: True}, {-1.0: True, 1.0: True}])
def test_a_ladder_has_two_levels_above_zero(compare: object, ladder: dict[float, bool]) -> None:
    with pytest.raises(ValueError, match="two levels at least, all above 0"):
        compare({0: ladder}, {0: ladder})  # type: ignore[operator]


def test_decades_held_are_those_of_the_ladder() -> None:
    levels = (0.01, 0.1, 1.0, 100.0)
    assert decades_held(dict.fromkeys(levels, True)) == pytest.approx((4, 5))  # it may hold one more
    assert decades_held(dict.fromkeys(levels, False)) == (0, 0)
    for level, open_to in zip(levels, (1, 2, 3, 2), strict=True):
        for order in (levels, levels[::-1]):
            assert decades_held({other: other == level for other in order}) == pytest.approx((0, open_to))
    assert decades_held({0.01: False, 0.1: True, 1.0: True, 100.0: False}) == pytest.approx((1, 4))
    assert decades_held({0.01: True, 0.1: True, 1.0: True, 100.0: False}) == pytest.approx((2, 4))


def test_span_is_a_difference_of_decades_and_open_by_the_steps_at_its_ends() -> None:
    whole, half = {0.1: True, 1.0: True, 10.0: True}, {0.1: False, 1.0: True, 10.0: True}
    found = span({0: whole, 1: whole, 2: half}, {0: half, 1: whole, 2: half})
    assert readings(found) == [pytest.approx(each) for each in ([1, 0, 0], [2, 1, 1], [0, -1, -1])]
    assert (found.failed, found.failures) == ({0, 1}, None)
    lost = span({0: whole}, {0: {0.1: True, 1.0: True}}, names=("batch", "none"))
    assert lost.missing == ("seed 0: not all of none",)


STUDIES, MARGIN = 120, 3.0


def share_of(outcome: str, ratio: float, step: float, sd: float, *, shared: bool = True, bounds: bool = True) -> float:
    """How many studies of ten seeds call a true ratio at least the margin, or whatever else.

    Args:
        step: from a rung to the next.
        sd: of a seed's limit about that of its arm, in decades; the arm's is anywhere within a step.
        shared: seeds of both arms share most of their noise.
        bounds: judged under the bounds too, as a report does, and not from the midpoints alone.
    """
    rng = np.random.default_rng([round(100 * ratio), round(100 * step), round(100 * sd), shared])
    levels = [10 ** (-4 + math.log10(step) * rung) for rung in range(round(8 / math.log10(step)))]
    rule = Rule("higher", math.log10(MARGIN))
    found = 0
    for _ in range(STUDIES):
        base = rng.uniform(-1, 1)
        common = rng.normal(0, sd, 10) if shared else np.zeros(10)
        own = (common + rng.normal(0, sd / 3 if shared else sd, 10) for _ in range(2))
        limits = [10 ** (base + log + noise) for log, noise in zip((math.log10(ratio), 0.0), own, strict=True)]
        arms = [{seed: {level: level <= limit for level in levels} for seed, limit in enumerate(arm)} for arm in limits]
        contrast = healthy_ratio(*arms)
        readings = [list(reading.values()) for reading in (contrast.values, *contrast.bounds[: 2 * bounds])]
        ends = ends_of_readings(np.array(readings[:1]), np.array([readings]), failed=False)
        evidence = weigh(ends, rule, only_below=rule.alpha)
        found += decide(evidence, rule, num_pairs=10)[0] == outcome
    return found / STUDIES


@pytest.mark.parametrize("step", [math.sqrt(10), 2.0])
@pytest.mark.parametrize("sd", [0.0, 0.3])
@pytest.mark.parametrize("shared", [True, False])
def test_a_ratio_below_the_margin_is_not_called_as_large(step: float, sd: float, shared: bool) -> None:
    for ratio in (1.0, 2.0):
        assert share_of("supported", ratio, step, sd, shared=shared) <= 0.05
    assert share_of("supported", 100.0, step, sd, shared=shared) >= 0.95


@pytest.mark.parametrize("step", [math.sqrt(10), 2.0])
def test_ratios_at_and_above_the_margin(step: float) -> None:
    assert share_of("supported", MARGIN, step, 0.1) <= 0.05
    assert share_of("supported", 4.0, step, 0.1) <= 0.05  # less than margin · step: too coarse a ladder to show it
    assert share_of("supported", 1.05 * MARGIN * step**2, step, 0.1) >= 0.95


def test_midpoints_alone_would_err() -> None:
    assert share_of("supported", 2.0, math.sqrt(10), 0.0, bounds=False) > 0.2
