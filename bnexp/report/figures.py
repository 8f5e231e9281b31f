"""The figures of a report. Each returns its caption, or None where the runs have nothing to show in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bnexp.analysis.claims import ClaimVerdict
from bnexp.analysis.frame import load_history
from bnexp.analysis.select import Selection
from bnexp.analysis.stats import mean_interval
from bnexp.metrics import METRICS, Metric
from bnexp.report.differences_figure import draw_differences
from bnexp.report.flip_figure import draw_flip_map
from bnexp.report.folder import CAPTIONS
from bnexp.report.probe_figures import PROBE_FIGURES
from bnexp.report.spread_figure import draw_spread
from bnexp.report.style import MOST_PANELS, RC, label_outer, legend_below, look_of, panels, save, title
from bnexp.report.verdict_figure import draw_verdicts
from bnexp.report.words import fixed_words, panel_note
from bnexp.store import Store


@dataclass(frozen=True)
class FigureFile:
    """A drawn figure: figures/NAME.{png,svg,pdf}."""

    name: str
    title: str
    caption: str


def draw_figures(
    selection: Selection, store: Store, folder: Path, claims: Sequence[ClaimVerdict] | None = None
) -> list[FigureFile]:
    """Draw all that the runs support into `folder`, in reading order.

    Args:
        claims: of a study: its verdicts, which stand in the place of mere differences.
    """
    of_claims = [(name, title, partial(draw, claims or (), selection)) for name, title, draw in CLAIM_FIGURES]
    of_runs = [(name, title, partial(draw, selection, store)) for name, title, draw in FIGURES]
    drawings = of_runs if claims is None else [*of_claims, *(item for item in of_runs if item[0] != "differences")]
    drawn = save_figures(drawings, folder, note=fixed_words(selection))
    write_captions(drawn, folder)
    return drawn


def save_figures(
    drawings: Sequence[tuple[str, str, Callable[[], Drawn]]], folder: Path, *, note: str = "", pdf: bool = True
) -> list[FigureFile]:
    """Draw each (name, title, how) that has something to show; the note goes below every caption."""
    import matplotlib

    drawn: list[FigureFile] = []
    with matplotlib.rc_context(RC):
        for name, title, draw in drawings:
            result = draw()
            if result is None:
                continue
            figure, caption = result
            save(figure, folder, name, pdf=pdf)
            drawn.append(FigureFile(name, title, f"{caption} {note}".rstrip()))
    return drawn


def write_captions(drawn: Sequence[FigureFile], folder: Path) -> None:
    (folder / CAPTIONS).write_text("".join(f"## {item.name}\n{item.title}. {item.caption}\n\n" for item in drawn))


Drawn = tuple[Any, str] | None


def draw_finals(selection: Selection, store: Store) -> Drawn:
    """Final metric of each arm: every seed's dot, the mean and its interval, one panel a stratum."""
    metric = METRICS[selection.metric]
    runs = selection.reporting()
    shown = selection.strata[:MOST_PANELS]
    figure, axes = panels(len(shown))
    for axis, stratum in zip(axes, shown, strict=True):
        for index, arm in enumerate(selection.arms):
            cell = selection.cell(runs, arm, stratum).dropna(subset=["score"])
            _dots(axis, index, cell, metric)
        axis.set_title(title(stratum))
        axis.set_xticks(range(len(selection.arms)), [arm.replace(", ", "\n") for arm in selection.arms])
        axis.set_xlim(-0.6, len(selection.arms) - 0.4)
        axis.grid(axis="x", visible=False)
    if metric.unit == "fraction":  # an interval may reach past what an accuracy can be: the axis does not
        low, high = axes[0].get_ylim()
        axes[0].set_ylim(max(low, -2.0), min(high, 102.0))
    label_outer(axes, x="", y=metric.label)
    caption = (
        f"{metric.label[0].upper()}{metric.label[1:]} at the end of training, each arm at its own best learning "
        f"rate. Small markers: one seed each ({_seed_counts(selection, runs)}); large marker and bar: mean and 95 % "
        "interval over seeds alone; ×: diverged or collapsed (scored at chance), counted in the "
        f"mean.{panel_note(selection)}"
    )
    return figure, caption


def draw_curves(selection: Selection, store: Store) -> Drawn:
    """Validation accuracy over epochs, mean and seed band, at each arm's own best learning rate."""
    runs = selection.reporting()
    history = load_history(store, list(runs["run_id"]))
    if history.empty or history["epoch"].max() < 2:
        return None
    shown = selection.strata[:MOST_PANELS]
    figure, axes = panels(len(shown))
    handles: dict[str, Any] = {}
    for axis, stratum in zip(axes, shown, strict=True):
        for index, arm in enumerate(selection.arms):
            cell = selection.cell(runs, arm, stratum)
            if len(cell):
                handles.setdefault(arm, _curve(axis, index, _val_matrix(cell, history)))
        axis.set_title(title(stratum))
    label_outer(axes, x="epoch", y="validation\naccuracy (%)")
    if len(selection.arms) > 1:
        _arm_legend(figure, selection, handles)
    caption = (
        "Learning curves, each arm at its own best learning rate. Line: mean over seeds; band: from the lowest to the "
        f"highest seed ({_seed_counts(selection, runs)}). A diverged run counts as chance from then on."
        f"{panel_note(selection)}"
    )
    return figure, caption


def draw_lr(selection: Selection, store: Store) -> Drawn:
    """The metric over the learning rate, every seed's dot, unhealthy runs as crosses."""
    if selection.runs["lr"].nunique() < 2:
        return None
    caption = (
        "Final result over the learning rate (log scale). Lines: mean over seeds; small markers: one seed each; ×: "
        "diverged or collapsed (scored at chance), counted in the mean. "
        f"{_seed_counts(selection, selection.runs)}.{panel_note(selection)}"
    )
    return _lines(selection, "lr", "learning rate"), caption


def draw_batch_size(selection: Selection, store: Store) -> Drawn:
    """The metric over the batch size at each arm's own best learning rate."""
    if selection.runs["batch_size"].nunique() < 2:
        return None
    caption = (
        "Final result over the batch size (log scale), each arm at its own best learning rate for each batch size. "
        "Lines: mean over seeds; small markers: one seed each; ×: diverged or collapsed (scored at chance)."
    )
    return _lines(selection, "batch_size", "batch size"), caption


def draw_heatmap(selection: Selection, store: Store) -> Drawn:
    """Mean metric over learning rate × batch size, one panel an arm."""
    runs = selection.runs
    if runs["lr"].nunique() < 2 or runs["batch_size"].nunique() < 2 or len(selection.arms) > MOST_PANELS:
        return None
    if runs.groupby(["arm", "lr", "batch_size", "seed"]).size().max() > 1:
        return None  # strata would be pooled in one cell
    metric = METRICS[selection.metric]
    tables = {
        arm: runs[runs["arm"] == arm].pivot_table(index="batch_size", columns="lr", values="score", aggfunc="mean")
        for arm in selection.arms
    }
    low = min(float(np.nanmin(t.to_numpy())) for t in tables.values()) * metric.scale
    high = max(float(np.nanmax(t.to_numpy())) for t in tables.values()) * metric.scale
    figure, axes = panels(len(tables), sharex=False)
    for axis, (arm, table) in zip(axes, tables.items(), strict=True):
        sick = runs[runs["arm"] == arm].pivot_table(
            index="batch_size", columns="lr", values="healthy", aggfunc=lambda flags: int((~flags).sum())
        )
        image = _heat(axis, table * metric.scale, sick, low, high)
        axis.set_title(title(arm))
    label_outer(axes, x="learning rate", y="batch size")
    figure.colorbar(image, ax=axes, label=metric.label, shrink=0.8)
    caption = (
        f"Mean {metric.label} over learning rate and batch size; brighter is better. Where runs diverged or collapsed, "
        f"×k says how many; they are scored at chance. {_seed_counts(selection, runs)}."
    )
    return figure, caption


# of a study, from its verdicts
CLAIM_FIGURES: tuple[tuple[str, str, Callable[[Sequence[ClaimVerdict], Selection], Drawn]], ...] = (
    ("verdicts", "What was claimed, and what the seeds say", draw_verdicts),
    ("flip-map", "Does the verdict hold in other analyses?", draw_flip_map),
    ("spread", "Where the width of each interval comes from", draw_spread),
)
AUDIT_FIGURES = CLAIM_FIGURES[:2]  # a page over all studies has no room for more; each study's own report has all
# of any runs; the first of those that no study was made for
FIGURES: tuple[tuple[str, str, Callable[[Selection, Store], Drawn]], ...] = (
    ("differences", "What the change does", draw_differences),
    ("final", "Where each arm ends", draw_finals),
    ("learning-rate", "Across learning rates", draw_lr),
    ("batch-size", "Across batch sizes", draw_batch_size),
    ("lr-batch-size", "Learning rate and batch size", draw_heatmap),
    ("curves", "How each arm gets there", draw_curves),
    *PROBE_FIGURES,
)
FIGURE_NAMES = (*(name for name, _, _ in CLAIM_FIGURES), *(name for name, _, _ in FIGURES))


def _dots(axis: Any, index: int, cell: pd.DataFrame, metric: Metric) -> None:
    if cell.empty:
        return
    look = look_of(index)
    values = cell["score"].to_numpy() * metric.scale
    within = metric.possible[0] * metric.scale, metric.possible[1] * metric.scale
    x = index + 0.22 + (0.1 * np.linspace(-1, 1, len(values)) if len(values) > 1 else np.zeros(1))
    healthy = cell["healthy"].to_numpy()
    axis.plot(x[healthy], values[healthy], look.marker, color=look.color, markersize=3.2, alpha=0.75, markeredgewidth=0)
    axis.plot(x[~healthy], values[~healthy], "x", color=look.color, markersize=5.5, markeredgewidth=1.5)
    estimate = mean_interval(values.tolist(), within=within)
    if np.isfinite(estimate.low):
        axis.plot([index - 0.12] * 2, [estimate.low, estimate.high], color=look.color, linewidth=2)
    axis.plot([index - 0.12], [estimate.mean], look.marker, color=look.color, markersize=7, markeredgecolor="white")


def _val_matrix(cell: pd.DataFrame, history: pd.DataFrame) -> np.ndarray:
    """(seeds, epochs) validation accuracy; what a diverged run did not reach counts as chance, other holes are nan."""
    epochs = int(cell["epochs"].max())
    rows = []
    for run_id, status, chance in zip(cell["run_id"], cell["status"], cell["chance_val_accuracy"], strict=True):
        values = np.full(epochs, np.nan)
        own = history[history["run_id"] == run_id]
        values[own["epoch"].to_numpy(dtype=int) - 1] = own["val_accuracy"].astype("float64")
        rows.append(np.where(np.isnan(values), float(chance), values) if status == "diverged" else values)
    return np.array(rows)


def _curve(axis: Any, index: int, values: np.ndarray) -> Any:
    look = look_of(index)
    x = np.arange(1, values.shape[1] + 1)
    known = values[~np.isnan(values).all(axis=1)]  # a run whose history file is gone has no curve
    if len(known) == 0:
        known = np.full((1, values.shape[1]), np.nan)
    # an epoch that one seed lacks has no mean: a mean over other seeds would jump there
    axis.fill_between(x, 100 * known.min(0), 100 * known.max(0), color=look.color, alpha=0.18, linewidth=0)
    (line,) = axis.plot(x, 100 * known.mean(0), color=look.color, linestyle=look.line, linewidth=1.6)
    axis.xaxis.get_major_locator().set_params(integer=True)
    return line


def _arm_legend(figure: Any, selection: Selection, handles: dict[str, Any]) -> None:
    """In the order of the arms, whichever a panel met first."""
    arms = [arm for arm in selection.arms if arm in handles]
    legend_below(figure, [handles[arm] for arm in arms], arms)


def _lines(selection: Selection, key: str, label: str) -> Any:
    """Score over a key on a log axis, a line an arm, a panel a stratum (less the key itself)."""
    metric = METRICS[selection.metric]
    runs = (selection.runs if key == "lr" else selection.reporting()).copy()
    if key == "batch_size":
        runs["stratum"] = [_without_batch_size(stratum) for stratum in runs["stratum"]]
    strata = list(dict.fromkeys(s for s in runs["stratum"]))[:MOST_PANELS]
    if key == "lr":
        strata = list(selection.strata[:MOST_PANELS])
    figure, axes = panels(len(strata))
    handles: dict[str, Any] = {}
    for axis, stratum in zip(axes, strata, strict=True):
        for index, arm in enumerate(selection.arms):
            cell = selection.cell(runs, arm, stratum).dropna(subset=["score"])
            if len(cell):
                handles.setdefault(arm, _line(axis, index, cell, key, metric.scale))
        axis.set_xscale("log")
        axis.set_title(title(stratum))
    ticks = sorted(runs[key].unique())
    if len(ticks) <= 4:
        for axis in axes:
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
    label_outer(axes, x=label, y=metric.label)
    _arm_legend(figure, selection, handles)
    return figure


def _line(axis: Any, index: int, cell: pd.DataFrame, key: str, scale: float) -> Any:
    look = look_of(index)
    means = cell.groupby(key, sort=True)["score"].mean() * scale
    shift = 1.03 ** (2 * (index % 4) - 1)  # side by side, so that arms do not hide one another
    for healthy, marker, size in ((True, look.marker, 3.0), (False, "x", 5.0)):
        part = cell[cell["healthy"] == healthy]
        edge, above = (0, 2) if healthy else (1.3, 4)  # a cross is never hidden behind a mean
        axis.plot(
            part[key] * shift,
            part["score"] * scale,
            marker,
            color=look.color,
            markersize=size,
            alpha=0.6,
            markeredgewidth=edge,
            zorder=above,
        )
    (line,) = axis.plot(
        means.index.to_numpy() * shift, means.to_numpy(), color=look.color, linestyle=look.line, marker=look.marker,
        markersize=5, linewidth=1.6, markeredgecolor="white",
    )  # fmt: skip
    return line


def _heat(axis: Any, table: pd.DataFrame, sick: pd.DataFrame, low: float, high: float) -> Any:
    values = table.to_numpy()
    image = axis.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    axis.grid(visible=False)
    axis.set_xticks(range(table.shape[1]), [f"{lr:g}" for lr in table.columns])
    axis.set_yticks(range(table.shape[0]), [f"{size:g}" for size in table.index])
    for row in range(table.shape[0]):
        for column in range(table.shape[1]):
            value = values[row, column]
            if not np.isfinite(value):
                continue
            bad = int(sick.to_numpy()[row, column])
            text = f"{value:.1f}" + (f"\n×{bad}" if bad else "")
            bright = value > (low + high) / 2
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color="black" if bright else "white")
    return image


def _without_batch_size(stratum: str) -> str:
    return ", ".join(word for word in stratum.split(", ") if not word.startswith("batch size "))


def _seed_counts(selection: Selection, runs: pd.DataFrame) -> str:
    counts = sorted(set(runs.groupby(["arm", "stratum", "lr"]).size())) or [0]
    return f"n = {counts[0]} seeds" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]} seeds"
