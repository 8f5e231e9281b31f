"""Studies that add seeds in rounds: what each look sees, what stands, what stops, and how often all of it errs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import CHANCE, Ended, Outcome, Run, runs_of, selected, study, two_arms, whole, without
from scipy import stats as scipy_stats

from bnexp.analysis import verdicts
from bnexp.analysis.claims import ClaimVerdict, Declared, judge_study
from bnexp.analysis.contrasts import Arm, paired
from bnexp.analysis.rounds import LookRuns, Rounds, count_runs, judge_look, judge_rounds
from bnexp.analysis.rule import Rule
from bnexp.analysis.sequential import default_looks, frozen_looks, looks_of, plan_looks, settle, should_stop
from bnexp.analysis.verdicts import Verdict
from bnexp.records import RunRecord
from bnexp.store import Store
from bnexp.study import StudySpec

REPORTED = tuple(range(2, 12))  # ten
LOOKS = plan_looks([6, 8, 10])
LOUD = dict(zip(REPORTED, (1.0, -1.2, 0.3, 0.8, -0.9, 0.0, 1.4, -1.5, 0.6, -0.5), strict=True))


def ten(*comparisons: dict[str, Any], **options: Any) -> StudySpec:
    return study(*comparisons, seeds=REPORTED, **options)


def after(num: int, outcome: Outcome) -> Outcome:
    """When so many of the reported seeds have run."""
    return without(outcome, lambda run: run.seed in REPORTED[num:])


def runs_of_looks(spec: StudySpec, outcome: Outcome) -> list[LookRuns]:
    """Counted run by run."""
    grids = [[run for run in runs_of(spec) if run.seed not in REPORTED[look.num_pairs :]] for look in LOOKS]
    return [LookRuns(sum(outcome(run) is not None for run in grid), len(grid)) for grid in grids]


def rounds(spec: StudySpec, outcome: Outcome) -> Rounds:
    return judge_rounds(selected(spec, outcome), spec, whole(spec), LOOKS, runs_of_looks(spec, outcome))


def arms(effect: float, spread: float) -> Outcome:
    def outcome(run: Run) -> Ended:
        gain = effect + spread * LOUD.get(run.seed, 0.0) if run.arm == "batch" else 0.0
        return "finished", 0.7 + gain + 0.05 * (run.lr == 0.3)

    return outcome


@pytest.mark.parametrize(
    ("num", "looks"), [(6, (6,)), (7, (6, 7)), (8, (6, 8)), (9, (6, 8, 9)), (10, (6, 8, 10)), (13, (6, 8, 10, 12, 13))]
)
def test_default_looks_are_at_six_and_every_second_seed(num: int, looks: tuple[int, ...]) -> None:
    assert default_looks(num) == looks
    assert plan_looks(default_looks(num))[-1].last


def test_five_seeds_have_no_look() -> None:
    with pytest.raises(ValueError, match="6 pairs"):
        plan_looks(default_looks(5))


def test_what_is_decided_at_the_first_look_stops_there_whatever_ran_later() -> None:
    spec = ten()
    for num in (6, 7, 10):
        claims, number, stop = rounds(spec, after(num, arms(0.05, 0.005)))
        (claim,) = claims
        assert (claim.outcome, claim.look, claim.verdict.num_pairs, number, stop) == ("supported", 1, 6, 1, True)
        assert claim.verdict.undeclared == ()
        assert set(claim.values) == set(REPORTED[:6])
        effect = claim.verdict.effect
        assert effect is not None
        interval = scipy_stats.ttest_1samp(list(claim.values.values()), 0).confidence_interval(1 - LOOKS[0].alpha)
        assert (effect.deciding.low, effect.deciding.high) == pytest.approx((interval.low, interval.high))
        assert effect.level == pytest.approx(1 - LOOKS[0].alpha)


def test_what_is_open_goes_on_to_the_last_look() -> None:
    outcome = arms(0.0, 0.02)
    for num, at in ((6, 1), (8, 2), (10, 3)):
        claims, number, stop = rounds(ten(), after(num, outcome))
        (claim,) = claims
        assert (claim.outcome, claim.verdict.num_pairs, claim.look) == ("inconclusive", num, at)
        assert (number, stop) == (at, num == 10)


def test_the_first_decision_stands_for_each_comparison_and_stratum_by_itself() -> None:
    axes = {"model.activation": ["relu", "tanh"]}

    def outcome(run: Run) -> Ended:
        if run.at == ("tanh",):
            return arms(0.0, 0.02)(run)  # open to the end
        late = run.seed in REPORTED[6:]  # relu: clear at first, and the other way round later
        return arms(-0.5 if late else 0.05, 0.003)(run)

    spec = ten(axes=axes)
    claims, number, stop = rounds(spec, outcome)
    assert [(claim.stratum, claim.outcome, claim.look) for claim in claims] == [
        ("relu", "supported", 1), ("tanh", "inconclusive", 3),
    ]  # fmt: skip
    assert [claim.verdict.num_pairs for claim in claims] == [6, 10]
    assert (number, stop) == (3, True)
    plain = judge_study(selected(spec, outcome), spec, declared=whole(spec))
    assert plain[0].outcome != "supported"  # at all ten seeds it would not be


def test_a_look_is_judged_at_its_own_alpha() -> None:
    spec = ten()
    selection = selected(spec, arms(0.03, 0.0295))
    once = judge_study(selection, spec, declared=replace(whole(spec), seeds=REPORTED[:6]))
    assert once[0].verdict.effect is not None
    assert LOOKS[0].alpha == pytest.approx(0.03)
    assert 0.03 < once[0].verdict.effect.p < 0.05
    assert once[0].outcome == "supported, direction only"
    (first,) = judge_look(selection, spec, whole(spec), LOOKS[0])
    assert first.outcome == "inconclusive"
    (first,) = judge_look(selected(spec, arms(0.06, 0.0295)), spec, whole(spec), LOOKS[0])
    assert first.verdict.effect is not None
    values = [0.06 + 0.0295 * LOUD[seed] for seed in REPORTED[:6]]
    interval = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.97)
    found = first.verdict.effect.deciding
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_a_direction_alone_is_no_decision_to_stop_at() -> None:
    outcome = gains([*loud(0.022, 0.012)[:6], *loud(0.022, 0.001)[6:]], [])
    assert [claim.outcome for claim in judge_look(selected(ten(), outcome), ten(), whole(ten()), LOOKS[0])] == [
        "supported, direction only"
    ]
    claims, number, stop = rounds(ten(), after(6, outcome))
    assert (claims[0].outcome, claims[0].look, number, stop) == ("supported, direction only", 1, 1, False)
    # with more seeds its size is shown as well
    claims, number, stop = rounds(ten(), outcome)
    assert (claims[0].outcome, claims[0].look, number, stop) == ("supported", 2, 2, True)


def test_a_look_chooses_rates_from_its_own_seeds() -> None:
    spec = ten()

    def outcome(run: Run) -> Ended:  # what runs later is best at another rate, by far
        late = run.seed in REPORTED[6:]
        best = 1.0 if late else 0.3
        gain = run.lr * (0.02 + 0.001 * run.seed) if run.arm == "batch" else 0.0
        return "finished", 0.2 + (0.7 if late else 0.1) * (run.lr == best) + gain

    (whole_study,) = judge_look(selected(spec, outcome), spec, whole(spec), LOOKS[0])
    (alone,) = judge_look(selected(spec, after(6, outcome)), spec, whole(spec), LOOKS[0])
    assert whole_study == alone


@pytest.mark.parametrize(
    "lost",
    [
        lambda run: run.arm == "none" and run.seed == REPORTED[7],  # one run of the second look crashed
        lambda run: run.lr == 1.0 and run.seed == REPORTED[7],  # of a rate that nothing is reported at
        lambda run: run.arm == "none" and run.seed in REPORTED[6:],  # no more than another study has run
        lambda run: run.seed == REPORTED[6],
    ],
)
def test_the_last_complete_look_stands_where_the_next_one_lacks_runs(lost: Any) -> None:
    def outcome(run: Run) -> Ended:  # open at six seeds, and far from it with the seeds that follow
        late = run.arm == "batch" and run.seed in REPORTED[6:]
        return ("finished", 0.9) if late else arms(0.0, 0.02)(run)

    claims, number, stop = rounds(ten(), without(outcome, lost))
    at_six = rounds(ten(), after(6, arms(0.0, 0.02)))
    assert (number, stop) == (at_six.number, at_six.stop) == (1, False)  # the runs of the second look come next
    assert claims == at_six.claims
    assert [(claim.outcome, claim.look) for claim in claims] == [("inconclusive", 1)]


def test_a_failed_run_is_data_and_no_look_waits_for_it() -> None:
    fails = without(arms(0.0, 0.02), lambda run: run.arm == "none" and run.seed == REPORTED[7], "collapsed")
    claims, number, stop = rounds(ten(), fails)
    assert (claims[0].look, number, stop) == (3, 3, True)


def test_what_was_decided_stands_where_a_later_look_lacks_runs() -> None:
    def outcome(run: Run) -> Ended:
        return arms(0.05, 0.003)(run) if run.at == ("relu",) else arms(0.0, 0.02)(run)

    lost = without(outcome, lambda run: run.arm == "none" and run.seed == REPORTED[9])
    claims, number, stop = rounds(ten(axes={"model.activation": ["relu", "tanh"]}), lost)
    assert [(claim.outcome, claim.look) for claim in claims] == [("supported", 1), ("inconclusive", 2)]
    assert (number, stop) == (2, False)


@pytest.mark.parametrize("lacking", [lambda run: run.seed == REPORTED[2] and run.arm == "none",
                                     lambda run: run.seed == REPORTED[2] and run.lr == 1.0,
                                     lambda run: run.seed == REPORTED[5]])  # fmt: skip
def test_a_first_look_that_lacks_runs_is_untested_and_nothing_later_is_judged(lacking: Any) -> None:
    claims, number, stop = rounds(ten(), without(arms(0.05, 0.003), lacking))
    assert [(claim.outcome, claim.verdict.effect, claim.look) for claim in claims] == [("untested", None, 1)]
    assert [claim.readings for claim in claims if not claim.verdict.incomplete] in ([], [{}])
    assert (number, stop) == (0, False)


def test_strata_of_which_nothing_has_run_are_waited_for() -> None:
    spec = ten(axes={"model.activation": ["relu", "tanh"]})
    claims, number, stop = rounds(spec, without(arms(0.05, 0.003), lambda run: run.at == ("tanh",)))
    assert [(claim.stratum, claim.outcome) for claim in claims] == [("", "untested"), ("1 more stratum", "untested")]
    assert (number, stop) == (0, False)


def test_a_measure_without_a_value_is_not_waited_for() -> None:
    spec = ten({}, {"measure": "shift_l2", "margin": 0.1})

    def outcome(run: Run) -> Ended:
        ended: Any = arms(0.05, 0.003)(run)
        shift = math.nan if run.seed == REPORTED[1] and run.arm == "none" else 1.0
        return "finished", {"accuracy": ended[1], "shift_l2": shift}

    claims, number, stop = rounds(spec, outcome)
    assert [(claim.outcome, claim.look) for claim in claims] == [("supported", 1), ("untested", 1)]
    assert (number, stop) == (1, True)  # no seed that is added gives that one a value
    untested, still_open = (Verdict(outcome, "", None, 6) for outcome in ("untested", "inconclusive"))
    assert not should_stop(LOOKS[0], {"a": untested, "b": still_open})
    assert should_stop(LOOKS[2], {"a": untested, "b": still_open})
    assert settle({"a": untested}, {"a": still_open}) == {"a": still_open}


def test_an_invalid_study_stops() -> None:
    claims, number, stop = rounds(ten(), lambda run: ("diverged", CHANCE))
    assert ([claim.outcome for claim in claims], number, stop) == (["invalid"], 1, True)


def test_the_seeds_of_each_look_choose_its_rates_and_later_ones_have_no_say() -> None:
    def outcome(run: Run) -> Ended:  # the treatment is best at 0.3 by six seeds or eight, and at 1.0 by all ten
        late = run.seed in REPORTED[8:]
        gain = {0.1: -0.2, 0.3: 0.1, 1.0: 0.6 if late else 0.0}[run.lr]
        return "finished", 0.3 + (gain + 0.02 * LOUD[run.seed] if run.arm == "batch" else -0.1 * (run.lr != 0.3))

    spec = ten()
    selection = selected(spec, outcome)
    for look, best in zip(LOOKS, (0.3, 0.3, 1.0), strict=True):
        (claim,) = judge_look(selection, spec, whole(spec), look)
        kept = REPORTED[: look.num_pairs]
        gains = {seed: (0.1 if best == 0.3 else 0.6 * (seed in REPORTED[8:])) + 0.02 * LOUD[seed] for seed in kept}
        assert claim.values == pytest.approx(gains)
        assert claim.contrast is not None
        assert claim.contrast.choice is not None
        assert claim.contrast.choice.chosen == {("batch", ""): best, ("none", ""): 0.3}


CLAIM = {"treatment": "noisy", "control": "group", "direction": "lower"}
PREMISE = {"treatment": "batch", "control": "none", "role": "premise"}
UNRELATED = ("none", "batch", "group", "noisy")  # the premise shares no arm with the claim


def gains(premise: Sequence[float], claim: Sequence[float]) -> Outcome:
    """What batch gains over none and noisy over group, by reported seed."""

    def outcome(run: Run) -> Ended:
        gain = {"batch": premise, "noisy": claim}.get(run.arm)
        return "finished", 0.5 + (gain[REPORTED.index(run.seed)] if gain is not None and run.seed in REPORTED else 0.0)

    return outcome


def loud(mean: float, spread: float) -> list[float]:
    return [mean + spread * LOUD[seed] for seed in REPORTED]


CLEAR_AND_THEN_NOT = [*loud(0.05, 0.005)[:6], *[-0.05] * 4]
CLEAR_AT_THE_END = [*loud(-0.055, 0.055)[:6], *loud(-0.055, 0.001)[6:]]


def p_of(values: Sequence[float], beyond: float = 0.01) -> float:
    """Two-sided p that the mean is not so far from 0."""
    sign = np.sign(np.mean(values))
    return 2 * float(scipy_stats.ttest_1samp(sign * np.array(values), beyond, alternative="greater").pvalue)


def test_a_premise_that_an_earlier_look_supported_is_not_asked_again() -> None:
    assert p_of(CLEAR_AND_THEN_NOT[:6]) < LOOKS[0].alpha / 2
    assert p_of(CLEAR_AND_THEN_NOT, 0.0) > 0.5  # judged again it would be open
    at_looks = zip((p_of(CLEAR_AT_THE_END[: look.num_pairs]) <= look.alpha / 2 for look in LOOKS), LOOKS, strict=True)
    assert [clear for clear, _ in at_looks] == [False, False, True]
    assert all(p_of(CLEAR_AT_THE_END[: look.num_pairs], 0.0) > look.alpha / 2 for look in LOOKS[:2])
    spec = ten(CLAIM, PREMISE, arms=UNRELATED, rates=(0.1,))
    claims, number, stop = rounds(spec, gains(CLEAR_AND_THEN_NOT, CLEAR_AT_THE_END))
    assert [(claim.outcome, claim.look) for claim in claims] == [("supported", 3), ("supported", 1)]
    assert (number, stop) == (3, True)


def test_a_claim_waits_for_its_premise_and_keeps_its_own_first_decision() -> None:
    mirrored = [-value for value in CLEAR_AT_THE_END]
    outcome = gains(mirrored, [-value for value in CLEAR_AND_THEN_NOT])
    spec = ten(CLAIM, PREMISE, arms=UNRELATED, rates=(0.1,))
    early = rounds(spec, after(8, outcome))
    assert [(claim.outcome, claim.look) for claim in early.claims] == [("inconclusive", 1), ("inconclusive", 2)]
    assert not early.stop
    assert "its premise is inconclusive" in early.claims[0].verdict.reason
    claims, _, stop = rounds(spec, outcome)
    assert [(claim.outcome, claim.look) for claim in claims] == [("supported", 1), ("supported", 3)]
    assert claims[0].verdict.num_pairs == 6
    assert stop


def test_a_premise_of_which_the_direction_alone_is_shown_is_waited_for() -> None:
    sized_later = [*loud(0.022, 0.012)[:6], *loud(0.022, 0.0001)[6:]]
    assert p_of(sized_later[:6], 0.0) < LOOKS[0].alpha / 2
    spec = ten(CLAIM, PREMISE, arms=UNRELATED, rates=(0.1,))
    outcome = gains(sized_later, loud(-0.05, 0.005))
    early = rounds(spec, after(6, outcome))
    assert [claim.outcome for claim in early.claims] == ["inconclusive", "supported, direction only"]
    assert "its premise is supported, direction only" in early.claims[0].verdict.reason
    assert not early.stop
    claims, _, stop = rounds(spec, outcome)
    assert [(claim.outcome, claim.look) for claim in claims] == [("supported", 1), ("supported", 2)]
    assert stop


def test_a_claim_without_its_premise_is_decided_at_the_look_that_decides_the_premise() -> None:
    spec = ten(CLAIM, PREMISE, arms=UNRELATED, rates=(0.1,), axes={"model.activation": ["relu", "tanh"]})
    open_claim = loud(0.0, 0.03)

    def outcome(run: Run) -> Ended:
        return gains(loud(0.0, 0.001) if run.at == ("relu",) else open_claim, open_claim)(run)

    claims = rounds(spec, outcome).claims
    assert {(claim.stratum, claim.comparison.role): (claim.outcome, claim.look) for claim in claims} == {
        ("relu", "claim"): ("invalid", 1), ("relu", "premise"): ("negligible", 1),
        ("tanh", "claim"): ("inconclusive", 3), ("tanh", "premise"): ("inconclusive", 3),
    }  # fmt: skip
    alone = ten(CLAIM, PREMISE, arms=UNRELATED, rates=(0.1,))
    assert rounds(alone, gains(loud(0.0, 0.001), open_claim))[1:] == (1, True)  # no seed makes it valid


def test_more_seeds_than_are_declared_cannot_be_looked_at() -> None:
    spec = study()  # eight reported
    with pytest.raises(ValueError, match="up to 10 of 8"):
        judge_rounds(selected(spec, two_arms(0.0)), spec, whole(spec), LOOKS, [LookRuns(1, 1)] * 3)


def test_runs_of_a_look_are_those_that_ended_with_all_that_is_measured_of_them(tmp_path: Path) -> None:
    spec, store = ten(rates=[0.1]), Store(tmp_path)

    def leave(run: Run, status: Any = "finished", probes: tuple[str, ...] = ("shift", "statistics", "cost")) -> None:
        execution = {"probes": {probe: {} for probe in probes}}
        store.write_record(RunRecord(f"{run}", "cell", status, {"seed": run.seed}, execution))

    def counts() -> list[tuple[int, int]]:
        return [tuple(one) for one in count_runs(store, names, spec, whole(spec), LOOKS)]  # type: ignore[misc]

    names = [f"{run}" for run in runs_of(spec)]  # two arms of ten seeds
    assert counts() == [(0, 12), (0, 16), (0, 20)]
    for run in runs_of(spec):
        leave(run)
    assert counts() == [(12, 12), (16, 16), (20, 20)]
    assert [one.complete for one in count_runs(store, names, spec, whole(spec), LOOKS)] == [True] * 3
    leave(Run("none", 0.1, REPORTED[6]), "failed")
    leave(Run("none", 0.1, REPORTED[7]), "diverged")
    leave(Run("batch", 0.1, REPORTED[9]), probes=("shift",))
    assert counts() == [(12, 12), (15, 16), (18, 20)]
    leave(Run("none", 0.1, REPORTED[0]), "failed")
    assert counts() == [(11, 12), (14, 16), (17, 20)]


def test_looks_are_those_that_a_study_was_started_with() -> None:
    assert looks_of(frozen_looks([6, 8, 10])) == LOOKS
    assert looks_of({"looks": [6, 8, 10]}) == LOOKS  # of a folder that says nothing of levels
    assert looks_of({}) == ()
    other = looks_of({"looks": [6, 10], "spending": {"alpha": 0.1, "rho": 2.0}})  # whatever the defaults are by now
    assert [look.alpha for look in other] == pytest.approx([0.1 * 0.36, 0.1 * 0.64])


@pytest.mark.parametrize("spending", [True, False])
def test_a_study_of_arms_that_are_the_same_errs_in_one_of_twenty_over_all_its_looks(
    spending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two comparisons of equal arms, eight looks: any error in any of them counts.

    300 studies that err in 5 % show at most 8 % of errors, 99 times of 100. Looking eight times at 5 % errs in more.
    """
    num_studies, reported = 300, tuple(range(20))
    spec = study({}, {"treatment": "group"}, arms=("none", "batch", "group"), rates=[0.1], seeds=reported)
    selection = selected(spec, lambda run: ("finished", 0.5))
    looks = plan_looks(default_looks(20))
    looks = looks if spending else tuple(replace(look, alpha=0.05) for look in looks)
    scores: dict[str, dict[int, float]] = {}

    # finding the runs and what is only shown take nearly all of the time, and are tested elsewhere
    def judge(selection: Any, study: StudySpec, *, declared: Declared, alpha: float) -> list[ClaimVerdict]:
        arms = {arm: Arm(arm, {seed: scores[arm][seed] for seed in declared.seeds}) for arm in scores}
        rule = Rule("higher", 1e-4, alpha=alpha)
        family = {
            c.treatment: verdicts.Comparison(paired(arms[str(c.treatment)], arms["none"]), rule)
            for c in study.comparisons
        }
        judged = verdicts.judge_family({str(name): case for name, case in family.items()})
        return [ClaimVerdict(comparison, "", judged[str(comparison.treatment)]) for comparison in study.comparisons]

    monkeypatch.setattr("bnexp.analysis.rounds.judge_comparisons", judge)
    monkeypatch.setattr(verdicts, "_needed", lambda *arguments: None)
    rng, errors = np.random.default_rng(0), 0
    for _ in range(num_studies):
        scores |= {arm: dict(enumerate(rng.standard_normal(20))) for arm in spec.arms}
        claims, _, stop = judge_rounds(selection, spec, whole(spec), looks, [LookRuns(1, 1)] * len(looks))
        assert stop
        errors += any(claim.outcome.startswith(("supported", "contradicted")) for claim in claims)
    assert (errors <= scipy_stats.binom.ppf(0.99, num_studies, 0.05)) == spending, f"{errors} of {num_studies} erred"
