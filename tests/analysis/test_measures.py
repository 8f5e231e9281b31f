"""Derived measures against histories and probe rows written by hand, with values worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bnexp.analysis.frame import load_frame, score
from bnexp.analysis.measures import ACCURACIES, OF_HISTORY, OTHERS, Curve, column, reading_at, with_measures
from bnexp.metrics import CURVE, MEASURES, METRICS, NEEDS_TARGET, PROBE_OF, SHOWN_UNITS, metric_of
from bnexp.probes import END_PROBES, STEP_PROBES
from bnexp.records import RunRecord
from bnexp.store import Store

CHANCE = {"chance_train_accuracy": 0.2, "chance_val_accuracy": 0.1, "chance_test_accuracy": 0.12}
Rows = list[dict[str, Any]]


def write(
    root: Path,
    *,
    name: str = "run",
    status: str = "finished",
    final: dict[str, float | None] | None = None,
    history: Rows | None = None,
    probes: Rows | None = None,
    epochs: int | None = None,
) -> Store:
    store = Store(root)
    config = {"epochs": epochs if epochs is not None else len(history or []), "lr": 0.1, "seed": 0}
    store.write_record(RunRecord(name, "cell", status, config, {}, CHANCE | (final or {})))  # type: ignore[arg-type]
    if history is not None:
        store.write_history(name, history)
    store.write_probes(name, probes or [])
    return store


def measured(store: Store, name: str, target: float | None = None) -> float:
    """Of the only run."""
    (value,) = with_measures(load_frame(store, None).runs, store, [(name, target)])[column(name, target)]
    return float(value)


def curve_of(store: Store) -> Curve | None:
    """Of the only run."""
    (found,) = with_measures(load_frame(store, None).runs, store, [(CURVE, None)])[CURVE]
    assert found is None or isinstance(found, Curve)
    return found


def epochs(*val: float | None, train: tuple[float, ...] = (), seconds: tuple[float, ...] = ()) -> Rows:
    rows: Rows = [{"epoch": index + 1, "val_accuracy": value} for index, value in enumerate(val)]
    for key, values in (("train_accuracy", train), ("train_seconds", seconds)):
        for row, value in zip(rows, values, strict=False):
            row[key] = value
    return rows


def row(probe: str, quantity: str, value: float | None, *, step: int = 0, layer: str = "", **columns: Any) -> Any:
    return {"probe": probe, "step": step, "epoch": 0, "layer": layer, "quantity": quantity, "value": value, **columns}


# what is declared


def test_every_declared_measure_is_computed_and_has_a_unit_to_show() -> None:
    assert {*MEASURES, "images_per_second"} == {*OF_HISTORY, *ACCURACIES, *OTHERS}
    assert not set(MEASURES) & set(METRICS)
    assert set(OF_HISTORY) == NEEDS_TARGET
    assert set(PROBE_OF) <= set(MEASURES)
    assert set(PROBE_OF.values()) <= {*STEP_PROBES, *END_PROBES}
    assert all(measure.unit in SHOWN_UNITS for measure in MEASURES.values())
    assert metric_of("shift_l2") is MEASURES["shift_l2"]
    assert metric_of("test_loss") is METRICS["test_loss"]
    with pytest.raises(KeyError):
        metric_of("shift_l3")


def test_every_measure_of_a_run_without_anything_is_missing(tmp_path: Path) -> None:
    store = write(tmp_path, epochs=3)
    wanted = [(name, 0.5 if name in NEEDS_TARGET else None) for name in MEASURES]
    runs = with_measures(load_frame(store, None).runs, store, wanted)
    assert runs[[column(*pair) for pair in wanted]].isna().all(axis=None)


def test_columns_are_named_by_measure_and_target(tmp_path: Path) -> None:
    assert column("epochs_to_target", 0.9) == "epochs_to_target@0.9"
    assert column("shift_l2", 0.9) == column("shift_l2") == "shift_l2"
    store = write(tmp_path, history=epochs(0.3, 0.5), final={"test_accuracy": 0.5, "train_accuracy": 0.75})
    before = load_frame(store, None).runs
    wanted = [
        ("test_accuracy", None),
        ("epochs_to_target", 0.5),
        ("epochs_to_target", 0.2),
        ("generalization_gap", 0.9),
    ]
    runs = with_measures(before, store, wanted)
    assert [*runs] == [*before, "epochs_to_target@0.5", "epochs_to_target@0.2", "generalization_gap"]
    assert list(runs.iloc[0, -3:]) == pytest.approx([2.0, 0.5, 0.25])
    assert "generalization_gap" not in before
    with pytest.raises(KeyError):
        with_measures(before, store, [("nothing", None)])
    with pytest.raises(ValueError, match="target"):
        with_measures(before, store, [("epochs_to_target", None)])


def test_files_are_read_once_a_run_and_only_where_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write(tmp_path, history=epochs(0.3, 0.5, seconds=(1.0, 1.0)))
    runs = load_frame(store, None).runs
    reads: list[str] = []
    probes, history = store.probes, store.history
    monkeypatch.setattr(store, "probes", lambda run, probe: reads.append(probe) or probes(run, probe))
    monkeypatch.setattr(store, "history", lambda run: reads.append("history") or history(run))
    with_measures(runs, store, [("test_accuracy", None), ("generalization_gap", None)])
    assert reads == []
    targets = [(name, target) for name in NEEDS_TARGET for target in (0.3, 0.4)]
    with_measures(
        runs, store, [*targets, (CURVE, None), ("shift_l2", None), ("shift_cosine", None), ("fgsm_drop", None)]
    )
    assert sorted(reads) == ["history", "robustness", "shift"]


def test_rows_keep_their_order_and_index(tmp_path: Path) -> None:
    for name, val in (("a", 0.9), ("b", 0.5)):
        store = write(tmp_path, name=name, history=epochs(val))
    runs = load_frame(store, None).runs.iloc[::-1]
    got = with_measures(runs, store, [("epochs_to_target", 0.5)])
    assert list(got.index) == [1, 0]
    assert list(got["epochs_to_target@0.5"]) == pytest.approx([1.0, 0.5])


# the score of a failed run


def test_failed_runs_score_chance_accuracy_however_they_failed(tmp_path: Path) -> None:
    final = {"test_accuracy": 0.3, "test_loss": 2.0, "val_accuracy": 0.3}
    write(tmp_path, name="a", status="finished", final=final)
    write(tmp_path, name="b", status="collapsed", final=final)
    store = write(tmp_path, name="c", status="diverged", final=dict.fromkeys(final))
    runs = load_frame(store, None).runs
    assert list(score(runs, "test_accuracy")) == [0.3, 0.12, 0.12]
    assert list(score(runs, "val_accuracy")) == [0.3, 0.1, 0.1]
    losses = score(runs, "test_loss")
    assert list(losses[:2]) == [2.0, 2.0]
    assert math.isnan(losses[2])
    runs["epochs_to_target@0.9"] = [1.5, math.inf, math.inf]
    assert list(score(runs, "epochs_to_target@0.9")) == [1.5, math.inf, math.inf]


# of the history


def test_reading_where_a_line_first_reaches_a_level() -> None:
    assert reading_at([0.0, 0.5, 0.2, 1.0], [0, 1, 2, 3], 0.25) == 0.5
    assert reading_at([0.0, 0.5, 0.2, 1.0], [0, 1, 2, 3], 0.5) == 1
    assert reading_at([0.0, 0.5, 0.2, 1.0], [0, 1, 2, 3], 0.6) == pytest.approx(2.5)
    assert reading_at([0.0, 0.5, 0.2, 1.0], [8, 4, 2, 0], 0.6) == pytest.approx(1.0)
    assert reading_at([0.4, 0.5], [0, 1], 0.3) == 0
    assert reading_at([0.0, 0.5], [0, 1], 0.6) is None


@pytest.mark.parametrize(
    ("val", "target", "expected"),
    [
        ((0.5, 0.7, 0.9), 0.8, 2.5),  # halfway from 0.7 to 0.9
        ((0.5, 0.7, 0.9), 0.3, 0.5),  # halfway from chance, 0.1, to 0.5
        ((0.5, 0.7, 0.9), 0.7, 2.0),
        ((0.5, 0.9, 0.6, 0.9), 0.8, 1.75),  # the first time counts
        ((0.5, 0.7, 0.9), 0.95, math.inf),
        ((0.5, 0.7, 0.9), 0.1, 0.0),  # chance is there before training
        ((0.5, None, 0.9), 0.7, 2.0),  # a straight line over the epoch that is missing
        ((None, 0.5), 0.3, 1.0),
    ],
)
def test_epochs_to_target_by_hand(tmp_path: Path, val: tuple[float, ...], target: float, expected: float) -> None:
    store = write(tmp_path, history=epochs(*val))
    assert measured(store, "epochs_to_target", target) == pytest.approx(expected)


def test_seconds_to_target_are_of_the_runs_own_epochs(tmp_path: Path) -> None:
    store = write(tmp_path, history=epochs(0.5, 0.7, 0.9, seconds=(2.0, 4.0, 9.0)))
    assert measured(store, "seconds_to_target", 0.8) == pytest.approx(2.5 * 5.0)
    assert measured(store, "seconds_to_target", 0.95) == math.inf
    assert math.isnan(measured(write(tmp_path, history=epochs(0.5, 0.9)), "seconds_to_target", 0.8))


@pytest.mark.parametrize("status", ["diverged", "collapsed"])
def test_a_run_that_fails_after_it_reached_the_target_has_not_reached_it(tmp_path: Path, status: str) -> None:
    rows = epochs(0.5, 0.95, None, train=(0.5, 0.9, 0.9), seconds=(1.0, 1.0, 1.0))
    store = write(tmp_path, status=status, history=rows, epochs=9)
    assert measured(store, "epochs_to_target", 0.9) == math.inf
    assert measured(store, "seconds_to_target", 0.9) == math.inf
    assert curve_of(store) is None


def test_a_lost_end_of_a_history_is_not_a_target_never_reached(tmp_path: Path) -> None:
    store = write(tmp_path, history=epochs(0.5, 0.7), epochs=3)
    assert math.isnan(measured(store, "epochs_to_target", 0.9))
    assert math.isnan(measured(store, "seconds_to_target", 0.9))
    assert measured(store, "epochs_to_target", 0.6) == pytest.approx(1.5)


def test_curve_is_of_every_epoch_of_a_whole_history(tmp_path: Path) -> None:
    rows = epochs(0.3, None, 0.6, 0.7, train=(0.2, 0.4, 0.8, 0.7))
    assert curve_of(write(tmp_path, history=rows)) == Curve((1, 3, 4), (0.2, 0.8, 0.7), (0.3, 0.6, 0.7))
    assert curve_of(write(tmp_path, history=rows, epochs=5)) is None  # its highest may be in what is lost
    assert curve_of(write(tmp_path, history=epochs(0.3, 0.5))) is None  # no train accuracy
    assert curve_of(write(tmp_path, history=[], epochs=3)) is None


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (0.6, 0.55),  # at epoch 1.5, halfway from the first validation to the second
        (0.8, 0.65),  # at epoch 2.5: 0.6 to 0.7
        (0.5, 0.525),  # at epoch 1.25
        (0.85, 0.75),  # 0.7 at epoch 3.5 is no way back: from 0.8 there to 0.9 at epoch 4.5, so at 4
        (0.9, 0.8),  # at epoch 4.5
        (0.3, 0.5),  # at epoch 0.75, before the first validation
        (0.1, 0.5),  # before the middle of the first epoch
    ],
)
def test_validation_accuracy_where_train_accuracy_first_reaches_a_level(train: float, expected: float) -> None:
    curve = Curve((1, 2, 3, 4, 5), (0.2, 0.6, 0.8, 0.7, 0.9), (0.5, 0.6, 0.7, 0.75, 0.85))
    assert curve.highest == 0.9
    assert curve.val_at(train) == pytest.approx(expected)


# of the record


def test_generalization_gap_is_that_of_runs_that_learned(tmp_path: Path) -> None:
    final: dict[str, float | None] = {"train_accuracy": 0.99, "test_accuracy": 0.9}
    assert measured(write(tmp_path, final=final), "generalization_gap") == pytest.approx(0.09)
    assert math.isnan(measured(write(tmp_path, final=final, status="collapsed"), "generalization_gap"))
    assert math.isnan(measured(write(tmp_path, final=dict.fromkeys(final), status="diverged"), "generalization_gap"))


# of the probes


def shift_rows(*triples: tuple[int, str, float | None, float | None, float | None]) -> Rows:
    return [
        row("shift", quantity, value, step=step, layer=layer)
        for step, layer, *values in triples
        for quantity, value in zip(("shift_l2", "shift_cosine", "gradient_norm"), values, strict=True)
    ]


def test_shift_is_relative_to_the_gradient_and_a_mean_over_layers_and_steps(tmp_path: Path) -> None:
    rows = shift_rows(
        (0, "a", 1.0, 0.9, 2.0),
        (0, "b", 3.0, 0.5, 3.0),
        (50, "a", 0.5, 1.0, 5.0),
        (50, "b", None, None, 1.0),  # not finite
        (100, "a", 0.0, None, 0.0),  # no gradient: no ratio and no angle
    )
    store = write(tmp_path, probes=rows)
    assert measured(store, "shift_l2") == pytest.approx((0.5 + 1.0 + 0.1) / 3)
    assert measured(store, "shift_cosine") == pytest.approx((0.9 + 0.5 + 1.0) / 3)
    assert measured(write(tmp_path, probes=rows, status="collapsed"), "shift_cosine") == pytest.approx(0.8)
    assert math.isnan(measured(write(tmp_path, probes=rows, status="diverged"), "shift_l2"))


def test_moment_drift_is_in_standard_deviations_of_the_measurement_before(tmp_path: Path) -> None:
    moments = {
        "a": [(0, 1.0, 2.0), (10, 3.0, 4.0), (20, 1.0, 0.0), (30, 9.0, 1.0)],
        "b": [(0, 0.0, 1.0), (10, -0.5, 1.0)],
    }
    rows = [
        row("activations", quantity, value, step=step, layer=layer)
        for layer, each in moments.items()
        for step, mean, std in each
        for quantity, value in (("mean", mean), ("std", std), ("output_mean", 99.0))
    ]
    # a: 2/2, 2/4, and 8/0, which is left out; b: 0.5/1
    assert measured(write(tmp_path, probes=rows), "moment_drift") == pytest.approx((1.0 + 0.5 + 0.5) / 3)
    first = [each for each in rows if each["step"] == 0]
    assert math.isnan(measured(write(tmp_path, probes=first), "moment_drift"))


def gradient_rows(*ends: tuple[int, float | None, float | None]) -> Rows:
    """A middle layer is of no account."""
    return [
        row("gradients", "gradient_norm", value, step=step, layer=layer)
        for step, first, last in ends
        for layer, value in (("units.0", first), ("units.1", 1e9), ("head", last))
    ]


def test_gradient_decades_lie_between_the_first_and_the_last_layer(tmp_path: Path) -> None:
    store = write(tmp_path, probes=gradient_rows((0, 1e-5, 1e-2), (50, 1.0, 1e9), (100, 10.0, 1.0), (150, 1.0, 1e2)))
    assert measured(store, "gradient_decades_start") == pytest.approx(3.0)
    assert measured(store, "gradient_decades_later") == pytest.approx((1.0 + 2.0) / 2)
    early = write(tmp_path, probes=gradient_rows((0, 1e4, 1.0), (50, 1.0, 1.0)))
    assert measured(early, "gradient_decades_start") == pytest.approx(4.0)
    assert math.isnan(measured(early, "gradient_decades_later"))


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0), (None, 1.0), (None, None), (0.0, 0.0), (1e-45, 1e20)])
def test_a_gradient_that_vanished_or_is_not_finite_counts_as_all_of_fp32(tmp_path: Path, ends: Any) -> None:
    store = write(tmp_path, probes=gradient_rows((0, *ends), (100, 1.0, 100.0), (200, *ends)))
    assert measured(store, "gradient_decades_start") == 38
    assert measured(store, "gradient_decades_later") == pytest.approx((2 + 38) / 2)


def test_gradients_at_the_start_are_known_of_a_run_that_diverged(tmp_path: Path) -> None:
    store = write(tmp_path, status="diverged", probes=gradient_rows((0, 1e-5, 1e-2), (100, 1.0, 100.0)))
    assert measured(store, "gradient_decades_start") == pytest.approx(3.0)
    assert math.isnan(measured(store, "gradient_decades_later"))
    one = [each for each in gradient_rows((0, 1.0, 2.0)) if each["layer"] == "head"]
    assert math.isnan(measured(write(tmp_path, probes=one), "gradient_decades_start"))


def test_accuracies_by_statistics_are_chance_where_the_run_diverged(tmp_path: Path) -> None:
    of = {"running": 0.6, "precise": 0.7, "batch": 0.8}
    rows = [
        row("statistics", quantity, value, step=9, statistics=kind)
        for kind, accuracy in of.items()
        for quantity, value in (("test_accuracy", accuracy), ("test_loss", 3.0))
    ]
    store = write(tmp_path, probes=rows)
    assert {kind: measured(store, f"accuracy_{kind}") for kind in of} == of
    # a run is called collapsed by its running statistics; under others the same weights may be a good network
    assert {kind: measured(write(tmp_path, status="collapsed", probes=rows), f"accuracy_{kind}") for kind in of} == of
    failed = write(tmp_path, status="diverged", probes=[])
    assert {measured(failed, f"accuracy_{kind}") for kind in of} == {0.12}


def robust_rows(statistics: str, clean: float, values: dict[str, tuple[float, ...]]) -> Rows:
    def one(corruption: str, severity: int, value: float) -> Any:
        return row(
            "robustness", "test_accuracy", value, corruption=corruption, severity=severity, statistics=statistics
        )

    many = [one(kind, index + 1, value) for kind, each in values.items() for index, value in enumerate(each)]
    return [one("none", 0, clean), *many]


def test_drops_are_relative_to_the_clean_accuracy_under_the_same_statistics(tmp_path: Path) -> None:
    running = robust_rows("running", 0.8, {"jpeg": (0.6, 0.4), "contrast": (0.8, 0.2), "fgsm": (0.4, 0.0)})
    batch = robust_rows("batch", 0.5, {"jpeg": (0.5, 0.4), "contrast": (0.5, 0.6), "fgsm": (0.1, 0.1)})
    store = write(tmp_path, probes=running + batch)
    assert measured(store, "corruption_drop") == pytest.approx((0.25 + 0.5 + 0.0 + 0.75) / 4)
    assert measured(store, "corruption_drop_adapted") == pytest.approx((0.0 + 0.2 + 0.0 - 0.2) / 4)
    assert measured(store, "fgsm_drop") == pytest.approx((0.5 + 1.0) / 2)
    alone = write(tmp_path, probes=running)
    assert measured(alone, "corruption_drop_adapted") == measured(alone, "corruption_drop") == pytest.approx(0.375)
    failed = write(tmp_path, probes=running, status="collapsed")
    assert math.isnan(measured(failed, "corruption_drop"))
    assert math.isnan(measured(failed, "fgsm_drop"))
    assert math.isnan(
        measured(write(tmp_path, probes=robust_rows("running", 0.0, {"jpeg": (0.0,)})), "corruption_drop")
    )


def test_step_cost_is_the_ratio_of_the_probe(tmp_path: Path) -> None:
    rows = [row("cost", "step_seconds", 9.0), row("cost", "step_ratio", 1.5), row("cost", "saved_mib", 7.0)]
    assert measured(write(tmp_path, probes=rows), "step_cost") == 1.5


def test_moments_of_norms_are_those_of_the_last_step(tmp_path: Path) -> None:
    values = {  # quantity -> of layers a and b at step 0, and at step 100
        "norm_mean_error": ((9.0, 9.0), (1e-7, 3e-7)),
        "norm_std_error": ((9.0, 9.0), (None, 2e-6)),  # the channels of a are all constant
        "output_mean": ((9.0, 9.0), (0.1, 0.3)),
        "output_std_error": ((9.0, 9.0), (0.4, 0.8)),
        "gamma_mean": ((9.0, 9.0), (9.0, 9.0)),
    }
    rows = [
        row("affine", quantity, value, step=step, layer=layer)
        for step, index in ((0, 0), (100, 1))
        for quantity, each in values.items()
        for layer, value in zip("ab", each[index], strict=True)
    ]
    store = write(tmp_path, probes=rows)
    got = {name: measured(store, name) for name in values if name in MEASURES}
    assert got == pytest.approx(
        {"norm_mean_error": 3e-7, "norm_std_error": 2e-6, "output_mean": 0.2, "output_std_error": 0.6}, rel=1e-12
    )


def test_a_frame_without_runs_stays_empty(tmp_path: Path) -> None:
    assert with_measures(pd.DataFrame(), Store(tmp_path), [("shift_l2", None)]).empty


def test_images_per_second_weighs_epochs_by_their_time(tmp_path: Path) -> None:
    history = epochs(0.5, 0.6, seconds=(1.0, 3.0))
    for line, speed in zip(history, (100.0, 200.0), strict=True):
        line["images_per_second"] = speed
    assert measured(write(tmp_path, history=history), "images_per_second") == pytest.approx(175)  # 700 images in 4 s


# how steadily the train loss falls


def losses(*values: float | None) -> Rows:
    return [{"epoch": index + 1, "train_loss": value} for index, value in enumerate(values)]


def test_loss_rise_is_the_largest_step_up_and_below_zero_where_there_is_none(tmp_path: Path) -> None:
    spiky = write(tmp_path / "spiky", history=losses(2.0, 0.5, 1.25, 0.25, 0.5))
    assert measured(spiky, "loss_rise") == pytest.approx(0.75)
    steady = write(tmp_path / "steady", history=losses(2.0, 1.0, 0.875))
    assert measured(steady, "loss_rise") == pytest.approx(-0.125)
    collapsed = write(tmp_path / "collapsed", status="collapsed", history=losses(0.5, 2.25, 2.25))
    assert measured(collapsed, "loss_rise") == pytest.approx(1.75)


def test_loss_rise_of_a_diverged_run_is_the_loss_of_a_guess(tmp_path: Path) -> None:
    store = write(tmp_path, status="diverged", history=losses(2.0, None), epochs=9)
    assert measured(store, "loss_rise") == pytest.approx(math.log(5))  # a fifth are of the largest class


def test_loss_rise_passes_over_gaps_and_needs_two_epochs_and_the_whole_history(tmp_path: Path) -> None:
    assert measured(write(tmp_path / "gap", history=losses(1.0, None, 1.5)), "loss_rise") == pytest.approx(0.5)
    assert math.isnan(measured(write(tmp_path / "one", history=losses(1.0)), "loss_rise"))
    assert math.isnan(measured(write(tmp_path / "cut", history=losses(1.0, 2.0), epochs=3), "loss_rise"))


# how far batches are from the training set


def test_errors_of_a_batch_are_means_over_the_norms(tmp_path: Path) -> None:
    rows = [
        row("sampling", "batch_mean_error", 0.25, layer="0"), row("sampling", "batch_std_error", 0.5, layer="0"),
        row("sampling", "batch_mean_error", 0.75, layer="1"), row("sampling", "batch_std_error", 0.0, layer="1"),
    ]  # fmt: skip
    store = write(tmp_path / "one", probes=rows)
    assert measured(store, "batch_mean_error") == pytest.approx(0.5)
    assert measured(store, "batch_std_error") == pytest.approx(0.25)
    assert math.isnan(measured(write(tmp_path / "lost", status="diverged", probes=rows), "batch_mean_error"))
