"""The figures of what probes measured. Each returns its caption, or None where the runs measured nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from bnexp.analysis.frame import load_probes
from bnexp.analysis.select import Selection
from bnexp.analysis.stats import mean_interval
from bnexp.report.style import (
    GREY,
    MOST_COLUMNS,
    MOST_PANELS,
    PANEL_INCHES,
    Look,
    label_outer,
    legend_below,
    look_of,
    num_columns,
    panels,
)
from bnexp.report.words import count
from bnexp.store import Store

Drawn = tuple[Any, str] | None
MOST_MARKED = 20  # points of a line that each get a marker
MOST_ROWS = 24
WIDE = 30.0  # highest over lowest value, from which on an axis is logarithmic
FEW_DECADES = 300.0  # highest over lowest value, up to which a log axis has plain numbers at 1, 2 and 5
UNLIKE = 8.0  # widest over narrowest panel, from which on panels do not share an axis
LAYERS, UPDATES = "layer, input → output", "updates done"
DASHED = (0, (3, 1.5))
COST = (
    ("step_seconds", "time of a training step (ms)", 1000.0),
    ("saved_mib", "memory saved for\nthe backward pass (MiB)", 1.0),
    ("peak_mib", "peak memory (MiB)", 1.0),
)
SHIFT = (("shift_l2", "L2 of the change\n(lower: less shift)"), ("shift_cosine", "cosine\n(higher: less shift)"))
LANDSCAPE = (
    "loss", "loss_min", "loss_max", "gradient_distance_min", "gradient_distance_max", "smoothness",
)  # fmt: skip


@dataclass(frozen=True)
class _Measured:
    """What a figure shows of the rows of one probe, each arm at its own best learning rate.

    Attributes:
        rows: with the columns arm and stratum.
        cells: (arm, stratum, quantity) -> its rows.
        arms: all arms of the report; an arm's place in it decides its look.
        strata: those shown; others have no rows, or no room.
        runs: the runs of these strata, measured or not.
        diverged: the ids of those that diverged.
        note: for the caption, where strata had no room.
        handles: arm -> its line for the legend, filled while drawing.
    """

    rows: pd.DataFrame
    cells: dict[tuple[str, str, str], pd.DataFrame]
    arms: tuple[str, ...]
    strata: tuple[str, ...]
    runs: pd.DataFrame
    diverged: frozenset[str]
    note: str
    handles: dict[str, Any] = field(default_factory=dict)

    def look(self, arm: str) -> Look:
        return look_of(self.arms.index(arm))

    def arm_cells(self, stratum: str, quantity: str) -> list[tuple[str, pd.DataFrame]]:
        """The arms that were measured here, in their order, each with its rows."""
        cells = ((arm, self.cells.get((arm, stratum, quantity))) for arm in self.arms)
        return [(arm, cell) for arm, cell in cells if cell is not None]

    def of_run(self, column: str) -> dict[str, Any]:
        """run_id -> what the column of `runs` has for it."""
        return dict(zip(self.runs["run_id"], self.runs[column], strict=True))

    def num_seeds(self) -> str:
        """`n = 6 seeds`: those that did not diverge."""
        rows = self.rows[~self.rows["run_id"].isin(self.diverged)].dropna(subset=["value"])
        counts = sorted(set(rows.groupby(["arm", "stratum"])["run_id"].nunique())) or [0]
        return f"n = {count(counts[0], 'seed')}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]} seeds"

    def line_words(self, *, cross: bool) -> str:
        """What the lines of a figure are, for its caption; `cross` as in `_line`."""
        words = f"Line: mean over seeds; band: from the lowest to the highest seed ({self.num_seeds()})."
        drawn = len(self.diverged & set(self.rows["run_id"]))
        if drawn:
            end = ", × where it was last measured" if cross else ""
            words += f" Thin, in no mean: {count(drawn, 'run')} that diverged{end}."
        return words + self.lost_words(len(self.diverged) - drawn)

    def lost_words(self, number: int) -> str:
        return f" {count(number, 'run')} diverged and left nothing to measure." if number else ""


def draw_gradients(selection: Selection, store: Store) -> Drawn:
    """Gradient norm of every weight layer, at the first and at the last measured step."""
    found = _load(selection, store, "gradients", ("gradient_norm",), most=MOST_PANELS // 2, reduce=_ends)
    if found is None:
        return None
    ends = _first_and_last(found)
    figure, axes = _grid(len(found.strata), len(ends), sharey="all")
    for row, stratum in zip(axes, found.strata, strict=True):
        row[0].set_ylabel("gradient norm")
        for axis, last in zip(row, ends, strict=True):
            _over_layers(axis, found, stratum, "gradient_norm", last=last)
    _log(axes.flat)
    _finish(figure, axes, found, LAYERS)
    zeros = " A line that drops out of the panel: exactly 0." if (found.rows["value"] == 0).any() else ""
    caption = (
        "Norm of the loss gradient in the weights of each layer, on a log scale. Falling towards the input: gradients "
        f"vanish on their way back; rising towards it: they explode. {found.line_words(cross=False)}{zeros}{found.note}"
    )
    return figure, caption


def draw_activations(selection: Selection, store: Store) -> Drawn:
    """Percentiles over time of one unit's input to the last activation, one panel an arm."""
    most = max(1, MOST_PANELS // len(selection.arms))
    quantities = ("unit_q15", "unit_q50", "unit_q85")
    found = _load(selection, store, "activations", quantities, most=most, reduce=_last_layer)
    if found is None:
        return None
    tables, seeds = _one_unit(found)
    arms = [arm for arm in selection.arms if any(key[1] == arm for key in tables)]
    columns = min(len(arms), MOST_COLUMNS + 1)
    spans = [np.nanmax(table.to_numpy()) - np.nanmin(table.to_numpy()) for table in tables.values()]
    alike = max(spans) <= UNLIKE * min(spans)
    rows_each = -(-len(arms) // columns)
    figure, axes = _grid(len(found.strata) * rows_each, columns, sharey="all" if alike else "none")
    for block, stratum in enumerate(found.strata):
        own = list(axes[block * rows_each : (block + 1) * rows_each].flat)
        for place, axis in enumerate(own):
            arm = arms[place] if place < len(arms) else ""
            if (stratum, arm) not in tables:
                axis.remove()
                continue
            _percentiles(axis, found.look(arm), tables[stratum, arm])
            axis.set_title(_title(stratum, arm))
            if place % columns == 0:
                axis.set_ylabel("input of the\nlast activation")
    _label(axes, UPDATES)
    drawn = f"seed{'s' * (len(seeds) > 1)} {' and '.join(map(str, seeds))}"
    caption = (
        "Input of one unit of the last activation layer during training: median (thick) and the band from its 15th to "
        "its 85th percentile over a batch. A level band: the distribution that the next layer sees stays the same. "
        f"One run an arm, {drawn}: other seeds have other units.{'' if alike else ' Each panel has its own y axis.'}"
        f"{found.note} As in Ioffe & Szegedy 2015, figure 1."
    )
    return figure, caption


def draw_units(selection: Selection, store: Store) -> Drawn:
    """Spread of the activations' inputs and share of dead units, layer by layer."""
    quantities = ("std", "dead_fraction")
    found = _load(selection, store, "activations", quantities, most=MOST_PANELS // MOST_COLUMNS, reduce=_ends)
    if found is None or found.rows["layer"].nunique() < 2:
        return None
    ends = _first_and_last(found)
    dead = bool((found.rows.loc[found.rows["quantity"] == "dead_fraction", "value"] > 0).any())
    figure, axes = _grid(len(found.strata), len(ends) + dead, sharey="none")
    for row, stratum in zip(axes, found.strata, strict=True):
        row[0].set_ylabel("SD of the input")
        for axis, last in zip(row, ends, strict=False):
            _over_layers(axis, found, stratum, "std", last=last)
        if dead:
            row[-1].set_ylabel("dead units (%)")
            _over_layers(row[-1], found, stratum, "dead_fraction", last=True, scale=100)
            row[-1].set_ylim(bottom=0)
    _log_where_wide(axes[:, : len(ends)].flat)
    for row in axes[:, : len(ends)]:  # both ends of training on one scale
        limits = [axis.get_ylim() for axis in row]
        for axis in row:
            axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    _finish(figure, axes, found, LAYERS)
    caption = (
        "Inputs of the activations of each layer: their standard deviation over examples and units"
        f"{', and the units that are dead, giving 0 for every example of a batch' if dead else ''}. "
        f"{found.line_words(cross=False)}{found.note}"
    )
    return figure, caption


def draw_shift(selection: Selection, store: Store) -> Drawn:
    """Internal covariate shift as a change of gradients: L2 and cosine over time, in a few layers."""
    many = len(selection.strata) > 2
    most, names = MOST_PANELS // 2 if many else 2, [name for name, _ in SHIFT]
    found = _load(selection, store, "shift", names, most=most, reduce=_middle_layer if many else _three_layers)
    if found is None:
        return None
    layers = [place for place in ("first", "middle", "last") if place in set(found.rows["place"])]
    if many:  # a row a stratum, its middle layer in both measures
        figure, axes = _grid(len(found.strata), len(SHIFT), sharey="col")
        grid = axes
    else:  # two rows a stratum, a column a layer
        figure, axes = _grid(len(SHIFT) * len(found.strata), len(layers), sharey="row")
        grid = [axes[i : i + len(SHIFT)].T.flat for i in range(0, len(axes), len(SHIFT))]
    for row, stratum in zip(grid, found.strata, strict=True):
        places = [(layer, name, label) for layer in layers for name, label in SHIFT]
        for axis, (layer, name, label) in zip(row, places, strict=True):
            shown = _over_steps(axis, found, stratum, name, place=layer)
            axis.set_title(_title(stratum, f"layer {shown[0]}" if len(shown) == 1 else f"{layer} layer"))
            if many or layer == layers[0]:
                axis.set_ylabel(label)
            if name == "shift_l2":
                _log([axis])
    _finish(figure, axes, found, UPDATES)
    caption = (
        "How the gradient of a layer changes when the layers below it have made their update: internal covariate shift "
        "as optimization feels it. L2: the length of the change (log scale), which grows with the gradient itself; "
        "cosine: between the gradients before and after. "
        f"{'The middle layer of each network. ' if many else ''}{found.line_words(cross=True)}{found.note} As in "
        "Santurkar et al. 2018, definition 2.1."
    )
    return figure, caption


def draw_landscape(selection: Selection, store: Store) -> Drawn:
    """Loss, gradient change and smoothness along the gradient, over time."""
    found = _load(selection, store, "landscape", LANDSCAPE, most=MOST_PANELS // MOST_COLUMNS)
    if found is None:
        return None
    figure, axes = _grid(len(found.strata), 3, sharey="col")
    for row, stratum in zip(axes, found.strata, strict=True):
        _over_steps(row[2], found, stratum, "smoothness")
        for axis, ends in ((row[0], LANDSCAPE[1:3]), (row[1], LANDSCAPE[3:5])):
            for arm in found.arms:
                _range(axis, found, arm, *(found.cells.get((arm, stratum, end)) for end in ends))
        labels = ("loss", "change of gradient (L2)", "largest change of\ngradient per distance")
        for axis, label in zip(row, labels, strict=True):
            axis.set_ylabel(label)
            axis.set_title(stratum)
    for column in axes.T:
        _log_where_wide(column)
    _finish(figure, axes, found, UPDATES)
    caption = (
        "The loss along its gradient, at several distances from where training stands. Left: from the lowest to the "
        "highest loss met there; middle: from the least to the largest change of the gradient (each end a mean over "
        "seeds); right: the largest change of gradient per distance, its inverse a measure of smoothness. Low and "
        f"narrow: smooth. Right: {found.line_words(cross=True)}{found.note} As in Santurkar et al. 2018, figure 4."
    )
    return figure, caption


def draw_affine(selection: Selection, store: Store) -> Drawn:
    """Gamma and beta of every norm layer at the end of training: mean and spread over channels."""
    quantities = ("gamma_mean", "gamma_std", "beta_mean", "beta_std")
    found = _load(selection, store, "affine", quantities, most=MOST_PANELS // 2, reduce=_ends)
    if found is None:
        return None
    names = [name for name in ("gamma", "beta") if f"{name}_mean" in set(found.rows["quantity"])]
    figure, axes = _grid(len(found.strata), len(names), sharey="col")
    for row, stratum in zip(axes, found.strata, strict=True):
        for axis, name in zip(row, names, strict=True):
            axis.axhline({"gamma": 1, "beta": 0}[name], color=GREY, linewidth=0.9, zorder=1)
            _over_layers(axis, found, stratum, f"{name}_mean", last=True, spread=f"{name}_std")
            axis.set_ylabel(name)
    _finish(figure, axes, found, LAYERS)
    caption = (
        "Scale (gamma) and shift (beta) of each norm layer at its last measured step. Line: mean over channels and "
        "seeds; band: one standard deviation over channels to both sides; grey: 1 and 0, which leave the normalized "
        f"value as it is. {found.num_seeds()}.{found.note}"
    )
    return figure, caption


def draw_running(selection: Selection, store: Store) -> Drawn:
    """How far the running statistics are from those of a batch, over time."""
    labels = {"mean_distance": "distance of means", "std_distance": "distance of\nstandard deviations"}
    found = _load(selection, store, "running", list(labels), most=MOST_PANELS // 2, reduce=_mean_of_layers)
    if found is None:
        return None
    figure, axes = _grid(len(found.strata), 2, sharey="col")
    for row, stratum in zip(axes, found.strata, strict=True):
        for axis, (quantity, label) in zip(row, labels.items(), strict=True):
            _over_steps(axis, found, stratum, quantity)
            axis.set_ylabel(label)
            axis.set_title(stratum)
    for column in axes.T:
        _log_where_wide(column)
    _finish(figure, axes, found, UPDATES)
    caption = (
        "Distance between the running statistics, which evaluation uses, and those of a training batch, which training "
        "uses; mean over the norm layers. Near 0: the network computes the same in both modes. "
        f"{found.line_words(cross=True)}{found.note}"
    )
    return figure, caption


def draw_statistics(selection: Selection, store: Store) -> Drawn:
    """Test accuracy with running, precise and batch statistics: every seed's dot, the mean and its interval."""
    found = _load(selection, store, "statistics", ("test_accuracy",), most=MOST_PANELS)
    if found is None:
        return None
    kinds = [kind for kind in ("running", "precise", "batch") if kind in set(found.rows["statistics"])]
    columns = num_columns(len(found.strata))
    figure, axes = _grid(-(-len(found.strata) // columns), columns, sharey="none")
    for axis in axes.flat[len(found.strata) :]:
        axis.remove()
    for place, (axis, stratum) in enumerate(zip(axes.flat, found.strata, strict=False)):
        present = found.arm_cells(stratum, "test_accuracy")
        width = 0.8 / len(present)
        for index, (arm, cell) in enumerate(present):
            x = np.arange(len(kinds)) + (index - (len(present) - 1) / 2) * width
            _kinds(axis, found, arm, [cell[cell["statistics"] == kind] for kind in kinds], x, width)
        _limit_to_dots(axis)
        axis.set_xticks(range(len(kinds)), kinds)
        axis.set_xlim(-0.6, len(kinds) - 0.4)
        axis.grid(axis="x", visible=False)
        axis.set_title(stratum)
        if place % columns == 0:
            axis.set_ylabel("test accuracy (%)")
        if place + columns >= len(found.strata):
            axis.set_xlabel("statistics")
    _legend(figure, found)
    caption = (
        "Test accuracy of the same trained networks with the running statistics, with precise ones (exact over the "
        "training set) and with those of each test batch. A level line: it does not matter which. Small markers: one "
        f"seed each ({found.num_seeds()}); large marker and bar: mean and 95 % t interval; ×: collapsed, counted in "
        f"the mean. Each panel has its own y axis.{found.lost_words(len(found.diverged))}{found.note}"
    )
    return figure, caption


def draw_robustness(selection: Selection, store: Store) -> Drawn:
    """Test accuracy over the severity of each corruption; dashed with the statistics of the corrupted batch."""
    many = len(selection.strata) > 2
    found = _load(selection, store, "robustness", ("test_accuracy",), most=MOST_PANELS if many else 2)
    if found is None:
        return None
    corruptions = [kind for kind in dict.fromkeys(found.rows["corruption"]) if kind != "none"]
    natural = [kind for kind in corruptions if kind != "fgsm"] or corruptions
    shown = [[kind] for kind in corruptions] if not many else [natural]
    places = [(stratum, kinds) for stratum in found.strata for kinds in shown][:MOST_PANELS]
    if not places:
        return None
    adapted = "batch" in set(found.rows["statistics"])
    figure, axes = panels(len(places))
    for axis, (stratum, kinds) in zip(axes, places, strict=True):
        here = found.runs[found.runs["stratum"] == stratum]
        axis.axhline(100 * float(here["chance_test_accuracy"].mean()), color=GREY, linestyle=":", linewidth=0.9)
        for arm, cell in found.arm_cells(stratum, "test_accuracy"):
            for statistics, style in (("running", "-"), ("batch", DASHED)):
                table = 100 * _by_severity(cell[cell["statistics"] == statistics], kinds)
                if len(table):
                    look = Look(found.look(arm).color, found.look(arm).marker, style)
                    found.handles.setdefault(arm, _mean_line(axis, look, table, band=style == "-"))
        axis.set_title(_title(stratum, "" if many else _corruption(kinds[0])))
        axis.set_xticks(sorted({0, *found.rows["severity"]}))
    label_outer(axes, x="severity", y="test accuracy (%)")
    _legend(figure, found, **(_styles() if adapted else {}))
    caption = (
        "Test accuracy over the severity of a corruption of the test images; 0: none. "
        f"{'Mean over ' + ', '.join(map(_corruption, natural)) + '. ' if many else ''}"
        f"Solid: running statistics, mean over seeds; band: from the lowest to the highest seed ({found.num_seeds()})"
        f"{'; dashed: statistics of each corrupted batch, mean over seeds' if adapted else ''}. Dotted: chance."
        f"{found.lost_words(len(found.diverged))}{found.note}"
    )
    return figure, caption


def draw_cost(selection: Selection, store: Store) -> Drawn:
    """Time of a step and saved memory, with and without the norm layers, a row an arm."""
    quantities = [name + end for name, _, _ in COST for end in ("", "_without_norm")]
    found = _load(selection, store, "cost", [*quantities, "step_ratio"], most=MOST_PANELS)
    if found is None:
        return None
    from matplotlib.figure import Figure

    measures = [measure for measure in COST if measure[0] in set(found.rows["quantity"])]
    measured = {key[:2] for key in found.cells}
    rows = [(arm, stratum) for stratum in found.strata for arm in found.arms if (arm, stratum) in measured]
    left = len(rows) - MOST_ROWS
    rows = rows[:MOST_ROWS][::-1]
    figure = Figure(figsize=(3.2 * len(measures) + 1.4, 1.1 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(measures), squeeze=False)[0]
    for axis, (name, label, scale) in zip(axes, measures, strict=True):
        told = [_cost_row(axis, y, found, row, name, scale) for y, row in enumerate(rows)]
        names = [_title(stratum, arm).replace("\n", ": ") for arm, stratum in rows]
        axis.set_yticks(range(len(rows)), names if axis is axes[0] else [""] * len(rows))
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.set_xlim(0, 1.06 * axis.dataLim.x1)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel(label)
        numbers = axis.secondary_yaxis("right")
        numbers.set_yticks(range(len(rows)), told)
        numbers.tick_params(length=0)
        numbers.spines["right"].set_visible(False)
    devices = sorted({str(environment.get("device")) for environment in found.runs["environment"]})
    caption = (
        "What a training step costs in the same network without norm layers (hollow) and with them (filled), and how "
        f"many times as much that is. Means over seeds ({found.num_seeds()}); thin bar: from the lowest to the highest "
        f"seed. Measured on {' and '.join(devices)}.{f' {left} more rows have no room.' if left > 0 else ''}"
        f"{found.lost_words(len(found.diverged))}{found.note}"
    )
    return figure, caption


PROBE_FIGURES: tuple[tuple[str, str, Callable[[Selection, Store], Drawn]], ...] = (
    ("probe-gradients", "Gradients from layer to layer", draw_gradients),
    ("probe-activations", "What the last activation sees", draw_activations),
    ("probe-units", "Activations from layer to layer", draw_units),
    ("probe-shift", "Internal covariate shift", draw_shift),
    ("probe-landscape", "How smooth the loss is", draw_landscape),
    ("probe-affine", "What gamma and beta become", draw_affine),
    ("probe-running", "Running statistics against those of a batch", draw_running),
    ("probe-statistics", "Which statistics to evaluate with", draw_statistics),
    ("probe-robustness", "Under corrupted images", draw_robustness),
    ("probe-cost", "What the norm costs", draw_cost),
)


def _load(
    selection: Selection,
    store: Store,
    probe: str,
    quantities: Sequence[str],
    *,
    most: int,
    reduce: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> _Measured | None:
    """The rows of the first `most` strata that have any; a stratum without room is not even read."""
    reporting = selection.reporting()
    kept: list[pd.DataFrame] = []
    strata: list[str] = []
    unread = len(selection.strata)
    for stratum in selection.strata:
        unread -= 1
        runs = reporting[reporting["stratum"] == stratum]
        rows = load_probes(store, list(runs["run_id"]), probe, quantities, reduce=reduce)
        if len(rows) and rows["value"].notna().any():
            strata.append(stratum)
            kept.append(rows.merge(runs[["run_id", "arm", "stratum"]], on="run_id"))
        if len(strata) == most:
            break
    if not kept:
        return None
    rows = pd.concat(kept, ignore_index=True)
    runs = reporting[reporting["stratum"].isin(strata)]
    return _Measured(
        rows=rows,
        cells={(str(a), str(s), str(q)): cell for (a, s, q), cell in rows.groupby(["arm", "stratum", "quantity"])},
        arms=selection.arms,
        strata=tuple(strata),
        runs=runs,
        diverged=frozenset(runs.loc[runs["status"] == "diverged", "run_id"]),
        note=f" Shown: {most} of {len(selection.strata)} strata; tables/probes.csv has all." if unread else "",
    )


def _ends(rows: pd.DataFrame) -> pd.DataFrame:
    """The first and the last measured step of a run."""
    return rows[rows["step"].isin((rows["step"].min(), rows["step"].max()))]


def _last_layer(rows: pd.DataFrame) -> pd.DataFrame:
    last: str = list(dict.fromkeys(rows["layer"]))[-1]
    return rows[rows["layer"] == last]


def _three_layers(rows: pd.DataFrame) -> pd.DataFrame:
    """The first, middle and last layer, with its `place`: arms need not share the names of layers."""
    layers = list(dict.fromkeys(rows["layer"]))
    places = {layers[len(layers) // 2]: "middle"} | {layers[-1]: "last"} | {layers[0]: "first"}
    placed = rows.assign(place=rows["layer"].map(places))
    return placed[placed["place"].notna()]


def _middle_layer(rows: pd.DataFrame) -> pd.DataFrame:
    layers = list(dict.fromkeys(rows["layer"]))
    middle: str = layers[len(layers) // 2]
    return rows[rows["layer"] == middle].assign(place="middle")


def _mean_of_layers(rows: pd.DataFrame) -> pd.DataFrame:
    """The mean over layers at each step; null where one is null."""
    groups = rows.groupby(["run_id", "step", "quantity"], sort=False)["value"]
    means: pd.DataFrame = groups.mean().where(groups.count() == groups.size()).reset_index()
    return means


def _first_and_last(found: _Measured) -> tuple[bool, ...]:
    """For each panel whether it shows the last step: one where only one step was measured."""
    return (False, True) if found.rows["step"].nunique() > 1 else (True,)


def _at_end(cell: pd.DataFrame, *, last: bool) -> pd.DataFrame:
    """The rows at an arm's first or last step; a run that diverged before the last has none there."""
    step: int = cell["step"].max() if last else cell["step"].min()
    return cell[cell["step"] == step]


def _pivot(cell: pd.DataFrame, index: str, columns: str = "run_id") -> pd.DataFrame:
    """(index, runs): what a run lacks is nan, so that nothing is made up."""
    unique = cell.drop_duplicates([index, columns], keep="last")
    return unique.pivot(index=index, columns=columns, values="value")


def _by_layer(cell: pd.DataFrame) -> pd.DataFrame:
    """(layers in forward order from 1, runs)."""
    table = _pivot(cell, "layer").reindex(list(dict.fromkeys(cell["layer"])))
    table.index = pd.RangeIndex(1, len(table) + 1)
    return table


def _by_severity(cell: pd.DataFrame, corruptions: Sequence[str]) -> pd.DataFrame:
    """(severity, runs): mean over the corruptions; severity 0 is the test set as it is."""
    here = cell[cell["corruption"].isin(["none", *corruptions])]
    groups = here.groupby(["severity", "run_id"])["value"]
    table: pd.DataFrame = groups.mean().where(groups.count() == groups.size()).unstack("run_id")
    return table


def _one_unit(found: _Measured) -> tuple[dict[tuple[str, str], pd.DataFrame], list[int]]:
    """(stratum, arm) -> (steps, percentiles) of one seed, and the seeds used: in each stratum the smallest of those
    that most arms have and that were measured longest."""
    seed_of = found.of_run("seed")
    tables: dict[tuple[str, str], pd.DataFrame] = {}
    used = set()
    rows = found.rows.assign(seed=found.rows["run_id"].map(seed_of)).dropna(subset=["value"])
    for stratum, here in rows.groupby("stratum", sort=False):
        seeds = here.groupby("seed").agg(arms=("arm", "nunique"), rows=("value", "size")).reset_index()
        best = seeds.sort_values(["arms", "rows", "seed"], ascending=[False, False, True])["seed"].iloc[0]
        for arm, cell in here[here["seed"] == best].groupby("arm", sort=False):
            tables[str(stratum), str(arm)] = _pivot(cell, "step", "quantity")
            used.add(int(best))
    return tables, sorted(used)


def _over_layers(
    axis: Any, found: _Measured, stratum: str, quantity: str, *, last: bool, scale: float = 1, spread: str | None = None
) -> None:
    """A line an arm over the layers, at its first or last step, with `spread` to both sides if given."""
    steps = set()
    for arm, cell in found.arm_cells(stratum, quantity):
        end = _at_end(cell, last=last)
        steps.add(int(end["step"].iloc[0]))
        around = found.cells.get((arm, stratum, spread)) if spread else None
        half = None if around is None else _by_layer(_at_end(around, last=last))
        _line(axis, found, arm, scale * _by_layer(end), half=half)
    axis.set_title(_title(stratum, _when(steps)))


def _over_steps(axis: Any, found: _Measured, stratum: str, quantity: str, place: str | None = None) -> list[str]:
    """A line an arm over the steps, of the layer at this place; returns the names that layer has."""
    layers: list[str] = []
    for arm, cell in found.arm_cells(stratum, quantity):
        here = cell if place is None else cell[cell["place"] == place]
        if len(here):
            layers += [] if place is None else [here["layer"].iloc[0]]
            _line(axis, found, arm, _pivot(here, "step"), cross=True)
    return list(dict.fromkeys(layers))


def _line(
    axis: Any, found: _Measured, arm: str, table: pd.DataFrame, *, half: pd.DataFrame | None = None, cross: bool = False
) -> None:
    """Draw an arm, (x, runs): mean and band of its runs, and thin each run that diverged, to a cross at its end."""
    look = found.look(arm)
    lost = [run_id for run_id in table if run_id in found.diverged]
    handle = None
    for run_id in lost:
        known = table[run_id].dropna()
        (handle,) = axis.plot(table.index, table[run_id], color=look.color, linestyle=look.line, linewidth=0.8)
        if cross and len(known):
            axis.plot(known.index[-1:], known.iloc[-1:], "x", color=look.color, markersize=5, markeredgewidth=1.3)
    kept = table.drop(columns=lost)
    if kept.shape[1]:
        width = None if half is None else half[kept.columns].mean(axis=1, skipna=False).to_numpy()
        handle = _mean_line(axis, look, kept, half=width, alpha=_alpha(found), shift=found.arms.index(arm))
    if handle is not None:
        found.handles.setdefault(arm, handle)


def _mean_line(
    axis: Any,
    look: Look,
    table: pd.DataFrame,
    *,
    band: bool = True,
    half: np.ndarray | None = None,
    alpha: float = 0.16,
    shift: int = 0,
) -> Any:
    """Mean over runs, (x, runs), and the band from the lowest to the highest run, or `half` to both sides.

    Where one run lacks a value there is a gap: a mean over the others would jump.
    """
    x, mean = table.index.to_numpy(dtype="float64"), table.mean(axis=1, skipna=False).to_numpy()
    low = table.min(axis=1, skipna=False).to_numpy() if half is None else mean - half
    high = table.max(axis=1, skipna=False).to_numpy() if half is None else mean + half
    if band:
        axis.fill_between(x, low, high, color=look.color, alpha=alpha, linewidth=0)
    known = np.concatenate([[False], np.isfinite(mean), [False]])
    marked = known[1:-1] & ~known[:-2] & ~known[2:]  # a line through a point with no neighbour is invisible
    every = -(-len(x) // MOST_MARKED)
    marked[shift % every :: every] = True
    (line,) = axis.plot(
        x, mean, color=look.color, linestyle=look.line, linewidth=1.6, marker=look.marker, markersize=4.2,
        markeredgecolor="white", markeredgewidth=0.5, markevery=[int(i) for i in np.flatnonzero(marked)],
    )  # fmt: skip
    return line


def _range(axis: Any, found: _Measured, arm: str, low: pd.DataFrame | None, high: pd.DataFrame | None) -> None:
    """A band from the mean of one quantity to that of another, with its edges."""
    if low is None or high is None:
        return
    kept = [_pivot(cell[~cell["run_id"].isin(found.diverged)], "step") for cell in (low, high)]
    if not kept[0].size:
        return
    ends = pd.concat([table.mean(axis=1, skipna=False) for table in kept], axis=1).sort_index()
    x, look = ends.index.to_numpy(dtype="float64"), found.look(arm)
    axis.fill_between(x, ends[0].to_numpy(), ends[1].to_numpy(), color=look.color, alpha=_alpha(found), linewidth=0)
    for end in (0, 1):
        axis.plot(x, ends[end].to_numpy(), color=look.color, linestyle=look.line, linewidth=1.2)


def _alpha(found: _Measured) -> float:
    """Bands of many arms lie over one another: the more, the fainter."""
    return min(0.18, 0.5 / len(found.arms))


def _percentiles(axis: Any, look: Look, table: pd.DataFrame) -> None:
    x = table.index.to_numpy(dtype="float64")
    low, middle, high = (table.get(f"unit_q{q}", pd.Series(np.nan, table.index)).to_numpy() for q in (15, 50, 85))
    axis.fill_between(x, low, high, color=look.color, alpha=0.18, linewidth=0)
    for values, width in ((low, 0.8), (high, 0.8), (middle, 1.8)):
        axis.plot(x, values, color=look.color, linewidth=width)


def _kinds(axis: Any, found: _Measured, arm: str, cells: Sequence[pd.DataFrame], x: np.ndarray, width: float) -> None:
    """One arm: its dots, mean and interval at each kind of statistics, and a line through the means."""
    look, healthy, means = found.look(arm), found.of_run("healthy"), []
    for place, cell in zip(x, cells, strict=True):
        here = cell.dropna(subset=["value"])
        values = 100 * here["value"].to_numpy()
        means.append(float(values.mean()) if len(values) else np.nan)
        if len(values) == 0:
            continue
        well = np.array([healthy[run_id] for run_id in here["run_id"]])
        dots = place + width * (0.22 + 0.1 * (np.linspace(-1, 1, len(values)) if len(values) > 1 else np.zeros(1)))
        axis.plot(dots[well], values[well], look.marker, color=look.color, markersize=3, alpha=0.7, markeredgewidth=0)
        axis.plot(dots[~well], values[~well], "x", color=look.color, markersize=5, markeredgewidth=1.4)
        estimate = mean_interval(values.tolist())
        if np.isfinite(estimate.low):
            bar = [place - 0.15 * width] * 2
            axis.plot(bar, [estimate.low, estimate.high], color=look.color, linewidth=2, scaley=False)
    (line,) = axis.plot(
        x - 0.15 * width, means, color=look.color, linestyle=look.line, linewidth=1, marker=look.marker, markersize=6.5,
        markeredgecolor="white",
    )  # fmt: skip
    found.handles.setdefault(arm, line)


def _cost_row(axis: Any, y: int, found: _Measured, row: tuple[str, str], name: str, scale: float) -> str:
    """One arm with the norm and without it; returns its numbers."""
    look, means = found.look(row[0]), []
    for quantity, face in ((f"{name}_without_norm", "white"), (name, look.color)):
        cell = found.cells.get((*row, quantity))
        values = np.array([]) if cell is None else cell["value"].dropna().to_numpy() * scale
        means.append(float(values.mean()) if len(values) else np.nan)
        if len(values):
            axis.plot([values.min(), values.max()], [y, y], color=look.color, linewidth=0.9)
            axis.plot(
                means[-1:], [y], look.marker, markersize=6.5, markerfacecolor=face, markeredgecolor=look.color,
                zorder=4,
            )  # fmt: skip
    axis.plot(means, [y, y], color=look.color, linewidth=2.6, alpha=0.35, zorder=1)
    without, with_norm = means
    if not np.isfinite(means).all():
        return _short(with_norm) if np.isfinite(with_norm) else "—"
    ratios = found.cells.get((*row, "step_ratio")) if name == "step_seconds" else None
    ratio = with_norm / without if ratios is None and without else np.nan if ratios is None else ratios["value"].mean()
    return f"{_short(without)} → {_short(with_norm)}  ×{ratio:.2f}"


def _short(value: float) -> str:
    """At least three digits that count."""
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(value)))) if value > 0 else 0}f}"


def _grid(rows: int, columns: int, *, sharey: Literal["none", "all", "row", "col"]) -> tuple[Any, Any]:
    """A figure and its (rows, columns) axes: what belongs together stands side by side."""
    from matplotlib.figure import Figure

    width = {1: 4.6, 2: 3.5, 3: 2.8}.get(columns, 2.3)
    figure = Figure(figsize=(width * columns + 0.4, PANEL_INCHES[1] * rows + 0.75), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey)


def _title(*words: str) -> str:
    return "\n".join(word for word in words if word)


def _when(steps: set[int]) -> str:
    if steps <= {0}:
        return "before the first update" if steps else ""
    return f"after {' to '.join(str(step) for step in sorted({min(steps), max(steps)}))} updates"


def _corruption(kind: str) -> str:
    return kind.upper() if kind in ("jpeg", "fgsm") else kind.replace("_", " ")


def _finish(figure: Any, axes: Any, found: _Measured, label: str) -> None:
    _label(axes, label)
    _legend(figure, found)


def _label(axes: Any, label: str) -> None:
    """Few whole numbers on every x axis, and its label under the lowest panel of each column."""
    from matplotlib.ticker import MaxNLocator

    for column in axes.T:
        present = [axis for axis in column if axis.figure is not None]
        for axis in present:
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        present[-1].set_xlabel(label)


def _log(axes: Any) -> None:
    """A log scale; where it has few decades, plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis in axes:
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        if high < FEW_DECADES * low:
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_locator(NullLocator())


def _log_where_wide(axes: Any) -> None:
    """A log scale for all of these, where what they show spans decades."""
    axes = list(axes)
    low, high = min(axis.dataLim.y0 for axis in axes), max(axis.dataLim.y1 for axis in axes)
    if 0 < low * WIDE < high:
        _log(axes)


def _limit_to_dots(axis: Any) -> None:
    """Room for all markers; the interval of two or three seeds may reach far beyond, and out of the panel."""
    values = np.concatenate(
        [np.asarray(line.get_ydata(), dtype="float64") for line in axis.lines if line.get_marker() != "None"]
    )
    low, high = np.nanmin(values), np.nanmax(values)
    room = max(0.35 * (high - low), 0.2)
    axis.set_ylim(max(low - room, -2.0), min(high + room, 102.0))


def _legend(figure: Any, found: _Measured, **more: Any) -> None:
    """One entry is left out only where the report has no other arm."""
    if found.handles and len(found.arms) + len(more) > 1:
        entries = {arm: found.handles[arm] for arm in found.arms if arm in found.handles} | more
        legend_below(figure, list(entries.values()), list(entries))


def _styles() -> dict[str, Any]:
    from matplotlib.lines import Line2D

    solid, dashed = Line2D([], [], color=GREY), Line2D([], [], color=GREY, linestyle=DASHED)
    return {"running statistics": solid, "statistics of the batch": dashed}
