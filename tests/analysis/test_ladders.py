"""How far two arms go on a ladder of levels, seed by seed, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from bnexp.analysis.ladders import decades_held, healthy_ratio, span


def test_healthy_ratio_by_seed() -> None:
    batch = {0: {0.1: True, 1.0: True, 10.0: False}, 1: {0.1: False, 1.0: True, 10.0: True}}
    none = {0: {0.1: True, 1.0: False, 10.0: False}, 1: {0.1: False, 1.0: False, 10.0: False}}
    result = healthy_ratio(batch, none)
    assert result.values == pytest.approx({0: 1.0, 1: 3.0})  # a step below the ladder where nothing was healthy
    assert result.failed == frozenset({1})


def test_a_level_that_is_healthy_at_the_top_may_go_further() -> None:
    def arm(*tops: float) -> dict[int, dict[float, bool]]:
        return {seed: {level: level <= top for level in (0.1, 1.0, 10.0)} for seed, top in enumerate(tops)}

    open_both = healthy_ratio(arm(10, 10), arm(10, 10))
    assert dict(open_both.values) == {0: 0.0, 1: 0.0}
    assert [dict(bound) for bound in open_both.bounds] == [{0: 1.0, 1: 1.0}, {0: -1.0, 1: -1.0}]
    open_treatment = healthy_ratio(arm(10, 1), arm(1, 1))
    assert [dict(bound) for bound in open_treatment.bounds] == [{0: 2.0, 1: 0.0}, {0: 1.0, 1: 0.0}]
    assert healthy_ratio(arm(1, 1), arm(0.1, 1)).bounds == ()


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
    assert decades_held(dict.fromkeys(levels, True)) == pytest.approx(4)
    assert decades_held(dict.fromkeys(levels, False)) == 0
    for level, held in zip(levels, (0.5, 1.0, 1.5, 1.0), strict=True):
        assert decades_held({other: other == level for other in levels}) == pytest.approx(held)
        assert decades_held({other: other == level for other in reversed(levels)}) == pytest.approx(held)


def test_span_is_a_difference_of_decades_and_open_where_an_arm_holds_everything() -> None:
    whole, half = {0.1: True, 1.0: True, 10.0: True}, {0.1: False, 1.0: True, 10.0: True}
    found = span({0: whole, 1: whole, 2: half}, {0: half, 1: whole, 2: half})
    assert found.values == pytest.approx({0: 0.5, 1: 0.0, 2: 0.0})
    assert [dict(bound) for bound in found.bounds] == [
        pytest.approx({0: 1.5, 1: 1.0, 2: 0.0}), pytest.approx({0: 0.5, 1: -1.0, 2: 0.0}),
    ]  # fmt: skip
    assert (found.failed, found.failures) == ({0, 1}, None)
    assert span({0: half}, {0: half}).bounds == ()
    lost = span({0: whole}, {0: {0.1: True, 1.0: True}}, names=("batch", "none"))
    assert lost.missing == ("seed 0: not all of none",)
