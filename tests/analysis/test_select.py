"""Strata of a study: what they are called, in which order they stand, and which differ in a level alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from made_up import CHANCE, Ended, Run, judged, selected, study, two_arms, without

from bnexp.analysis.select import level_of


def strata(axes: dict[str, list[Any]]) -> tuple[str, ...]:
    return selected(study(axes=axes), two_arms(0.03)).strata


def test_strata_stand_in_the_order_of_their_numbers_with_null_last() -> None:
    assert strata({"model.depth": [16, 2, 8]}) == ("depth 2", "depth 8", "depth 16")
    assert strata({"data.train_limit": [None, 1000, 500]}) == (
        "train limit 500", "train limit 1000", "train limit none",
    )  # fmt: skip
    assert strata({"optim.weight_decay": [0.001, 0.0]}) == ("weight decay 0", "weight decay 0.001")
    assert strata({"optim.nesterov": [True, False]}) == ("nesterov False", "nesterov True")
    assert strata({"model.depth": [4]}) == ("",)


def test_names_and_numbers_of_one_key_can_stand_side_by_side() -> None:
    assert strata({"norm.momentum": ["cumulative", 0.1, None]}) == ("momentum 0.1", "cumulative", "momentum none")


def test_levels_are_the_strata_that_differ_in_nothing_else() -> None:
    axes: dict[str, list[Any]] = {"model.activation": ["relu", "tanh"], "model.depth": [16, 2, 8]}
    found = selected(study(axes=axes), two_arms(0.03))
    assert found.groups(None) == {stratum: [stratum] for stratum in found.strata}
    assert found.groups("model.depth") == {
        "relu": ["relu, depth 2", "relu, depth 8", "relu, depth 16"],
        "tanh": ["tanh, depth 2", "tanh, depth 8", "tanh, depth 16"],
    }
    assert list(found.levels("model.depth", "tanh").items()) == [
        (2.0, "tanh, depth 2"), (8.0, "tanh, depth 8"), (16.0, "tanh, depth 16"),
    ]  # fmt: skip
    assert found.groups("model.activation")["depth 2"] == ["relu, depth 2", "tanh, depth 2"]
    assert found.levels("model.activation", "depth 2") == {"relu": "relu, depth 2", "tanh": "tanh, depth 2"}
    assert found.levels("model.depth", "sigmoid") == {}


def test_null_is_a_level_and_has_a_name() -> None:
    found = selected(study(axes={"data.train_limit": [None, 500]}), two_arms(0.03))
    assert found.levels("data.train_limit", "") == {500.0: "train limit 500", None: "train limit none"}
    assert found.groups("data.train_limit") == {"": ["train limit 500", "train limit none"]}


def test_a_key_of_which_one_level_has_run_has_no_levels() -> None:
    spec = study(axes={"model.depth": [2, 4]})
    found = selected(spec, without(two_arms(0.03), lambda run: run.at == (4,)))
    assert (found.strata, found.groups("model.depth"), found.levels("model.depth", "")) == (("",), {"": [""]}, {})


@pytest.mark.parametrize(
    ("value", "level"),
    [(3, 3.0), (np.int64(3), 3.0), (0.5, 0.5), (np.float64(0.5), 0.5), ("relu", "relu"), (None, None),
     (float("nan"), None), (True, True)],
)  # fmt: skip
def test_level_of(value: object, level: object) -> None:
    assert level_of(value) == level
    assert isinstance(level_of(value), type(level))


def test_a_measure_with_a_target_is_no_key_of_the_config() -> None:
    spec = study({"measure": "epochs_to_target", "shape": "ratio", "direction": "lower", "margin": 1.25})

    def outcome(run: Run) -> Ended:
        return "finished", {"accuracy": 0.9, "epochs_to_target@0.5": 1.0 + run.seed % 2}

    found = selected(spec, outcome)
    assert (found.strata, found.fixed.get("epochs_to_target@0.5")) == (("",), None)
    (claim,) = judged(spec, outcome)
    assert claim.verdict.outcome == "negligible"


def test_a_run_with_chance_accuracy_is_healthy_only_where_it_says_so() -> None:
    found = selected(study(), without(two_arms(0.0), lambda run: run.seed == 3, "collapsed"))
    assert set(found.runs.loc[~found.runs["healthy"], "seed"]) == {3}
    assert set(found.runs.loc[found.runs["seed"] == 3, "score"]) == {CHANCE}
