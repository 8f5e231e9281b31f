"""Where the width of an interval comes from, by hand for one made-up claim, and what the figure leaves out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import pytest
from scipy.stats import t as student

from bnexp.analysis.claims import ClaimVerdict
from bnexp.analysis.contrasts import Choice, Contrast
from bnexp.analysis.rule import Rule, ends_of_readings
from bnexp.analysis.select import Selection
from bnexp.analysis.spread import Crossed
from bnexp.analysis.verdicts import judge
from bnexp.comparison import Comparison
from bnexp.report import evaluate
from bnexp.report.spread_figure import LOOKS, Shares, draw_spread, shares_of
from bnexp.report.style import RC
from bnexp.report.verdict_figure import MOST_ROWS
from bnexp.store import Store

VALUES = {0: 0.01, 1: 0.03, 2: 0.02, 3: 0.04, 4: 0.02, 5: 0.03, 6: 0.01, 7: 0.04}
PLAIN = Comparison("difference", "higher", 0.01, measure="test_accuracy", treatment="after", control="before")
CHOICE = Choice({("after", ""): 0.3}, {("after", ""): (0.1, 0.3)}, 0.7, {}, {})


@pytest.fixture(scope="module")
def selection(placement: Store) -> Selection:
    return evaluate(placement, "placement").selection


def claim(stratum: str = "relu", *, values: dict[int, float] | None = None, **fields: Any) -> ClaimVerdict:
    contrast = Contrast(VALUES if values is None else values, **fields)
    return ClaimVerdict(PLAIN, stratum, judge(contrast, Rule("higher", 0.01)), contrast=contrast)


def with_half_width(made: ClaimVerdict, half: float) -> ClaimVerdict:
    """The same with a plain interval of this half-width."""
    effect = made.verdict.effect
    assert effect is not None
    plain = replace(effect.plain, low=effect.plain.mean - half, high=effect.plain.mean + half)
    return replace(made, verdict=replace(made.verdict, effect=replace(effect, plain=plain)))


def test_shares_by_hand() -> None:
    # variances of the mean: 4 from seeds, 5 from images, 1 of the rest, and the rates make the interval as wide as if
    # the variance were 16 with these 20 degrees of freedom: 6 are the choice's
    unit = 1e-6
    crossed = Crossed(4 * unit, 5 * unit, 1 * unit, 10 * unit, 20.0)
    made = with_half_width(claim(crossed=crossed, choice=CHOICE), 2.085963447 * math.sqrt(16 * unit))
    assert shares_of(made) == pytest.approx((4 / 16, 5 / 16, 1 / 16, 0, 6 / 16))
    # an interval that is no wider than its parts, as one that failures made lopsided may be, has no negative part
    narrow = with_half_width(made, 1e-6)
    assert shares_of(narrow) == pytest.approx((0.4, 0.5, 0.1, 0, 0))


def test_splits_that_overlap_are_a_share_of_their_own() -> None:
    variance = np.var(list(VALUES.values()), ddof=1) / 8
    half = 2.364624252 * math.sqrt(1.5 * variance)  # t with 7 degrees of freedom; 1.25 · variance is seeds and splits
    found = shares_of(with_half_width(claim(overlap=math.sqrt(1.25), choice=CHOICE), half))
    assert found == pytest.approx((1 / 1.5, 0, 0, 0.25 / 1.5, 0.25 / 1.5))


def test_the_interval_of_real_ends_is_split_without_a_rest() -> None:
    """Two readings half a point apart: what the second one adds is the choice's, whatever the formula of the ends."""
    values = np.array([list(VALUES.values())])
    ends = ends_of_readings(values, np.stack([values, values - 0.005], axis=1), failed=False)
    made = claim(ends=ends, choice=CHOICE)
    variance = values.var(ddof=1) / 8
    half = student.ppf(0.975, 7) * math.sqrt(variance) + 0.0025
    share = variance / (half / student.ppf(0.975, 7)) ** 2
    assert shares_of(made) == pytest.approx((share, 0, 0, 0, 1 - share))


@pytest.mark.parametrize(
    "made",
    [
        claim(),  # seeds alone
        claim(choice=CHOICE, bounds=(dict.fromkeys(VALUES, 0.5),)),  # censored
        claim(values={0: 0.5}, choice=CHOICE),
        claim(values=dict.fromkeys(VALUES, 0.5), choice=CHOICE),
        ClaimVerdict(PLAIN, "", judge(Contrast({}), Rule("higher", 0.01))),
    ],
)
def test_what_has_no_second_source_has_no_bar(made: ClaimVerdict, selection: Selection) -> None:
    assert shares_of(made) is None
    assert draw_spread([made], selection) is None


def test_a_bar_is_as_long_as_the_whole_and_names_its_parts(selection: Selection) -> None:
    unit = 1e-6
    crossed = Crossed(4 * unit, 5 * unit, 1 * unit, 10 * unit, 20.0)
    claims = [claim("relu", crossed=crossed), claim("tanh"), claim("sigmoid", overlap=1.5)]
    drawn = draw_spread(claims, selection)
    assert drawn is not None
    figure, caption = drawn
    with matplotlib.rc_context(RC):
        figure.draw_without_rendering()
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["relu", "sigmoid"]
    widths = [bar.get_width() for bar in axis.patches]
    assert sum(widths) == pytest.approx(200)
    assert widths[:3] == pytest.approx([40, 50, 10])
    assert [text.get_text() for text in axis.texts] == ["40 %", "50 %", "10 %", "44 %", "56 %"]
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == set(LOOKS) - {"choice of learning rates"}
    assert "more seeds do not make this part smaller" in caption
    assert "each seed drew its own split" in caption
    assert len(Shares._fields) == len(LOOKS)


def test_rows_beyond_a_page_are_left_out_and_said(selection: Selection) -> None:
    drawn = draw_spread([claim(f"depth {depth}", choice=CHOICE) for depth in range(MOST_ROWS + 2)], selection)
    assert drawn is not None
    assert f"Shown: the first {MOST_ROWS} of {MOST_ROWS + 2} rows" in drawn[1]
