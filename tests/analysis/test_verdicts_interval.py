"""One interval decides: every outcome is read off the one that is printed, alone and in Holm families."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from bnexp.analysis import verdicts
from bnexp.analysis.contrasts import Contrast
from bnexp.analysis.rule import Rule
from bnexp.analysis.verdicts import Comparison, Effect, Verdict, judge, judge_family

DIRECTIONS = ("higher", "lower", "same", "not lower")
NOISE = np.array([0.004, -0.006, 0.001, 0.009, -0.003, -0.008, 0.005, -0.002])  # its mean is 0
HIGHER = Rule("higher", 0.01)
ABSENT = Comparison(Contrast({}, missing=("seed 0: no batch",)), HIGHER)


def contrast(mean: float, spread: float = 1.0) -> Contrast:
    return Contrast(dict(enumerate((mean + spread * NOISE).tolist())))


def with_p(p: float, mean: float) -> Contrast:
    """Numbers of this mean whose two-sided t test against 0 has this p."""
    error = mean / scipy_stats.t.isf(p / 2, 7)
    return contrast(mean, error * math.sqrt(8) / float(NOISE.std(ddof=1)))


def effect_of(verdict: Verdict) -> Effect:
    assert verdict.effect is not None
    return verdict.effect


def t_interval(values: list[float], level: float) -> tuple[float, float]:
    low, high = scipy_stats.t.interval(level, len(values) - 1, np.mean(values), scipy_stats.sem(values))
    return float(low), float(high)


def read(low: float, high: float, direction: str, margin: float) -> str:
    """What anybody reads off an interval."""
    inside, beyond = -margin < low and high < margin, low >= margin or high <= -margin
    match direction:
        case "not lower":
            return "supported" if low > -margin else "contradicted" if high <= -margin else "inconclusive"
        case "same":
            return "supported" if inside else "contradicted" if beyond else "inconclusive"
    if inside:
        return "negligible"
    if low <= 0 <= high:
        return "inconclusive"
    word = "supported" if (low > 0) == (direction == "higher") else "contradicted"
    return word if beyond else f"{word}, direction only"


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("margin", [0.3, 1.0])
def test_an_outcome_is_what_the_interval_shows(direction: str, margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "_needed", lambda *arguments: None)
    rng, seen = np.random.default_rng(int(10 * margin)), Counter[str]()
    for _ in range(300):
        values = rng.normal(rng.normal(0, 1.2), rng.choice([0.1, 0.5, 1.5]), size=8).tolist()
        verdict = judge(Contrast(dict(enumerate(values))), Rule(direction, margin))  # type: ignore[arg-type]
        found = effect_of(verdict).deciding
        assert (found.low, found.high) == pytest.approx(t_interval(values, 0.95))
        assert verdict.outcome == read(found.low, found.high, direction, margin)
        seen[verdict.outcome] += 1
    assert len(seen) == (3 if direction in ("same", "not lower") else 6)
    assert min(seen.values()) >= 5


def test_in_a_family_too_an_outcome_is_what_the_interval_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "_needed", lambda *arguments: None)  # takes nearly all of the time
    rng, seen, narrower, said_more = np.random.default_rng(0), Counter[str](), 0, 0
    for _ in range(150):
        scale = rng.choice([0.2, 1.0, 2.0])
        family = {}
        for k in range(6):
            values = rng.normal(scale * rng.normal(0, 1.5), rng.choice([0.3, 1.0, 2.0]), size=8)
            rule = Rule(str(rng.choice(DIRECTIONS)), float(rng.choice([0.3, 1.0])))  # type: ignore[arg-type]
            family[str(k)] = Comparison(Contrast(dict(enumerate(values.tolist()))), rule)
        for name, verdict in judge_family(family).items():
            case, effect = family[name], effect_of(verdict)
            step = 0.05 / (1 - effect.level)
            assert step == pytest.approx(round(step))
            assert 1 <= round(step) <= 6
            interval = t_interval(list(case.contrast.values.values()), effect.level)
            assert (effect.deciding.low, effect.deciding.high) == pytest.approx(interval)
            shown = read(*interval, case.rule.direction, case.rule.margin)
            # rarely no level shows the direction alone: then the interval says more, and the reason that it does not
            more = "direction only" in verdict.outcome and "the correction for the family leaves open" in verdict.reason
            assert (shown == verdict.outcome) != more
            seen[verdict.outcome] += 1
            said_more += more
            narrower += verdict.outcome != "inconclusive" and round(step) < 6
    assert len(seen) == 6
    assert min(seen.values()) >= 20
    assert said_more <= 5
    assert narrower >= 100  # so that Holm and Bonferroni are told apart


def test_holm_steps_are_the_levels_of_the_intervals_by_hand() -> None:
    # directions with p of 0.01, 0.02 and 0.03: 0.01 <= 0.05 / 3, 0.02 <= 0.05 / 2, 0.03 <= 0.05
    members = {"b": with_p(0.02, 0.011), "a": with_p(0.01, 0.011), "c": with_p(0.03, 0.011)}
    found = judge_family({name: Comparison(member, HIGHER) for name, member in members.items()})
    assert {name: verdict.outcome for name, verdict in found.items()} == dict.fromkeys(
        "bac", "supported, direction only"
    )
    assert {name: effect_of(verdict).p_direction for name, verdict in found.items()} == pytest.approx(
        {"a": 0.03, "b": 0.04, "c": 0.04}
    )
    levels = {name: effect_of(verdict).level for name, verdict in found.items()}
    assert levels == pytest.approx({"a": 1 - 0.05 / 3, "b": 1 - 0.05 / 2, "c": 0.95})
    for name, verdict in found.items():
        deciding, plain = effect_of(verdict).deciding, effect_of(verdict).plain
        values = list(members[name].values.values())
        assert (deciding.low, deciding.high) == pytest.approx(t_interval(values, levels[name]))
        assert (plain.low, plain.high) == pytest.approx(t_interval(values, 0.95))
        assert deciding.low > 0


def test_where_holm_stops_all_that_is_left_is_shown_at_that_level() -> None:
    # 0.01 <= 0.05 / 3, but 0.03 > 0.05 / 2: it stops there, and 0.04 is no better off
    members = {"a": with_p(0.01, 0.011), "b": with_p(0.03, 0.011), "c": with_p(0.04, 0.011)}
    found = judge_family({name: Comparison(member, HIGHER) for name, member in members.items()})
    assert [verdict.outcome for verdict in found.values()] == [
        "supported, direction only", "inconclusive", "inconclusive",
    ]  # fmt: skip
    # equivalences are asked as well, and of these none was shown: their level is a third of alpha
    assert [effect_of(verdict).level for verdict in found.values()] == pytest.approx([1 - 0.05 / 3] * 3)
    for name in "bc":
        assert effect_of(found[name]).deciding.low <= 0 < effect_of(found[name]).plain.low
        assert found[name].reason == "decided by itself, but not after the correction for the number of comparisons"


def test_each_statement_is_corrected_among_its_own_kind() -> None:
    rules = {"a": HIGHER, "b": Rule("lower", 0.01), "c": Rule("same", 0.01), "d": Rule("not lower", 0.01)}
    members = {"a": contrast(0.03), "b": contrast(0.012), "c": contrast(0.0, 1.5), "d": contrast(0.002, 2.0)}
    found = judge_family({name: Comparison(members[name], rules[name]) for name in rules})

    def p_of(name: str, least: float, alternative: str) -> float:
        values = list(members[name].values.values())
        return float(scipy_stats.ttest_1samp(values, least, alternative=alternative).pvalue)

    direction = [2 * min(p_of(name, 0, "greater"), p_of(name, 0, "less")) for name in rules]
    size = [2 * min(p_of(name, 0.01, "greater"), p_of(name, -0.01, "less")) for name in rules]
    inside = [
        2
        * (p_of(name, -0.01, "greater") if name == "d" else max(p_of(name, -0.01, "greater"), p_of(name, 0.01, "less")))
        for name in rules
    ]
    effects = [effect_of(verdict) for verdict in found.values()]
    for raw, corrected in (
        (direction, [effect.p_direction for effect in effects]),
        (size, [effect.p_size for effect in effects]),
        (inside, [effect.p_equivalence for effect in effects]),
    ):
        assert corrected == pytest.approx(multipletests(np.minimum(raw, 1), method="holm")[1])
    assert [effect.p for effect in effects] == pytest.approx(np.minimum(direction, 1))


def test_a_direction_is_printed_as_wide_as_it_is_shown_so_that_it_says_no_more() -> None:
    # all six directions are clear, so that the last is asked at 95 %; all sizes but one are open, and asked at a fifth
    sure = {str(k): Comparison(with_p(1e-5, 0.011), HIGHER) for k in range(4)}
    last = contrast(0.0162)
    family = sure | {"size": Comparison(contrast(0.05), HIGHER), "last": Comparison(last, HIGHER)}
    found = judge_family(family)["last"]
    values = list(last.values.values())
    assert t_interval(values, 0.95)[0] > 0.01  # by itself it would have a size
    assert scipy_stats.ttest_1samp(values, 0.01, alternative="greater").pvalue > 0.025 / 5
    assert found.outcome == "supported, direction only"
    assert effect_of(found).level == pytest.approx(1 - 0.05 / 6)  # equivalences were asked at a sixth
    assert 0 < effect_of(found).deciding.low < 0.01
    # where no level shows the direction alone, the reason says what is left open
    small = Rule("higher", 1e-4)
    members = {str(k): Comparison(with_p(1e-9, 1e-5), small) for k in range(5)}
    found = judge_family(members | {"last": Comparison(with_p(0.04, 0.02), small)})["last"]
    assert (found.outcome, effect_of(found).level) == ("supported, direction only", pytest.approx(0.95))
    assert effect_of(found).deciding.low > 1e-4
    assert found.reason == (
        "the interval excludes 0 on the claimed side; the correction for the family leaves open whether it reaches the "
        "margin"
    )


def test_a_family_is_corrected_and_its_missing_members_keep_their_place() -> None:
    # p is 0.03 or so: enough alone, not enough for one of two
    member = contrast(0.0135, 2.6)
    alone = judge(member, HIGHER)
    assert alone.outcome == "supported, direction only"
    assert 0.025 < effect_of(alone).p < 0.05
    family = judge_family({"b": ABSENT, "a": Comparison(member, HIGHER)})
    assert list(family) == ["b", "a"]
    assert (family["a"].outcome, family["b"].outcome) == ("inconclusive", "untested")
    assert "correction for the number of comparisons" in family["a"].reason
    assert effect_of(family["a"]).p_direction == pytest.approx(2 * effect_of(alone).p)
    assert effect_of(family["a"]).level == pytest.approx(0.975)
    # and so do those of which nothing was given
    (larger,) = judge_family({"a": Comparison(member, HIGHER)}, family_size=6).values()
    assert effect_of(larger).p_direction == pytest.approx(6 * effect_of(alone).p)
    assert effect_of(larger).level == pytest.approx(1 - 0.05 / 6)


def test_equivalences_are_corrected_too() -> None:
    flat = contrast(0.0, 1.8)
    assert judge(flat, HIGHER).outcome == "negligible"
    family = judge_family({str(k): Comparison(flat, HIGHER) for k in range(12)})
    assert {verdict.outcome for verdict in family.values()} == {"inconclusive"}
    assert {verdict.reason for verdict in family.values()} == {
        "decided by itself, but not after the correction for the number of comparisons"
    }


@pytest.mark.parametrize(
    ("mean", "spread", "rule", "reason"),
    [
        (0.03, 1.0, HIGHER, "all of the interval lies beyond the margin, on the claimed side"),
        (-0.03, 1.0, HIGHER, "all of the interval lies beyond the margin, on the opposite side"),
        (0.011, 1.0, HIGHER,
         "the interval excludes 0 on the claimed side; whether the effect reaches the margin is open"),
        (-0.011, 1.0, HIGHER,
         "the interval excludes 0 on the opposite side; whether the effect reaches the margin is open"),
        (0.0, 1.0, HIGHER, "all of the interval lies inside the margin: too small to matter"),
        (0.0, 9.0, HIGHER, "differences that matter are possible on either side"),
        (0.008, 2.0, HIGHER, "the interval includes 0 and a difference that matters"),
        (0.0, 1.0, Rule("same", 0.01), "all of the interval lies inside the margin: too small to matter"),
        (0.03, 1.0, Rule("same", 0.01),
         "all of the interval lies beyond the margin: there is a difference that matters"),
        (0.011, 1.0, Rule("same", 0.01), "there is a difference; whether it reaches the margin is open"),
        (0.0, 1.0, Rule("not lower", 0.01), "all of the interval lies above the loss that would matter"),
        (-0.03, 1.0, Rule("not lower", 0.01),
         "all of the interval lies beyond the margin: it is lower by an amount that matters"),
    ],
)  # fmt: skip
def test_a_reason_goes_with_the_interval_beside_it(mean: float, spread: float, rule: Rule, reason: str) -> None:
    assert judge(contrast(mean, spread), rule).reason == reason


@pytest.mark.parametrize("direction", ["higher", "same", "not lower"])
def test_an_interval_that_the_signs_do_not_confirm_says_so(direction: str) -> None:
    rule = Rule(direction, 0.01, alpha=0.03)  # type: ignore[arg-type]
    verdict = judge(Contrast(dict.fromkeys(range(6), 0.0)), rule)  # 2 of 64 is more
    assert verdict.outcome == "inconclusive"
    assert verdict.reason == "the interval would decide, but the exact sign-flip test, which must agree here, does not"


def test_a_difference_that_does_not_decide_is_not_said_to_but_for_the_signs() -> None:
    failing = Contrast(contrast(0.012).values, failed=frozenset({0}))
    verdict = judge(failing, Rule("same", 0.01))
    assert effect_of(verdict).guarded
    assert verdict.reason == "there is a difference; whether it reaches the margin is open"


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_alpha_is_the_level_of_every_interval(alpha: float) -> None:
    member = contrast(0.0135, 2.2)
    verdict = judge(member, Rule("higher", 0.01, alpha=alpha))
    assert verdict.outcome == ("supported, direction only" if alpha == 0.05 else "inconclusive")
    interval = t_interval(list(member.values.values()), 1 - alpha)
    for found in (effect_of(verdict).deciding, effect_of(verdict).plain):
        assert (found.low, found.high) == pytest.approx(interval)


def test_a_family_has_one_alpha() -> None:
    with pytest.raises(ValueError, match="one alpha"):
        judge_family(
            {"a": Comparison(contrast(0), HIGHER), "b": Comparison(contrast(0), Rule("higher", 1, alpha=0.01))}
        )
