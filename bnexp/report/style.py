"""How figures look: readable in print, in grey and by colour-blind readers, and the same bytes every time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Okabe & Ito 2008; marker and line style repeat what the colour says
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "h")
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (4, 1.5, 1, 1.5)), (0, (7, 2)), (0, (2, 2)), "-")
GREY = "#5a5a5a"
PANEL_INCHES = (2.6, 2.2)
MOST_COLUMNS = 3
INCHES_PER_LETTER, INCHES_PER_KEY = 0.082, 0.62  # of a legend entry, measured at RC's font size
LETTERS_PER_PANEL = 28  # of a title over one panel
MOST_PANELS = 12

RC: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.ymargin": 0.08,
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "bnexp",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
}


@dataclass(frozen=True)
class Look:
    """The colour, marker and line of an arm."""

    color: str
    marker: str
    line: Any


@dataclass(frozen=True)
class OutcomeLook:
    """The fill of a mark or cell, the ink on it, the ink of the word on white, and the letter that repeats it."""

    fill: str
    ink: str
    word: str
    letter: str


# told apart in grey by letter, word and fill, not by hue
OUTCOME_LOOKS = {
    "supported": OutcomeLook("#0072B2", "white", "#005a8c", "S"),
    "supported, direction only": OutcomeLook("#a9cfe6", "black", "#005a8c", "s"),
    "contradicted": OutcomeLook("#E69F00", "black", "#9a4f00", "C"),
    "contradicted, direction only": OutcomeLook("#f5d491", "black", "#9a4f00", "c"),
    "negligible": OutcomeLook("#bdbdbd", "black", "#555555", "N"),
    "inconclusive": OutcomeLook("white", "#444444", "#222222", "I"),
    "untested": OutcomeLook("#f3f3f3", "#777777", "#777777", "U"),
    "invalid": OutcomeLook("#f3f3f3", "#777777", "#777777", "X"),
}


def look_of(index: int) -> Look:
    """The look of the arm at this place; places beyond the palette come round again with the same look."""
    k = index % len(COLORS)
    return Look(COLORS[k], MARKERS[k], LINES[k])


def panels(count: int, *, size: tuple[float, float] = PANEL_INCHES, sharex: bool = True) -> tuple[Any, list[Any]]:
    """A figure and its `count` axes in a grid that shares its axes; legends go below, so they cover no data."""
    from matplotlib.figure import Figure

    columns = num_columns(count)
    rows = -(-count // columns)
    width = max(3.4, size[0] * columns + 0.6)
    figure = Figure(figsize=(width, size[1] * rows + 0.75), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=True)
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.remove()
    for index in range(count):  # a panel with nothing below it keeps its tick labels
        if index + columns >= count:
            axes[index].xaxis.set_tick_params(labelbottom=True)
    return figure, axes[:count]


def title(*phrases: str) -> str:
    """A panel's title: each phrase on a line of its own, broken where it is wider than the panel."""
    return "\n".join(textwrap.fill(phrase, LETTERS_PER_PANEL, break_long_words=False) for phrase in phrases if phrase)


def num_columns(count: int) -> int:
    """Panels side by side: four make a square."""
    return 2 if count == 4 else min(count, MOST_COLUMNS)


def label_outer(axes: Sequence[Any], *, x: str, y: str) -> None:
    """Axis labels at the left column and under the lowest panel of each column."""
    columns = num_columns(len(axes))
    for index, axis in enumerate(axes):
        if index % columns == 0:
            axis.set_ylabel(y)
        if index + columns >= len(axes):
            axis.set_xlabel(x)


def legend_below(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend under the panels, in as many columns as the figure is wide enough for."""
    widest = INCHES_PER_KEY + INCHES_PER_LETTER * max(len(label) for label in labels)
    columns = max(1, min(len(labels), MOST_COLUMNS + 1, int(figure.get_figwidth() / widest)))
    order = [i for column in range(columns) for i in range(column, len(labels), columns)]  # read along the rows
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def save(figure: Any, folder: Path, name: str, *, pdf: bool = True) -> None:
    """PNG, SVG and PDF without dates, so that the same records give the same bytes."""
    figure.savefig(folder / f"{name}.png", dpi=200, metadata={"Software": None})
    figure.set_layout_engine(None)  # its work is done, and the others would do it again
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    if pdf:
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
