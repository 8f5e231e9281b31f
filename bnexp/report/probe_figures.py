"""The figures of what probes measured. Each returns its caption, or None where the runs measured nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from bnexp.analysis.select import Selection
from bnexp.report.probe_data import (
    Measured,
    by_severity,
    keep_ends,
    keep_last_layer,
    keep_middle_layer,
    keep_three_layers,
    load_measured,
    mean_over_layers,
    one_seed_each,
)
from bnexp.report.probe_marks import (
    DASHED,
    LAYERS,
    arm_legend,
    dots_and_interval,
    few_ticks,
    grid,
    limit_to_dots,
    log_scale,
    log_scale_where_wide,
    look,
    mean_line,
    over_layers,
    over_steps,
    percentiles,
    range_over_steps,
    statistics_styles,
    step_ticks,
)
from bnexp.report.style import GREY, MOST_COLUMNS, MOST_PANELS, label_outer, num_columns, panels, title
from bnexp.store import Store

Drawn = tuple[Any, str] | None
MOST_ROWS = 24
UNLIKE = 8.0  # widest over narrowest panel, from which on panels do not share an axis
UNIT = ("unit_q15", "unit_q50", "unit_q85")
SHIFT = {"shift_l2": "L2 of the change\n(lower: less shift)", "shift_cosine": "cosine\n(higher: less shift)"}
LOSSES, CHANGES, SLOPE = ("loss_min", "loss_max"), ("gradient_distance_min", "gradient_distance_max"), "smoothness"
RUNNING = {"mean_distance": "distance of means", "std_distance": "distance of\nstandard deviations"}
NEUTRAL = {"gamma": 1, "beta": 0}
MOMENTS = {"output_mean": "output: |mean|", "output_std_error": "output: |SD − 1|"}
EXACT = {"norm_mean_error": "|mean| of a channel", "norm_std_error": "|SD − 1|, without the share of eps,"}
COST = (
    ("step_seconds", "time of a training step (ms)", 1000.0),
    ("saved_mib", "memory saved for\nthe backward pass (MiB)", 1.0),
    ("peak_mib", "peak memory (MiB)", 1.0),
)


def draw_gradients(selection: Selection, store: Store) -> Drawn:
    """Gradient norm of every weight layer, at the first and at the last measured step."""
    found = load_measured(selection, store, "gradients", ("gradient_norm",), most=MOST_PANELS // 2, reduce=keep_ends)
    if found is None:
        return None
    ends = found.ends()
    figure, axes = grid(len(found.strata), len(ends), sharey="all")
    for row, stratum in zip(axes, found.strata, strict=True):
        row[0].set_ylabel("gradient norm")
        for axis, last in zip(row, ends, strict=True):
            over_layers(axis, found, stratum, "gradient_norm", last=last)
    log_scale(axes.flat)
    few_ticks(axes, LAYERS)
    arm_legend(figure, found)
    caption = (
        "Norm of the loss gradient in the weights of each layer, on a log scale. Falling towards the input: gradients "
        "vanish on their way back; rising towards it: they explode. "
        f"{found.line_words(logarithmic='gradient_norm')}{found.note}"
    )
    return figure, caption


def draw_activations(selection: Selection, store: Store) -> Drawn:
    """Percentiles over time of one unit's input to the last activation, one panel an arm."""
    most = max(1, MOST_PANELS // len(selection.arms))
    found = load_measured(selection, store, "activations", UNIT, most=most, reduce=keep_last_layer)
    if found is None:
        return None
    tables, seeds = one_seed_each(found)
    arms = [arm for arm in selection.arms if any(key[1] == arm for key in tables)]
    columns = min(len(arms), MOST_COLUMNS + 1)
    spans = [np.nanmax(table.to_numpy()) - np.nanmin(table.to_numpy()) for table in tables.values()]
    alike = max(spans) <= UNLIKE * min(spans)
    rows_each = -(-len(arms) // columns)
    figure, axes = grid(len(found.strata) * rows_each, columns, sharey="all" if alike else "none")
    for block, stratum in enumerate(found.strata):
        own = list(axes[block * rows_each : (block + 1) * rows_each].flat)
        for place, axis in enumerate(own):
            arm = arms[place] if place < len(arms) else ""
            if (stratum, arm) not in tables:
                axis.remove()
                continue
            percentiles(axis, look(found, arm), tables[stratum, arm], UNIT)
            axis.set_title(title(stratum, arm))
            if place % columns == 0:
                axis.set_ylabel("input of the\nlast activation")
    step_ticks(axes, found)
    drawn = f"seed{'s' * (len(seeds) > 1)} {' and '.join(map(str, seeds))}"
    caption = (
        "Input of one unit of the last activation layer during training: median (thick) and the band from its 15th to "
        "its 85th percentile over a batch. A level band: the distribution of what it is given stays the same. "
        f"One run an arm, {drawn}: other seeds have other units.{'' if alike else ' Each panel has its own y axis.'}"
        f"{found.note} As in Ioffe & Szegedy 2015, figure 1."
    )
    return figure, caption


def draw_units(selection: Selection, store: Store) -> Drawn:
    """Spread of the activations' inputs and share of dead units, layer by layer."""
    most = MOST_PANELS // MOST_COLUMNS
    found = load_measured(selection, store, "activations", ("std", "dead_fraction"), most=most, reduce=keep_ends)
    if found is None or found.rows["layer"].nunique() < 2:
        return None
    ends = found.ends()
    dead = bool((found.rows.loc[found.rows["quantity"] == "dead_fraction", "value"] > 0).any())
    figure, axes = grid(len(found.strata), len(ends) + dead)
    for row, stratum in zip(axes, found.strata, strict=True):
        row[0].set_ylabel("SD of the input")
        for axis, last in zip(row, ends, strict=False):
            if axis is not row[0]:  # both ends of training on one scale
                axis.sharey(row[0])
            over_layers(axis, found, stratum, "std", last=last)
        if dead:
            row[-1].set_ylabel("dead units (%)")
            over_layers(row[-1], found, stratum, "dead_fraction", scale=100)
            row[-1].set_ylim(bottom=0)
    log_scale_where_wide(axes[:, : len(ends)].flat)
    few_ticks(axes, LAYERS)
    arm_legend(figure, found)
    caption = (
        "Inputs of the activations of each layer: their standard deviation over examples and units"
        f"{', and the units that are dead, giving the same number for every example of a batch' if dead else ''}. "
        f"{found.line_words()}{found.note}"
    )
    return figure, caption


def draw_shift(selection: Selection, store: Store) -> Drawn:
    """Internal covariate shift as a change of gradients: L2 and cosine over time, in a few layers."""
    many = len(selection.strata) > 2
    most, keep = (MOST_PANELS // 2, keep_middle_layer) if many else (2, keep_three_layers)
    found = load_measured(selection, store, "shift", list(SHIFT), most=most, reduce=keep)
    if found is None:
        return None
    layers = [place for place in ("first", "middle", "last") if place in set(found.rows["place"])]
    if many:  # a row a stratum, its middle layer in both measures
        figure, axes = grid(len(found.strata), len(SHIFT), sharey="col")
        blocks = list(axes)
    else:  # two rows a stratum, a column a layer
        figure, axes = grid(len(SHIFT) * len(found.strata), len(layers), sharey="row")
        blocks = [axes[i : i + len(SHIFT)].T.flat for i in range(0, len(axes), len(SHIFT))]
    lengths: list[Any] = []
    places = [(layer, name, label) for layer in layers for name, label in SHIFT.items()]
    for row, stratum in zip(blocks, found.strata, strict=True):
        for axis, (layer, name, label) in zip(row, places, strict=True):
            shown = over_steps(axis, found, stratum, name, place=layer)
            axis.set_title(title(stratum, f"layer {shown[0]}" if len(shown) == 1 else f"{layer} layer"))
            if many or layer == layers[0]:
                axis.set_ylabel(label)
            if name == "shift_l2":
                lengths.append(axis)
    log_scale(lengths)
    step_ticks(axes, found)
    arm_legend(figure, found)
    caption = (
        "How the gradient of a layer changes when the layers below it have made their update: internal covariate shift "
        "as optimization feels it. L2: the length of the change (log scale), which grows with the gradient itself; "
        "cosine: between the gradients before and after. "
        f"{'The middle layer of each network. ' if many else ''}"
        f"{found.line_words(over_steps=True, logarithmic='shift_l2')}{found.note} As in "
        "Santurkar et al. 2018, definition 2.1."
    )
    return figure, caption


def draw_landscape(selection: Selection, store: Store) -> Drawn:
    """Loss, gradient change and smoothness along the gradient, over time."""
    found = load_measured(selection, store, "landscape", (*LOSSES, *CHANGES, SLOPE), most=MOST_PANELS // MOST_COLUMNS)
    if found is None:
        return None
    figure, axes = grid(len(found.strata), 3, sharey="col")
    for row, stratum in zip(axes, found.strata, strict=True):
        range_over_steps(row[0], found, stratum, *LOSSES)
        range_over_steps(row[1], found, stratum, *CHANGES)
        over_steps(row[2], found, stratum, SLOPE)
        labels = ("loss", "change of gradient (L2)", "largest change of\ngradient per distance")
        for axis, label in zip(row, labels, strict=True):
            axis.set_ylabel(label)
            axis.set_title(title(stratum))
    for column in axes.T:
        log_scale_where_wide(column)
    step_ticks(axes, found)
    arm_legend(figure, found)
    caption = (
        "The loss along its gradient, at several distances from where training stands. Left: from the lowest to the "
        "highest loss met there; middle: from the least to the largest change of the gradient; each end is a mean over "
        "seeds. Right: the largest change of gradient per distance. Low and narrow: smooth. At the right, "
        f"{found.line_words(over_steps=True).replace('Line', 'line', 1)}{found.note} As in Santurkar et al. 2018, "
        "figure 4."
    )
    return figure, caption


def draw_affine(selection: Selection, store: Store) -> Drawn:
    """Gamma and beta of every norm layer at the end of training, over channels, and the moments that they leave."""
    quantities = ("gamma_mean", "gamma_std", "beta_mean", "beta_std", *MOMENTS, *EXACT)
    found = load_measured(selection, store, "affine", quantities, most=MOST_PANELS // 2, reduce=keep_ends)
    if found is None:
        return None
    drawn = found.quantities("gamma_mean", "beta_mean", *MOMENTS)
    figure, axes = grid(len(found.strata), len(drawn), sharey="col")
    for row, stratum in zip(axes, found.strata, strict=True):
        for axis, quantity in zip(row, drawn, strict=True):
            name = quantity.removesuffix("_mean")
            axis.axhline(NEUTRAL.get(name, 0), color=GREY, linewidth=0.9, zorder=1)
            over_layers(axis, found, stratum, quantity, spread=f"{name}_std" if name in NEUTRAL else None)
            axis.set_ylabel(MOMENTS.get(quantity, name))
    few_ticks(axes, LAYERS)
    arm_legend(figure, found)
    moments = (
        " The output's moments are over batch and positions, root mean square over channels; band: from the lowest to "
        f"the highest seed; grey: mean 0, SD 1.{_before_affine(found)}"
    )
    caption = (
        "Scale (gamma) and shift (beta) of each norm layer at its last measured step. Line: mean over channels and "
        "seeds; band: one standard deviation over channels to both sides; grey: 1 and 0, which leave the normalized "
        f"value as it is.{moments if found.quantities(*MOMENTS) else ''} {found.num_seeds()}."
        f"{found.collapsed_words()}{found.note}"
    )
    return figure, caption


def _before_affine(found: Measured) -> str:
    """` Before gamma and beta ... is at most 2e-07 (batch)`: of both ends, all layers and runs that did not diverge."""
    rows = found.rows[~found.rows["run_id"].isin(found.diverged)]
    largest = rows.groupby(["quantity", "arm"])["value"].max().dropna()
    told = {name: [arm for arm in found.arms if (name, arm) in largest] for name in EXACT}
    words = [
        f"{EXACT[name]} is at most {', '.join(f'{largest[name, arm]:.1g} ({arm})' for arm in arms)}"
        for name, arms in told.items()
        if arms
    ]
    return f" Before gamma and beta {' and '.join(words)}." if words else ""


def draw_running(selection: Selection, store: Store) -> Drawn:
    """How far the running statistics are from those of a batch, over time."""
    found = load_measured(selection, store, "running", list(RUNNING), most=MOST_PANELS // 2, reduce=mean_over_layers)
    if found is None:
        return None
    figure, axes = grid(len(found.strata), 2, sharey="col")
    for row, stratum in zip(axes, found.strata, strict=True):
        for axis, (quantity, label) in zip(row, RUNNING.items(), strict=True):
            over_steps(axis, found, stratum, quantity)
            axis.set_ylabel(label)
            axis.set_title(title(stratum))
    for column in axes.T:
        log_scale_where_wide(column)
    step_ticks(axes, found)
    arm_legend(figure, found)
    caption = (
        "Distance between the running statistics, which evaluation uses, and those of a training batch, which training "
        "uses; mean over the norm layers. Near 0: the norm layers compute the same in both modes. "
        f"{found.line_words(over_steps=True)}{found.note}"
    )
    return figure, caption


def draw_statistics(selection: Selection, store: Store) -> Drawn:
    """Test accuracy with running, precise and batch statistics: every seed's dot, the mean and its interval."""
    found = load_measured(selection, store, "statistics", ("test_accuracy",), most=MOST_PANELS)
    if found is None:
        return None
    kinds = [kind for kind in ("running", "precise", "batch") if kind in set(found.rows["statistics"])]
    columns = num_columns(len(found.strata))
    figure, axes = grid(-(-len(found.strata) // columns), columns)
    for axis in axes.flat[len(found.strata) :]:
        axis.remove()
    for place, (axis, stratum) in enumerate(zip(axes.flat, found.strata, strict=False)):
        present = found.arm_cells(stratum, "test_accuracy")
        width, healthy = 0.8 / len(present), found.of_run("healthy")
        for index, (arm, cell) in enumerate(present):
            x = np.arange(len(kinds)) + (index - (len(present) - 1) / 2) * width
            by_kind = [cell[cell["statistics"] == kind] for kind in kinds]
            dots_and_interval(axis, look(found, arm), by_kind, x, width=width, healthy=healthy)
        limit_to_dots(axis)
        axis.set_xticks(range(len(kinds)), kinds)
        axis.set_xlim(-0.6, len(kinds) - 0.4)
        axis.grid(axis="x", visible=False)
        axis.set_title(title(stratum))
        if place % columns == 0:
            axis.set_ylabel("test accuracy (%)")
        if place + columns >= len(found.strata):
            axis.set_xlabel("statistics")
    arm_legend(figure, found)
    caption = (
        "Test accuracy of the same trained networks with the running statistics, with precise ones (exact over the "
        "training set) and with those of each test batch. A level line: it does not matter which. Small markers: one "
        f"seed each ({found.num_seeds()}); large marker and bar: mean and 95 % t interval, which may reach out of "
        f"the panel; ×: collapsed, counted in the mean. Each panel has its own y axis.{found.lost_words()}{found.note}"
    )
    return figure, caption


def draw_robustness(selection: Selection, store: Store) -> Drawn:
    """Test accuracy over the severity of each corruption; dashed with the statistics of the corrupted batch."""
    many = len(selection.strata) > 2
    found = load_measured(selection, store, "robustness", ("test_accuracy",), most=MOST_PANELS if many else 2)
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
        chance = found.runs.loc[found.runs["stratum"] == stratum, "chance_test_accuracy"].mean()
        axis.axhline(100 * float(chance), color=GREY, linestyle=":", linewidth=0.9)
        for arm, cell in found.arm_cells(stratum, "test_accuracy"):
            for statistics, style in (("running", "-"), ("batch", DASHED)):
                table = 100 * by_severity(cell[cell["statistics"] == statistics], kinds)
                if len(table):
                    mean_line(axis, replace(look(found, arm), line=style), table, banded=statistics == "running")
        axis.set_title(title(stratum, "" if many else _corruption(kinds[0])))
        axis.set_xticks(sorted({0, *found.rows["severity"]}))
    label_outer(axes, x="severity", y="test accuracy (%)")
    arm_legend(figure, found, line="-", more=statistics_styles() if adapted else None)
    caption = (
        "Test accuracy over the severity of a corruption of the test images; 0: none. "
        f"{'Mean over ' + ', '.join(map(_corruption, natural)) + '. ' if many else ''}"
        f"Solid: running statistics, mean over seeds; band: from the lowest to the highest seed ({found.num_seeds()})"
        f"{'; dashed: statistics of each corrupted batch, mean over seeds' if adapted else ''}. Dotted: chance."
        f"{found.collapsed_words()}{found.lost_words()}{found.note}"
    )
    return figure, caption


def draw_cost(selection: Selection, store: Store) -> Drawn:
    """Time of a step and saved memory, with and without the norm layers, a row an arm."""
    quantities = [name + end for name, _, _ in COST for end in ("", "_without_norm")]
    found = load_measured(selection, store, "cost", [*quantities, "step_ratio"], most=MOST_PANELS)
    if found is None:
        return None
    from matplotlib.figure import Figure

    known = found.quantities(*quantities)
    measures = [measure for measure in COST if measure[0] in known]
    measured = {key[:2] for key in found.cells}
    rows = [(arm, stratum) for stratum in found.strata for arm in found.arms if (arm, stratum) in measured]
    left = len(rows) - MOST_ROWS
    rows = rows[:MOST_ROWS][::-1]
    figure = Figure(figsize=(3.2 * len(measures) + 1.4, 1.1 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(measures), squeeze=False)[0]
    for axis, (name, label, scale) in zip(axes, measures, strict=True):
        told = [_cost_row(axis, y, found, row, name, scale) for y, row in enumerate(rows)]
        names = [f"{stratum}: {arm}" if stratum else arm for arm, stratum in rows]
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
        "many times as much that is; of the time, for steps taken in turn. "
        f"Means over seeds ({found.num_seeds()}); thin bar: from the lowest to the highest "
        f"seed. Measured on {' and '.join(devices)}.{f' {left} more rows have no room.' if left > 0 else ''}"
        f"{found.lost_words()}{found.note}"
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


def _cost_row(axis: Any, y: int, found: Measured, row: tuple[str, str], name: str, scale: float) -> str:
    """One arm with the norm and without it; returns its numbers."""
    here, means = look(found, row[0]), []
    for quantity, face in ((f"{name}_without_norm", "white"), (name, here.color)):
        cell = found.cells.get((*row, quantity))
        values = np.array([]) if cell is None else cell["value"].dropna().to_numpy() * scale
        means.append(float(values.mean()) if len(values) else np.nan)
        if len(values):
            axis.plot([values.min(), values.max()], [y, y], color=here.color, linewidth=0.9)
            axis.plot(
                means[-1:], [y], here.marker, markersize=6.5, markerfacecolor=face, markeredgecolor=here.color,
                zorder=4,
            )  # fmt: skip
    axis.plot(means, [y, y], color=here.color, linewidth=2.6, alpha=0.35, zorder=1)
    without, with_norm = means
    if not np.isfinite(means).all():
        return _short(with_norm) if np.isfinite(with_norm) else "—"
    told = f"{_short(without)} → {_short(with_norm)}"
    ratios = found.cells.get((*row, "step_ratio")) if name == "step_seconds" else None
    if ratios is not None:  # of steps timed in turn: steadier than the ratio of the means
        return f"{told}  ×{ratios['value'].mean():.2f}"
    return f"{told}  ×{with_norm / without:.2f}" if without else told


def _short(value: float) -> str:
    """At least three digits that count."""
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(value)))) if value > 0 else 0}f}"


def _corruption(kind: str) -> str:
    return kind.upper() if kind in ("jpeg", "fgsm") else kind.replace("_", " ")
