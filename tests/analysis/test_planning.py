"""The power that a study is promised from the runs that are there."""

from __future__ import annotations

import pytest
from made_up import NOISE, SEEDS, selected, study, two_arms, whole, without

from bnexp.analysis.planning import plan_power
from bnexp.analysis.power import pilot_sd, power_of_difference, power_of_equivalence


def test_power_is_planned_from_the_runs_that_are_there() -> None:
    spec = study(axes={"model.activation": ["relu", "tanh"]})
    begun = without(two_arms(0.03), lambda run: run.at == ("tanh",) or run.seed > 5)
    (power,) = plan_power(selected(spec, begun), spec, whole(spec))
    sd = pilot_sd([NOISE[seed] for seed in range(2, 6)])
    assert (power.num_pilot, power.num_pairs, power.sd) == (4, len(SEEDS), pytest.approx(sd))
    plan = {"sd": sd, "margin": 0.01, "family_size": 2}
    assert power.to_find == pytest.approx(power_of_difference(8, effect=0.02, **plan))  # type: ignore[arg-type]
    assert power.to_equate == pytest.approx(power_of_equivalence(8, **plan))  # type: ignore[arg-type]
    assert 0 < power.to_find < 1
    single = without(two_arms(0.03), lambda run: run.seed > 2)
    assert plan_power(selected(spec, single), spec, whole(spec)) == []
    failing = without(begun, lambda run: run.arm == "none" and run.seed == 2, "diverged")
    (power,) = plan_power(selected(spec, failing), spec, whole(spec))
    assert power.to_find < 0.05  # one in four differs by 70 points: eight pairs find nothing of two


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
    closed = without(two_arms(0.0), lambda run: run.lr == 1.0, "diverged")
    (power,) = plan_power(selected(spec, closed), spec, whole(spec))
    assert (power.to_find, power.to_equate) == (1.0, 1.0)
