"""The rule at learning rates that nobody chose: how often it errs and finds, and the figure of that."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnexp.analysis.power import (
    power_from_pilot,
    power_of_difference,
    power_of_equivalence,
    power_of_non_inferiority,
)
from bnexp.analysis.rule import Decision, Rule
from bnexp.analysis.significance import Array, t_p
from bnexp.analysis.worlds import SAME_ARMS, World, outcome_rates
from bnexp.comparison import Direction
from bnexp.report.style import RC, look_of
from simulated.tables import Row, read_rows, write_rows

PAIRS = (6, 10, 30)
SD = World().sd
MARGIN_OF_SAME = SD / 100  # the worst case: a large margin forgives what the interval got wrong
PILOT = 200_000  # pairs, so many that what is tested is the rule and not the pilot's luck
DIFFERENT: tuple[Decision, ...] = (
    "supported",
    "supported, direction only",
    "contradicted",
    "contradicted, direction only",
)
ONE_SIDED = 0.025  # a 95 % interval has to lie inside the margin: that is 2.5 % on each side
SAME, EFFECTS, ZEROS = "same arms", "effect of 2 margins", "true zero"
LOSSES, NO_LOSSES = "loss of the margin", "no loss"  # judged by `not lower`
BY_FAILURES = "loss of the margin by failures alone"
LOPSIDED = "lopsided zero"  # no arms: exponential differences of mean 0, where no test is exact
EFFECT_MARGINS = {6: 1.45, 10: 1.0, 30: 0.53}  # in SD, for a power of about 0.8
ZERO_MARGINS = {6: 1.7, 10: 1.2, 30: 0.63}
FEWER_FAILURES = {6: (0.01, 0.9), 10: (0.05, 0.6), 30: (0.1, 0.4)}  # treatment, control


@dataclass(frozen=True)
class Cell:
    """One simulated rate, with what was allowed or promised for it."""

    question: str
    world: str
    num_pairs: int
    decided_by: str
    num_studies: int
    expected: float
    found: float


COLUMNS = ("question", "world", "num_pairs", "decided_by", "num_studies", "expected", "found")


def write_fixed_rate(folder: Path, num: int) -> None:
    """Write rates.csv and rates.png."""
    cells: list[Cell] = []
    write_rows(folder / "rates.csv", _rows(num, cells), COLUMNS)
    draw(cells, folder / "rates.png")


def _rows(num: int, cells: list[Cell]) -> Iterator[Row]:
    for question in (same_arms, planted_effects, true_zeros, not_lower):
        for cell in question(num):
            cells.append(cell)
            yield {**asdict(cell), "expected": round(cell.expected, 4), "found": round(cell.found, 4)}


def read_cells(path: Path) -> list[Cell]:
    return [
        Cell(
            row["question"],
            row["world"],
            int(row["num_pairs"]),
            row["decided_by"],
            int(row["num_studies"]),
            float(row["expected"]),
            float(row["found"]),
        )
        for row in read_rows(path)
    ]


def same_arms(num_studies: int) -> list[Cell]:
    """A against A: how often the rule, t alone and BCa alone call them different."""
    cells = []
    for num in PAIRS:
        for name, world in SAME_ARMS.items():
            rates = outcome_rates(world, num_pairs=num, margin=MARGIN_OF_SAME, num_studies=num_studies)
            differences, _ = world.draw(np.random.default_rng(0), num_studies, num)
            wrong = sum(rates[outcome] for outcome in DIFFERENT)
            cells.append(Cell(SAME, name, num, "rule", num_studies, 0.05, wrong))
            cells += alone(SAME, name, differences)
        lopsided = np.random.default_rng(0).standard_exponential((num_studies, num)) - 1
        cells += alone("zero mean", LOPSIDED, lopsided)
    return cells


def alone(question: str, world: str, differences: Array) -> list[Cell]:
    """How often t alone and BCa alone exclude 0; BCa on 2,000 studies, for it is slow."""
    num = differences.shape[1]
    few = differences[:2_000]
    return [
        Cell(question, world, num, "t alone", len(differences), 0.05, float((t_p(differences) <= 0.05).mean())),
        Cell(question, world, num, "BCa alone", len(few), 0.05, bca_excludes_zero(few)),
    ]


def bca_excludes_zero(differences: Array) -> float:
    from scipy.stats import bootstrap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equal differences have no BCa interval, and none excludes 0
        interval = bootstrap(
            (differences,), np.mean, axis=1, n_resamples=1_999, batch=100, method="BCa", rng=np.random.default_rng(0)
        ).confidence_interval
    return float(((interval.low > 0) | (interval.high < 0)).mean())


def planted_effects(num_studies: int) -> list[Cell]:
    """True effects of twice the margin, and how often they are supported."""
    cells = []
    for num in PAIRS:
        margin = EFFECT_MARGINS[num] * SD
        promised = power_of_difference(num, sd=SD, effect=2 * margin, margin=margin)
        rare = Plan("supported", num, 2 * SD, num_studies)
        fewer = World(treatment_fails=FEWER_FAILURES[num][0], control_fails=FEWER_FAILURES[num][1])
        # a failure costs 0.8
        failing = Plan("supported", num, 0.8 * (fewer.control_fails - fewer.treatment_fails) / 2, num_studies)
        plain = Plan("supported", num, margin, num_studies)
        cells += [
            plain.cell("normal", World(effect=2 * margin), promised, EFFECTS),
            plain.cell("skewed", World("skewed", effect=2 * margin), promised, EFFECTS),
            rare.cell("2 % fail", rarely_failing(4 * SD), rare.promise(rarely_failing(0), effect=4 * SD), EFFECTS),
            failing.cell("fewer failures", fewer, failing.promise(fewer, effect=None), EFFECTS),
        ]
    return cells


def true_zeros(num_studies: int) -> list[Cell]:
    """Arms that are the same, and how often they are called negligible."""
    cells = []
    for num in PAIRS:
        plain = Plan("negligible", num, ZERO_MARGINS[num] * SD, num_studies)
        promised = power_of_equivalence(num, sd=SD, margin=plain.margin, alpha=ONE_SIDED)
        rare = Plan("negligible", num, 2 * SD, num_studies)
        cells += [
            plain.cell("normal", World(), promised, ZEROS),
            plain.cell("skewed", World("skewed"), promised, ZEROS),
            rare.cell("2 % fail", rarely_failing(0), rare.promise(rarely_failing(0), effect=0.0), ZEROS),
        ]
    return cells


def not_lower(num_studies: int) -> list[Cell]:
    """Treatments that lose just the margin, or nothing, and how often they are said to lose less than the margin."""
    cells = []
    for num in PAIRS:
        plain = Plan("supported", num, ZERO_MARGINS[num] * SD, num_studies, "not lower")
        rare = Plan("supported", num, 2 * SD, num_studies, "not lower")
        promised = power_of_non_inferiority(num, sd=SD, margin=plain.margin, alpha=ONE_SIDED)
        cells += [
            plain.cell("normal", World(effect=-plain.margin), ONE_SIDED, LOSSES),
            plain.cell("skewed", World("skewed", effect=-plain.margin), ONE_SIDED, LOSSES),
            rare.cell("2 % fail", rarely_failing(-rare.margin), ONE_SIDED, LOSSES),
            plain.cell("normal", World(), promised, NO_LOSSES),
            plain.cell("skewed", World("skewed"), promised, NO_LOSSES),
            rare.cell("2 % fail", rarely_failing(0), rare.promise(rarely_failing(0), effect=0.0), NO_LOSSES),
            # a failure costs 0.8, and the control has none
            plain.cell("treatment fails", World(treatment_fails=plain.margin / 0.8), ONE_SIDED, BY_FAILURES),
        ]
    return cells


@dataclass(frozen=True)
class Plan:
    """A decision that is hoped for, with this many pairs and this margin."""

    decision: Decision
    num_pairs: int
    margin: float
    num_studies: int
    direction: Direction = "higher"

    def cell(self, name: str, world: World, promised: float, question: str) -> Cell:
        rates = outcome_rates(
            world,
            num_pairs=self.num_pairs,
            margin=self.margin,
            direction=self.direction,
            num_studies=self.num_studies,
        )
        return Cell(question, name, self.num_pairs, "rule", self.num_studies, promised, rates[self.decision])

    def promise(self, world: World, *, effect: float | None) -> float:
        """The power that a large pilot of this world promises."""
        pilot, failed = (part[:, 0].tolist() for part in world.draw(np.random.default_rng(1), PILOT, 1))
        rule = Rule(self.direction, self.margin)
        return power_from_pilot(
            self.decision,
            rule,
            self.num_pairs,
            pilot=pilot,
            failed=failed,
            effect=effect,
            num_simulations=self.num_studies,
        )


def rarely_failing(effect: float) -> World:
    """Both arms fail in 2 % of their runs; the mean difference is `effect`."""
    return World(treatment_fails=0.02, control_fails=0.02, effect=effect / 0.98)


def draw(cells: Sequence[Cell], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(10.2, 6.8), layout="constrained")
        axes = figure.subplot_mosaic("SSSSSSSLLLLL;EEEEZZZZNNNN")
        same, loss, effect, zero, no_loss = (axes[name] for name in "SLEZN")
        _draw_errors(same, cells, SAME, "Errs: the same arm twice, called different", 5.0)
        _draw_errors(loss, cells, LOSSES, "Errs: a loss of the margin, “not lower”", 2.5)
        _draw_power(effect, cells, EFFECTS, "Finds: an effect of 2 margins, supported")
        _draw_power(zero, cells, ZEROS, "Finds: a true zero, negligible")
        _draw_power(no_loss, cells, NO_LOSSES, "Finds: no loss, “not lower”")
        entries = {
            label: handle
            for axis in (effect, same)
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        order = [*(f"{num} pairs" for num in PAIRS), "allowed", "promised ± 5 points", "if BCa decided"]
        handles = [entries[label] for label in order]
        figure.legend(handles, order, loc="outside lower center", ncols=len(order), frameon=False)
        figure.savefig(path, dpi=150, metadata={"Software": None})


def _draw_errors(axis: Any, cells: Sequence[Cell], question: str, title: str, allowed: float) -> None:
    here = [cell for cell in cells if cell.question == question]
    worlds = list(dict.fromkeys(cell.world for cell in here))
    for cell in here:
        x = worlds.index(cell.world) + _shift(cell.num_pairs)
        if cell.decided_by == "rule":
            _dot(axis, x, cell)
        elif cell.decided_by == "BCa alone":
            axis.plot(x, 100 * cell.found, "x", color="#9a9a9a", markersize=4.5, label=_once(axis, "if BCa decided"))
    axis.axhline(allowed, color="black", linewidth=1.2, label="allowed")
    _finish(axis, worlds, title, 0)


def _draw_power(axis: Any, cells: Sequence[Cell], question: str, title: str) -> None:
    here = [cell for cell in cells if cell.question == question]
    worlds = list(dict.fromkeys(cell.world for cell in here))
    for cell in here:
        x = worlds.index(cell.world) + _shift(cell.num_pairs)
        axis.plot(
            [x, x],
            [100 * cell.expected - 5, 100 * cell.expected + 5],
            color="#c9c9c9",
            linewidth=9,
            solid_capstyle="butt",
            label=_once(axis, "promised ± 5 points"),
            zorder=1,
        )
        _dot(axis, x, cell)
    _finish(axis, worlds, title, None)
    axis.set_ylim(0, 100)


def _dot(axis: Any, x: float, cell: Cell) -> None:
    look = look_of(PAIRS.index(cell.num_pairs))
    label = _once(axis, f"{cell.num_pairs} pairs")
    axis.plot(x, 100 * cell.found, look.marker, color=look.color, markersize=5.5, label=label, zorder=3)


def _shift(num_pairs: int) -> float:
    return 0.22 * (PAIRS.index(num_pairs) - 1)


def _once(axis: Any, label: str) -> str | None:
    return None if label in axis.get_legend_handles_labels()[1] else label


def _finish(axis: Any, worlds: Sequence[str], title: str, bottom: float | None) -> None:
    axis.set_xticks(range(len(worlds)), [world.replace(" fail", "\nfail") for world in worlds])
    axis.set_xlim(-0.5, len(worlds) - 0.5)
    axis.set_ylim(bottom=bottom)
    axis.grid(visible=False, axis="x")
    axis.set_ylabel("simulated studies (%)")
    axis.set_title(title, loc="left")
