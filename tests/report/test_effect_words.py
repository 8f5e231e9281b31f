"""Words and units of comparisons of every shape, each against what a person would write."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bnexp.analysis.stats import Estimate
from bnexp.catalog import list_studies
from bnexp.comparison import SHAPES, Comparison
from bnexp.metrics import MEASURES, METRICS
from bnexp.report.effect_words import claimed, compared, key_word, measured, scale_of, sides

TWO = {"treatment": "batch", "control": "no norm"}
PAIR: dict[str, Any] = {**TWO, "measure": "test_accuracy"}
TIME: dict[str, Any] = {**TWO, "measure": "epochs_to_target", "target": 0.9}


def comparison(shape: str, margin: float, direction: Any = "higher", **fields: Any) -> Comparison:
    return Comparison(shape, direction, margin, **fields)


@pytest.mark.parametrize(
    ("made", "what", "claim"),
    [
        (comparison("difference", 0.01, **PAIR), "batch − no norm, test accuracy", "higher by at least 1 point"),
        (comparison("difference", 0.02, "same", **PAIR), "batch − no norm, test accuracy",
         "no difference beyond 2 points"),
        (comparison("difference", 0.01, "not lower", **PAIR), "batch − no norm, test accuracy",
         "not lower by 1 point or more"),
        (comparison("difference", 0.5, "lower", **TWO, measure="gradient_decades_start"),
         "batch − no norm, gap between first and last layer's gradient, at the start",
         "lower by at least 0.5 decades"),
        (comparison("difference", 0.01, "same", treatment="batch", control="batch", measure="accuracy_running",
                    control_measure="accuracy_precise"),
         "batch, test accuracy with running statistics − test accuracy with precise statistics",
         "no difference beyond 1 point"),
        (comparison("difference", 0.01, **TWO, measure="accuracy_batch", control_measure="test_accuracy"),
         "batch − no norm, test accuracy with each batch's own statistics (no norm: test accuracy)",
         "higher by at least 1 point"),
        (comparison("ratio", 1.25, "lower", **TIME), "epochs to 90 % validation accuracy, batch / no norm",
         "at most ×0.8"),
        (comparison("ratio", 1.25, "same", **TIME), "epochs to 90 % validation accuracy, batch / no norm",
         "between ×0.8 and ×1.25"),
        (comparison("ratio", 1.25, "not lower", **TIME), "epochs to 90 % validation accuracy, batch / no norm",
         "above ×0.8"),
        (comparison("matched", 0.01, **TWO, measure="val_accuracy", target=0.5),
         "batch − no norm, validation accuracy at the highest train accuracy that both reach",
         "higher by at least 1 point"),
        (comparison("level", 0.001, "same", treatment="batch", reference=0.0, measure="norm_mean_error"),
         "largest channel mean, before gamma and beta, batch, against 0", "less than 0.001 SD from 0"),
        (comparison("level", 0.01, treatment="only", reference=0.5, measure="test_accuracy"),
         "test accuracy, only, against 50 %", "above 50 % by at least 1 point"),
        (comparison("level", 0.01, "lower", treatment="only", reference=0.5, measure="test_accuracy"),
         "test accuracy, only, against 50 %", "below 50 % by at least 1 point"),
        (comparison("level", 0.01, "not lower", treatment="only", reference=0.5, measure="test_accuracy"),
         "test accuracy, only, against 50 %", "not below 50 % by 1 point or more"),
        (comparison("reach", 3, **PAIR, over="lr"), "largest learning rate that stays healthy, batch / no norm",
         "at least ×3"),
        (comparison("reach", 2, **PAIR, over="model.depth", within=0.01),
         "largest depth within 1 point of its own best test accuracy, batch / no norm", "at least ×2"),
        (comparison("reach", 2, **PAIR, over="model.depth", within=0.01, best="pair"),
         "largest depth within 1 point of the pair's best test accuracy, batch / no norm", "at least ×2"),
        (comparison("span", 1, **PAIR, over="model.init_gain"),
         "decades of init gain that stay healthy, batch − no norm", "higher by at least 1 decade"),
        (comparison("span", 0.5, **PAIR, over="model.init_gain", within=0.02),
         "decades of init gain within 2 points of its own best test accuracy, batch − no norm",
         "higher by at least 0.5 decades"),
        (comparison("worst", 0.01, **PAIR, over="model.init_gain"),
         "worst test accuracy at any init gain, batch − no norm", "higher by at least 1 point"),
        (comparison("slope", 0.005, **PAIR, over="model.depth"), "test accuracy per doubling of depth, batch − no norm",
         "rises by at least 0.5 points per doubling"),
        (comparison("slope", 0.01, "same", treatment="batch", over="batch_size", measure="test_accuracy"),
         "test accuracy per doubling of batch size, batch", "changes by less than 1 point per doubling"),
        (comparison("slope", 0.005, "not lower", **PAIR, over="model.depth"),
         "test accuracy per doubling of depth, batch − no norm", "does not fall by 0.5 points per doubling or more"),
        (comparison("slope", 0.0025, "lower", levels=(("ghost 4", 4.0), ("batch", 64.0)), measure="test_accuracy"),
         "test accuracy, from ghost 4 to batch, per doubling", "falls by at least 0.25 points per doubling"),
        (comparison("interaction", 0.01, "lower", **PAIR, against=("a", "b")),
         "(batch − no norm) − (a − b), test accuracy", "lower by at least 1 point"),
        (comparison("search", 0.01, "lower", **PAIR, budget=4),
         "test accuracy lost by trying 4 settings instead of all, batch − no norm", "lower by at least 1 point"),
        (comparison("search", 0.01, "lower", **PAIR, budget=1),
         "test accuracy lost by trying 1 setting instead of all, batch − no norm", "lower by at least 1 point"),
    ],
)  # fmt: skip
def test_what_is_compared_and_claimed(made: Comparison, what: str, claim: str) -> None:
    assert compared(made) == what
    assert claimed(made) == claim


def test_every_shape_is_in_the_list_above() -> None:
    (mark,) = test_what_is_compared_and_claimed.pytestmark  # type: ignore[attr-defined]
    assert {row[0].shape for row in mark.args[1]} == set(SHAPES)


@pytest.mark.parametrize(
    ("made", "stored", "shown"),
    [
        (comparison("difference", 0.01, **PAIR), (0.012, 0.0049, -0.0151), "+1.20 points [+0.49, −1.51]"),
        (comparison("ratio", 1.25, **TIME), [math.log(x) for x in (0.5, 0.25, 12.34)], "×0.50 [0.25, 12.3]"),
        (comparison("reach", 3, **PAIR, over="lr"), (1.0, 0.5, 2.5), "×10.0 [3.16, 316]"),
        (comparison("reach", 3, **PAIR, over="lr"), (-2.0, -3.0, 0.0), "×0.01 [0.001, 1.00]"),
        (comparison("span", 1, **PAIR, over="lr"), (0.5, -0.25, 1.5), "+0.50 decades [−0.25, +1.50]"),
        (comparison("slope", 0.005, **PAIR, over="model.depth"), (0.01, 0.0, 0.02),
         "+1.00 points per doubling [+0.00, +2.00]"),
        (comparison("difference", 0.1, **TWO, measure="shift_cosine"), (0.1, 0.05, 0.15), "+0.10 [+0.05, +0.15]"),
        (comparison("level", 0.001, "same", treatment="batch", reference=0.0, measure="norm_mean_error"),
         (2e-7, 1e-4, 0.0012), "+0.0000 SD [+0.0001, +0.0012]"),
    ],
)  # fmt: skip
def test_numbers_in_their_unit(made: Comparison, stored: tuple[float, ...], shown: str) -> None:
    mean, low, high = stored
    assert scale_of(made).interval(Estimate(mean, low, high, 6)) == shown
    alone = scale_of(made).interval(Estimate(mean, math.nan, math.nan, 1))
    assert alone == shown.partition(" [")[0]


def test_sides_say_who_is_higher() -> None:
    assert sides(comparison("difference", 0.01, **PAIR)) == ("no norm higher", "batch higher")
    assert sides(comparison("level", 0.01, treatment="a", reference=0.0, measure="test_accuracy")) == ("below", "above")
    levels = (("a", 1.0), ("b", 2.0))
    assert sides(comparison("slope", 0.01, levels=levels, measure="test_accuracy")) == ("falls", "rises")
    assert sides(comparison("interaction", 0.01, **PAIR, against=("a", "b"))) == ("lower", "higher")


@pytest.mark.parametrize("name", [*METRICS, *MEASURES])
def test_every_measure_has_a_phrase_without_a_unit(name: str) -> None:
    phrase = measured(Comparison("difference", "higher", 0.01, measure=name, target=0.9, **TWO))
    assert not phrase.endswith((")", "%)")) or name == "generalization_gap"
    assert "{" not in phrase
    assert "_" not in phrase


def test_every_declared_comparison_reads_without_a_config_key() -> None:
    for spec in list_studies().values():
        for tier in spec.tiers:
            for made in spec.at(tier).comparisons:
                text = f"{compared(made)}; {claimed(made)}"
                assert "None" not in text, text
                assert "_" not in text, text
                assert len(compared(made)) < 130, text


def test_keys_in_words() -> None:
    assert [key_word(key) for key in ("lr", "model.name", "norm.ghost_size", "batch_size")] == [
        "learning rate", "model", "ghost size", "batch size"
    ]  # fmt: skip
