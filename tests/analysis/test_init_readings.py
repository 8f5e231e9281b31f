"""Strata with an init that makes a strawman of the arm without a norm: read, and no verdict."""

from __future__ import annotations

from typing import Any

import pytest
from made_up import NOISE, RATES, SEEDS, Ended, Outcome, Run, judged, selected, study, two_arms, whole, without
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from bnexp.analysis.claims import Reading, judge_study, with_other_inits
from bnexp.analysis.flips import answers
from bnexp.analysis.planning import plan_power
from bnexp.analysis.power import pilot_sd, power_of_difference
from bnexp.analysis.rounds import LookRuns, Rounds, judge_rounds
from bnexp.analysis.sequential import plan_looks
from bnexp.analysis.verdicts import Verdict

INITS = {"model.init": ["he", "default"]}
DEFAULT = Reading("init", "default")


def by_init(effects: dict[str, float], spreads: dict[str, float] | None = None) -> Outcome:
    """The treatment is better by so much, the init being a value of the first axis."""

    def outcome(run: Run) -> Ended:
        init = str(run.at[0])
        return two_arms(effects[init], (spreads or {}).get(init, 1.0))(run)

    return outcome


def factor(verdict: Verdict) -> float:
    """By how much Holm raised the p of a difference."""
    assert verdict.effect is not None
    return verdict.effect.p_direction / verdict.effect.p


def test_a_poor_init_is_a_reading_of_the_one_that_suits_and_no_verdict() -> None:
    spec = study(axes=INITS)
    (claim,) = judged(spec, by_init({"he": 0.03, "default": -0.03}))
    assert (claim.stratum, claim.outcome) == ("he", "supported")
    (read,) = claim.other_inits
    assert (read.stratum, read.outcome, read.reading_of) == ("default", "reading: contradicted", claim.verdict)
    assert claim.readings[DEFAULT] is read.verdict
    assert read.verdict.effect is not None
    assert read.verdict.effect.deciding.mean == pytest.approx(-0.03)
    assert answers(claim)[DEFAULT] == "flips"
    # what the reading is read as is about the verdict too, not about itself
    assert {answers(read)[Reading("learning rate", lr)] for lr in RATES} == {"flips"}
    assert with_other_inits([claim]) == [claim, read]
    assert spec.num_verdicts("small") == 1


def test_a_reading_of_an_arm_that_has_learned_nothing_is_invalid() -> None:
    reach = {"shape": "reach", "over": "model.depth", "margin": 2, "within": 0.05, "least": 0.5}

    def outcome(run: Run) -> Ended:
        init, depth = str(run.at[0]), int(str(run.at[1]))
        if run.arm == "none" and init == "default":
            return "collapsed", 0.1
        return "finished", 0.9 - 0.3 * (run.arm == "none" and depth > 2) - 0.01 * (run.lr != 0.3)

    (claim,) = judged(study(reach, axes={**INITS, "model.depth": [2, 4, 8]}), outcome)
    (read,) = claim.other_inits
    assert (claim.outcome, read.outcome) == ("supported", "reading: invalid")
    assert read.verdict.reason.startswith("none is 10.0 % accurate at its best model.depth")


def test_readings_with_a_poor_init_are_a_family_of_their_own() -> None:
    axes: dict[str, list[Any]] = {**INITS, "model.activation": ["relu", "tanh", "selu"]}
    spec = study(axes=axes)
    spreads = {"relu": 2.5, "tanh": 2.2, "selu": 1.9}

    def outcome(run: Run) -> Ended:
        init, act = map(str, run.at)
        return two_arms(0.0135 if init == "he" else 0.012, spreads[act])(run)

    claims = judged(spec, outcome)
    assert [claim.stratum for claim in claims] == ["he, relu", "he, selu", "he, tanh"]
    assert spec.num_verdicts("small") == 3
    for effect, family in ((0.0135, claims), (0.012, [other for claim in claims for other in claim.other_inits])):
        acts = [claim.stratum.rpartition(", ")[2] for claim in family]
        raw = [scipy_stats.ttest_1samp([effect + spreads[a] * NOISE[s] for s in SEEDS], 0).pvalue for a in acts]
        found = [claim.verdict.effect.p_direction for claim in family if claim.verdict.effect]
        assert found == pytest.approx(multipletests(raw, method="holm")[1])
    for rows in (claims, [other for claim in claims for other in claim.other_inits]):
        rates = [verdict for claim in rows for verdict in claim.same_lr.values()]
        assert max(map(factor, rates)) == pytest.approx(3 * len(RATES))


@pytest.mark.parametrize(
    ("inits", "verdicts"),
    [
        (["he", "default", "orthogonal", "normal"], {"he": ["default", "normal"], "orthogonal": []}),
        (["orthogonal", "default"], {"orthogonal": ["default"]}),
        (["he", "fixup"], {"he": [], "fixup": []}),
    ],
)
def test_he_is_read_first_and_every_init_that_suits_is_judged(inits: list[str], verdicts: dict[str, list[str]]) -> None:
    spec = study(axes={"model.init": inits})
    claims = judged(spec, two_arms(0.03))
    found = {claim.stratum: [other.stratum for other in claim.other_inits] for claim in claims}
    assert found == verdicts
    assert {claim.outcome for claim in claims} == {"supported"}
    assert spec.num_verdicts("small") == len(claims)


def test_without_an_init_that_suits_a_poor_one_stays_invalid() -> None:
    spec = study(axes={"model.init": ["default", "normal"]})
    claims = judged(spec, two_arms(0.03))
    assert [(claim.stratum, claim.outcome) for claim in claims] == [("default", "invalid"), ("normal", "invalid")]
    assert claims[0].verdict.reason == "none starts from the init default, which does not suit a network without a norm"
    assert spec.num_verdicts("small") == 2


def test_a_comparison_of_arms_with_a_norm_is_judged_from_any_init() -> None:
    spec = study({}, {"treatment": "group", "control": "batch"}, arms=("none", "batch", "group"), axes=INITS)
    claims = judged(spec, two_arms(0.03))
    assert [(claim.comparison.treatment, claim.stratum) for claim in claims] == [
        ("batch", "he"), ("group", "default"), ("group", "he"),
    ]  # fmt: skip
    assert spec.num_verdicts("small") == 3


def test_what_goes_over_the_inits_themselves_is_judged_over_all_of_them() -> None:
    spec = study({"shape": "worst", "over": "model.init"}, axes=INITS)
    (claim,) = judged(spec, by_init({"he": 0.03, "default": 0.03}))
    assert (claim.stratum, claim.outcome, claim.other_inits) == ("", "supported", ())
    assert spec.num_verdicts("small") == 1


def test_strata_that_differ_in_more_than_the_init_are_read_each_with_its_own() -> None:
    spec = study({"shape": "slope", "over": "model.depth"}, {}, axes={**INITS, "model.depth": [2, 4]})
    claims = judged(spec, two_arms(0.03))
    assert [(claim.comparison.shape, claim.stratum, [o.stratum for o in claim.other_inits]) for claim in claims] == [
        ("slope", "he", ["default"]),
        ("difference", "he, depth 2", ["default, depth 2"]),
        ("difference", "he, depth 4", ["default, depth 4"]),
    ]
    assert spec.num_verdicts("small") == 3


def test_what_has_not_run_yet_keeps_its_place_among_its_own() -> None:
    axes: dict[str, list[Any]] = {**INITS, "model.activation": ["relu", "tanh"]}
    spec = study(axes=axes)
    part = judged(spec, without(two_arms(0.012, 1.2), lambda run: run.at == ("default", "tanh")))
    assert [claim.stratum for claim in part] == ["he, relu", "he, tanh"]
    assert [len(claim.other_inits) for claim in part] == [1, 0]
    assert max(factor(claim.verdict) for claim in part) == pytest.approx(2)
    assert factor(part[0].other_inits[0].verdict) == pytest.approx(2)
    # a reading of what has not run is none, and no verdict of its own in the meantime
    part = judged(spec, without(two_arms(0.03), lambda run: run.at == ("he", "tanh")))
    assert [(claim.stratum, claim.outcome) for claim in part] == [
        ("he, relu", "supported"), ("1 more stratum", "untested"),
    ]  # fmt: skip
    # the arm without a norm is still to run: its init is that of its stratum
    part = judged(spec, without(two_arms(0.03), lambda run: run.arm == "none" and run.at[0] == "default"))
    assert [claim.stratum for claim in part] == ["he, relu", "he, tanh"]
    assert [other.outcome for claim in part for other in claim.other_inits] == ["reading: untested"] * 2


def test_premises_are_read_with_a_poor_init_too() -> None:
    premise = {"role": "premise", "treatment": "group"}
    spec = study({}, premise, arms=("none", "batch", "group"), axes=INITS)

    def outcome(run: Run) -> Ended:
        ended = two_arms(0.03)(run)
        assert ended is not None
        gain = 0.03 * (run.arm == "group" and run.at == ("he",))
        return "finished", float(ended[1]) + gain + NOISE.get(run.seed, 0) * (run.arm == "group")  # type: ignore[arg-type]

    claim, _ = judged(spec, outcome)
    assert claim.outcome == "supported"
    (read,) = claim.other_inits
    assert read.outcome == "reading: invalid"
    assert "its premise is negligible" in read.verdict.reason


def test_an_exploratory_study_reads_them_likewise() -> None:
    (claim,) = judged(study(axes=INITS), two_arms(0.03), exploratory=True)
    assert claim.outcome == "exploratory: supported"
    assert [other.outcome for other in claim.other_inits] == ["exploratory: reading: supported"]


def test_power_is_planned_for_verdicts_alone() -> None:
    spec = study(axes=INITS)
    (power,) = plan_power(selected(spec, two_arms(0.03)), spec, whole(spec))
    assert power.stratum == "he"
    sd = pilot_sd(list(NOISE.values()))
    assert power.to_find == pytest.approx(power_of_difference(8, sd=sd, effect=0.02, margin=0.01, family_size=1))


def test_rounds_take_a_reading_from_the_look_of_its_verdict_and_do_not_wait_for_it_to_decide() -> None:
    spec, looks, complete = study(axes=INITS), plan_looks([6, 8]), [LookRuns(1, 1)] * 2

    def rounds(outcome: Outcome) -> Rounds:
        return judge_rounds(selected(spec, outcome), spec, whole(spec), looks, complete)

    found = rounds(by_init({"he": 0.03, "default": 0.0}, {"default": 9.0}))
    assert (found.number, found.stop) == (1, True)
    (claim,) = found.claims
    (read,) = claim.other_inits
    assert (claim.outcome, read.outcome) == ("supported", "reading: inconclusive")
    assert [(row.look, row.verdict.num_pairs) for row in (claim, read)] == [(1, 6), (1, 6)]
    # decided at the first look, the reading still follows the verdict, which is not
    (claim,) = rounds(by_init({"he": 0.0, "default": 0.03}, {"he": 9.0})).claims
    assert [(row.look, row.verdict.num_pairs) for row in (claim, *claim.other_inits)] == [(2, 8), (2, 8)]


def test_times_taken_otherwise_gate_a_reading_as_well() -> None:
    spec = study({"measure": "images_per_second", "shape": "ratio", "margin": 1.2}, axes=INITS, rates=(0.1,))

    def outcome(run: Run) -> Ended:
        mixed = "stacked" if run.at == ("default",) and run.arm == "batch" else "alone"
        return "finished", {"accuracy": 0.9, "images_per_second": 100.0 + run.seed, "timed": mixed}

    (claim,) = judge_study(selected(spec, outcome), spec, declared=whole(spec))
    assert claim.verdict.outcome != "invalid"
    assert [(o.outcome, o.verdict.reason) for o in claim.other_inits] == [
        ("reading: invalid", "its runs were not timed alike: alone and stacked")
    ]
