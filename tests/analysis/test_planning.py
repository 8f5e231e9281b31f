"""The power that a study is promised from the runs that are there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_up import CHANCE, NOISE, SEEDS, Ended, Run, numbers, selected, study, two_arms, whole, without
from scipy.stats import ttest_1samp

from bnexp.analysis.planning import plan_power
from bnexp.analysis.power import (
    pilot_sd,
    power_from_pilot,
    power_of_difference,
    power_of_equivalence,
    power_of_non_inferiority,
)
from bnexp.analysis.rule import Rule, coarse
from bnexp.analysis.sequential import plan_looks


def test_power_is_planned_from_the_runs_that_are_there() -> None:
    spec = study(axes={"model.activation": ["relu", "tanh"]})
    begun = without(two_arms(0.03), lambda run: run.at == ("tanh",) or run.seed > 5)
    (power,) = plan_power(selected(spec, begun), spec, whole(spec))
    sd = pilot_sd([NOISE[seed] for seed in range(2, 6)])
    assert (power.num_pilot, power.num_pairs, power.sd) == (4, len(SEEDS), pytest.approx(sd))
    plan = {"sd": sd, "margin": 0.01, "family_size": 2}
    assert power.to_find == pytest.approx(power_of_difference(8, effect=0.02, **plan))  # type: ignore[arg-type]
    assert power.to_equate == pytest.approx(power_of_equivalence(8, alpha=0.025, **plan))  # type: ignore[arg-type]
    assert 0 < power.to_find < 1
    single = without(two_arms(0.03), lambda run: run.seed > 2)
    assert plan_power(selected(spec, single), spec, whole(spec)) == []
    failing = without(begun, lambda run: run.arm == "none" and run.seed == 2, "diverged")
    (power,) = plan_power(selected(spec, failing), spec, whole(spec))
    assert power.to_find < 0.05  # one in four differs by 70 points: eight pairs find nothing of two


def test_power_of_rounds_is_that_of_the_look_that_has_most_at_its_own_level() -> None:
    spec = study()
    selection = selected(spec, two_arms(0.03))
    sd = pilot_sd(list(NOISE.values()))
    for looks in (plan_looks([6, 8]), plan_looks([6, 7, 8])):
        (power,) = plan_power(selection, spec, whole(spec), looks)
        each = [
            (power_of_difference(look.num_pairs, sd=sd, effect=0.02, margin=0.01, alpha=look.alpha),
             power_of_equivalence(look.num_pairs, sd=sd, margin=0.01, alpha=look.alpha / 2))
            for look in looks
        ]  # fmt: skip
        assert power.to_find == pytest.approx(max(find for find, _ in each))
        assert power.to_equate == pytest.approx(max(equate for _, equate in each))
        assert power.num_pairs == 8
        (once,) = plan_power(selection, spec, whole(spec))
        assert power.to_find < once.to_find
        assert power.to_equate < once.to_equate


def test_power_of_rounds_is_no_more_than_simulated_rounds_have() -> None:
    """Student's t intervals of normal numbers at each look: what lies beyond the margin at any of them."""
    spec = study()
    (power,) = plan_power(selected(spec, two_arms(0.03)), spec, whole(spec), plan_looks([6, 8]))
    drawn = np.random.default_rng(0).normal(0.02, power.sd, size=(20_000, 8))
    found = np.zeros(len(drawn), dtype=bool)
    for num, alpha in ((6, 0.05 * 6 / 8), (8, 0.05 * 2 / 8)):
        seen = drawn[:, :num]
        found |= ttest_1samp(seen, 0, axis=1).confidence_interval(1 - alpha).low >= 0.01
    assert 0.8 * found.mean() < power.to_find < found.mean()


def test_power_of_rounds_with_failing_runs_is_at_each_looks_level() -> None:
    spec = study()
    failing = without(two_arms(0.03), lambda run: run.arm == "none" and run.seed in (3, 4, 5, 6), "collapsed")
    rows = numbers(spec, failing).values
    looks = plan_looks([6, 8])
    each = [
        power_from_pilot("supported", Rule("higher", 0.01, alpha=alpha), num, effect=0.02,
                         pilot=list(rows.values()), failed=[seed in (3, 4, 5, 6) for seed in rows])
        for num, alpha in ((6, 0.05 * 6 / 8), (8, 0.05 * 2 / 8))
    ]  # fmt: skip
    (once,) = plan_power(selected(spec, failing), spec, whole(spec))
    (power,) = plan_power(selected(spec, failing), spec, whole(spec), looks)
    assert 0 < power.to_find == max(each) < once.to_find


def test_the_family_counts_what_goes_over_a_stratum_once() -> None:
    spec = study({}, {"shape": "slope", "over": "model.depth"}, axes={"model.depth": [2, 4, 8]})
    powers = plan_power(selected(spec, two_arms(0.03)), spec, whole(spec))
    assert [(power.comparison.shape, power.stratum) for power in powers] == [
        ("difference", "depth 2"), ("difference", "depth 4"), ("difference", "depth 8"), ("slope", ""),
    ]  # fmt: skip
    sd = pilot_sd(list(NOISE.values()))
    assert powers[0].to_find == pytest.approx(power_of_difference(8, sd=sd, effect=0.02, margin=0.01, family_size=4))


def test_a_ladder_that_is_too_short_is_promised_nothing() -> None:
    spec = study({"shape": "reach", "over": "lr", "margin": 3})
    (power,) = plan_power(selected(spec, two_arms(0.0)), spec, whole(spec))
    assert (power.to_find, power.to_equate) == (0.0, 0.0)  # all are healthy at the top, and will be
    # where both end at 0.3 the one may go 3.3 times as far as the other: 9 times are at least 2.7, and none up to 3.3
    closed = without(two_arms(0.0), lambda run: run.lr == 1.0, "diverged")
    for margin, chance in ((3, 0.0), (4, 1.0)):
        spec = study({"shape": "reach", "over": "lr", "margin": margin})
        (power,) = plan_power(selected(spec, closed), spec, whole(spec))
        assert (power.to_find, power.to_equate) == (chance, chance)


def test_what_bounds_leave_open_is_planned_for_whatever_the_spread() -> None:
    depths = [2, 3, 7, 16, 40, 100]
    spec = study({"shape": "reach", "over": "model.depth", "margin": 8}, axes={"model.depth": depths})
    ends = dict(zip(SEEDS, (3, 7, 16, 40, 40, 3, 7, 16), strict=True))

    def outcome(run: Run) -> Ended:
        top = ends[run.seed] if run.arm == "none" else (16 if run.seed % 2 else 7)
        return ("finished", 0.8) if int(str(run.at[0])) <= top else ("diverged", CHANCE)

    found = numbers(spec, outcome)
    readings = [np.array(list(each.values())) for each in (found.values, *found.bounds)]
    assert found.failed == frozenset()
    assert not coarse(readings[0][None])[0]
    (power,) = plan_power(selected(spec, outcome), spec, whole(spec))
    rule = Rule("higher", math.log10(8))
    for decision, effect, promised in (
        ("supported", 2 * rule.margin, power.to_find),
        ("negligible", 0.0, power.to_equate),
    ):
        each = [
            power_from_pilot(decision, rule, 8, pilot=reading.tolist(), failed=[False] * 8,  # type: ignore[arg-type]
                             effect=effect + float(reading.mean() - readings[0].mean()))
            for reading in readings
        ]  # fmt: skip
        assert promised == min(each) < 0.9 * each[0]


def test_a_claim_that_nothing_is_lost_is_promised_its_own_chances() -> None:
    spec = study({"direction": "not lower"})
    (power,) = plan_power(selected(spec, two_arms(0.03)), spec, whole(spec))
    plan = {"sd": pilot_sd(list(NOISE.values())), "margin": 0.01}
    assert power.to_equate == pytest.approx(power_of_non_inferiority(8, alpha=0.025, **plan))
    assert power_of_equivalence(8, alpha=0.025, **plan) < power.to_equate < 1
    assert power.to_find == pytest.approx(power_of_difference(8, effect=-0.02, **plan))
    # one control in eight fails: that hides neither a loss in the others nor that it might all be luck
    failing = without(two_arms(0.0), lambda run: run.arm == "none" and run.seed == 3, "diverged")
    (power,) = plan_power(selected(spec, failing), spec, whole(spec))
    rows = numbers(spec, failing).values
    pilot = {"pilot": list(rows.values()), "failed": [seed == 3 for seed in rows]}
    rule = Rule("not lower", 0.01)
    zero, loss = (
        power_from_pilot(decision, rule, 8, effect=effect, **pilot)  # type: ignore[arg-type]
        for decision, effect in (("supported", 0.0), ("contradicted", -0.02))
    )
    assert (power.to_equate, power.to_find) == (zero, loss)
    assert 0 < zero < 0.01 < 0.3 < loss < 1
