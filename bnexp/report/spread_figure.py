"""Where the width of an interval comes from: seeds, test images, splits, the choice of a learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from bnexp.analysis.claims import ClaimVerdict, with_other_inits
from bnexp.analysis.rule import ALPHA
from bnexp.analysis.select import Selection
from bnexp.report.effect_words import compared
from bnexp.report.style import GREY, legend_below
from bnexp.report.verdict_figure import LABEL_LETTERS, MOST_ROWS, row_labels

WIDTH, ROW, LINE, REST = 7.4, 0.34, 0.16, 1.3  # inches: the figure, a row, a line of its label, all but the rows
LEAST_TOLD, LEAST_SEEN = 0.08, 0.003  # of a bar: a smaller part has no room for its number, or cannot be seen
# colour (Okabe & Ito 2008), hatch that repeats it in grey, ink of the number
LOOKS = {
    "seeds": ("#0072B2", "", "white"),
    "test images": ("#E69F00", "//", "black"),
    "seeds and images together": ("#bdbdbd", "..", "black"),
    "splits that share images": ("#CC79A7", "xx", "black"),
    "choice of learning rates": ("#009E73", "\\\\", "black"),
}
HOW_TO_READ = (
    "Each bar splits the squared half-width of a comparison's 95 % interval (before the correction for the number "
    "of comparisons) into its sources. Seeds: training again with new seeds gives another mean; more seeds make "
    "this part smaller. Test images: other images would give another mean; more seeds do not make this part "
    "smaller. Seeds and images together: what one seed does to one image. Choice of learning rates: what covering "
    "the rates that could have been chosen adds. The bars say nothing about how wide an interval is."
)
Drawn = tuple[Any, str] | None


class Shares(NamedTuple):
    """Parts of the squared half-width of the plain interval; they add up to 1. Their order is that of `LOOKS`."""

    seeds: float
    images: float
    together: float
    splits: float
    choice: float


def shares_of(claim: ClaimVerdict) -> Shares | None:
    """The sources of one interval; None where there is none, or where it has but one source, its seeds.

    A censored number, which an interval covers too, is none of these sources: such a comparison has no bar.
    """
    effect, contrast = claim.verdict.effect, claim.contrast
    if effect is None or contrast is None or contrast.bounds or not effect.sd > 0:
        return None
    if contrast.crossed is None and contrast.overlap == 1 and contrast.choice is None:
        return None
    from scipy.stats import t as student

    num = effect.plain.num
    own, crossed, degrees = effect.sd**2 / num, contrast.crossed, num - 1.0
    seeds, images, together, splits = own, 0.0, 0.0, (contrast.overlap**2 - 1) * own
    if crossed is not None:
        seeds, images = crossed.seeds, crossed.images
        together = max(0.0, crossed.variance - seeds - images)
        degrees = crossed.degrees if crossed.images else degrees
    half = (effect.plain.high - effect.plain.low) / 2
    rest = seeds + images + together + splits
    choice = max(0.0, (half / float(student.isf(ALPHA / 2, degrees))) ** 2 - rest) if contrast.choice else 0.0
    return Shares(*(part / (rest + choice) for part in (seeds, images, together, splits, choice)))


def draw_spread(claims: Sequence[ClaimVerdict], selection: Selection) -> Drawn:
    """A bar for each comparison and stratum; None where no interval has more than one source."""
    rows = [(claim, shares) for claim in with_other_inits(claims) if (shares := shares_of(claim)) is not None]
    if not rows:
        return None
    shown = rows[:MOST_ROWS]
    from matplotlib.figure import Figure

    labels = _labels([claim for claim, _ in shown])
    lines = max(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(WIDTH, REST + max(ROW, LINE * lines) * len(shown)), layout="constrained")
    axis = figure.subplots()
    for y, (_, shares) in enumerate(shown):
        _bar(axis, y, shares)
    axis.set_yticks(range(len(shown)), labels)
    for label, (claim, _) in zip(axis.get_yticklabels(), shown, strict=True):
        if claim.reading_of:
            label.set(color=GREY, style="italic")
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.set_xlim(0, 100)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("share of the squared half-width of the 95 % interval (%)")
    if len({compared(claim.comparison) for claim, _ in shown}) == 1:
        axis.set_title(compared(shown[0][0].comparison), loc="left")
    _legend(figure, [shares for _, shares in shown])
    return figure, _caption([claim for claim, _ in shown], num_rows=len(rows))


def _labels(claims: Sequence[ClaimVerdict]) -> list[str]:
    """As in the figure of the verdicts, with the measure where the rows do not share one."""
    import textwrap

    if len({compared(claim.comparison) for claim in claims}) == 1:
        return row_labels(claims)
    words = [[claim.stratum, compared(claim.comparison)] for claim in claims]
    return [
        "\n".join(textwrap.fill(part, LABEL_LETTERS, break_long_words=False) for part in own if part) for own in words
    ]


def _bar(axis: Any, y: int, shares: Shares) -> None:
    left = 0.0
    for share, (color, hatch, ink) in zip(shares, LOOKS.values(), strict=True):
        width = 100 * share
        if share < LEAST_SEEN:
            continue
        axis.barh(y, width, left=left, height=0.72, color=color, hatch=hatch, edgecolor="white", linewidth=0.8)
        if share >= LEAST_TOLD:
            box = {"boxstyle": "round,pad=0.15", "facecolor": color, "edgecolor": "none"}
            axis.text(left + width / 2, y, f"{width:.0f} %", ha="center", va="center", color=ink, fontsize=8, bbox=box)
        left += width


def _legend(figure: Any, rows: Sequence[Shares]) -> None:
    from matplotlib.patches import Patch

    present = [name for index, name in enumerate(LOOKS) if any(shares[index] >= LEAST_SEEN for shares in rows)]
    handles = [Patch(facecolor=LOOKS[name][0], hatch=LOOKS[name][1], edgecolor="white") for name in present]
    legend_below(figure, handles, present)


def _caption(claims: Sequence[ClaimVerdict], *, num_rows: int) -> str:
    caption = HOW_TO_READ
    if any(claim.contrast is not None and claim.contrast.overlap > 1 for claim in claims):
        caption += (
            " Splits that share images: each seed drew its own split of one data set, and overlapping training sets "
            "make seeds look more alike than new data would be."
        )
    if num_rows > len(claims):
        caption += f" Shown: the first {len(claims)} of {num_rows} rows; the table of verdicts has all."
    return caption
