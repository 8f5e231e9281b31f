"""From runs to verdicts: every outcome, what makes a comparison untested, invalid or refused, and what chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up import (
    CHANCE,
    NOISE,
    RATES,
    SEEDS,
    Ended,
    Run,
    judged,
    row_of,
    runs_of,
    selected,
    study,
    two_arms,
    whole,
    without,
)
from scipy import stats as scipy_stats

from bnexp.analysis.claims import Declared, judge_study, load_study
from bnexp.analysis.select import select
from bnexp.analysis.widening import best_rate
from bnexp.errors import StoreError
from bnexp.records import RunRecord
from bnexp.store import Store


@pytest.mark.parametrize(
    ("effect", "spread", "direction", "outcome"),
    [
        (0.03, 1, "higher", "supported"),
        (0.03, 1, "lower", "contradicted"),
        (0.03, 1, "same", "contradicted"),
        (0.0, 1, "higher", "negligible"),
        (0.0, 1, "same", "supported"),
        (0.0, 5, "higher", "inconclusive"),
        (0.012, 1, "higher", "supported, direction only"),
        (0.012, 1, "lower", "contradicted, direction only"),
    ],
)
def test_outcome_from_runs(effect: float, spread: float, direction: str, outcome: str) -> None:
    (claim,) = judged(study({"direction": direction}), two_arms(effect, spread))
    assert (claim.stratum, claim.verdict.outcome, claim.verdict.num_pairs) == ("", outcome, len(SEEDS))
    assert claim.verdict.effect is not None
    assert claim.verdict.effect.deciding.mean == pytest.approx(effect)
    differences = [effect + spread * NOISE[seed] for seed in SEEDS]
    interval = scipy_stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    found = claim.verdict.effect.deciding  # one rate is better by far, so that there is nothing that a choice costs
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert claim.values == pytest.approx(dict(zip(SEEDS, differences, strict=True)))
    assert (claim.failed, claim.look) == (frozenset(), None)


def stored(root: Path, outcome: Callable[[Run], tuple[str, float] | None]) -> tuple[Store, dict[str, list[str]]]:
    """The runs of the plain study as their records have them."""
    store, members = Store(root), dict[str, list[str]]()
    for number, run in enumerate(runs_of(study())):
        members.setdefault(run.arm, []).append(str(number))
        ended = outcome(run)
        if ended is None:
            continue
        final = {f"{split}_accuracy": ended[1] for split in ("train", "val", "test")}
        final |= {f"chance_{split}_accuracy": CHANCE for split in ("train", "val", "test")}
        config = {"norm": {"kind": run.arm}, "model": {"init": "he"}, "lr": run.lr, "seed": run.seed, "epochs": 2}
        error = "boom" if ended[0] == "failed" else None
        store.write_record(RunRecord(str(number), "cell", ended[0], config, {}, final, error=error))  # type: ignore[arg-type]
        rows = [{"epoch": epoch, "val_accuracy": ended[1] * epoch / 2} for epoch in (1, 2)]
        store.write_history(str(number), rows)
        # other statistics take all that the treatment gained, and more
        row = {"probe": "statistics", "step": 0, "epoch": 0, "layer": "", "quantity": "test_accuracy"}
        value = ended[1] - 0.1 * (run.arm == "batch")
        store.write_probes(str(number), [{**row, "statistics": name, "value": value} for name in ("precise", "batch")])
    return store, members


@pytest.mark.parametrize("instead", [None, "failed"])
@pytest.mark.parametrize("lr", [0.3, 1.0])  # at the best rate, and at one that only chooses
def test_a_missing_or_crashed_run_is_untested_and_no_number(tmp_path: Path, lr: float, instead: str | None) -> None:
    lost = without(two_arms(0.03), lambda run: (run.arm, run.lr, run.seed) == ("batch", lr, 5), instead)
    store, members = stored(tmp_path, lost)  # type: ignore[arg-type]
    run_ids = [name for names in members.values() for name in names]
    frame, selection = load_study(store, study(), run_ids, members)
    assert (len(frame.failed), len(frame.missing)) == ((1, 0) if instead else (0, 1))
    assert selection is not None
    (claim,) = judge_study(selection, study(), declared=whole(study()))
    verdict = claim.verdict
    assert (verdict.outcome, verdict.effect, verdict.needed) == ("untested", None, None)
    assert verdict.reason == "runs are missing"
    untuned = "batch: not every rate has been run with every seed"
    assert verdict.incomplete == (("seed 5: no batch", untuned) if lr == 0.3 else (untuned,))


def test_measures_that_comparisons_read_are_loaded(tmp_path: Path) -> None:
    spec = study({"measure": "epochs_to_target", "shape": "ratio", "direction": "lower", "margin": 1.25})
    store, members = stored(tmp_path, two_arms(0.0, 0.0))  # type: ignore[arg-type]
    assert load_study(store, spec, [], members)[1] is None
    _, selection = load_study(store, spec, [name for names in members.values() for name in names], members)
    assert selection is not None
    (claim,) = judge_study(selection, spec, declared=whole(spec))
    assert claim.values == pytest.approx(dict.fromkeys(SEEDS, 0.0))
    assert {reading.kind for reading in claim.readings} == {"learning rate"}  # statistics tell no times
    # the first epoch goes from chance, 0.1, to half the final 0.85 and the target of 0.5 lies in the second
    level = 0.85 + 0.003 * math.sin(2)
    times = selection.runs.query("seed == 2 and lr == 0.3")["epochs_to_target@0.5"]
    assert times.to_list() == pytest.approx([1 + (0.5 - level / 2) / (level / 2)] * 2)


def test_what_other_statistics_say_is_loaded_where_the_study_measures_it(tmp_path: Path) -> None:
    store, members = stored(tmp_path, two_arms(0.03))  # type: ignore[arg-type]
    _, selection = load_study(store, study(), [name for names in members.values() for name in names], members)
    assert selection is not None
    (claim,) = judge_study(selection, study(), declared=whole(study()))
    read = {
        reading.value: verdict.outcome for reading, verdict in claim.readings.items() if reading.kind == "statistics"
    }
    assert (claim.outcome, read) == ("supported", {"precise": "contradicted", "batch": "contradicted"})


@pytest.mark.parametrize(
    "lacking",
    [
        lambda run: run.lr == 1.0 and run.seed == 4,  # a rate that is not reported, at one seed
        lambda run: run.lr == 1.0,  # a rate that no run knows of
        lambda run: run.lr == 0.1 and run.seed in SEEDS[:7],
    ],
)
def test_what_both_arms_lack_is_missing_too(lacking: Callable[[Run], bool]) -> None:
    (claim,) = judged(study(), without(two_arms(0.03), lacking))
    assert (claim.verdict.outcome, claim.verdict.effect) == ("untested", None)
    assert claim.verdict.incomplete == (
        "batch: not every rate has been run with every seed", "none: not every rate has been run with every seed",
    )  # fmt: skip


@pytest.mark.parametrize(
    "comparison",
    [{"shape": "slope", "over": "model.depth"}, {"shape": "worst", "over": "model.depth"},
     {"shape": "reach", "over": "model.depth", "margin": 2, "within": 0.1},
     {"shape": "interaction", "against": ["group", "layer"]}],
)  # fmt: skip
def test_every_arm_is_tuned_at_every_level_that_is_compared(comparison: dict[str, Any]) -> None:
    spec = study(comparison, arms=("none", "batch", "group", "layer"), axes={"model.depth": [2, 4]})
    arm = "layer" if comparison["shape"] == "interaction" else "none"
    whole_one, *_ = judged(spec, two_arms(0.03))
    assert whole_one.verdict.outcome != "untested"
    lost = without(two_arms(0.03), lambda run: run == Run(arm, 0.1, 4, (4,)))
    claims = judged(spec, lost)
    assert claims[-1].verdict.outcome == "untested"
    assert claims[-1].verdict.incomplete == (f"{arm}: not every rate has been run with every seed",)


def test_an_arm_without_a_run_is_untested() -> None:
    (claim,) = judged(study(), without(two_arms(0.03), lambda run: run.arm == "none"))
    assert (claim.verdict.outcome, claim.verdict.effect, claim.verdict.num_pairs) == ("untested", None, 0)
    assert "seed 2: no none" in claim.verdict.incomplete


def test_a_measure_without_a_value_is_untested_and_says_so() -> None:
    spec = study({"measure": "shift_l2", "direction": "lower", "margin": 0.1})

    def outcome(run: Run) -> Ended:
        return "finished", {"accuracy": 0.9, "shift_l2": math.nan if sick(run, [4]) else 1.0 - NOISE.get(run.seed, 0)}

    (claim,) = judged(spec, outcome)
    assert (claim.verdict.outcome, claim.verdict.effect) == ("untested", None)
    assert "no value" in claim.verdict.reason
    assert set(claim.verdict.incomplete) == {"seed 4: no value of none"}
    # a run that is not there comes first: it may have a value
    (claim,) = judged(spec, without(outcome, lambda run: run.arm == "batch" and run.seed == 7))
    assert claim.verdict.reason == "runs are missing"
    untuned = "batch: not every rate has been run with every seed"
    assert claim.verdict.incomplete == ("seed 7: no batch", untuned, "seed 4: no value of none")


def sick(run: Run, seeds: Iterable[int]) -> bool:
    return run.arm == "none" and run.seed in seeds


def test_a_failed_run_counts_at_chance_whichever_arm_it_is_of() -> None:
    one_in_eight = without(two_arms(0.03), lambda run: sick(run, [2]), "diverged")
    (claim,) = judged(study(), one_in_eight)
    assert claim.verdict.effect is not None
    assert claim.verdict.effect.failures is not None
    assert (claim.verdict.effect.failures.control, claim.failed) == (1, frozenset({2}))
    expected = np.mean([0.85 + 0.003 * math.sin(2) + 0.03 + NOISE[2] - CHANCE] + [0.03 + NOISE[s] for s in SEEDS[1:]])
    assert claim.verdict.effect.deciding.mean == pytest.approx(expected)  # scored at chance, not dropped
    healthy = claim.verdict.effect.healthy
    assert healthy is not None
    rest = scipy_stats.ttest_1samp([0.03 + NOISE[s] for s in SEEDS[1:]], 0).confidence_interval(0.95)
    assert (healthy.mean, healthy.low, healthy.high, healthy.num) == pytest.approx(
        (0.03 + np.mean([NOISE[s] for s in SEEDS[1:]]), rest.low, rest.high, 7)
    )

    outcomes = []
    for arm in ("none", "batch"):
        fails = without(two_arms(0.0, 0.001), lambda run, arm=arm: run.arm == arm and run.seed in SEEDS, "diverged")
        (claim,) = judged(study(), fails)
        outcomes.append(claim.verdict.outcome)
    assert outcomes == ["supported", "contradicted"]


def test_arms_that_failed_throughout_are_invalid_in_every_shape() -> None:
    comparisons: list[dict[str, Any]] = [
        {}, {"shape": "worst", "over": "model.depth"}, {"shape": "reach", "over": "model.depth", "margin": 2},
        {"shape": "span", "over": "model.depth"}, {"shape": "slope", "over": "model.depth"},
        {"shape": "search", "budget": 1}, {"shape": "interaction", "against": ["group", "layer"]},
    ]  # fmt: skip
    spec = study(*comparisons, arms=("none", "batch", "group", "layer"), axes={"model.depth": [2, 4]})
    claims = judged(spec, lambda run: ("diverged", CHANCE))
    assert {claim.comparison.shape for claim in claims} == {str(c.get("shape", "difference")) for c in comparisons}
    assert {(claim.verdict.outcome, claim.verdict.effect) for claim in claims} == {("invalid", None)}
    assert all("failed" in claim.verdict.reason for claim in claims)


def test_a_control_that_fails_at_another_rate_is_a_baseline() -> None:
    elsewhere = without(two_arms(0.03), lambda run: run.arm == "none" and run.lr == 1.0, "diverged")
    (claim,) = judged(study(), elsewhere)
    assert claim.verdict.outcome == "supported"


def test_a_control_of_which_runs_are_missing_is_untested_and_not_yet_invalid() -> None:
    failing = without(two_arms(0.03), lambda run: run.seed in SEEDS, "diverged")
    (claim,) = judged(study(), without(failing, lambda run: sick(run, SEEDS[1:])))
    assert claim.verdict.outcome == "untested"


def test_pairs_form_by_seed() -> None:
    # seeds differ by far more than the arms: any other pairing has another spread
    scores = {seed: 0.3 + 0.06 * seed for seed in SEEDS}

    def outcome(run: Run) -> Ended:
        extra = 0.02 + NOISE.get(run.seed, 0) if run.arm == "batch" else 0
        return "finished", scores[run.seed] + extra - 0.1 * (run.lr != 0.3)

    shuffled = select(selected(study(), outcome).runs.sample(frac=1, random_state=0), study())
    (claim,) = judge_study(shuffled, study(), declared=whole(study()))
    assert claim.verdict.effect is not None
    assert claim.verdict.effect.sd == pytest.approx(np.std(list(NOISE.values()), ddof=1))
    assert claim.verdict.effect.gain > 100


def test_every_seed_chooses_and_is_reported() -> None:
    # by two seeds alone, or by most of them, 1.0 would be best for the treatment; by all of them 0.3 is
    def outcome(run: Run) -> Ended:
        if run.arm == "none":
            return "finished", 0.80 - 0.1 * (run.lr != 0.1)
        level = {0.1: 0.60, 0.3: 0.85, 1.0: 0.86 if run.seed != SEEDS[7] else 0.50}[run.lr]
        return "finished", level + NOISE[run.seed]

    selection = selected(study(), outcome)
    assert selection.best_lr == {("none", ""): 0.1, ("batch", ""): 0.3}
    (claim,) = judge_study(selection, study(), declared=whole(study()))
    assert claim.values == pytest.approx({seed: 0.05 + NOISE[seed] for seed in SEEDS})
    assert claim.verdict.num_pairs == len(SEEDS)


def test_of_rates_that_are_equally_good_every_step_takes_the_smaller_one() -> None:
    """However the votes of one sum are rounded: as a pandas, a numpy or a Python sum."""
    rng, checked = np.random.default_rng(0), 0
    spec = study(rates=(0.1, 0.3))
    while checked < 25:
        right = rng.integers(300, 306, size=(2, len(SEEDS)))
        if right[0].sum() != right[1].sum() or (right[0] == right[1]).all():
            continue
        checked += 1
        votes = dict(zip((0.1, 0.3), (right / 360).tolist(), strict=True))

        def outcome(run: Run, votes: dict[float, list[float]] = votes) -> Ended:
            return "finished", votes[run.lr][SEEDS.index(run.seed)]

        selection = selected(spec, outcome)
        assert set(selection.best_lr.values()) == {0.1}
        assert best_rate(votes) == 0.1
        (claim,) = judge_study(selection, spec, declared=whole(spec))
        assert claim.contrast is not None
        assert claim.contrast.choice is not None
        assert set(claim.contrast.choice.chosen.values()) == {0.1}


def test_an_exploratory_study_judges_the_seeds_it_has_and_says_what_it_is() -> None:
    fewer = without(two_arms(0.03), lambda run: run.seed > 7)
    (claim,) = judged(study(), fewer, exploratory=True)
    assert (claim.verdict.outcome, claim.verdict.num_pairs) == ("supported", 6)
    assert (claim.exploratory, claim.outcome) == (True, "exploratory: supported")
    (claim,) = judged(study(), fewer)
    assert (claim.outcome, claim.exploratory) == ("untested", False)
    uneven = without(fewer, lambda run: sick(run, [7]))
    (claim,) = judged(study(), uneven, exploratory=True)
    assert (claim.verdict.outcome, claim.verdict.incomplete) == ("untested", ("seed 7: no none",))
    untuned = without(fewer, lambda run: sick(run, [4]) and run.lr == 0.1)
    (claim,) = judged(study(), untuned, exploratory=True)
    assert claim.verdict.outcome == "untested"
    assert claim.verdict.incomplete == ("none: not every rate has been run with every seed",)


def test_seeds_that_nobody_declared_are_left_out_and_named() -> None:
    selection = selected(study(), two_arms(0.03))
    (claim,) = judge_study(selection, study(), declared=Declared(SEEDS[:6], RATES))
    assert (claim.verdict.num_pairs, claim.verdict.undeclared) == (6, SEEDS[6:])


@pytest.mark.parametrize(
    "shape",
    [
        {}, {"shape": "ratio", "margin": 1.1}, {"shape": "reach", "over": "lr", "margin": 3},
        {"shape": "span", "over": "lr"}, {"shape": "search", "budget": 1},
    ],
)  # fmt: skip
def test_two_runs_of_one_seed_are_refused(shape: dict[str, Any]) -> None:
    spec = study(shape)
    rows = [row_of(run, spec, *two_arms(0.03)(run)) for run in runs_of(spec)]  # type: ignore[misc]
    twice = row_of(Run("batch", 0.3, 5), spec, "finished", 0.5)
    # the twin of a run must not make up for one that is missing
    rows = [row for row in rows if (row["arm"], row["lr"], row["seed"]) != ("batch", 0.1, 5)]
    with pytest.raises(StoreError, match=r"arm 'batch': .*seed.* occurs twice"):
        judge_study(select(pd.DataFrame([*rows, twice]), spec), spec, declared=whole(spec))


def test_a_run_in_two_arms_counts_in_both() -> None:
    spec = study(
        {}, {"treatment": "either"}, {"treatment": "batch", "control": "either"}, arms=("none", "batch", "either")
    )
    runs = selected(spec, two_arms(0.03)).runs
    once = runs[runs["arm"] != "either"].drop(columns=["arm", "stratum"])
    members = {arm: list(group["run_id"]) for arm, group in runs.groupby("arm") if arm != "either"}
    selection = select(once, spec, {**members, "either": members["batch"]})
    one, two, same = judge_study(selection, spec, declared=whole(spec))
    assert one.verdict.effect is not None
    assert two.verdict.effect is not None
    assert one.verdict.effect.plain == two.verdict.effect.plain
    assert (one.verdict.outcome, two.verdict.outcome, same.verdict.outcome) == ("supported", "supported", "negligible")


@pytest.mark.parametrize(
    ("init", "arm", "strata", "invalid"),
    [
        ("default", "none", [], True),
        ("normal", "none", [], True),
        ("he", "none", [], False),
        ("default", "batch", [], False),  # a norm makes up for it
        ("default", "none", ["model.init"], True),  # a stratum of its own, but no other that it could be a reading of
    ],
)
def test_an_arm_without_norm_that_starts_badly_is_no_baseline(
    init: str, arm: str, strata: list[str], invalid: bool
) -> None:
    spec = study(strata=strata)

    def outcome(run: Run) -> Ended:
        ended = two_arms(0.03)(run)
        assert ended is not None
        return ended[0], {"accuracy": ended[1], "model.init": init if run.arm == arm else "he"}  # type: ignore[dict-item]

    (claim,) = judged(spec, outcome)
    assert (claim.verdict.outcome == "invalid") == invalid
    readings = {verdict.outcome for verdict in claim.readings.values()}
    assert readings == ({"invalid"} if invalid else {"supported"})
    if invalid:
        assert claim.verdict.effect is None
        assert claim.verdict.reason == f"none starts from the init {init}, which does not suit a network without a norm"


def test_the_gate_looks_only_at_the_arms_and_strata_that_are_compared() -> None:
    spec = study({"treatment": "batch", "control": "layer"}, {}, arms=("none", "batch", "layer"),
                 axes={"model.activation": ["relu", "tanh"]})  # fmt: skip

    def outcome(run: Run) -> Ended:
        bad = run.arm == "none" and run.at == ("tanh",)
        return "finished", {"accuracy": 0.9, "model.init": "default" if bad else "he"}

    claims = judged(spec, outcome)
    found = {(claim.comparison.control, claim.stratum): claim.verdict.outcome == "invalid" for claim in claims}
    assert found == {
        ("layer", "relu"): False,
        ("layer", "tanh"): False,
        ("none", "relu"): False,
        ("none", "tanh"): True,
    }
