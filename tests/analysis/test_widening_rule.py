"""The rule that widens a ladder, on runs made to order: which rates it asks for, and when it is done."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
from made_up import Run, selected, study

from bnexp.analysis.widening import (
    Ladder,
    Tried,
    Widened,
    arm_end,
    best_rate,
    frozen_ladders,
    ladders_of,
    results_of,
    widen,
)

SEEDS = tuple(range(6))
DECLARED, FURTHER = (0.1, 0.3, 1.0), (0.01, 0.03, 3.0, 10.0)
Result = Callable[[str, float, int], Tried | None]  # arm, rate, seed


def run_name(arm: str, lr: float, seed: int) -> str:
    return f"{arm}@{lr:g}#{seed}"


def ladder(further: Sequence[float] = FURTHER, stratum: str = "cnn") -> Ladder:
    def ids(rates: Sequence[float]) -> dict[str, dict[float, list[str]]]:
        return {arm: {lr: [run_name(arm, lr, seed) for seed in SEEDS] for lr in rates} for arm in ("none", "batch")}

    return Ladder(stratum, ids(DECLARED), ids(further))


def tried_of(result: Result, rates: Sequence[float] = (*DECLARED, *FURTHER)) -> dict[str, Tried]:
    found = {run_name(arm, lr, s): result(arm, lr, s) for arm in ("none", "batch") for lr in rates for s in SEEDS}
    return {name: run for name, run in found.items() if run is not None}


def peaks(**at: float) -> Result:
    """Each arm is best at a rate of its own, and healthy everywhere."""
    return lambda arm, lr, seed: Tried(1 - abs(math.log10(lr / at[arm])), True)


def widened(result: Result, num_seeds: int = 6, before: Widened | None = None) -> Widened:
    return widen(ladder(), tried_of(result), num_seeds=num_seeds, before=before)


@pytest.mark.parametrize(
    ("none", "batch", "added"),
    [
        (0.3, 0.3, ()),
        (0.3, 1.0, (3.0,)),
        (0.1, 0.3, (0.03,)),
        (0.1, 1.0, (0.03, 3.0)),  # each for its own arm
        (0.3, 3.0, (3.0, 10.0)),
        (0.03, 0.3, (0.03, 0.01)),
        (1.0, 1.0, (3.0,)),
    ],
)
def test_rates_are_added_outward_until_no_arm_is_best_at_an_end(
    none: float, batch: float, added: tuple[float, ...]
) -> None:
    found = widened(peaks(none=none, batch=batch))
    assert (found.added, found.settled) == (added, True)
    assert [end.side for end in found.ends.values()] == [None, None]
    assert found.rates == tuple(sorted({*DECLARED, *added}))


def test_reasons_name_the_arms_and_their_best_rates_of_then() -> None:
    both = widened(peaks(none=1.0, batch=10.0))
    assert [(rung.lr, rung.side, dict(rung.reasons)) for rung in both.rungs] == [
        (3.0, "largest", {"none": 1.0, "batch": 1.0}), (10.0, "largest", {"batch": 3.0}),
    ]  # fmt: skip


def test_without_a_rate_left_the_arm_is_at_the_bound() -> None:
    found = widened(peaks(none=0.3, batch=100.0))
    assert (found.added, found.settled) == ((3.0, 10.0), True)
    end = found.ends["batch"]
    assert (end.best, end.side, end.proven, end.at_bound) == (10.0, "largest", False, True)
    assert not found.ends["none"].at_bound


def test_an_unhealthy_next_rate_proves_the_end() -> None:
    def result(arm: str, lr: float, seed: int) -> Tried:
        sound = lr <= 1 or seed == 0
        return Tried(lr if sound else 0.1, sound)

    found = widened(result)
    assert found.added == (3.0,)
    end = found.ends["batch"]
    assert (end.best, end.side, end.proven, end.at_bound) == (1.0, None, True, False)


def test_an_added_rate_that_is_best_and_unhealthy_is_an_end_too() -> None:
    # four of six healthy runs are 67 %: too few, and still the best mean
    found = widened(lambda arm, lr, seed: Tried(lr, lr <= 1 or seed < 4))
    assert found.added == (3.0,)
    end = found.ends["batch"]
    assert (end.best, end.side, end.proven, end.at_bound) == (3.0, "largest", True, False)


def test_an_unhealthy_end_of_the_declared_ladder_is_no_reason_to_stop() -> None:
    found = widened(lambda arm, lr, seed: Tried(lr, lr < 1))
    assert found.added == (3.0,)


def test_an_arm_that_is_healthy_nowhere_is_tried_at_every_smaller_rate() -> None:
    found = widened(lambda arm, lr, seed: Tried(0.1, False) if arm == "none" else peaks(batch=0.3)(arm, lr, seed))
    assert found.added == (0.03, 0.01)  # equal means: the smaller rate
    assert (found.ends["none"].best, found.ends["none"].at_bound) == (0.01, True)
    saved = widened(
        lambda arm, lr, seed: (
            Tried(0.5 if lr <= 0.01 else 0.1, lr <= 0.01) if arm == "none" else peaks(batch=0.3)(arm, lr, seed)
        )
    )
    assert (saved.ends["none"].best, saved.ends["none"].at_bound) == (0.01, True)  # it may be better still below


@pytest.mark.parametrize("lost", [("none", 0.3, 2), ("batch", 1.0, 5), ("none", 3.0, 5), ("batch", 10.0, 0)])
def test_a_missing_run_leaves_the_ladder_open(lost: tuple[str, float, int]) -> None:
    full = tried_of(peaks(none=0.3, batch=3.0))
    found = widen(ladder(), {name: run for name, run in full.items() if name != run_name(*lost)}, num_seeds=6)
    assert (found.settled, dict(found.ends)) == (False, {})
    assert found.added == tuple(lr for lr in (3.0, 10.0) if lost[1] >= lr)  # what is known to be wanted


def test_runs_of_a_rate_that_nothing_asks_for_change_nothing() -> None:
    some = tried_of(peaks(none=0.3, batch=0.3), DECLARED)
    everything = tried_of(peaks(none=0.3, batch=0.3))
    assert widen(ladder(), some, num_seeds=6) == widen(ladder(), everything, num_seeds=6)


def test_what_fewer_seeds_have_added_stays() -> None:
    def result(arm: str, lr: float, seed: int) -> Tried:
        return peaks(none=0.3, batch=1.0 if seed < 2 else 0.3)(arm, lr, seed)

    first = widened(result, num_seeds=3)
    assert first.added == (3.0,)
    assert widened(result).added == ()
    later = widened(result, before=first)
    assert (later.added, later.settled, later.ends["batch"].best) == ((3.0,), True, 0.3)


def test_strata_are_widened_apart() -> None:
    one, other = ladder(stratum="relu"), ladder(stratum="tanh")
    other = Ladder("tanh", *({arm: {lr: [f"tanh {n}" for n in names] for lr, names in rungs.items()}
                              for arm, rungs in ids.items()} for ids in (other.declared, other.further)))  # fmt: skip
    tried = tried_of(peaks(none=0.3, batch=1.0)) | {
        f"tanh {name}": run for name, run in tried_of(peaks(none=0.1, batch=0.3)).items()
    }
    assert [widen(each, tried, num_seeds=6).added for each in (one, other)] == [(3.0,), (0.03,)]


def test_equal_means_go_to_the_smaller_rate() -> None:
    assert best_rate({1.0: [0.5], 0.1: [0.5], 0.3: [0.4]}) == 0.1


def test_an_inner_best_rate_is_proven_only_by_an_unhealthy_neighbour() -> None:
    def end(*sound: bool) -> bool:
        runs = {lr: [Tried(0.9 if lr == 0.3 else 0.5, ok)] for lr, ok in zip(DECLARED, sound, strict=True)}
        return arm_end(runs).proven

    assert [end(True, True, True), end(True, True, False), end(False, True, True)] == [False, True, True]


def test_rates_are_chosen_as_a_report_chooses_them() -> None:
    draw = random.Random(3)
    for _ in range(20):
        chance = {(arm, lr): draw.choice([0.3, 0.5, 0.5, 0.8]) for arm in ("none", "batch") for lr in DECLARED}

        def outcome(run: Run) -> tuple[str, float]:
            sick = (run.seed + round(10 * run.lr)) % 4 == 0
            return ("diverged" if sick else "finished", chance[run.arm, run.lr])  # noqa: B023

        selection = selected(study(rates=DECLARED), outcome)
        for (arm, stratum), best in selection.best_lr.items():
            cell = selection.cell(selection.runs, arm, stratum)
            votes: dict[float, list[float]] = {}
            for lr, run in zip(cell["lr"], results_of(cell, "val_accuracy"), strict=True):
                votes.setdefault(lr, []).append(run.vote)
            assert best_rate(votes) == best


def test_study_json_keeps_ladders() -> None:
    plain = frozen_ladders([ladder()])
    (back,) = ladders_of({"widening": plain})
    assert back.declared_ids == ladder().declared_ids
    assert back.further_ids == ladder().further_ids
    assert back.ids_at(3.0) == ladder().ids_at(3.0)
    assert ladders_of({}) == ()
