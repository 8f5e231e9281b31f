"""The main figure of a study: every comparison in every stratum, what its seeds say, and what was claimed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from bnexp.analysis.claims import ClaimVerdict, with_other_inits
from bnexp.analysis.select import Selection
from bnexp.report.effect_words import OF_FAILURES, Scale, claimed, compared, contrasted, measured, scale_of, sides
from bnexp.report.style import GREY, OUTCOME_LOOKS, legend_below
from bnexp.report.verdict_words import STRAWMAN, counted

MOST_ROWS = 24
WIDTH, ROW, LINE, PANEL = 7.4, 0.33, 0.16, 0.95  # inches: the figure, a row, a line of its label, the rest of a panel
LETTERS = 88  # of a title over the whole figure
LABEL_LETTERS = 30
POINTS_PER_LETTER = 5.6  # of an outcome in bold
CLAIMED, SMALL = "#dcebf7", "#e4e4e4"
FACTORS_SHOWN = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0)
HOW_TO_READ = (
    "Circle: one seed. Diamond and bar: the mean and the interval that decided; the verdict and the numbers stand "
    "at the right. Grey: differences smaller than the margin, too small to matter. Blue: where the claim holds. All "
    "of the bar beyond the grey: supported or contradicted. All of it in the grey: negligible. Off 0 but reaching "
    "into the grey: direction only. Each arm runs at its own best learning rate, unless learning rates are what is "
    "compared. The bar covers the rates that could have been chosen and is corrected for the number of comparisons."
)
Drawn = tuple[Any, str] | None


def draw_verdicts(claims: Sequence[ClaimVerdict], selection: Selection) -> Drawn:
    """Forest plot, a panel for each measure and shape, a row for each comparison and stratum."""
    if not claims:
        return None
    rows = with_other_inits(claims)
    shown = rows[:MOST_ROWS]
    groups = panels_of(shown)
    from matplotlib.figure import Figure

    heights = [_height(group) for group in groups]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5), layout="constrained")
    axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    longest = max(len(line) for claim in shown for line in _in_lines(claim.outcome).split("\n"))
    for axis, group in zip(axes, groups, strict=True):
        _panel(axis, group, longest)
    _legend(figure, shown)
    return figure, _caption(shown, num_claims=len(rows))


def panels_of(claims: Sequence[ClaimVerdict]) -> list[list[ClaimVerdict]]:
    """The rows of each panel, top row first: comparisons of one measure and shape share an axis."""
    groups: dict[tuple[str, str], list[ClaimVerdict]] = {}
    for claim in claims:
        groups.setdefault((claim.comparison.shape, measured(claim.comparison)), []).append(claim)
    return list(groups.values())


def row_labels(claims: Sequence[ClaimVerdict]) -> list[str]:
    """The stratum, and the arms where the rows are not all of the same ones."""
    several = len({contrasted(claim.comparison) for claim in claims}) > 1
    labels = []
    for claim in claims:
        words = [claim.stratum, contrasted(claim.comparison) if several else ""]
        text = "\n".join(textwrap.fill(word, LABEL_LETTERS, break_long_words=False) for word in words if word)
        labels.append(text or contrasted(claim.comparison))
    return labels


def _height(claims: Sequence[ClaimVerdict]) -> float:
    """Of a panel, in inches; rows are as high as the longest label needs."""
    lines = max(label.count("\n") + 1 for label in row_labels(claims))
    return PANEL + max(ROW, LINE * lines) * len(claims)


def failed_seeds(claim: ClaimVerdict) -> frozenset[int]:
    """Seeds with a run that failed, to be marked."""
    marked = claim.verdict.effect is not None and claim.comparison.shape not in OF_FAILURES
    return claim.failed if marked else frozenset()


def _panel(axis: Any, claims: Sequence[ClaimVerdict], longest: int) -> None:
    scale = scale_of(claims[0].comparison)
    low, high = _limits(claims, scale)
    if scale.base is not None:
        axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.set_ylim(-0.6, len(claims) - 0.4)
    axis.axvline(scale.shown(0.0), color="black", linewidth=0.9, zorder=2)
    for y, claim in enumerate(reversed(claims)):
        _row(axis, y, claim, scale, (low, high))
    axis.set_yticks(range(len(claims)), list(reversed(row_labels(claims))))
    for label, claim in zip(axis.get_yticklabels(), reversed(claims), strict=True):
        if claim.reading_of:
            label.set(color=GREY, style="italic")
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)
    _told(axis, claims, scale, longest)
    if scale.base is not None:
        _factor_ticks(axis, low, high)
    axis.set_title(_title(claims), loc="left")
    axis.set_xlabel(_axis_label(claims, scale))


def _title(claims: Sequence[ClaimVerdict]) -> str:
    comparisons = list(dict.fromkeys(claim.comparison for claim in claims))
    head = compared(comparisons[0]) if len(comparisons) == 1 else measured(comparisons[0])
    promises = list(dict.fromkeys(claimed(comparison) for comparison in comparisons))
    lines = [f"{head[0].upper() if head[:1] != head[:1].upper() and len(comparisons) > 1 else head[0]}{head[1:]}"]
    if len(promises) == 1:
        lines.append(f"claimed: {promises[0]}")
    return "\n".join(textwrap.fill(line, LETTERS, break_long_words=False) for line in lines)


def _axis_label(claims: Sequence[ClaimVerdict], scale: Scale) -> str:
    unit = "factor, log scale" if scale.base is not None else scale.unit
    ends = {sides(claim.comparison) for claim in claims}
    several = (
        ("falls", "rises") if claims[0].comparison.shape == "slope" else ("first named lower", "first named higher")
    )
    left, right = ends.pop() if len(ends) == 1 else several
    return f"{unit}   ← {left}  |  {right} →".strip()


def _limits(claims: Sequence[ClaimVerdict], scale: Scale) -> tuple[float, float]:
    """The span of intervals, margins and seeds, in shown units.

    A failed run lies far off and would squeeze all other rows into the zero line: where there are others, theirs is
    the span.
    """
    inside = [0.0]
    for claim in claims:
        margin = _margin(claim)
        inside += [-1.5 * margin, 1.5 * margin]
        effect = claim.verdict.effect
        if effect is None:
            continue
        healthy = [value for seed, value in claim.values.items() if seed not in failed_seeds(claim)]
        inside += healthy or list(claim.values.values())
        if not failed_seeds(claim) and np.isfinite(effect.deciding.low):
            inside += [effect.deciding.low, effect.deciding.high]
    room = 0.06 * (max(inside) - min(inside))
    return scale.shown(min(inside) - room), scale.shown(max(inside) + room)


def _margin(claim: ClaimVerdict) -> float:
    """In the unit of the per-seed numbers."""
    comparison = claim.comparison
    assert comparison.margin is not None
    scale = scale_of(comparison)
    return comparison.margin if scale.base is None else float(np.log(comparison.margin) / np.log(scale.base))


def _row(axis: Any, y: int, claim: ClaimVerdict, scale: Scale, limits: tuple[float, float]) -> None:
    """The margin, the claimed side, the seeds, the mean and its interval; words where nothing was judged."""
    low, high = limits
    margin = _margin(claim)
    small = scale.shown(-margin), scale.shown(margin)
    side = {"higher": (small[1], high), "lower": (low, small[0]), "same": small, "not lower": (small[0], high)}[
        claim.comparison.direction
    ]
    for (start, end), color in ((small, SMALL), (side, CLAIMED)):
        axis.fill_between([start, end], y - 0.42, y + 0.42, color=color, linewidth=0, zorder=0)
    effect, look = claim.verdict.effect, OUTCOME_LOOKS[claim.verdict.outcome]
    if effect is None:
        why = textwrap.shorten(f"{claim.verdict.outcome}: {claim.verdict.reason}", 60, placeholder=" …")
        axis.annotate(
            why, (0.5, y), xycoords=axis.get_yaxis_transform(), ha="center", va="center", color=GREY, style="italic",
            fontsize=8, bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none"},
        )  # fmt: skip
        return
    values = np.array([scale.shown(value) for value in claim.values.values()])
    jitter = 0.22 * np.linspace(-1, 1, len(values)) if len(values) > 1 else np.zeros(1)
    healthy = np.array([seed not in failed_seeds(claim) for seed in claim.values])
    axis.plot(values[healthy], (y + jitter)[healthy], "o", markersize=3.2, markerfacecolor="none",
              markeredgecolor=GREY, markeredgewidth=0.8, zorder=3)  # fmt: skip
    if not healthy.all():
        axis.plot(np.clip(values[~healthy], low, high), (y + jitter)[~healthy], "x", color="#9a4f00", markersize=5,
                  markeredgewidth=1.3, clip_on=False, zorder=6)  # fmt: skip
    if np.isfinite(effect.deciding.low):
        ends = np.clip([scale.shown(effect.deciding.low), scale.shown(effect.deciding.high)], low, high)
        axis.plot(ends, [y, y], color=look.word, linewidth=2.2, zorder=4)
    mean = scale.shown(effect.deciding.mean)
    marker = "<" if mean < low else ">" if mean > high else "D"
    axis.plot([np.clip(mean, low, high)], [y], marker, color=look.fill, markersize=6.5 if marker == "D" else 9,
              markeredgecolor=look.word, markeredgewidth=1.2, clip_on=False, zorder=5)  # fmt: skip


def _told(axis: Any, claims: Sequence[ClaimVerdict], scale: Scale, longest: int) -> None:
    """Right of each row, its outcome and its numbers, in a column over all panels."""
    width = 14 + POINTS_PER_LETTER * longest
    for y, claim in enumerate(reversed(claims)):
        effect, look = claim.verdict.effect, OUTCOME_LOOKS[claim.verdict.outcome]
        numbers = "—" if effect is None else f"{scale.interval(effect.deciding, unit=False)}, {counted(claim)}"
        weight = "normal" if claim.reading_of else "bold"
        for text, offset, style in ((_in_lines(claim.outcome), 8.0, {"weight": weight}), (numbers, width, {})):
            axis.annotate(
                text, (1, y), xycoords=axis.get_yaxis_transform(), xytext=(offset, 0), textcoords="offset points",
                ha="left", va="center", color=look.word if style else "black", fontsize=8, annotation_clip=False,
                **style,
            )  # fmt: skip


def _in_lines(outcome: str) -> str:
    """An outcome with its addition below it, so that the column of outcomes stays narrow."""
    return outcome.replace(", ", ",\n")


def _factor_ticks(axis: Any, low: float, high: float) -> None:
    """`×1`, `×10`: few enough to be read, and 1 among them."""
    decades = np.log10(high / low)
    if decades > 1.2:
        steps = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 2 else (1.0, 2.0, 5.0)
        powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
    else:
        ticks = [*(0.1, 0.2, 0.3, 0.4), *FACTORS_SHOWN, *(3.0, 4.0, 5.0, 10.0)]
    inside = [tick for tick in ticks if low <= tick <= high]
    while len(inside) > 9:
        inside = [tick for index, tick in enumerate(inside) if tick == 1 or index % 2 == inside.index(1.0) % 2]
    axis.set_xticks(inside, [f"×{tick:g}" for tick in inside])
    axis.minorticks_off()


def _legend(figure: Any, claims: Sequence[ClaimVerdict]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=3.6, markerfacecolor="none", markeredgecolor=GREY),
        Line2D([], [], marker="D", color="#005a8c", markersize=6, linewidth=2.2),
        Patch(facecolor=CLAIMED, edgecolor="#9bbbd6", linewidth=0.5),
    ]
    labels = ["one seed", "mean and deciding interval", "what is claimed"]
    if any(claim.comparison.direction in ("higher", "lower") for claim in claims):  # else it is part of what is claimed
        handles.append(Patch(facecolor=SMALL))
        labels.append("too small to matter")
    if any(map(failed_seeds, claims)):
        handles.append(Line2D([], [], marker="x", linestyle="", color="#9a4f00", markersize=5, markeredgewidth=1.3))
        labels.append("a run failed")
    legend_below(figure, handles, labels)


def _caption(shown: Sequence[ClaimVerdict], *, num_claims: int) -> str:
    caption = HOW_TO_READ
    if any(map(failed_seeds, shown)):
        caption += (
            " ×: a seed with a run that diverged, collapsed or never got there, counted in the mean; the axis spans "
            "the other seeds, and a triangle or a cross at its edge lies beyond it."
        )
    if any(claim.comparison.shape == "reach" for claim in shown):
        caption += (
            " A seed that is good at the top of what was tried, or nowhere, counts as that end here; its verdict has "
            "to hold wherever beyond it the truth may lie."
        )
    if any(claim.reading_of for claim in shown):
        caption += f" A row in grey has {STRAWMAN}: it is no verdict, and shows what that does to the row above."
    if num_claims > len(shown):
        caption += f" Shown: the first {len(shown)} of {num_claims} rows; the tables have all."
    return caption
