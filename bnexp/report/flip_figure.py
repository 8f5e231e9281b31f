"""The flip map: does a verdict stay the same when the same runs are read another way?"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from bnexp.analysis.claims import ClaimVerdict, Reading, with_other_inits
from bnexp.analysis.flips import answer_of, answers
from bnexp.analysis.select import Selection
from bnexp.analysis.verdicts import Verdict
from bnexp.report.effect_words import compared
from bnexp.report.style import GREY, OUTCOME_LOOKS
from bnexp.report.verdict_words import STRAWMAN, reading_columns
from bnexp.study import INIT

MOST_ROWS = 24
CELL = (0.58, 0.3)  # inches
LABEL_LETTERS = 52
GAP = 0.35  # cells between kinds of reading
HOW_TO_READ = (
    "The same runs, analysed in other ways. First column: each arm at its own best learning rate; this is the "
    "verdict. Other columns: all arms at one learning rate, or evaluated with other statistics than the running "
    "ones, where that was measured. Sign: of the mean effect. Thick frame: this analysis reverses the verdict. "
    "Blank: not analysed. Each kind of analysis is corrected for its own number of tests."
)
Drawn = tuple[Any, str] | None


def draw_flip_map(claims: Sequence[ClaimVerdict], selection: Selection) -> Drawn:
    """Rows: comparison and stratum, those that differ in the init alone side by side. Columns: ways to read them."""
    columns = reading_columns(claims)
    if not columns:  # another init alone has its row in the figure of the verdicts
        return None
    ordered = with_other_inits(inits_together(claims, selection))
    shown = ordered[:MOST_ROWS]
    places = _places([reading.kind for reading in columns])
    from matplotlib.figure import Figure

    labels = _labels(shown)
    size = (max(4.6, 2.6 + CELL[0] * (places[-1] + 2)), 1.5 + CELL[1] * len(labels))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    axis.set_xlim(-0.5, places[-1] + 0.5)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_axisbelow(False)
    rows = [y for y, (_, claim) in enumerate(labels) if claim is not None]
    for y, claim in zip(rows, shown, strict=True):
        _cell(axis, 0, y, claim.verdict, flips=_flips(claim))
        said = answers(claim)
        for x, reading in zip(places, columns, strict=True):
            if reading in claim.readings:
                _cell(axis, x, y, claim.readings[reading], flips=said[reading] == "flips")
    _frame(axis, labels, columns, places)
    _legend(figure, shown)
    return figure, _caption(shown, num_claims=len(ordered))


def inits_together(claims: Sequence[ClaimVerdict], selection: Selection) -> list[ClaimVerdict]:
    """By comparison; within it, strata that differ in nothing but the init follow one another."""
    comparisons = list(dict.fromkeys(claim.comparison for claim in claims))
    first: dict[tuple[object, ...], int] = {}
    keys = []
    for index, claim in enumerate(claims):
        over = claim.comparison.over
        strata = selection.groups(over).get(claim.stratum, [claim.stratum])
        place = {key: value for key, value in selection.places.get(strata[0], {}).items() if key not in (over, INIT)}
        # what is in no place, as strata without a run, stands alone
        known = tuple(sorted((key, str(value)) for key, value in place.items()))
        alike = (comparisons.index(claim.comparison), known if strata[0] in selection.places else index)
        keys.append((comparisons.index(claim.comparison), first.setdefault(alike, index), index))
    return [claims[index] for _, _, index in sorted(keys)]


def _flips(claim: ClaimVerdict) -> bool:
    """Whether this is a reading with another init, and flips what it reads."""
    return claim.reading_of is not None and answer_of(claim.reading_of.outcome, claim.verdict.outcome) == "flips"


def _labels(claims: Sequence[ClaimVerdict]) -> list[tuple[str, ClaimVerdict | None]]:
    """The lines of the map: what is compared as a heading, then its strata; without strata a single line."""
    lines: list[tuple[str, ClaimVerdict | None]] = []
    last = None
    for claim in claims:
        head = compared(claim.comparison)
        if claim.stratum and claim.comparison != last:
            lines += [(part, None) for part in textwrap.wrap(head, LABEL_LETTERS, break_long_words=False)]
        last = claim.comparison
        row = f"   {claim.stratum}" if claim.stratum else head
        lines.append((f"   {row}: handicapped, no verdict" if claim.reading_of else row, claim))
    return lines


def _places(kinds: Sequence[str]) -> list[float]:
    """The x of each column behind the first one, a gap where the kind changes."""
    places, x, last = [], 0.0, ""
    for kind in kinds:
        x += 1 + (GAP if kind != last else 0)
        places.append(x)
        last = kind
    return places


def _cell(axis: Any, x: float, y: float, verdict: Verdict, *, flips: bool) -> None:
    from matplotlib.patches import Rectangle

    look = OUTCOME_LOOKS[verdict.outcome]
    axis.add_patch(Rectangle(
        (x - 0.46, y - 0.42), 0.92, 0.84, facecolor=look.fill, edgecolor="black" if flips else "#9a9a9a",
        linewidth=2.4 if flips else 0.6, zorder=3 if flips else 2,
    ))  # fmt: skip
    sign = "" if verdict.effect is None else "+" if verdict.effect.plain.mean > 0 else "−"
    axis.text(x, y, f"{look.letter} {sign}".strip(), ha="center", va="center", color=look.ink, fontsize=8.5, zorder=4,
              weight="bold" if flips else "normal")  # fmt: skip


def _frame(
    axis: Any,
    labels: Sequence[tuple[str, ClaimVerdict | None]],
    columns: Sequence[Reading],
    places: Sequence[float],
) -> None:
    """Row labels, column labels, and over each kind of reading what it is."""
    texts = [textwrap.fill(text, LABEL_LETTERS) if text.strip() == text else text for text, _ in labels]
    axis.set_yticks(range(len(labels)), texts, ha="left")
    for label, (_, claim) in zip(axis.get_yticklabels(), labels, strict=True):
        if claim is not None and claim.reading_of:
            label.set(color=GREY, style="italic")
    words = ["own best\nrate", *(f"{r.value:g}" if isinstance(r.value, float) else r.value for r in columns)]
    words = [word.replace("these test images", "these test\nimages") for word in words]
    axis.set_xticks([0, *places], words)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    heads = {
        "learning rate": "both arms at this learning rate",
        "statistics": "evaluated with\nthese statistics",
        "images": "for new seeds on",
    }
    for kind, head in heads.items():
        own = [x for x, reading in zip(places, columns, strict=True) if reading.kind == kind]
        if own:
            axis.annotate(
                head, ((own[0] + own[-1]) / 2, 1), xycoords=axis.get_xaxis_transform(), xytext=(0, 28),
                textcoords="offset points", ha="center", va="bottom", fontsize=8.5, annotation_clip=False,
            )  # fmt: skip
    pad = 5.2 * max(max(len(line) for line in text.split("\n")) for text in texts)
    axis.tick_params(axis="y", pad=pad)


def _legend(figure: Any, claims: Sequence[ClaimVerdict]) -> None:
    from matplotlib.patches import Patch

    from bnexp.report.style import legend_below

    found = {v.outcome for claim in claims for v in (claim.verdict, *claim.readings.values())}
    present = [outcome for outcome in OUTCOME_LOOKS if outcome in found]
    handles = [Patch(facecolor=OUTCOME_LOOKS[o].fill, edgecolor="#9a9a9a", linewidth=0.6) for o in present]
    labels = [f"{OUTCOME_LOOKS[outcome].letter} {outcome}" for outcome in present]
    if any(_flips(claim) or "flips" in answers(claim).values() for claim in claims):
        handles.append(Patch(facecolor="white", edgecolor="black", linewidth=2.0))
        labels.append("flips the verdict")
    legend_below(figure, handles, labels)


def _caption(shown: Sequence[ClaimVerdict], *, num_claims: int) -> str:
    caption = HOW_TO_READ
    if any(claim.reading_of for claim in shown):
        caption += f" A row in grey has {STRAWMAN}: it is no verdict, and shows what that does to the row above."
    if num_claims > len(shown):
        caption += f" Shown: the first {len(shown)} of {num_claims} rows; the tables have all."
    return caption
