"""From records to verdicts: every outcome, what makes a comparison untested or refused, and the family it stands in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from bnexp.analysis.claims import ClaimVerdict, Declared, declared_of, judge_study
from bnexp.analysis.frame import load_frame
from bnexp.analysis.planning import plan_power
from bnexp.analysis.power import pilot_sd, power_of_difference, power_of_equivalence
from bnexp.analysis.select import Selection, select
from bnexp.errors import StoreError
from bnexp.records import RunRecord
from bnexp.store import Store
from bnexp.study import StudySpec, study_from_dict

CHANCE = 0.1
RATES, TUNING, SEEDS = (0.1, 0.3, 1.0), (0, 1), tuple(range(2, 10))
NOISE = dict(zip(SEEDS, (0.004, -0.006, 0.001, 0.009, -0.003, -0.008, 0.005, -0.002), strict=True))  # its mean is 0


class Run(NamedTuple):
    arm: str
    lr: float
    seed: int
    act: str


Outcome = Callable[[Run], tuple[str, float] | None]  # None: the run has no record


def study(
    comparisons: Iterable[dict[str, Any]] = ({},),
    *,
    arms: Iterable[str] = ("none", "batch"),
    acts: tuple[str, ...] = ("relu",),
    rates: tuple[float, ...] = RATES,
) -> StudySpec:
    claim = {"treatment": "batch", "control": "none", "shape": "difference", "direction": "higher", "margin": 0.01}
    return study_from_dict({
        "name": "made-up", "number": 1, "question": "q", "claim": "c", "sources": {"a": "b"},
        "arms": {arm: {"norm": arm} for arm in arms}, "comparisons": [claim | change for change in comparisons],
        "strata": ["model.activation"], "choose": {"factor": "lr", "metric": "val_accuracy", "seeds": list(TUNING)},
        "metric": "test_accuracy",
        "tiers": {"small": {"fixed": {}, "axes": {
            "model.activation": list(acts), "lr": list(rates), "seed": [*TUNING, *SEEDS]}}},
    })  # fmt: skip


def write(store: Store, run: Run, status: str, accuracy: float) -> None:
    measured = None if status == "diverged" else accuracy
    final = {f"{split}_accuracy": measured for split in ("train", "val", "test")}
    final |= {f"chance_{split}_accuracy": CHANCE for split in ("train", "val", "test")}
    config = {"model": {"activation": run.act}, "norm": {"kind": run.arm}, "lr": run.lr, "seed": run.seed}
    store.write_record(RunRecord(
        name_of(run), "cell", status, config, {}, final,  # type: ignore[arg-type]
        {"train": 1.0, "eval": 0.1}, {}, 1, 3, "boom" if status == "failed" else None,
    ))  # fmt: skip


def name_of(run: Run) -> str:
    return f"{run.arm}-{run.act}-{run.lr:g}-{run.seed}"


def chosen(root: Path, spec: StudySpec, outcome: Outcome) -> Selection:
    """The runs of the study in a store, with these outcomes, sorted as the report sorts them."""
    store, axes = Store(root), spec.tiers["small"].axes
    members: dict[str, list[str]] = {arm: [] for arm in spec.arms}
    for arm in spec.arms:
        for act in axes["model.activation"]:
            for run in (Run(arm, lr, seed, act) for lr in axes["lr"] for seed in axes["seed"]):
                members[arm].append(name_of(run))
                ended = outcome(run)
                if ended is not None:
                    write(store, run, *ended)
    return select(load_frame(store, [name for names in members.values() for name in names]).runs, spec, members)


def judged(root: Path, spec: StudySpec, outcome: Outcome, *, exploratory: bool = False) -> list[ClaimVerdict]:
    declared = None if exploratory else declared_of(spec, "small")
    return judge_study(chosen(root, spec, outcome), spec, declared=declared)


def two_arms(effect: float, spread: float = 1.0, best: float = 0.3) -> Outcome:
    """The treatment is better by `effect` on average; 0.3 is everybody's best rate by five points."""

    def outcome(run: Run) -> tuple[str, float]:
        base = 0.8 + 0.05 * (run.lr == best) + 0.003 * math.sin(run.seed)
        return "finished", base + (run.arm == "batch") * (effect + spread * NOISE.get(run.seed, 0.0))

    return outcome


def without(outcome: Outcome, lacking: Callable[[Run], bool], instead: str | None = None) -> Outcome:
    def changed(run: Run) -> tuple[str, float] | None:
        if not lacking(run):
            return outcome(run)
        return None if instead is None else (instead, CHANCE)

    return changed


@pytest.mark.parametrize(
    ("effect", "spread", "direction", "outcome"),
    [
        (0.03, 1, "higher", "supported"),
        (0.03, 1, "lower", "contradicted"),
        (0.03, 1, "same", "contradicted"),
        (0.0, 1, "higher", "negligible"),
        (0.0, 1, "same", "supported"),
        (0.0, 5, "higher", "inconclusive"),
    ],
)
def test_outcome_from_records(tmp_path: Path, effect: float, spread: float, direction: str, outcome: str) -> None:
    (claim,) = judged(tmp_path, study([{"direction": direction}]), two_arms(effect, spread))
    assert (claim.stratum, claim.verdict.outcome, claim.verdict.num_pairs) == ("", outcome, len(SEEDS))
    assert claim.verdict.effect is not None
    assert claim.verdict.effect.t.mean == pytest.approx(effect)
    differences = [effect + spread * NOISE[seed] for seed in SEEDS]
    interval = scipy_stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (claim.verdict.effect.t.low, claim.verdict.effect.t.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("instead", [None, "failed"])
@pytest.mark.parametrize("seed", [5, 0])  # one that is reported, one that tunes
def test_a_missing_or_crashed_run_is_untested_and_no_number(tmp_path: Path, seed: int, instead: str | None) -> None:
    lost = without(two_arms(0.03), lambda run: (run.arm, run.lr, run.seed) == ("batch", 0.3, seed), instead)
    (claim,) = judged(tmp_path, study(), lost)
    verdict = claim.verdict
    assert (verdict.outcome, verdict.effect, verdict.needed) == ("untested", None, None)
    expected = "seed 5: no batch" if seed == 5 else "batch: tuning runs are missing"
    assert verdict.incomplete == (expected,)


@pytest.mark.parametrize(
    "lacking",
    [
        lambda run: run.seed in TUNING,  # all of them: the reported seeds would choose
        lambda run: run.seed == 1,  # one of both arms: the other would choose alone
        lambda run: run.lr == 1.0 and run.seed in TUNING,  # a rate that no arm was tuned at
        lambda run: run.lr == 1.0,  # a rate that no run knows of
    ],
)
def test_what_both_arms_lack_is_missing_too(tmp_path: Path, lacking: Callable[[Run], bool]) -> None:
    (claim,) = judged(tmp_path, study(), without(two_arms(0.03), lacking))
    assert (claim.verdict.outcome, claim.verdict.effect) == ("untested", None)
    assert claim.verdict.incomplete == ("batch: tuning runs are missing", "none: tuning runs are missing")


def test_an_arm_without_a_run_is_untested(tmp_path: Path) -> None:
    (claim,) = judged(tmp_path, study(), without(two_arms(0.03), lambda run: run.arm == "none"))
    assert (claim.verdict.outcome, claim.verdict.effect, claim.verdict.num_pairs) == ("untested", None, 0)
    assert "seed 2: no none" in claim.verdict.incomplete


def sick(run: Run, seeds: Iterable[int]) -> bool:
    return run.arm == "none" and run.seed in seeds


def test_a_failed_run_counts_at_chance_whichever_arm_it_is_of(tmp_path: Path) -> None:
    one_in_eight = without(two_arms(0.03), lambda run: sick(run, [2]), "diverged")
    (claim,) = judged(tmp_path / "one", study(), one_in_eight)
    assert claim.verdict.effect is not None
    assert claim.verdict.effect.failures is not None
    assert claim.verdict.effect.failures.control == 1
    expected = np.mean([0.85 + 0.003 * math.sin(2) + 0.03 + NOISE[2] - CHANCE] + [0.03 + NOISE[s] for s in SEEDS[1:]])
    assert claim.verdict.effect.t.mean == pytest.approx(expected)  # scored at chance, not dropped

    outcomes = []
    for arm in ("none", "batch"):
        fails = without(two_arms(0.0, 0.001), lambda run, arm=arm: run.arm == arm and run.seed in SEEDS, "diverged")
        (claim,) = judged(tmp_path / arm, study(), fails)
        outcomes.append(claim.verdict.outcome)
    assert outcomes == ["supported", "contradicted"]


def test_a_control_that_fails_at_another_rate_is_a_baseline(tmp_path: Path) -> None:
    elsewhere = without(two_arms(0.03), lambda run: run.arm == "none" and run.lr == 1.0, "diverged")
    (claim,) = judged(tmp_path, study(), elsewhere)
    assert claim.verdict.outcome == "supported"


def test_a_control_of_which_runs_are_missing_is_untested_and_not_yet_invalid(tmp_path: Path) -> None:
    failing = without(two_arms(0.03), lambda run: sick(run, SEEDS), "diverged")
    (claim,) = judged(tmp_path, study(), without(failing, lambda run: sick(run, SEEDS[1:])))
    assert claim.verdict.outcome == "untested"


def test_pairs_form_by_seed(tmp_path: Path) -> None:
    # seeds differ by far more than the arms: any other pairing has another spread
    scores = {seed: 0.3 + 0.06 * seed for seed in (*TUNING, *SEEDS)}

    def outcome(run: Run) -> tuple[str, float]:
        extra = 0.02 + NOISE.get(run.seed, 0) if run.arm == "batch" else 0
        return "finished", scores[run.seed] + extra - 0.1 * (run.lr != 0.3)

    (claim,) = judged(tmp_path, study(), outcome)
    assert claim.verdict.effect is not None
    assert claim.verdict.effect.sd == pytest.approx(np.std(list(NOISE.values()), ddof=1))
    assert claim.verdict.effect.gain > 100


def test_tuning_seeds_choose_and_never_enter(tmp_path: Path) -> None:
    # at the tuning seeds 1.0 is best for the treatment, by luck; at the others it is its worst
    def outcome(run: Run) -> tuple[str, float]:
        if run.seed in TUNING:
            return "finished", 0.99 if run.lr == (1.0 if run.arm == "batch" else 0.1) else 0.5
        level = {0.1: 0.80, 0.3: 0.90, 1.0: 0.77}[run.lr]
        return "finished", level + (NOISE[run.seed] if run.arm == "batch" else 0)

    selection = chosen(tmp_path, study(), outcome)
    assert selection.best_lr == {("none", ""): 0.1, ("batch", ""): 1.0}
    (claim,) = judge_study(selection, study(), declared=declared_of(study(), "small"))
    assert claim.verdict.effect is not None
    assert claim.verdict.effect.t.mean == pytest.approx(-0.03)
    assert (claim.verdict.outcome, claim.verdict.num_pairs) == ("contradicted", len(SEEDS))


def test_the_family_spans_strata_and_comparisons(tmp_path: Path) -> None:
    spec = study([{}, {"treatment": "group"}], arms=("none", "batch", "group"), acts=("relu", "tanh"), rates=(0.1,))
    factors = {("batch", "relu"): 2.5, ("group", "relu"): 2.6, ("batch", "tanh"): 2.2, ("group", "tanh"): 1.0}

    def outcome(run: Run) -> tuple[str, float]:
        if run.arm == "none":
            return "finished", 0.8
        return "finished", 0.8 + 0.0135 + factors[run.arm, run.act] * NOISE.get(run.seed, 0)

    claims = judged(tmp_path, spec, outcome)
    assert [(claim.comparison.treatment, claim.stratum) for claim in claims] == [
        ("batch", "relu"), ("group", "relu"), ("batch", "tanh"), ("group", "tanh"),
    ]  # fmt: skip
    raw = [
        scipy_stats.ttest_1samp([0.0135 + factors[c.comparison.treatment, c.stratum] * NOISE[s] for s in SEEDS], 0)
        for c in claims
    ]
    p = [float(test.pvalue) for test in raw]
    effects = [claim.verdict.effect for claim in claims]
    assert all(effects)
    assert [effect.p_holm for effect in effects if effect] == pytest.approx(multipletests(p, method="holm")[1])
    assert max(p) < 0.05 < max(multipletests(p, method="holm")[1])  # so the family decides about some
    assert {claim.verdict.outcome for claim in claims} == {"supported", "inconclusive"}


def test_a_stratum_without_any_run_keeps_its_place_in_the_family(tmp_path: Path) -> None:
    spec = study(acts=("relu", "tanh"))
    whole = judged(tmp_path / "whole", spec, two_arms(0.012, 1.2))
    half = judged(tmp_path / "half", spec, without(two_arms(0.012, 1.2), lambda run: run.act == "tanh"))
    assert (len(whole), len(half)) == (2, 1)
    effect = half[0].verdict.effect
    assert effect is not None
    assert effect.p_holm == pytest.approx(2 * effect.p)


def test_a_missing_comparison_keeps_its_place_in_the_family(tmp_path: Path) -> None:
    spec = study(acts=("relu", "tanh"))
    lost = without(two_arms(0.03), lambda run: run == Run("none", 0.3, 4, "tanh"))
    relu, tanh = judged(tmp_path, spec, lost)
    assert (relu.verdict.outcome, tanh.verdict.outcome) == ("supported", "untested")
    assert relu.verdict.effect is not None
    assert relu.verdict.effect.p_holm == pytest.approx(2 * relu.verdict.effect.p)


def test_verdicts_at_the_same_rate_are_a_family_of_their_own(tmp_path: Path) -> None:
    effects = {0.1: 0.03, 0.3: 0.0, 1.0: -0.03}

    def outcome(run: Run) -> tuple[str, float]:
        return two_arms(effects[run.lr])(run)  # type: ignore[return-value]

    (claim,) = judged(tmp_path, study(), outcome)
    assert {lr: verdict.outcome for lr, verdict in claim.same_lr.items()} == {
        0.1: "supported", 0.3: "negligible", 1.0: "contradicted",
    }  # fmt: skip
    p = [scipy_stats.ttest_1samp([effects[lr] + NOISE[s] for s in SEEDS], 0).pvalue for lr in RATES]
    found = [verdict.effect.p_holm for verdict in claim.same_lr.values() if verdict.effect]
    assert found == pytest.approx(multipletests(p, method="holm")[1])


def test_a_rate_that_has_not_run_is_untested_at_the_same_rate(tmp_path: Path) -> None:
    (claim,) = judged(tmp_path, study(), without(two_arms(0.03), lambda run: run.lr == 1.0))
    assert {lr: verdict.outcome for lr, verdict in claim.same_lr.items()} == {
        0.1: "supported", 0.3: "supported", 1.0: "untested",
    }  # fmt: skip
    (single,) = judged(tmp_path / "single", study(rates=(0.1,)), two_arms(0.03))
    assert single.same_lr == {}


# seed -> how many of the three rates stay healthy, from the smallest on
LIMITS = {"batch": dict(zip(SEEDS, (3, 3, 3, 3, 2, 3, 3, 3), strict=True)),
          "none": dict(zip(SEEDS, (1, 1, 2, 1, 1, 0, 1, 1), strict=True))}  # fmt: skip
HEALTHY = {"shape": "healthy_lr", "margin": 3}


def ladder(run: Run) -> tuple[str, float]:
    healthy = LIMITS[run.arm].get(run.seed, 0)  # those that tune are all sick: they must not count
    return ("finished", 0.9) if RATES.index(run.lr) < healthy else ("diverged", CHANCE)


def test_healthy_rates_are_compared_as_a_ratio(tmp_path: Path) -> None:
    (claim,) = judged(tmp_path, study([HEALTHY]), ladder)
    (free,) = judged(tmp_path, study([HEALTHY]), ladder, exploratory=True)
    assert free.verdict == claim.verdict
    assert claim.verdict.num_pairs == len(SEEDS)
    levels = (0.1**2 / 0.3, *RATES)  # none healthy: one step below the ladder
    ratios = [math.log10(levels[LIMITS["batch"][s]] / levels[LIMITS["none"][s]]) for s in SEEDS]
    effect = claim.verdict.effect
    assert effect is not None
    assert effect.t.mean == pytest.approx(np.mean(ratios))
    assert effect.p == pytest.approx(scipy_stats.ttest_1samp(ratios, 0).pvalue)
    assert claim.verdict.outcome == "supported"
    assert claim.same_lr == {}
    mean = 10 ** float(np.mean(ratios))
    for margin, outcome in ((0.99 * mean, "supported"), (1.01 * mean, "inconclusive")):
        (claim,) = judged(tmp_path / outcome, study([HEALTHY | {"margin": margin}]), ladder)
        assert claim.verdict.outcome == outcome


@pytest.mark.parametrize(
    ("lacking", "phrase"),
    [
        (lambda run: run == Run("batch", 1.0, 4, "relu"), "seed 4: no batch"),
        (lambda run: run.lr == 1.0, "learning rate 1: no run"),
        (lambda run: run.arm == "none", "no none"),
        (lambda run: run.lr > 0.1, "two learning rates at least"),
    ],
)
def test_a_ladder_with_a_hole_is_untested(tmp_path: Path, lacking: Callable[[Run], bool], phrase: str) -> None:
    (claim,) = judged(tmp_path, study([HEALTHY]), without(ladder, lacking))
    assert (claim.verdict.outcome, claim.verdict.effect) == ("untested", None)
    assert phrase in claim.verdict.incomplete


def test_an_exploratory_study_judges_the_seeds_it_has(tmp_path: Path) -> None:
    fewer = without(two_arms(0.03), lambda run: run.seed > 7)
    (claim,) = judged(tmp_path / "a", study(), fewer, exploratory=True)
    assert (claim.verdict.outcome, claim.verdict.num_pairs) == ("supported", 6)
    (claim,) = judged(tmp_path / "b", study(), fewer)
    assert claim.verdict.outcome == "untested"
    uneven = without(fewer, lambda run: run.arm == "none" and run.seed == 7)
    (claim,) = judged(tmp_path / "c", study(), uneven, exploratory=True)
    assert (claim.verdict.outcome, claim.verdict.incomplete) == ("untested", ("seed 7: no none",))
    untuned = without(fewer, lambda run: run.arm == "none" and run.seed == 1 and run.lr == 0.1)
    (claim,) = judged(tmp_path / "d", study(), untuned, exploratory=True)
    assert (claim.verdict.outcome, claim.verdict.incomplete) == ("untested", ("none: tuning runs are missing",))


def test_seeds_that_nobody_declared_are_left_out_and_named(tmp_path: Path) -> None:
    selection = chosen(tmp_path, study(), two_arms(0.03))
    (claim,) = judge_study(selection, study(), declared=Declared(SEEDS[:6], TUNING, RATES))
    assert (claim.verdict.num_pairs, claim.verdict.undeclared) == (6, SEEDS[6:])


@pytest.mark.parametrize("shape", [{}, HEALTHY])
def test_two_runs_of_one_seed_are_refused(tmp_path: Path, shape: dict[str, Any]) -> None:
    spec, store = study([shape]), Store(tmp_path)
    chosen(tmp_path, spec, two_arms(0.03))
    names = {arm: [name for name in store.run_ids() if name.startswith(arm)] for arm in spec.arms}
    names["batch"].append("batch-relu-0.3-5")
    selection = select(load_frame(store, None).runs, spec, names)
    with pytest.raises(StoreError, match=r"arm 'batch': .*seed.* occurs twice"):
        judge_study(selection, spec, declared=declared_of(spec, "small"))


def test_a_run_in_two_arms_counts_in_both(tmp_path: Path) -> None:
    spec = study([{}, {"treatment": "either"}, {"treatment": "batch", "control": "either"}],
                 arms=("none", "batch", "either"))  # fmt: skip
    shared = {"either": "batch"}

    store = Store(tmp_path)
    members: dict[str, list[str]] = {arm: [] for arm in spec.arms}
    for arm in spec.arms:
        for run in (Run(shared.get(arm, arm), lr, seed, "relu") for lr in RATES for seed in (*TUNING, *SEEDS)):
            write(store, run, *two_arms(0.03)(run))  # type: ignore[misc]
            members[arm].append(name_of(run))
    runs = load_frame(store, None).runs
    assert len(runs) == 2 * len(RATES) * 10
    one, two, same = judge_study(select(runs, spec, members), spec, declared=declared_of(spec, "small"))
    assert one.verdict.effect is not None
    assert two.verdict.effect is not None
    assert one.verdict.effect.t == two.verdict.effect.t
    assert (one.verdict.outcome, two.verdict.outcome, same.verdict.outcome) == ("supported", "supported", "negligible")


def test_power_is_planned_from_the_runs_that_are_there(tmp_path: Path) -> None:
    spec = study(acts=("relu", "tanh"))
    declared = declared_of(spec, "small")
    begun = without(two_arms(0.03), lambda run: run.act == "tanh" or run.seed > 5)
    (power,) = plan_power(chosen(tmp_path / "begun", spec, begun), spec, declared)
    sd = pilot_sd([NOISE[seed] for seed in range(2, 6)])
    assert (power.num_pilot, power.num_pairs, power.sd) == (4, len(SEEDS), pytest.approx(sd))
    plan = {"sd": sd, "margin": 0.01, "family_size": 2}
    assert power.to_find == pytest.approx(power_of_difference(8, effect=0.02, **plan))  # type: ignore[arg-type]
    assert power.to_equate == pytest.approx(power_of_equivalence(8, **plan))  # type: ignore[arg-type]
    assert 0 < power.to_find < 1
    single = without(two_arms(0.03), lambda run: run.seed > 2)
    assert plan_power(chosen(tmp_path / "single", spec, single), spec, declared) == []
    failing = without(begun, lambda run: sick(run, [2]), "diverged")
    (power,) = plan_power(chosen(tmp_path / "failing", spec, failing), spec, declared)
    assert power.to_find < 0.05  # one in four differs by 70 points: eight pairs find nothing of two


def test_a_ladder_that_is_too_short_for_both_arms_decides_nothing(tmp_path: Path) -> None:
    spec = study([{"shape": "healthy_lr", "margin": 3}])
    (claim,) = judged(tmp_path, spec, two_arms(0.0))
    assert claim.verdict.outcome == "inconclusive"
    assert claim.verdict.needed is not None
    assert claim.verdict.needed.num_pairs is None


def test_all_rates_in_all_strata_are_one_family(tmp_path: Path) -> None:
    (claim,) = judged(tmp_path, study(), two_arms(0.012, 0.01))
    values = {lr: verdict.effect for lr, verdict in claim.same_lr.items()}
    assert len(values) == 3
    raw = sorted(effect.p for effect in values.values() if effect)
    corrected = sorted(effect.p_holm for effect in values.values() if effect)
    assert corrected[0] == pytest.approx(min(1.0, 3 * raw[0]))
