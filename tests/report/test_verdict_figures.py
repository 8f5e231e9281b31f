"""The forest of verdicts and the flip map: what stands in them, row by row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import pytest

from bnexp.analysis.claims import ClaimVerdict, Reading
from bnexp.analysis.contrasts import Contrast
from bnexp.analysis.rule import Rule
from bnexp.analysis.select import Selection
from bnexp.analysis.verdicts import Verdict, judge
from bnexp.comparison import Comparison
from bnexp.report import evaluate
from bnexp.report.flip_figure import draw_flip_map, inits_together
from bnexp.report.style import GREY, RC
from bnexp.report.verdict_figure import MOST_ROWS, draw_verdicts, panels_of
from bnexp.store import Store

WIGGLE = (0.001, -0.002, 0.003, -0.001, 0.002, -0.003)
MISSING = Verdict("untested", "runs are missing", None, 3, ("seed 3: no after",))
PLAIN = Comparison("difference", "higher", 0.01, measure="test_accuracy", treatment="after", control="before")
REACH = replace(PLAIN, shape="reach", over="lr", margin=3.0)
LOSS = replace(PLAIN, measure="test_loss", direction="lower", margin=0.1)


@pytest.fixture(scope="module")
def selection(placement: Store) -> Selection:
    return evaluate(placement, "placement").selection


def claim(comparison: Comparison, stratum: str, mean: float, **more: Any) -> ClaimVerdict:
    values = {seed: mean + wiggle for seed, wiggle in enumerate(WIGGLE)}
    verdict = judge(Contrast(values), Rule(comparison.direction, 0.01))
    return ClaimVerdict(comparison, stratum, verdict, values=values, **more)


def drawn(figure: tuple[Any, str] | None) -> tuple[Any, str]:
    assert figure is not None
    with matplotlib.rc_context(RC):
        figure[0].draw_without_rendering()
    return figure


def words(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_each_row_has_its_seeds_its_interval_its_outcome_and_its_numbers(selection: Selection) -> None:
    claims = [claim(PLAIN, "relu", 0.03), claim(PLAIN, "tanh", -0.03), claim(PLAIN, "sigmoid", 0.0)]
    figure, _ = drawn(draw_verdicts(claims, selection))
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["sigmoid", "tanh", "relu"]  # from below
    assert axis.get_title("left") == "after − before, test accuracy\nclaimed: higher by at least 1 point"
    assert words(axis) == [
        "negligible", "+0.00 [−0.25, +0.25], 6 seeds", "contradicted", "−3.00 [−3.25, −2.75], 6 seeds", "supported",
        "+3.00 [+2.75, +3.25], 6 seeds",
    ]  # fmt: skip
    seeds = [line for line in axis.lines if line.get_marker() == "o"]
    assert sorted(seeds[-1].get_xdata()) == pytest.approx(sorted(100 * (0.03 + wiggle) for wiggle in WIGGLE))
    means = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "D"]
    assert means == pytest.approx([0.0, -3.0, 3.0], abs=1e-9)
    low, high = axis.get_xlim()
    assert low < -3.3
    assert high > 3.3
    assert "points" in axis.get_xlabel()
    assert "← before higher  |  after higher →" in axis.get_xlabel()


def test_the_margin_and_the_claimed_side_lie_behind_each_row(selection: Selection) -> None:
    for direction, side in (("higher", (1, None)), ("lower", (None, -1)), ("same", (-1, 1)), ("not lower", (-1, None))):
        made = replace(PLAIN, direction=direction)  # type: ignore[arg-type]
        figure, _ = drawn(draw_verdicts([claim(made, "relu", 0.03)], selection))
        (axis,) = figure.axes
        small, claimed = (area.get_paths()[0].vertices[:, 0] for area in axis.collections)
        assert (small.min(), small.max()) == pytest.approx((-1, 1))
        low, high = axis.get_xlim()
        expected = (low if side[0] is None else side[0], high if side[1] is None else side[1])
        assert (claimed.min(), claimed.max()) == pytest.approx(expected)
        explained = [text.get_text() for text in figure.legends[0].get_texts()]
        assert ("too small to matter" in explained) == (direction in ("higher", "lower"))


def test_what_is_untested_has_words_and_no_mark(selection: Selection) -> None:
    untested = ClaimVerdict(PLAIN, "tanh", MISSING, values={0: 0.5, 1: 0.6})
    figure, _ = drawn(draw_verdicts([claim(PLAIN, "relu", 0.03), untested], selection))
    (axis,) = figure.axes
    assert words(axis) == [
        "untested: runs are missing", "untested", "—", "supported", "+3.00 [+2.75, +3.25], 6 seeds"
    ]  # fmt: skip
    marks = [line for line in axis.lines if line.get_marker() in ("o", "D", "x")]
    assert len(marks) == 2  # both of relu
    assert axis.get_xlim()[1] < 10


def test_measures_and_shapes_have_panels_of_their_own_and_factors_a_log_axis(selection: Selection) -> None:
    claims = [claim(PLAIN, "relu", 0.03), claim(REACH, "", 0.7), claim(PLAIN, "tanh", 0.03), claim(LOSS, "", -0.3)]
    assert [[row.comparison.measure for row in rows] for rows in panels_of(claims)] == [
        ["test_accuracy", "test_accuracy"], ["test_accuracy"], ["test_loss"]
    ]  # fmt: skip
    figure, caption = drawn(draw_verdicts(claims, selection))
    points, factor, loss = figure.axes
    assert [axis.get_xscale() for axis in figure.axes] == ["linear", "log", "linear"]
    ticks = [text.get_text() for text in factor.get_xticklabels()]
    assert "×1" in ticks
    assert all(tick.startswith("×") for tick in ticks)
    assert next(line for line in factor.lines if line.get_marker() == "D").get_xdata()[0] == pytest.approx(10**0.7)
    assert "×5.01 [" in words(factor)[1]
    assert "nats" in loss.get_xlabel()
    assert "top of what was tried" in caption
    assert len(points.get_yticklabels()) == 2


def test_a_failed_seed_is_a_cross_and_does_not_stretch_the_axis(selection: Selection) -> None:
    values = {seed: 0.03 + wiggle for seed, wiggle in enumerate(WIGGLE)} | {3: -0.8}
    verdict = judge(Contrast(values, failed=frozenset({3})), Rule("higher", 0.01))
    sick = ClaimVerdict(PLAIN, "relu", verdict, values=values, failed=frozenset({3}))
    figure, caption = drawn(draw_verdicts([sick], selection))
    (axis,) = figure.axes
    (cross,) = [line for line in axis.lines if line.get_marker() == "x"]
    assert cross.get_xdata()[0] == pytest.approx(axis.get_xlim()[0])
    assert axis.get_xlim()[0] > -5
    assert "counted in the mean" in caption
    for shape in ("reach", "span"):  # failures are what they measure
        made = replace(REACH, shape=shape)
        told = ClaimVerdict(made, "", verdict, values=values, failed=frozenset({3}))
        assert "counted in the mean" not in drawn(draw_verdicts([told], selection))[1]


def test_rows_beyond_a_page_are_left_out_and_said(selection: Selection) -> None:
    claims = [claim(PLAIN, f"depth {depth}", 0.03, readings=READ) for depth in range(MOST_ROWS + 3)]
    for figure in (draw_verdicts(claims, selection), draw_flip_map(claims, selection)):
        assert f"Shown: the first {MOST_ROWS} of {MOST_ROWS + 3} rows" in drawn(figure)[1]


READ = {
    Reading("learning rate", 0.3): judge(Contrast(dict.fromkeys(range(6), -0.03)), Rule("higher", 0.01)),
    Reading("learning rate", 0.03): judge(Contrast({s: 0.03 + w for s, w in enumerate(WIGGLE)}), Rule("higher", 0.01)),
}


def test_a_flip_map_has_a_cell_for_each_reading_and_frames_the_flips(selection: Selection) -> None:
    opposite = judge(Contrast({s: w - 0.03 for s, w in enumerate(WIGGLE)}), Rule("higher", 0.01))
    readings = {**READ, Reading("learning rate", 0.3): opposite, Reading("statistics", "batch"): MISSING}
    claims = [claim(PLAIN, "relu", 0.03, readings=readings), claim(PLAIN, "tanh", -0.03)]
    figure, _ = drawn(draw_flip_map(claims, selection))
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["own best\nrate", "0.03", "0.3", "batch"]
    assert [text.get_text().strip() for text in axis.get_yticklabels()] == [
        "after − before, test accuracy", "relu", "tanh"
    ]  # fmt: skip
    cells = {
        tuple(np.round(text.get_position(), 2)): text.get_text() for text in axis.texts if len(text.get_text()) < 4
    }
    columns = [round(float(x), 2) for x in axis.get_xticks()]
    assert [cells[x, 1] for x in columns] == ["S +", "S +", "C −", "U"]
    assert {y for _, y in cells} == {1, 2}
    assert len([y for _, y in cells if y == 2]) == 1  # tanh was not read otherwise
    assert [patch.get_linewidth() > 2 for patch in axis.patches] == [False, False, True, False, False]
    legend = sorted(text.get_text() for text in figure.legends[0].get_texts())
    assert legend == ["C contradicted", "S supported", "U untested", "flips the verdict"]


def test_there_is_no_map_where_nothing_is_read_otherwise(selection: Selection) -> None:
    assert draw_flip_map([claim(PLAIN, "relu", 0.03)], selection) is None
    assert draw_verdicts([], selection) is None


def test_strata_that_differ_in_the_init_alone_stand_side_by_side(selection: Selection) -> None:
    names = ["he, cnn", "he, mlp", "default, cnn", "default, mlp"]
    places: dict[str, dict[str, object]] = {
        name: {"model.init": name.split(", ")[0], "model.name": name.split(", ")[1]} for name in names
    }
    made = replace(selection, strata=tuple(names), places=places)
    other = replace(PLAIN, margin=0.02)
    claims = [claim(comparison, name, 0.03) for comparison in (PLAIN, other) for name in names]
    found = [(row.comparison.margin, row.stratum) for row in inits_together(claims, made)]
    together = ["he, cnn", "default, cnn", "he, mlp", "default, mlp"]
    assert found == [(margin, name) for margin in (0.01, 0.02) for name in together]


def test_another_init_is_a_grey_row_that_frames_what_it_flips(selection: Selection) -> None:
    own = claim(PLAIN, "he", 0.03)
    poor = replace(claim(PLAIN, "default", -0.03, readings=READ), reading_of=own.verdict)
    told = replace(own, readings={Reading("init", "default"): poor.verdict}, other_inits=(poor,))
    figure, caption = drawn(draw_flip_map([told], selection))
    (axis,) = figure.axes
    assert "A row in grey has an initialization that handicaps the network without a norm" in caption
    labels = {text.get_text().strip(): text for text in axis.get_yticklabels()}
    assert list(labels) == ["after − before, test accuracy", "he", "default: handicapped, no verdict"]
    assert [text.get_color() == GREY for text in labels.values()] == [False, False, True]
    # the verdict; then its reading with the other init, and what that is at each rate: 0.03 survives, 0.3 flips
    assert [patch.get_linewidth() > 2 for patch in axis.patches] == [False, True, False, True]
    assert "flips the verdict" in [text.get_text() for text in figure.legends[0].get_texts()]
    alone = replace(told, other_inits=(replace(poor, readings={}),))
    assert draw_flip_map([alone], selection) is None
    figure, caption = drawn(draw_verdicts([alone], selection))
    (axis,) = figure.axes
    assert [(text.get_text(), text.get_color() == GREY) for text in axis.get_yticklabels()] == [
        ("default", True), ("he", False),
    ]  # fmt: skip
    assert [text for text in words(axis) if "seeds" not in text] == ["reading: contradicted", "supported"]
    assert "A row in grey" in caption
    assert "A row in grey" not in drawn(draw_verdicts([own], selection))[1]
