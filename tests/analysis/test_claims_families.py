"""Holm families: what belongs to which, what keeps its place unrun, and the other readings of a comparison."""

from __future__ import annotations

import math
from typing import Any

import pytest
from made_up import NOISE, RATES, SEEDS, Ended, Outcome, Run, judged, selected, study, two_arms, whole, without
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from bnexp.analysis.claims import ClaimVerdict, Reading, judge_study
from bnexp.analysis.verdicts import Verdict
from bnexp.study import StudySpec

ACTS = {"model.activation": ["relu", "tanh"]}
PRECISE, BATCH = Reading("statistics", "precise"), Reading("statistics", "batch")


def factor(verdict: Verdict) -> float:
    """By how much Holm raised the p of a difference: the number of those that could still be rejected."""
    assert verdict.effect is not None
    return verdict.effect.p_direction / verdict.effect.p


def of_tanh(run: Run) -> bool:
    return "tanh" in run.at


def test_the_family_spans_strata_and_comparisons() -> None:
    spec = study({}, {"treatment": "group"}, arms=("none", "batch", "group"), axes=ACTS, rates=(0.1,))
    factors = {("batch", "relu"): 2.5, ("group", "relu"): 2.6, ("batch", "tanh"): 2.2, ("group", "tanh"): 1.0}

    def outcome(run: Run) -> Ended:
        if run.arm == "none":
            return "finished", 0.8
        return "finished", 0.8 + 0.0135 + factors[run.arm, str(run.at[0])] * NOISE.get(run.seed, 0)

    claims = judged(spec, outcome)
    names = [(str(claim.comparison.treatment), claim.stratum) for claim in claims]
    assert names == [("batch", "relu"), ("batch", "tanh"), ("group", "relu"), ("group", "tanh")]
    raw = [scipy_stats.ttest_1samp([0.0135 + factors[name] * NOISE[s] for s in SEEDS], 0).pvalue for name in names]
    effects = [claim.verdict.effect for claim in claims]
    assert all(effects)
    assert [effect.p_direction for effect in effects if effect] == pytest.approx(multipletests(raw, method="holm")[1])
    assert max(raw) < 0.05 < max(multipletests(raw, method="holm")[1])  # so the family decides about some
    assert {claim.verdict.outcome for claim in claims} == {"supported, direction only", "inconclusive"}


def test_a_comparison_over_a_stratum_is_judged_in_fewer_and_counts_fewer() -> None:
    axes: dict[str, list[Any]] = {**ACTS, "model.depth": [2, 4, 8]}
    spec = study({}, {"shape": "slope", "over": "model.depth"}, axes=axes)
    claims = judged(spec, two_arms(0.0135, 2.5))
    assert [claim.stratum for claim in claims if claim.comparison.shape == "slope"] == ["relu", "tanh"]
    plain = [claim for claim in claims if claim.comparison.shape == "difference"]
    assert [claim.stratum for claim in plain] == [
        f"{act}, depth {depth}" for act in ("relu", "tanh") for depth in (2, 4, 8)
    ]
    assert spec.num_verdicts("small") == len(claims) == 8
    assert max(factor(claim.verdict) for claim in plain) == pytest.approx(8)


def test_strata_of_which_nothing_has_run_keep_their_places_in_every_family() -> None:
    axes: dict[str, list[Any]] = {"model.activation": ["relu", "tanh", "selu"], "model.depth": [2, 4]}
    spec = study({}, {"shape": "worst", "over": "model.depth"}, axes=axes)
    whole_claims = judged(spec, with_statistics(two_arms(0.012, 1.2)))
    assert len(whole_claims) == spec.num_verdicts("small") == 9
    part = judged(spec, without(with_statistics(two_arms(0.012, 1.2)), lambda run: run.at[0] != "relu"))
    assert [(claim.comparison.shape, claim.stratum, claim.outcome) for claim in part[-2:]] == [
        ("difference", "4 more strata", "untested"), ("worst", "2 more strata", "untested"),
    ]  # fmt: skip
    assert [claim.verdict.effect for claim in part[-2:]] == [None, None]
    for claims in (whole_claims, part):
        run = [claim for claim in claims if claim.verdict.effect]
        assert max(factor(claim.verdict) for claim in run) == pytest.approx(9)
        at_rates = [verdict for claim in run for verdict in claim.same_lr.values()]
        assert max(factor(verdict) for verdict in at_rates) == pytest.approx(9 * len(RATES))
        statistics = [verdict for claim in run for r, verdict in claim.readings.items() if r.kind == "statistics"]
        assert max(factor(verdict) for verdict in statistics) == pytest.approx(9 * 2)
    (one,) = judged(study(axes={"model.activation": ["relu", "tanh"]}), without(two_arms(0.03), of_tanh))[1:]
    assert one.stratum == "1 more stratum"


def test_a_missing_comparison_keeps_its_place_in_the_family() -> None:
    spec = study(axes=ACTS)
    lost = without(two_arms(0.03), lambda run: run == Run("none", 0.3, 4, ("tanh",)))
    relu, tanh = judged(spec, lost)
    assert (relu.verdict.outcome, tanh.verdict.outcome) == ("supported", "untested")
    assert factor(relu.verdict) == pytest.approx(2)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_alpha_is_that_of_every_family(alpha: float) -> None:
    (claim,) = judged(study(), with_statistics(two_arms(0.0135, 2.2)), alpha=alpha)
    assert claim.verdict.effect is not None
    assert 0.01 < claim.verdict.effect.p < 0.05
    assert claim.verdict.outcome == ("supported, direction only" if alpha == 0.05 else "inconclusive")
    assert claim.readings[PRECISE].outcome == "supported"  # at any alpha
    interval = scipy_stats.ttest_1samp(list(claim.values.values()), 0).confidence_interval(1 - alpha)
    for verdict in (claim.verdict, claim.same_lr[0.3]):
        assert verdict.effect is not None
        assert (verdict.effect.plain.low, verdict.effect.plain.high) == pytest.approx((interval.low, interval.high))


# readings


def test_verdicts_at_the_same_rate_are_a_family_of_their_own() -> None:
    effects = {0.1: 0.03, 0.3: 0.0, 1.0: -0.03}

    def outcome(run: Run) -> Ended:
        return two_arms(effects[run.lr])(run)

    (claim,) = judged(study(), outcome)
    assert {lr: verdict.outcome for lr, verdict in claim.same_lr.items()} == {
        0.1: "supported", 0.3: "negligible", 1.0: "contradicted",
    }  # fmt: skip
    p = [scipy_stats.ttest_1samp([effects[lr] + NOISE[s] for s in SEEDS], 0).pvalue for lr in RATES]
    found = [verdict.effect.p_direction for verdict in claim.same_lr.values() if verdict.effect]
    assert found == pytest.approx(multipletests(p, method="holm")[1])
    assert factor(claim.verdict) == pytest.approx(1)  # they are no part of the claim's own family


def test_all_rates_in_all_strata_are_one_family() -> None:
    claims = judged(study(axes=ACTS), two_arms(0.012, 0.01))
    effects = [verdict.effect for claim in claims for verdict in claim.same_lr.values()]
    assert len(effects) == 6
    raw = sorted(effect.p for effect in effects if effect)
    assert sorted(effect.p_direction for effect in effects if effect)[0] == pytest.approx(min(1.0, 6 * raw[0]))


def test_a_rate_that_has_not_run_is_untested_at_the_same_rate() -> None:
    (claim,) = judged(study(), without(two_arms(0.03), lambda run: run.lr == 1.0))
    assert {lr: verdict.outcome for lr, verdict in claim.same_lr.items()} == {
        0.1: "supported", 0.3: "supported", 1.0: "untested",
    }  # fmt: skip
    (single,) = judged(study(rates=(0.1,)), two_arms(0.03))
    assert single.same_lr == {}


def test_levels_are_read_at_the_same_rate_too() -> None:
    spec = study({"shape": "slope", "over": "model.depth", "margin": 0.01}, axes={"model.depth": [2, 8]})

    def outcome(run: Run) -> Ended:
        # the gain rises by 0.02 a doubling at a rate of 0.1, and not at all at 0.3, which is the best at depth 8 alone
        gain = (run.arm == "batch") * (0.02 * math.log2(int(str(run.at[0]))) if run.lr == 0.1 else 0.0)
        return "finished", 0.5 + gain - 0.3 * (run.lr == 1.0) + 0.01 * (run.lr == 0.1) + NOISE.get(run.seed, 0)

    (claim,) = judged(spec, outcome)
    assert {
        lr: verdict.effect and verdict.effect.deciding.mean for lr, verdict in claim.same_lr.items()
    } == pytest.approx({0.1: 0.02, 0.3: 0.0, 1.0: 0.0})


@pytest.mark.parametrize("shape", [{"shape": "reach", "over": "lr", "margin": 3}, {"shape": "span", "over": "lr"},
                                   {"shape": "search", "budget": 1}])  # fmt: skip
def test_what_compares_all_rates_is_not_read_at_one(shape: dict[str, Any]) -> None:
    (claim,) = judged(study(shape), with_statistics(two_arms(0.03)))
    assert claim.readings == {}


def with_statistics(outcome: Outcome, precise: float = 0.04, batch: float = -0.04) -> Outcome:
    """The treatment is better by so much under other statistics than the running ones."""

    def changed(run: Run) -> Ended:
        ended = outcome(run)
        if ended is None:
            return None
        gains = {"precise": precise, "batch": batch}
        noise = NOISE.get(run.seed, 0.0)
        measured = {f"accuracy_{name}": 0.8 + (run.arm == "batch") * (gain + noise) for name, gain in gains.items()}
        return ended[0], {"accuracy": ended[1], **measured}  # type: ignore[dict-item]

    return changed


def test_other_statistics_are_read_where_they_were_measured() -> None:
    (claim,) = judged(study(), with_statistics(two_arms(0.03)))
    assert claim.readings[PRECISE].outcome == "supported"
    assert claim.readings[BATCH].outcome == "contradicted"
    assert list(claim.same_lr) == list(RATES)
    (plain,) = judged(study(), two_arms(0.03))
    assert {reading.kind for reading in plain.readings} == {"learning rate"}


def test_statistics_that_a_run_lacks_leave_their_reading_untested() -> None:
    def outcome(run: Run) -> Ended:
        ended = with_statistics(two_arms(0.03))(run)
        assert ended is not None
        unmeasured = {"accuracy_precise": math.nan} if run.arm == "none" and run.seed == 4 else {}
        return ended[0], {**ended[1], **unmeasured}  # type: ignore[dict-item]

    (claim,) = judged(study(), outcome)
    assert (claim.readings[PRECISE].outcome, claim.readings[BATCH].outcome) == ("untested", "contradicted")
    assert claim.readings[PRECISE].incomplete == ("seed 4: no value of none",)
    assert claim.verdict.outcome == "supported"


@pytest.mark.parametrize(
    ("comparison", "read"),
    [
        ({"shape": "worst", "over": "model.depth"}, True),
        ({"shape": "reach", "over": "model.depth", "margin": 2, "within": 0.05}, True),
        ({"shape": "reach", "over": "model.depth", "margin": 2}, False),  # of health alone: no accuracy is looked at
        ({"measure": "val_accuracy"}, False),
        ({"control_measure": "accuracy_precise"}, False),
    ],
)
def test_only_what_looks_at_test_accuracy_is_read_under_other_statistics(
    comparison: dict[str, Any], read: bool
) -> None:
    claims = judged(study(comparison, axes={"model.depth": [2, 4]}), with_statistics(two_arms(0.03)))
    assert [PRECISE in claim.readings for claim in claims] == [read] * len(claims)


def test_a_study_has_as_many_verdicts_as_it_says() -> None:
    axes: dict[str, list[Any]] = {"model.depth": [2, 4], "model.width": [8, 16, 32], **ACTS}
    spec: StudySpec = study(
        {}, {"shape": "worst", "over": "model.width"}, {"shape": "reach", "over": "lr", "margin": 3}, axes=axes
    )
    claims: list[ClaimVerdict] = judge_study(selected(spec, two_arms(0.03)), spec, declared=whole(spec))
    assert spec.num_verdicts("small") == len(claims) == 12 + 4 + 12
