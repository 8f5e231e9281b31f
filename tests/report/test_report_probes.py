"""The probe figures and the probes table from made-up rows: what is drawn is what the rows say, run by run."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricate import CHANCE, grid, write_run
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb

from bnexp.analysis.frame import load_frame
from bnexp.analysis.select import Selection, select
from bnexp.identity import run_id
from bnexp.report import make_report
from bnexp.report.probe_figures import (
    PROBE_FIGURES,
    draw_activations,
    draw_affine,
    draw_cost,
    draw_gradients,
    draw_landscape,
    draw_robustness,
    draw_running,
    draw_shift,
    draw_statistics,
    draw_units,
)
from bnexp.report.style import COLORS
from bnexp.report.tables import probes_table
from bnexp.store import Store

Rows = list[dict[str, Any]]
STEPS, LAYERS = (0, 100, 200), ("units.0", "units.1", "units.2", "head")
COLOR = {"no norm": COLORS[0], "batch": COLORS[1]}
LOST_SEED, HUGE = 2, 1e6  # of no norm: it diverged after step 100, and would be seen in any mean
KINDS = {"no norm": ("running",), "batch": ("running", "batch")}
CORRUPTIONS = ("gaussian_noise", "jpeg", "fgsm")
FIGURE_PROBE = {
    "probe-gradients": "gradients", "probe-activations": "activations", "probe-units": "activations",
    "probe-shift": "shift", "probe-landscape": "landscape", "probe-affine": "affine", "probe-running": "running",
    "probe-statistics": "statistics", "probe-robustness": "robustness", "probe-cost": "cost",
}  # fmt: skip
OF_STEPS = {
    "gradients": (LAYERS, ("gradient_norm",)),
    "activations": (LAYERS[:3], ("std", "unit_q15", "unit_q50", "unit_q85", "dead_fraction")),
    "shift": (LAYERS[1:], ("shift_l2", "shift_cosine", "gradient_norm")),
    "landscape": (("",), ("loss", "loss_min", "loss_max", "gradient_distance_min", "gradient_distance_max",
                          "smoothness")),
    "affine": (LAYERS[:3], ("gamma_mean", "gamma_std", "beta_mean", "beta_std", "norm_mean_error", "norm_std_error",
                            "output_mean", "output_std_error")),
    "running": (LAYERS[:3], ("mean_distance", "std_distance")),
}  # fmt: skip
COST = ("step_seconds", "step_seconds_without_norm", "step_ratio", "saved_mib", "saved_mib_without_norm")


def row(probe: str, quantity: str, value: float | None, *, step: int = 300, layer: str = "", **columns: Any) -> Any:
    return {"probe": probe, "step": step, "epoch": step // 100, "layer": layer, "quantity": quantity, "value": value,
            **columns}  # fmt: skip


def rows_of(arm: str, seed: int) -> Rows:
    """What a run of this arm would leave; the diverged one has nothing after step 100, and none of the end."""
    rng = np.random.default_rng([seed, arm == "batch"])
    lost = arm == "no norm" and seed == LOST_SEED
    rows = [
        row(probe, quantity, HUGE if lost else float(rng.uniform(0.1, 1.1)), step=step, layer=layer)
        for probe, (layers, quantities) in OF_STEPS.items()
        if arm == "batch" or probe not in ("affine", "running")
        for step in STEPS[: 2 if lost else None]
        for layer in layers
        for quantity in quantities
    ]
    if lost:
        return rows
    rows += [
        row("statistics", "test_accuracy", float(rng.uniform(0.3, 0.9)), statistics=kind)
        for kind in ("running", "precise", "batch")
    ]
    rows += [
        row("robustness", "test_accuracy", float(rng.uniform(0.3, 0.9)), corruption=corruption, severity=severity,
            statistics=kind)
        for corruption, severity in (("none", 0), *((c, s) for c in CORRUPTIONS for s in range(1, 6)))
        for kind in KINDS[arm]
    ]  # fmt: skip
    return rows + [row("cost", quantity, float(rng.uniform(1, 2))) for quantity in COST]


def write_probed(root: Path, rows_of_run: Any = rows_of, *more: str) -> tuple[Store, pd.DataFrame]:
    """Two arms, three seeds; returns the store and all rows that were written, with arm, seed and stratum."""
    store, written = Store(root), []
    for config in grid("norm=none,batch", "seed=0,1,2", *more):
        arm = "no norm" if config.norm.kind == "none" else "batch"
        rows = rows_of_run(arm, config.seed)
        status = "diverged" if (arm, config.seed) == ("no norm", LOST_SEED) else "finished"
        write_run(store, config, status, 0.8 + 0.01 * config.seed, rows)
        written += [{**each, "arm": arm, "seed": config.seed, "depth": config.model.depth} for each in rows]
    return store, pd.DataFrame(written)


def selection_of(store: Store) -> Selection:
    return select(load_frame(store, None).runs, None)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Selection, pd.DataFrame]:
    store, written = write_probed(tmp_path_factory.mktemp("probed"))
    return store, selection_of(store), written


def drawn(draw: Any, store: Store, selection: Selection) -> tuple[Any, str]:
    result = draw(selection, store)
    assert result is not None
    return result


def values(written: pd.DataFrame, arm: str, quantity: str, **where: Any) -> list[float]:
    """Those of all seeds that did not diverge, in the order of the seeds."""
    here = written[(written["arm"] == arm) & (written["quantity"] == quantity)]
    if arm == "no norm":
        here = here[here["seed"] != LOST_SEED]
    for column, value in where.items():
        here = here[here[column] == value]
    assert here["seed"].is_unique
    return list(here.sort_values("seed")["value"])


def mean_line(axis: Any, arm: str) -> tuple[list[float], list[float]]:
    """x and y of the one thick line in the colour of this arm."""
    (line,) = [line for line in axis.lines if line.get_color() == COLOR[arm] and line.get_linewidth() == 1.6]
    return list(line.get_xdata()), list(line.get_ydata())


def band(axis: Any, arm: str) -> list[tuple[float, float]]:
    """Lowest and highest y of the arm's band at each x where it has one."""
    (area,) = [
        area for area in axis.collections
        if isinstance(area, PolyCollection) and tuple(area.get_facecolor()[0][:3]) == to_rgb(COLOR[arm])
    ]  # fmt: skip
    points = pd.DataFrame(np.concatenate([path.vertices for path in area.get_paths()]), columns=["x", "y"])
    return [(float(low), float(high)) for low, high in points.groupby("x")["y"].agg(["min", "max"]).to_numpy()]


def check_line(axis: Any, arm: str, x: Any, seeds: list[list[float]]) -> None:
    """The arm's line is the mean of these values at each x, and its band goes from the lowest to the highest."""
    assert len(seeds[0]) == (2 if arm == "no norm" else 3)
    places, means = mean_line(axis, arm)
    assert places == list(x)
    assert means == pytest.approx([sum(each) / len(each) for each in seeds])
    assert band(axis, arm) == [pytest.approx((min(each), max(each))) for each in seeds]


def test_figure_is_drawn_exactly_when_its_probe_has_rows(tmp_path: Path) -> None:
    assert {name for name, _, _ in PROBE_FIGURES} == set(FIGURE_PROBE)
    store = Store(tmp_path)
    names = [write_run(store, config, "finished", 0.8) for config in grid("norm=batch", "seed=0,1")]
    selection = selection_of(store)

    def figures() -> set[str]:
        return {name for name, _, draw in PROBE_FIGURES if draw(selection, store) is not None}

    assert figures() == set()
    for probe in sorted(set(FIGURE_PROBE.values())):
        for seed, name in enumerate(names):
            store.write_probes(name, [each for each in rows_of("batch", seed) if each["probe"] == probe])
        assert figures() == {figure for figure, of in FIGURE_PROBE.items() if of == probe}
    for name in names:
        store.write_probes(name, [{**each, "value": None} for each in rows_of("batch", 0)])
    assert figures() == set()


def test_gradients_are_means_over_seeds_at_both_ends(probed: tuple[Store, Selection, pd.DataFrame]) -> None:
    store, selection, written = probed
    figure, caption = drawn(draw_gradients, store, selection)
    first, last = figure.axes
    for axis, step in ((first, 0), (last, 200)):
        assert axis.get_yscale() == "log"
        for arm in COLOR:
            seeds = [values(written, arm, "gradient_norm", probe="gradients", step=step, layer=name) for name in LAYERS]
            check_line(axis, arm, (1, 2, 3, 4), seeds)
    assert first.get_title() == "before the first update"
    assert last.get_title() == "after 200 updates"
    assert "n = 2 to 3 seeds" in caption


def test_a_diverged_run_is_drawn_thin_and_counted_in_words(probed: tuple[Store, Selection, pd.DataFrame]) -> None:
    store, selection, _ = probed
    figure, caption = drawn(draw_shift, store, selection)
    thin = [line for line in figure.axes[0].lines if line.get_linewidth() == 0.8]
    (cross,) = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [line.get_color() for line in thin] == [COLOR["no norm"]]
    assert list(thin[0].get_ydata())[:2] == [HUGE, HUGE]
    assert (list(cross.get_xdata()), list(cross.get_ydata())) == ([100], [HUGE])
    assert "Thin, in no mean: 1 run that diverged, × where it was last measured." in caption
    assert "nothing to measure" not in caption
    _, caption = drawn(draw_statistics, store, selection)
    assert "1 run diverged and left nothing to measure." in caption


def test_collapsed_runs_in_the_means_are_said(probed: tuple[Store, Selection, pd.DataFrame]) -> None:
    store, selection, _ = probed
    assert "collapsed" not in drawn(draw_shift, store, selection)[1]
    runs = selection.runs.assign(status=["collapsed" if seed == 0 else "finished" for seed in selection.runs["seed"]])
    for draw in (draw_shift, draw_gradients, draw_robustness):
        assert "In the means: 2 runs that collapsed." in drawn(draw, store, replace(selection, runs=runs))[1]


def test_shift_shows_the_first_middle_and_last_layer(probed: tuple[Store, Selection, pd.DataFrame]) -> None:
    store, selection, written = probed
    figure, _ = drawn(draw_shift, store, selection)
    panels = [(quantity, layer) for quantity in ("shift_l2", "shift_cosine") for layer in LAYERS[1:]]
    for axis, (quantity, layer) in zip(figure.axes, panels, strict=True):
        assert axis.get_title() == f"layer {layer}"
        for arm in COLOR:
            seeds = [values(written, arm, quantity, layer=layer, step=step) for step in STEPS]
            check_line(axis, arm, STEPS, seeds)


def test_landscape_bands_run_between_mean_ends(probed: tuple[Store, Selection, pd.DataFrame]) -> None:
    store, selection, written = probed
    figure, _ = drawn(draw_landscape, store, selection)
    losses, changes, smoothness = figure.axes
    for axis, ends in (
        (losses, ("loss_min", "loss_max")),
        (changes, ("gradient_distance_min", "gradient_distance_max")),
    ):
        for arm in COLOR:
            edges = [list(line.get_ydata()) for line in axis.lines if line.get_color() == COLOR[arm]]
            assert edges == [
                pytest.approx([np.mean(values(written, arm, end, step=step)) for step in STEPS]) for end in ends
            ]
    for arm in COLOR:
        check_line(smoothness, arm, STEPS, [values(written, arm, "smoothness", step=step) for step in STEPS])


def test_units_show_the_spread_and_the_dead(probed: tuple[Store, Selection, pd.DataFrame], tmp_path: Path) -> None:
    store, selection, written = probed
    figure, caption = drawn(draw_units, store, selection)
    for axis, quantity, step, scale in zip(
        figure.axes, ("std", "std", "dead_fraction"), (0, 200, 200), (1, 1, 100), strict=True
    ):
        for arm in COLOR:
            found = [values(written, arm, quantity, layer=layer, step=step) for layer in LAYERS[:3]]
            check_line(axis, arm, (1, 2, 3), [[scale * value for value in seeds] for seeds in found])
    assert "dead" in caption

    def alive(arm: str, seed: int) -> Rows:
        return [each | ({"value": 0.0} if each["quantity"] == "dead_fraction" else {}) for each in rows_of(arm, seed)]

    store, _ = write_probed(tmp_path, alive)
    figure, caption = drawn(draw_units, store, selection)
    assert len(figure.axes) == 2
    assert "dead" not in caption


def test_activations_follow_one_unit_of_one_seed(probed: tuple[Store, Selection, pd.DataFrame]) -> None:
    store, selection, written = probed
    figure, caption = drawn(draw_activations, store, selection)
    assert [axis.get_title() for axis in figure.axes] == ["no norm", "batch"]
    assert "One run an arm, seed 0" in caption
    for axis, arm in zip(figure.axes, COLOR, strict=True):
        lines = {line.get_linewidth(): [] for line in axis.lines}
        for line in axis.lines:
            lines[line.get_linewidth()].append(list(line.get_ydata()))
        expected = {
            q: [values(written, arm, f"unit_q{q}", layer="units.2", step=step)[0] for step in STEPS]
            for q in (15, 50, 85)
        }
        assert lines == {0.8: [expected[15], expected[85]], 1.8: [expected[50]]}


def test_arms_without_a_norm_are_left_out_of_what_only_norms_have(
    probed: tuple[Store, Selection, pd.DataFrame],
) -> None:
    store, selection, written = probed
    figure, caption = drawn(draw_affine, store, selection)
    assert "n = 3 seeds" in caption
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["batch"]
    assert not [line for axis in figure.axes for line in axis.lines if line.get_color() == COLOR["no norm"]]
    for axis, name in zip(figure.axes[:2], ("gamma", "beta"), strict=True):
        x, y = mean_line(axis, "batch")
        means = [np.mean(values(written, "batch", f"{name}_mean", layer=layer, step=200)) for layer in LAYERS[:3]]
        spreads = [np.mean(values(written, "batch", f"{name}_std", layer=layer, step=200)) for layer in LAYERS[:3]]
        assert x == [1, 2, 3]
        assert y == pytest.approx(means)
        assert band(axis, "batch") == [
            pytest.approx((mean - spread, mean + spread)) for mean, spread in zip(means, spreads, strict=True)
        ]
    for axis, name in zip(figure.axes[2:], ("output_mean", "output_std_error"), strict=True):
        by_seed = [values(written, "batch", name, layer=layer, step=200) for layer in LAYERS[:3]]
        check_line(axis, "batch", (1, 2, 3), by_seed)
    largest = written[(written["arm"] == "batch") & written["step"].isin((0, 200))].groupby("quantity")["value"].max()
    assert (
        f"Before gamma and beta |mean| of a channel is at most {largest['norm_mean_error']:.1g} (batch) and |SD − 1|, "
        f"without the share of eps, is at most {largest['norm_std_error']:.1g} (batch)."
    ) in caption
    figure, _ = drawn(draw_running, store, selection)
    for axis, quantity in zip(figure.axes, ("mean_distance", "std_distance"), strict=True):
        assert not [line for line in axis.lines if line.get_color() == COLOR["no norm"]]
        by_layer = [
            [values(written, "batch", quantity, layer=layer, step=step) for layer in LAYERS[:3]] for step in STEPS
        ]
        check_line(axis, "batch", STEPS, [[sum(each) / 3 for each in zip(*layers, strict=True)] for layers in by_layer])


def test_a_null_is_a_gap_and_never_a_zero(tmp_path: Path) -> None:
    def holed(arm: str, seed: int) -> Rows:
        rows = copy.deepcopy(rows_of(arm, seed))
        for each in rows:
            if arm == "batch" and seed == 1 and each["step"] == 100 and each["layer"] in ("units.1", ""):
                each["value"] = None
        return rows

    store, written = write_probed(tmp_path, holed)
    selection = selection_of(store)
    for draw, panel in ((draw_shift, 0), (draw_landscape, 2), (draw_running, 0)):
        figure, caption = drawn(draw, store, selection)
        _, y = mean_line(figure.axes[panel], "batch")
        assert np.isfinite(y).tolist() == [True, False, True]
        assert len(band(figure.axes[panel], "batch")) == 2
        assert "A gap" in caption
    figure, _ = drawn(draw_landscape, store, selection)
    assert all(np.isnan(line.get_ydata()[1]) for line in figure.axes[0].lines if line.get_color() == COLOR["batch"])
    figure, _ = drawn(draw_shift, store, selection)
    _, y = mean_line(figure.axes[1], "batch")
    assert y[1] == pytest.approx(np.mean(values(written, "batch", "shift_l2", layer="units.2", step=100)))


def test_statistics_are_means_in_percent(probed: tuple[Store, Selection, pd.DataFrame]) -> None:
    store, selection, written = probed
    figure, _ = drawn(draw_statistics, store, selection)
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["running", "precise", "batch"]
    for arm, color in COLOR.items():
        mine = [line for line in axis.lines if line.get_color() == color]
        (means,) = [line for line in mine if line.get_linewidth() == 1]
        seeds = [
            [100 * value for value in values(written, arm, "test_accuracy", probe="statistics", statistics=kind)]
            for kind in ("running", "precise", "batch")
        ]
        assert list(means.get_ydata()) == pytest.approx([np.mean(each) for each in seeds])
        dots = [sorted(line.get_ydata()) for line in mine if line.get_markersize() == 3.4]
        assert dots == [pytest.approx(sorted(each)) for each in seeds]


def test_robustness_has_a_panel_a_corruption_and_dashes_for_batch_statistics(
    probed: tuple[Store, Selection, pd.DataFrame],
) -> None:
    store, selection, written = probed
    figure, _ = drawn(draw_robustness, store, selection)
    assert [axis.get_title() for axis in figure.axes] == ["gaussian noise", "JPEG", "FGSM"]

    def seeds(arm: str, corruption: str, kind: str) -> list[list[float]]:
        places = [("none", 0), *((corruption, severity) for severity in range(1, 6))]
        return [
            [100 * value for value in values(written, arm, "test_accuracy", corruption=c, severity=s, statistics=kind)]
            for c, s in places
        ]

    for axis, corruption in zip(figure.axes, CORRUPTIONS, strict=True):
        assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == ":"] == [100 * CHANCE]
        check_line(axis, "no norm", range(6), seeds("no norm", corruption, "running"))
        running, batch = [line for line in axis.lines if line.get_color() == COLOR["batch"]]
        assert (running.get_linestyle(), batch.get_linestyle()) == ("-", "--")
        for line, kind in ((running, "running"), (batch, "batch")):
            expected = [np.mean(each) for each in seeds("batch", corruption, kind)]
            assert list(line.get_ydata()) == pytest.approx(expected)


def test_robustness_of_many_strata_is_the_mean_over_natural_corruptions(tmp_path: Path) -> None:
    store, written = write_probed(tmp_path, rows_of, "model.depth=2,4,6")
    figure, caption = drawn(draw_robustness, store, selection_of(store))
    assert [axis.get_title() for axis in figure.axes] == ["depth 2", "depth 4", "depth 6"]
    assert "Mean over gaussian noise, JPEG." in caption
    one = written[(written["depth"] == 4) & (written["arm"] == "no norm") & (written["corruption"] != "fgsm")]
    _, y = mean_line(figure.axes[1], "no norm")
    assert y == pytest.approx(list(100 * one.groupby("severity")["value"].mean()))


def test_cost_is_told_in_numbers(probed: tuple[Store, Selection, pd.DataFrame]) -> None:
    store, selection, written = probed
    figure, caption = drawn(draw_cost, store, selection)
    seconds, saved = figure.axes
    assert [text.get_text() for text in seconds.get_yticklabels()] == ["batch", "no norm"]  # from below
    assert "Measured on cpu (test)." in caption
    for axis, quantity, scale in ((seconds, "step_seconds", 1000), (saved, "saved_mib", 1)):
        (numbers,) = axis.child_axes
        for place, arm in enumerate(("batch", "no norm")):
            without, with_norm = (
                scale * np.mean(values(written, arm, name)) for name in (f"{quantity}_without_norm", quantity)
            )
            marks = [line.get_xdata()[0] for line in axis.lines
                     if line.get_markersize() == 6.5 and line.get_ydata()[0] == place]  # fmt: skip
            assert marks == pytest.approx([without, with_norm])
            told = numbers.get_yticklabels()[place].get_text()
            ratio = np.mean(values(written, arm, "step_ratio")) if quantity == "step_seconds" else with_norm / without
            assert told.endswith(f"×{ratio:.2f}")
            assert float(told.split(" → ")[0]) == pytest.approx(without, rel=5e-3)


def test_strata_beyond_the_room_are_left_out_with_a_note(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for config in grid("norm=none,batch", "data.train_limit=101,102,103,104,105,106,107", "seed=0"):
        write_run(store, config, "finished", 0.8, rows_of("batch", 0))
    selection = selection_of(store)
    figure, caption = drawn(draw_gradients, store, selection)
    assert len(figure.axes) == 2 * 6
    assert figure.axes[-1].get_title().startswith("train limit 106\n")
    assert "Shown: 6 of 7 strata; tables/probes.csv has all." in caption
    for config in grid("norm=none,batch", "data.train_limit=101", "seed=0"):  # without rows it needs no room
        store.write_probes(run_id(config), [])
    figure, caption = drawn(draw_gradients, store, selection)
    assert figure.axes[-1].get_title().startswith("train limit 107\n")
    assert "Shown:" not in caption


def test_one_measured_step_is_still_seen(tmp_path: Path) -> None:
    def once(arm: str, seed: int) -> Rows:
        return [each for each in rows_of(arm, seed) if each["step"] == 0]

    store, written = write_probed(tmp_path, once)
    selection = selection_of(store)
    figure, caption = drawn(draw_landscape, store, selection)
    assert "Measured at one step alone" in caption
    places = []
    for arm in COLOR:
        (bar,) = [
            area for area in figure.axes[0].collections
            if isinstance(area, LineCollection) and tuple(area.get_color()[0][:3]) == to_rgb(COLOR[arm])
        ]  # fmt: skip
        ((low, high),) = bar.get_segments()
        assert (low[1], high[1]) == pytest.approx(
            [np.mean(values(written, arm, end, step=0)) for end in ("loss_min", "loss_max")]
        )
        places.append(low[0])
    assert len(set(places)) == 2  # side by side
    assert list(figure.axes[0].get_xticks()) == [0]
    figure, _ = drawn(draw_gradients, store, selection)
    assert len(figure.axes) == 1


def test_zeros_on_a_log_scale_are_said(tmp_path: Path) -> None:
    def dead(arm: str, seed: int) -> Rows:
        zero = {"value": 0.0}
        names = ("gradient_norm", "shift_cosine")
        return [each | (zero if each["quantity"] in names else {}) for each in rows_of(arm, seed)]

    store, _ = write_probed(tmp_path, dead)
    selection = selection_of(store)
    assert "exactly 0" in drawn(draw_gradients, store, selection)[1]
    assert "exactly 0" not in drawn(draw_shift, store, selection)[1]


def test_probes_table_is_that_of_an_independent_computation(probed: tuple[Store, Selection, pd.DataFrame]) -> None:
    store, selection, written = probed
    table = probes_table(selection, store)
    assert table is not None
    healthy = written[(written["arm"] != "no norm") | (written["seed"] != LOST_SEED)]
    last = healthy[healthy["step"].isin([200, 300])]
    keys = ["arm", "probe", "layer", "quantity", "corruption", "severity", "statistics"]
    expected = last.fillna({"corruption": "", "severity": -1, "statistics": ""}).groupby(keys)["value"]
    found = table.exact.fillna({"corruption": "", "severity": -1, "statistics": ""}).set_index(keys)
    assert found.index.is_unique
    assert set(found.index) == set(expected.groups)
    wanted = expected.agg(["mean", "min", "max", "size"]).loc[found.index]
    for ours, theirs in (("mean", "mean"), ("low", "min"), ("high", "max"), ("n", "size")):
        assert found[ours].to_numpy() == pytest.approx(wanted[theirs].to_numpy())
    shown = table.shown.set_index("arm")
    clean, corrupted = (
        np.mean(values(written, "batch", "test_accuracy", corruption="none", statistics="batch")),
        last[(last["arm"] == "batch") & last["corruption"].isin(["gaussian_noise", "jpeg"])
             & (last["statistics"] == "batch")]["value"].mean(),
    )  # fmt: skip
    drop = f"{100 * (clean - corrupted):.2f}".replace("-", "−")
    assert shown.loc["batch", "mean drop under corruption, batch statistics (points)"] == drop
    assert shown.loc["no norm", "mean drop under corruption, batch statistics (points)"] == "—"
    assert list(shown["n"]) == ["2 of 3", "3 of 3"]


def test_probes_table_leaves_a_diverged_run_out_even_at_the_last_step(tmp_path: Path) -> None:
    def to_the_end(arm: str, seed: int) -> Rows:
        lost = arm == "no norm" and seed == LOST_SEED
        return [row("gradients", "gradient_norm", HUGE if lost else 1.0 + seed, step=200, layer="head")]

    store, _ = write_probed(tmp_path, to_the_end)
    table = probes_table(selection_of(store), store)
    assert table is not None
    found = table.exact.set_index("arm")
    assert (found.loc["no norm", "n"], found.loc["no norm", "mean"]) == (2, 1.5)
    assert (found.loc["batch", "n"], found.loc["batch", "mean"]) == (3, 2.0)


def test_probes_table_does_not_take_a_null_for_a_number(tmp_path: Path) -> None:
    def holed(arm: str, seed: int) -> Rows:
        hole = {"value": None}
        return [each | (hole if each["step"] == 200 and seed == 1 else {}) for each in rows_of(arm, seed)]

    store, written = write_probed(tmp_path, holed)
    table = probes_table(selection_of(store), store)
    assert table is not None
    exact = table.exact.set_index(["arm", "probe", "layer", "quantity"])
    found = exact.loc[("batch", "gradients", "units.1", "gradient_norm")]
    seeds = values(written, "batch", "gradient_norm", probe="gradients", layer="units.1", step=200)
    assert np.isnan(seeds[1])
    assert found["n"].item() == 2
    assert found["mean"].item() == pytest.approx((seeds[0] + seeds[2]) / 2)
    assert found["low"].item() == pytest.approx(min(seeds[0], seeds[2]))


def test_report_holds_the_figures_and_the_table_of_what_was_measured(tmp_path: Path) -> None:
    def few(arm: str, seed: int) -> Rows:
        return [each for each in rows_of(arm, seed) if each["probe"] in ("gradients", "affine", "statistics")]

    store, _ = write_probed(tmp_path, few)
    folder = make_report(store, None).html.parent
    captions = (folder / "figures" / "captions.md").read_text()
    html = (folder / "report.html").read_text()
    for name, title, _ in PROBE_FIGURES:
        measured = name in ("probe-gradients", "probe-affine", "probe-statistics")
        assert (folder / "figures" / f"{name}.svg").exists() == measured
        assert (f"## {name}\n{title}. " in captions) == measured
        assert (f"<h2>{title}</h2>" in html) == measured
    assert "accuracy, running statistics (%)" in html
    assert set(pd.read_csv(folder / "tables" / "probes.csv")["probe"]) == {"gradients", "affine", "statistics"}
