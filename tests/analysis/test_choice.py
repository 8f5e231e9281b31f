"""The ends of a comparison whose arms chose their rates: held against loops by hand, scipy, and arms that are equal."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bnexp.analysis import choice
from bnexp.analysis.choice import (
    STRICT,
    Term,
    chosen_rates,
    ends_of_choice,
    guards_of,
    plausible_rates,
    resampling_weights,
    same_choice,
)
from bnexp.analysis.rule import Rule, decide, ends_of, weigh
from bnexp.analysis.significance import holm
from bnexp.analysis.spread import Spread
from bnexp.analysis.worlds import TunedWorld, judge_studies

HARD = (-1.5, -1.5, 0.0, -1.5)
NUM_STUDIES = 2_000
BOUND = scipy_stats.binom.ppf(0.99, NUM_STUDIES, 0.05) / NUM_STUDIES
NO_FAILURE = np.array([False])


def term(weight: float, votes: np.ndarray, scores: np.ndarray, failed: np.ndarray | None = None) -> Term:
    """One study of (seeds, rates)."""
    flags = np.zeros(votes.shape, dtype=bool) if failed is None else failed
    return Term(weight, votes[None], scores[None], flags[None])


def drawn(seed: int, weight: float, means: tuple[float, ...], num_seeds: int = 8) -> Term:
    rng = np.random.default_rng(seed)
    scores = np.array(means) + rng.standard_normal((num_seeds, len(means)))
    return term(weight, scores + 0.5 * rng.standard_normal(scores.shape), scores)


def by_hand(one: Term, other: Term) -> tuple[float, float]:
    """The 95 % interval of one − other for a single study without failures, written as loops over plain lists."""
    num_seeds, num_rates = one.votes.shape[1:]
    seeds, rates = range(num_seeds), range(num_rates)
    draws = np.random.default_rng(0).integers(0, num_seeds, size=(1_000, num_seeds))
    arms = {}
    for name, arm in (("one", one), ("other", other)):
        votes, scores = arm.votes[0], arm.scores[0]
        best = max(rates, key=lambda r: sum(votes[s, r] for s in seeds))
        kept = []
        for r in rates:
            ahead = [votes[s, best] - votes[s, r] for s in seeds]
            p = 1.0 if r == best else scipy_stats.ttest_1samp(ahead, 0.0, alternative="greater").pvalue
            if p > STRICT:
                kept.append(r)
        usual = [np.mean([np.mean([scores[s, r] for s in draw]) for draw in draws]) for r in rates]
        validated, hindsight = [], []
        for draw in draws:
            means = [np.mean([scores[s, r] for s in draw]) for r in rates]
            vote_means = [np.mean([votes[s, r] for s in draw]) for r in rates]
            i, j = int(np.argmax(vote_means)), int(np.argmax(means))
            validated.append(means[i] - usual[i])
            hindsight.append(means[j] - usual[j])
        arms[name] = best, kept, np.mean(validated), np.mean(hindsight)
    best, kept, curse, luck = arms["one"]
    other_best, other_kept, other_curse, other_luck = arms["other"]
    half = scipy_stats.t.ppf(0.975, num_seeds - 1) / math.sqrt(num_seeds)
    low, high = math.inf, -math.inf
    for r in other_kept:
        values = [one.scores[0, s, best] - other.scores[0, s, r] for s in seeds]
        low = min(low, np.mean(values) - half * np.std(values, ddof=1))
    for r in kept:
        values = [one.scores[0, s, r] - other.scores[0, s, other_best] for s in seeds]
        high = max(high, np.mean(values) + half * np.std(values, ddof=1))
    return low - max(0.0, curse - other_luck), high + max(0.0, other_curse - luck)


@pytest.mark.parametrize("means", [(0.0, 0.0, 0.0), (-1.5, 0.0, -3.0), (0.0, -0.3, -6.0)])
def test_the_interval_is_that_of_loops_by_hand(means: tuple[float, ...]) -> None:
    one, other = drawn(1, 1.0, means), drawn(2, -1.0, (0.0, 0.0, 0.0))
    ends, _, _ = ends_of_choice([one, other], failed=NO_FAILURE)
    low, high = ends.interval(0.05)
    assert (low[0], high[0]) == pytest.approx(by_hand(one, other))


def test_rows_are_judged_as_each_alone() -> None:
    studies = TunedWorld("failing", HARD, (0.0, 0.0, 0.0, 0.0)).draw(np.random.default_rng(3), 12, 7)
    low, high = studies.ends().interval(0.05)
    for row in range(12):
        alone = studies.rows(slice(row, row + 1)).ends().interval(0.05)
        assert (alone[0][0], alone[1][0]) == pytest.approx((low[row], high[row]))


def test_one_rate_is_a_plain_t_test() -> None:
    one, other = drawn(1, 1.0, (0.5,)), drawn(2, -1.0, (0.0,))
    ends, low_rates, high_rates = ends_of_choice([one, other], failed=NO_FAILURE)
    plain = ends_of((one.scores - other.scores)[:, :, 0], failed=NO_FAILURE)
    assert np.array(ends.interval(0.05)) == pytest.approx(np.array(plain.interval(0.05)))
    expected = scipy_stats.ttest_rel(one.scores[0, :, 0], other.scores[0, :, 0]).pvalue
    assert weigh(ends, Rule("higher", 1.0)).direction[0] == pytest.approx(expected)
    assert low_rates == high_rates == [(0, 0)]
    assert same_choice([one, other])[0] == 1.0


def test_swapping_the_arms_mirrors_the_interval() -> None:
    one, other = drawn(1, 1.0, (0.0, -0.4, -2.0)), drawn(2, -1.0, (-0.2, 0.0, -1.0))
    low, high = ends_of_choice([one, other], failed=NO_FAILURE)[0].interval(0.05)
    swapped = [term(-1.0, one.votes[0], one.scores[0]), term(1.0, other.votes[0], other.scores[0])]
    mirrored = ends_of_choice(swapped, failed=NO_FAILURE)[0].interval(0.05)
    assert (mirrored[0][0], mirrored[1][0]) == pytest.approx((-high[0], -low[0]))


def test_a_plainly_worse_rate_changes_nothing() -> None:
    one, other = drawn(1, 1.0, (0.0, -0.3)), drawn(2, -1.0, (0.0, -0.3))
    plain = ends_of_choice([one, other], failed=NO_FAILURE)[0].interval(0.05)

    def with_a_bad_rate(arm: Term) -> Term:
        bad = -50 + drawn(9, 1.0, (0.0,)).scores[0]
        return term(arm.weight, np.hstack([arm.votes[0], bad]), np.hstack([arm.scores[0], bad]))

    wider = ends_of_choice([with_a_bad_rate(one), with_a_bad_rate(other)], failed=NO_FAILURE)[0].interval(0.05)
    assert np.array(wider) == pytest.approx(np.array(plain))


def test_a_rate_that_may_be_as_good_widens_the_other_end_alone() -> None:
    one = drawn(1, 1.0, (0.0, -9.0))
    control = drawn(2, -1.0, (0.0,))
    alone = ends_of_choice([one, control], failed=NO_FAILURE)[0].interval(0.05)
    # validation has it a hair's breadth behind, but not surely; test has it half a point ahead
    votes = np.hstack([control.votes[0], control.votes[0] - 0.01 + 0.2 * np.array([1, -1] * 4)[:, None]])
    both = term(-1.0, votes, np.hstack([control.scores[0], control.scores[0] + 0.5]))
    joined = ends_of_choice([one, both], failed=NO_FAILURE)[0].interval(0.05)
    assert joined[0][0] == pytest.approx(alone[0][0] - 0.5)
    assert joined[1][0] == pytest.approx(alone[1][0], abs=0.1)  # but for the guard, since the control has a choice now


def test_ties_go_to_the_first_rate_and_leave_every_tied_one_plausible() -> None:
    votes = np.tile([[0.9, 0.95, 0.95]], (6, 1))[None]
    assert chosen_rates(votes)[0] == 1
    assert plausible_rates(votes, STRICT)[0].tolist() == [False, True, True]
    assert plausible_rates(votes[:, :1], STRICT)[0].all()  # a single seed rules nothing out


@pytest.mark.parametrize("level", [0.01, 0.1])
def test_a_rate_is_ruled_out_at_the_level_of_a_paired_t_test(level: float) -> None:
    rng = np.random.default_rng(5)
    votes = np.array([0.0, -0.5, -1.0, -1.5]) + rng.standard_normal((300, 7, 4))
    found = plausible_rates(votes, level)
    for row, at in enumerate(chosen_rates(votes)):
        for rate in range(4):
            ahead = votes[row, :, at] - votes[row, :, rate]
            p = 1.0 if rate == at else scipy_stats.ttest_1samp(ahead, 0.0, alternative="greater").pvalue
            assert found[row, rate] == (p > level)
    assert 0.1 < found.mean() < 0.95


def test_resamples_draw_whole_seeds_with_replacement() -> None:
    weights = resampling_weights(7)
    assert weights.sum(axis=1) == pytest.approx(np.ones(len(weights)))
    assert np.allclose(weights * 7, np.round(weights * 7))
    assert weights.mean() == pytest.approx(1 / 7)
    assert (weights * 7).var() == pytest.approx(6 / 7, rel=0.1)  # of a binomial: 7 draws, each a seventh


def test_the_guard_takes_off_what_a_choice_among_equals_flatters() -> None:
    # equal rates, one of which is chosen by its own luck, against an arm with nothing to choose
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((400, 10, 4))
    chooser = Term(1.0, scores, scores, np.zeros(scores.shape, dtype=bool))
    fixed = Term(-1.0, scores[:, :, :1], scores[:, :, :1], np.zeros((400, 10, 1), dtype=bool))
    guards = guards_of([chooser, fixed])
    flattered = np.take_along_axis(scores.mean(axis=1), chosen_rates(scores)[:, None], axis=1).mean()
    expected = math.sqrt(1 / 10) * 1.029  # the mean of the largest of four normals
    assert flattered == pytest.approx(expected, abs=0.03)
    # a resample's spread is that of the data, so it meets about the curse that the data had: less, for means differ
    assert 0.4 * expected < guards.lower.mean() < expected
    assert guards.upper == pytest.approx(np.zeros(400))


def test_two_arms_that_choose_alike_need_hardly_any_guard() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((2, 200, 10, 4))
    flags = np.zeros((200, 10, 4), dtype=bool)
    guards = guards_of([Term(1.0, scores[0], scores[0], flags), Term(-1.0, scores[1], scores[1], flags)])
    flattered = math.sqrt(1 / 10) * 1.029  # the mean of the largest of four normals
    assert guards.lower.mean() < 0.2 * flattered
    assert guards.upper.mean() < 0.2 * flattered


def test_a_failed_seed_is_raised_for_the_arm_to_be_beaten_and_not_for_the_other() -> None:
    scores = np.array([[0.9], [0.92], [0.88], [0.1], [0.91], [0.89]])
    failed = scores < 0.5
    healthy = np.array([[0.90], [0.91], [0.90], [0.89], [0.92], [0.90]])
    one, other = term(1.0, healthy, healthy), term(-1.0, scores, scores, failed)
    ends, _, _ = ends_of_choice([one, other], failed=np.array([True]))
    raised = scores.copy()
    raised[3] = scores[~failed].mean()
    assert ends.lower_values[0, 0] == pytest.approx((healthy - raised)[:, 0])
    assert ends.mean[0] == pytest.approx((healthy - scores).mean())  # the estimate keeps the failure
    mirrored, _, _ = ends_of_choice([term(-1.0, healthy, healthy), term(1.0, scores, scores, failed)],
                                    failed=np.array([True]))  # fmt: skip
    assert mirrored.lower_values[0, 0] == pytest.approx((scores - healthy)[:, 0])
    assert ends.guarded[0]


def test_where_every_run_of_a_rate_failed_nothing_is_raised() -> None:
    scores = np.column_stack([np.full(6, 0.1), np.linspace(0.88, 0.92, 6)])
    arm = term(-1.0, scores, scores, scores < 0.5)
    assert arm.raised[0] == pytest.approx(scores)


def test_a_weighted_sum_of_four_arms_is_its_interaction() -> None:
    terms = [drawn(seed, weight, (0.5,)) for seed, weight in ((1, 1.0), (2, -1.0), (3, -1.0), (4, 1.0))]
    ends, _, _ = ends_of_choice(terms, failed=NO_FAILURE)
    values = sum(one.weight * one.scores[0, :, 0] for one in terms)
    expected = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    low, high = ends.interval(0.05)
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high))


def test_the_ends_name_the_rates_that_they_are_read_at() -> None:
    one, other = drawn(1, 1.0, (0.0, 0.0)), drawn(2, -1.0, (0.0, 0.0, 0.0))
    ends, low_rates, high_rates = ends_of_choice([one, other], failed=NO_FAILURE)
    own = int(chosen_rates(one.votes)[0]), int(chosen_rates(other.votes)[0])
    assert {at[0] for at in low_rates} == {own[0]}
    assert {at[1] for at in high_rates} == {own[1]}
    assert ends.lower.mean.shape == (1, len(low_rates))
    for at, values in zip(low_rates, ends.lower_values[0], strict=True):
        guard = guards_of([one, other]).lower[0]
        assert values == pytest.approx(one.scores[0, :, at[0]] - other.scores[0, :, at[1]] - guard)


def test_a_spread_of_ones_own_is_asked_at_the_rates_of_each_reading() -> None:
    one, other = drawn(1, 1.0, (0.0, 0.0)), drawn(2, -1.0, (0.0, 0.0))
    asked = []

    def spread(at: tuple[int, ...], values: np.ndarray) -> Spread:
        asked.append(at)
        return Spread(values.mean(axis=1)[:, None], np.full((1, 1), 2.0), np.full((1, 1), 3.0))

    ends, low_rates, high_rates = ends_of_choice([one, other], failed=NO_FAILURE, spread=spread)
    assert asked == low_rates + high_rates
    assert (ends.lower.error == 2.0).all()
    assert (ends.upper.degrees == 3.0).all()


def test_of_too_many_combinations_those_about_the_farthest_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [drawn(seed, sign, (0.0,) * 4, 6) for seed, sign in enumerate((1.0, -1.0, -1.0, -1.0))]
    every = ends_of_choice(few, failed=NO_FAILURE)[0].interval(0.05)
    monkeypatch.setattr(choice, "MOST_READINGS", 20)  # of 64
    ends, rates, _ = ends_of_choice(few, failed=NO_FAILURE)
    assert len(rates) < 20
    low, high = ends.interval(0.05)
    width = every[1][0] - every[0][0]
    assert 0 <= low[0] - every[0][0] < 0.05 * width
    assert 0 <= every[1][0] - high[0] < 0.05 * width


def test_failures_that_another_rate_of_an_arm_has_are_in_its_own_end() -> None:
    """An arm that fails at random, at every rate, chooses a lucky rate: truly it is as good, and it looks better."""
    rng = np.random.default_rng(5)
    shape, chance, worlds = (300, 10, 4), 0.07, 300
    failed = rng.random(shape) < chance
    scores = np.where(failed, -80.0, 80 * chance / (1 - chance) + rng.standard_normal(shape))
    control = rng.standard_normal(shape)
    terms = [Term(1.0, scores, scores, failed), Term(-1.0, control, control, np.zeros(shape, bool))]
    low, high = ends_of_choice(terms, failed=np.ones(worlds, bool), least_behind=5.0)[0].interval(0.05)
    with_others = ((low <= 0) & (high >= 0)).mean()
    own = scores[np.arange(worlds)[:, None], np.arange(10), chosen_rates(scores)[:, None]] - control[:, :, 0]
    half = scipy_stats.t.isf(0.025, 9) * own.std(axis=1, ddof=1) / math.sqrt(10)
    alone = (own.mean(axis=1) - half <= 0).mean()  # the chosen rate by itself
    one = scores[:, :, 0] - control[:, :, 0]
    half = scipy_stats.t.isf(0.025, 9) * one.std(axis=1, ddof=1) / math.sqrt(10)
    fixed = (one.mean(axis=1) - half <= 0).mean()  # a rate that nobody chose
    assert alone < 0.3
    assert with_others > fixed - 0.05


@pytest.mark.parametrize("num_seeds", [6, 10])
@pytest.mark.parametrize("ladder", [(0.0, 0.0, 0.0, 0.0), HARD])
def test_equal_arms_are_hardly_ever_called_different(ladder: tuple[float, ...], num_seeds: int) -> None:
    studies = TunedWorld("gaussian", ladder, ladder).draw(np.random.default_rng(1), NUM_STUDIES, num_seeds)
    judged = judge_studies(studies, Rule("higher", 1.0))[0]
    assert (judged.direction <= 0.05).mean() <= BOUND
    assert ((judged.low <= 0) & (judged.high >= 0)).mean() >= 0.93


def test_a_t_test_at_the_chosen_rates_would_call_equal_arms_different_too_often() -> None:
    # what the choice costs if nobody asks about it, and proof that these simulations can see an excess
    studies = TunedWorld("gaussian", (0.0, 0.0, 0.0, 0.0), HARD).draw(np.random.default_rng(1), NUM_STUDIES, 10)
    arms = [np.take_along_axis(arm.scores, chosen_rates(arm.votes)[:, None, None], axis=2)[:, :, 0]
            for arm in (studies.treatment, studies.control)]  # fmt: skip
    p = scipy_stats.ttest_rel(arms[0], arms[1], axis=1).pvalue
    assert (p <= 0.05).mean() > BOUND
    assert (judge_studies(studies, Rule("higher", 1.0))[0].direction <= 0.05).mean() <= BOUND


def test_an_effect_of_the_margin_is_hardly_ever_called_negligible_and_often_found() -> None:
    rule = Rule("higher", 1.0)
    studies = TunedWorld("gaussian", HARD, HARD).draw(np.random.default_rng(1), NUM_STUDIES, 10)
    one, two = judge_studies(studies, rule, gains=(1.0, 2.0))
    assert (one.equivalence <= 0.05).mean() <= BOUND
    assert 0.55 < ((one.direction <= 0.05) & (one.side > 0)).mean() < 0.75
    assert ((two.direction <= 0.05) & (two.side > 0)).mean() > 0.97


def test_families_of_equal_arms_err_no_more_often() -> None:
    studies = TunedWorld("gaussian", HARD, HARD).draw(np.random.default_rng(2), 6 * 500, 10)
    p = judge_studies(studies, Rule("higher", 1.0))[0].direction.reshape(500, 6)
    bound = scipy_stats.binom.ppf(0.99, 500, 0.05) / 500
    assert np.mean([min(holm(family)) <= 0.05 for family in p.tolist()]) <= bound
    assert (p.min(axis=1) <= 0.05).mean() > bound  # what the correction is for


@pytest.mark.parametrize(("gain", "word"), [(2.5, "supported"), (-2.5, "contradicted"), (0.0, "negligible")])
def test_the_rule_reads_the_ends(gain: float, word: str) -> None:
    rng = np.random.default_rng(0)
    scores = 0.3 * rng.standard_normal((2, 10, 3)) + np.array([0.0, -2.0, -2.0])
    one, other = term(1.0, scores[0] + gain, scores[0] + gain), term(-1.0, scores[1], scores[1])
    evidence = weigh(ends_of_choice([one, other], failed=NO_FAILURE)[0], Rule("higher", 1.0))
    assert decide(evidence, Rule("higher", 1.0), num_pairs=10)[0] == word


def test_every_combination_of_the_other_sides_rates_is_read() -> None:
    terms = [drawn(1, 1.0, (0.0, 0.0)), drawn(2, -1.0, (0.0, 0.0)), drawn(3, -1.0, (0.0, 0.0, 0.0))]
    _, low_rates, _ = ends_of_choice(terms, failed=NO_FAILURE)
    own = int(chosen_rates(terms[0].votes)[0])
    plausible = [np.flatnonzero(plausible_rates(arm.votes, STRICT)[0]).tolist() for arm in terms[1:]]
    assert low_rates == [(own, *at) for at in product(*plausible)]
