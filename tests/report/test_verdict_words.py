"""Verdicts in words and in the table: the numbers that were judged, and none where nothing was."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from fabricate import PLACEMENT, grid, noise, write_all, write_run, write_study

from bnexp.analysis.claims import ClaimVerdict, Reading
from bnexp.analysis.contrasts import Arm, Contrast, epochs_ratio, paired
from bnexp.analysis.rule import Rule
from bnexp.analysis.select import Selection
from bnexp.analysis.verdicts import Verdict, judge
from bnexp.errors import ConfigError, StoreError
from bnexp.identity import run_id
from bnexp.report import evaluate, make_report, summarize
from bnexp.report.printing import plain_text
from bnexp.report.verdict_words import (
    flips_table,
    survival_words,
    verdict_sentence,
    verdict_sentences,
    verdicts_table,
)
from bnexp.store import Store
from bnexp.study import Comparison, Direction

WIGGLE = (0.001, -0.002, 0.003, -0.001, 0.002, -0.003)


@pytest.fixture(scope="session")
def selection(placement: Store) -> Selection:
    return evaluate(placement, "placement").selection


def claim(
    verdict: Verdict,
    *,
    direction: Direction = "higher",
    margin: float = 0.01,
    readings: dict[Reading, Verdict] | None = None,
    failed: frozenset[int] = frozenset(),
    **fields: Any,
) -> ClaimVerdict:
    known: dict[str, Any] = {"shape": "difference", "treatment": "after", "control": "before", **fields}
    comparison = Comparison(direction=direction, margin=margin, **{"measure": "test_accuracy", **known})
    return ClaimVerdict(comparison, "relu", verdict, readings or {}, failed=failed)


def at(lr: float) -> Reading:
    return Reading("learning rate", lr)


def verdict_on(mean: float, spread: float = 1.0, direction: Direction = "higher", margin: float = 0.01) -> Verdict:
    return judge(Contrast({seed: mean + spread * w for seed, w in enumerate(WIGGLE)}), Rule(direction, margin))


@pytest.mark.parametrize(
    ("mean", "spread", "direction", "outcome", "why"),
    [
        (0.03, 1, "higher", "supported", "beyond the margin, on the claimed side"),
        (0.03, 1, "lower", "contradicted", "beyond the margin, on the opposite side"),
        (0.0, 1, "higher", "negligible", "all of the interval lies inside the margin: too small to matter"),
        (0.0, 1, "same", "supported", "all of the interval lies inside the margin: too small to matter"),
        (0.0, 9, "higher", "inconclusive", "differences that matter are possible on either side"),
        (0.012, 1, "higher", "supported, direction only", "the interval excludes 0 on the claimed side; whether the"),
        (
            0.012,
            1,
            "lower",
            "contradicted, direction only",
            "the interval excludes 0 on the opposite side; whether the",
        ),
        (0.012, 1, "same", "inconclusive", "there is a difference; whether it reaches the margin is open"),
        (0.012, 6, "higher", "inconclusive", "the interval includes 0 and a difference that matters"),
        (0.03, 1, "not lower", "supported", "all of the interval lies above the loss that would matter"),
        (-0.03, 1, "not lower", "contradicted", "beyond the margin: it is lower by an amount that matters"),
        (-0.009, 1, "not lower", "inconclusive", "there is a difference; whether it reaches the margin is open"),
        (0.0, 9, "not lower", "inconclusive", "differences that matter are possible on either side"),
    ],
)
def test_sentence_and_row_quote_the_numbers_that_were_judged(
    selection: Selection, mean: float, spread: float, direction: Direction, outcome: str, why: str
) -> None:
    verdict = verdict_on(mean, spread, direction)
    sentence = verdict_sentence(claim(verdict, direction=direction), selection)
    assert sentence.startswith(f"relu: {outcome}. after − before, test accuracy: ")
    assert why in sentence
    assert verdict.effect is not None
    estimate = verdict.effect.deciding
    found = re.search(r": (\S+) points \[(\S+), (\S+)\] at 95 %, 6 seeds: ", sentence)
    assert found is not None
    shown = [float(text.replace("−", "-")) for text in found.groups()]
    assert shown == pytest.approx([100 * estimate.mean, 100 * estimate.low, 100 * estimate.high], abs=0.005)
    table = verdicts_table([claim(verdict, direction=direction)], selection)
    (row,) = table.exact.to_dict("records")
    assert (row["verdict"], row["n"], row["mean"], row["low"]) == (outcome, 6, estimate.mean, estimate.low)
    assert (row["level"], row["high_95"]) == (verdict.effect.level, verdict.effect.plain.high)
    assert (row["p_direction"], row["p_size"]) == (verdict.effect.p_direction, verdict.effect.p_size)
    (shown_row,) = table.shown.to_dict("records")
    assert shown_row["verdict"] == outcome
    assert shown_row["effect [interval that decided]"] in sentence
    assert ("a new study of about" in sentence) == (outcome not in ("supported", "contradicted", "negligible"))


def test_an_inconclusive_sentence_says_how_many_seeds_decide(selection: Selection) -> None:
    verdict = verdict_on(0.0, 9)
    assert verdict.needed is not None
    sentence = verdict_sentence(claim(verdict), selection)
    num = verdict.needed.num_pairs
    assert f"a new study of about {num} seeds would settle it as negligible, with a chance of 80 %." in sentence
    hopeless = replace(verdict, needed=replace(verdict.needed, num_pairs=None))
    assert "not even a new study of 1,000 seeds would settle it" in verdict_sentence(claim(hopeless), selection)


@pytest.mark.parametrize("outcome", ["untested", "invalid"])
def test_untested_and_invalid_quote_no_number(selection: Selection, outcome: str) -> None:
    if outcome == "untested":
        arms = (Arm("after", {0: 0.9}), Arm("before", {1: 0.8}))
        verdict = judge(paired(*arms, seeds=range(7)), Rule("higher", 0.01))
        assert len(verdict.incomplete) == 7
    else:
        verdict = judge(Contrast({0: 0.9}), Rule("higher", 0.01), gate="the control is no baseline")
    assert verdict.outcome == outcome
    sentence = verdict_sentence(claim(verdict), selection)
    assert sentence.startswith(f"relu: {outcome}. after − before, test accuracy: {verdict.reason}")
    assert "points" not in sentence
    assert "[" not in sentence
    if outcome == "untested":
        assert "(seed 0: no before; seed 1: no after; seed 2: no after and no before; " in sentence
        assert sentence.endswith("and 3 more).")
    table = verdicts_table([claim(verdict)], selection)
    numbers = table.exact[["mean", "low", "high", "low_95", "high_95", "level", "p", "p_direction", "p_size", "sd"]]
    assert numbers.isna().all(axis=None)
    (row,) = table.shown.to_dict("records")
    assert (row["effect [interval that decided]"], row["p"]) == ("—", "—")


@pytest.mark.parametrize(
    ("margin", "direction", "claimed"),
    [
        (0.01, "higher", "higher by at least 1 point"),
        (0.02, "lower", "lower by at least 2 points"),
        (0.003, "higher", "higher by at least 0.3 points"),
        (0.01, "same", "no difference beyond 1 point"),
        (0.01, "not lower", "not lower by 1 point or more"),
    ],
)
def test_what_is_claimed_in_words(selection: Selection, margin: float, direction: Direction, claimed: str) -> None:
    table = verdicts_table([claim(verdict_on(0.0), margin=margin, direction=direction)], selection)
    assert table.shown["compared"].tolist() == ["after − before, test accuracy"]
    assert table.shown["claimed"].tolist() == [claimed]


# twice scipy.stats.ttest_1samp against −0.01: alternative greater, and alternative less
@pytest.mark.parametrize(
    ("mean", "spread", "outcome", "p"), [(0.001, 4, "supported", "0.036"), (-0.04, 10, "contradicted", "0.027")]
)
def test_the_p_of_not_lower_is_its_own_unless_it_is_contradicted(
    selection: Selection, mean: float, spread: float, outcome: str, p: str
) -> None:
    told = claim(verdict_on(mean, spread, "not lower"), direction="not lower")
    (row,) = verdicts_table([told], selection).shown.to_dict("records")
    assert (row["verdict"], row["p"]) == (outcome, p)


@pytest.mark.parametrize(("log", "shown"), [(0.5, "×3.16"), (2.5, "×316"), (math.log10(1 / 3), "×0.33")])
def test_a_reach_is_shown_as_a_factor(selection: Selection, log: float, shown: str) -> None:
    verdict = judge(Contrast(dict.fromkeys(range(6), log)), Rule("higher", math.log10(3)))
    reach = claim(verdict, margin=3.0, shape="reach", over="lr", failed=frozenset({2}))
    sentence = verdict_sentence(reach, selection)
    assert f"largest learning rate that stays healthy, after / before: {shown} [" in sentence
    assert "beyond the margin, on the" in sentence
    assert "points" not in sentence
    assert "Diverged" not in sentence  # runs that do are what a reach is made of
    (row,) = verdicts_table([reach], selection).shown.to_dict("records")
    assert row["claimed"] == "at least ×3"
    assert row["effect [interval that decided]"].startswith(f"{shown} [")
    weak = judge(Contrast({seed: 0.4 + 60 * w for seed, w in enumerate(WIGGLE)}), Rule("higher", math.log10(3)))
    assert "excludes 1 on the claimed side" in verdict_sentence(replace(reach, verdict=weak), selection)


def test_readings_and_failures_are_told(selection: Selection) -> None:
    chance = {seed: 0.9 + w for seed, w in enumerate(WIGGLE)} | {3: 0.1}
    arms = Arm("after", chance, frozenset({3})), Arm("before", dict.fromkeys(range(6), 0.9))
    verdict = judge(paired(*arms), Rule("higher", 0.01))
    readings = {at(0.03): verdict_on(0.03), at(0.1): verdict_on(0.0), at(0.3): verdict_on(0.04)}
    readings[Reading("statistics", "precise")] = verdict_on(-0.04)
    told = claim(verdict, readings=readings, failed=frozenset({3}))
    sentence = verdict_sentence(told, selection)
    assert "Diverged or collapsed: 1 of after, 0 of before, scored at chance." in sentence
    assert "With one learning rate for all arms: supported at 0.03, 0.3; negligible at 0.1." in sentence
    assert "Evaluated with other statistics: contradicted with precise." in sentence
    assert sentence.endswith(
        "At each shared learning rate the mean lies between +0.00 and +4.00: part of this effect comes from the arms "
        "running at different rates."
    )
    table = verdicts_table([told], selection)
    assert table.exact["otherwise"].tolist() == ["0.03:supported 0.1:negligible 0.3:supported precise:contradicted"]
    assert table.exact["failed_seeds"].tolist() == ["3"]
    (row,) = table.shown.to_dict("records")
    assert row["verdict"] == "inconclusive"
    assert row["other analyses"] == "supported at 0.03, 0.3, negligible at 0.1; contradicted with precise statistics"


@pytest.mark.parametrize(
    ("own", "rates", "statistics", "words"),
    [
        (0.03, (0.03, 0.04), (), "holds at all 2 shared learning rates"),
        (
            0.03,
            (-0.03, 0.0, 0.03),
            (),
            "holds at 1 of 3 shared learning rates, flips to contradicted at 1 and to negligible at 2",
        ),
        (-0.03, (0.03, 0.03), (), "holds at none of 2 shared learning rates, flips to supported at 1, 2"),
        (0.03, (), (0.03, -0.03), "holds with precise statistics; flips to contradicted with batch statistics"),
        (0.03, (0.03,), (0.03, 0.03), "holds at the one shared learning rate; holds with precise and batch statistics"),
        (0.012, (0.012, 0.03), (), "holds at all 2 shared learning rates"),  # of a direction, its size is no flip
        (0.03, (0.012, 0.03), (), "holds at 1 of 2 shared learning rates"),
    ],
)
def test_what_survives_in_words(own: float, rates: Sequence[float], statistics: Sequence[float], words: str) -> None:
    readings = {at(float(number)): verdict_on(mean) for number, mean in enumerate(rates, start=1)}
    names = ("precise", "batch")[: len(statistics)]
    readings |= {Reading("statistics", name): verdict_on(mean) for name, mean in zip(names, statistics, strict=True)}
    assert survival_words(claim(verdict_on(own), readings=readings)) == words


def test_what_an_open_verdict_is_elsewhere_in_words() -> None:
    for others, words in (
        ((0.0, 0.0, 9), "inconclusive at 1 of 3 shared learning rates, negligible at 0, 1"),
        ((9, 9), "inconclusive at all 2 shared learning rates"),
        ((0.0,), "negligible at 0"),
    ):
        readings = {at(float(n)): verdict_on(0.0, spread or 1.0) for n, spread in enumerate(others)}
        assert survival_words(claim(verdict_on(0.0, 9), readings=readings)) == words


def test_what_was_not_judged_has_nothing_to_survive() -> None:
    untested = judge(paired(Arm("after", {}), Arm("before", {1: 0.8}), seeds=range(7)), Rule("higher", 0.01))
    assert survival_words(claim(untested, readings={at(0.1): verdict_on(0.03), at(0.3): verdict_on(0.03)})) == ""


def test_the_flips_table_has_a_number_for_each_reading_and_a_row_for_each_verdict(selection: Selection) -> None:
    readings = {
        at(0.3): verdict_on(-0.03),
        at(0.03): verdict_on(0.03),
        Reading("statistics", "batch"): verdict_on(0.02),
    }
    table = flips_table([claim(verdict_on(0.03), readings=readings), claim(verdict_on(0.0))], selection)
    assert table is not None
    assert table.exact[["value", "answer"]].to_numpy().tolist() == [
        [0.3, "flips"], [0.03, "survives"], ["batch", "survives"]
    ]  # fmt: skip
    assert table.exact["mean"].tolist() == pytest.approx([-0.03, 0.03, 0.02])
    first, second = table.shown.to_dict("records")
    columns = ["own best rate", "both at 0.03", "both at 0.3", "batch statistics"]
    assert [first[column] for column in columns] == ["supported", "supported", "contradicted", "supported"]
    assert [second[column] for column in columns] == ["negligible", "", "", ""]
    assert flips_table([claim(verdict_on(0.03))], selection) is None


def test_another_init_is_a_row_that_is_no_verdict(selection: Selection) -> None:
    own, other = verdict_on(0.03), verdict_on(0.0)
    read = replace(claim(other, readings={at(0.3): own, at(0.03): other}), stratum="relu, default", reading_of=own)
    told = replace(claim(own, readings={Reading("init", "default"): other}), other_inits=(read,))
    assert survival_words(told) == "flips to negligible with init default"
    assert (
        survival_words(read) == "holds at 1 of 2 shared learning rates, flips to negligible at 0.03"
    )  # the verdict does
    for mean, spread, words in ((0.04, 1, "holds"), (0.01, 9, "left open")):
        alike = replace(told, readings={Reading("init", "default"): verdict_on(mean, spread)})
        assert survival_words(alike) == f"{words} with init default"
    table = verdicts_table([told], selection)
    assert table.exact[["stratum", "verdict"]].to_numpy().tolist() == [
        ["relu", "supported"], ["relu, default", "reading: negligible"],
    ]  # fmt: skip
    flips = flips_table([told], selection)
    assert flips is not None
    assert flips.exact[["stratum", "kind", "read", "answer"]].to_numpy().tolist() == [
        ["relu", "init", "negligible", "flips"], ["relu, default", "learning rate", "supported", "survives"],
        ["relu, default", "learning rate", "negligible", "flips"],
    ]  # fmt: skip
    first, second = verdict_sentences([told], selection)
    assert first.startswith("relu: supported. ")
    assert "handicaps" not in first
    assert second.startswith("relu, default: reading: negligible. ")
    assert "handicaps the network without a norm, so it is no verdict of its own; it reverses the verdict." in second


def test_a_level_and_a_slope_over_arms_count_seeds_and_not_pairs(selection: Selection) -> None:
    level = claim(verdict_on(0.03), shape="level", control=None, reference=0.5)
    assert ": +3.00 points [" in verdict_sentence(level, selection)
    weak = replace(level, verdict=verdict_on(0.012))
    assert ", 6 seeds: the interval excludes a distance of 0 from 50 % on the" in verdict_sentence(weak, selection)
    slope = claim(verdict_on(0.03), shape="slope", treatment=None, control=None, levels=(("a", 2.0), ("b", 4.0)))
    assert ", 6 seeds: " in verdict_sentence(slope, selection)


def test_runs_that_never_got_there_are_said(selection: Selection) -> None:
    times = {seed: 3.0 + w for seed, w in enumerate(WIGGLE)}
    late = epochs_ratio(Arm("after", times), Arm("before", times | {3: math.inf}), budget=8)
    told = claim(
        judge(late, Rule("lower", math.log(1.25))), direction="lower", margin=1.25, shape="ratio",
        measure="epochs_to_target", target=0.9, failed=late.failed,
    )  # fmt: skip
    sentence = verdict_sentence(told, selection)
    assert "epochs to 90 % validation accuracy, after / before: ×0." in sentence
    assert "Never got there: 0 of after, 1 of before." in sentence


def test_a_single_seed_is_one_seed(selection: Selection) -> None:
    verdict = judge(Contrast({4: 0.02}), Rule("higher", 0.01))
    sentence = verdict_sentence(claim(verdict), selection)
    assert "after − before, test accuracy: +2.00 points, 1 seed: fewer than 6 seeds decide" in sentence
    assert "after is higher in 1 of 1 seed." in sentence


def test_a_report_with_a_missing_run_gives_that_stratum_no_number(own_placement: Store) -> None:
    (lost,) = [c for c in grid(*PLACEMENT) if (c.model.name, c.model.activation, c.norm.placement, c.lr, c.seed)
               == ("cnn", "relu", "after", 0.3, 4)]  # fmt: skip
    write_run(own_placement, lost, "failed", 0.5)
    result = make_report(own_placement, "placement")
    text = " ".join(result.table.split())
    assert "cnn, relu: untested. after − before, test accuracy: runs are missing (seed 4: no after;" in text
    assert "cnn, tanh: contradicted." in text
    html = result.html.read_text()
    assert "cnn, relu: untested. after − before, test accuracy: runs are missing (seed 4: no after;" in html


def test_a_declaration_changed_after_it_was_frozen_is_refused(own_placement: Store) -> None:
    path = own_placement.study_path("placement")
    frozen = json.loads(path.read_text())
    frozen["declaration"]["comparisons"][0]["margin"] = 0.5
    path.write_text(json.dumps(frozen))
    with pytest.raises(StoreError, match="was changed after it was frozen") as error:
        evaluate(own_placement, "placement")
    assert "\n" not in str(error.value)
    frozen["declaration"]["comparisons"][0]["margin"] = -1
    path.write_text(json.dumps(frozen))
    with pytest.raises(ConfigError, match=r"study\.comparisons\.0\.margin"):
        evaluate(own_placement, "placement")


@pytest.mark.parametrize("lr", [0.03, 0.3])  # the rate that is not chosen, and the one that is
def test_a_seed_that_counts_twice_is_refused(own_placement: Store, lr: float) -> None:
    frozen = own_placement.study("placement")
    assert frozen is not None
    of_rate = {run_id(c) for c in grid(*PLACEMENT) if c.lr == lr}
    frozen["arms"]["after"].append(next(name for name in frozen["arms"]["after"] if name in of_rate))
    own_placement.write_study("placement", frozen)
    with pytest.raises(StoreError, match=r"arm 'after': .*seed.* twice"):
        evaluate(own_placement, "placement")


def test_an_exploratory_report_says_so(own_placement: Store) -> None:
    configs = [c for c in grid(*PLACEMENT) if c.seed < 5]
    write_study(own_placement, configs, exploratory=True)
    text = " ".join(summarize(evaluate(own_placement, "placement")).split())
    assert "Exploratory: the declared study was changed" in text
    assert "fewer than 6 seeds decide nothing" in text


def test_a_norm_option_that_varies_within_arms_makes_strata(own_placement: Store) -> None:
    configs = grid("norm=batch", "norm.momentum=0.1,0.5", "norm.placement=before,after", "model.depth=8",
                   "seed=range(8)")  # fmt: skip
    write_all(own_placement, configs, lambda c: ("finished", 0.9 + noise(c)))
    write_study(own_placement, configs, exploratory=True)
    table = evaluate(own_placement, "placement").tables[0]
    assert table.exact["stratum"].tolist() == ["momentum 0.1", "momentum 0.5"]
    assert table.exact["n"].tolist() == [8, 8]


def test_the_printed_table_of_long_comparisons_fits_the_terminal(selection: Selection) -> None:
    readings = {at(lr): verdict_on(0.03 if lr > 0.1 else -0.03) for lr in (0.03, 0.1, 0.3, 1.0)}
    long = {"shape": "interaction", "against": ("batch + dropout .5 after", "no norm + dropout .5 after")}
    told = [claim(verdict_on(0.03), readings=readings, **long), claim(verdict_on(0.03), readings=readings)]
    lines = plain_text(verdicts_table(told, selection)).splitlines()
    assert max(map(len, lines)) <= 100
    assert "after − before, test accuracy; claimed: higher by at least 1 point" in lines
    assert len([line for line in lines if line.strip().startswith("relu")]) == 2
