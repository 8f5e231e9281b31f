"""README.md of the reference, from its tables."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from bnexp.analysis.choice import LOOSE, STRICT
from simulated.fixed_rate import (
    BY_FAILURES,
    EFFECTS,
    LOPSIDED,
    LOSSES,
    NO_LOSSES,
    SAME,
    ZEROS,
    Cell,
    read_cells,
)
from simulated.pipeline import FAMILY, LEAST_COVERAGE, MOST, passed
from simulated.tables import NOISES, SEEDS, read_rows, upper_bound

Row = dict[str, str]
ERRORS = ("false_difference", "false_difference_family", "false_equivalence")
WORLDS = {
    "gaussian": "normal noise",
    "skewed": "exponential noise, its tail to the bad side",
    "growing": "normal noise that grows fourfold along the ladder",
    "failing": "runs that fail, from 0 % at the first rate to 10 % at the last",
}
# of the note in which the procedure was designed, before a line of it was written: mean and worst false differences,
# and power at one margin with little and much noise of validation, in %
DESIGNED = {
    "best rates known": ("5.1", "6.1", "66", "66"),
    "three tuning seeds, t": ("12.8", "37.2", "47", "47"),
    "leave-one-out, t": ("12.0", "20.0", "65", "64"),
    "leave-one-out against every rate": ("2.6", "5.3", "52", "47"),
    "bnexp": ("2.4", "4.8", "59", "53"),
}


def write_page(folder: Path, root: Path) -> None:
    tables = {path.stem: list(read_rows(path)) for path in sorted(folder.glob("*.csv"))}
    parts = [
        _head(root, tables),
        _pipeline(tables),
        _by_seeds(tables),
        _not_kept(tables),
        _limits(tables["limits"]),
        _sums(tables["sums"]),
        _procedures(tables["procedures"]),
        _measures(tables["measures"]),
        _images(tables["images"]),
        _splits(tables["splits"]),
        _fixed_rate(read_cells(folder / "rates.csv")),
        _how(tables),
    ]
    (folder / "README.md").write_text("\n".join(parts))


def _head(root: Path, tables: dict[str, list[Row]]) -> str:
    asked = ["git", "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "matplotlib"))
    rows, before = tables["pipeline"], tables["pipeline-before"]
    worst = {name: max(_value(row, name) for row in rows) for name in ERRORS}
    earlier = {name: max(_value(row, name) for row in before) for name in ERRORS}
    least, least_before = (min(_value(row, "coverage") for row in part) for part in (rows, before))
    names = (
        "equal arms called different, one comparison",
        f"equal arms called different, any of {FAMILY}",
        "effect of one margin called negligible",
    )
    lines = [
        [label, "5 %", _percent(worst[name]), _percent(earlier[name])]
        for label, name in zip(names, ERRORS, strict=True)
    ]
    covers = f"{LEAST_COVERAGE:.0%}"
    lines.append(["95 % interval holds the truth, at least", covers, _percent(least), _percent(least_before)])
    return f"""# How often verdicts err and find

Made by bnexp itself: `python scripts/error_rates.py`.

- commit: {commit}
- versions: Python {platform.python_version()}, {versions}
- hardware: {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores; one was used

Simulated studies have a known truth. The lines of code that judge a real study judged these. A unit is a
*point*, one percent of accuracy. The *margin*, the smallest difference that matters, is 1 point. A *ladder*
is the list of learning rates tried; it is written as the true mean at each rate, in points below the best.
Both arms choose their own rate by mean validation accuracy.

**Promised.** Where the arms do not differ at their best rates, a difference is called in at most 5 of 100
comparisons, and in at most 5 of 100 families of {FAMILY} comparisons. An effect of exactly the margin is
called negligible in at most 5 of 100. The 95 % interval holds the true difference in at least
{LEAST_COVERAGE:.0%}.

**Measured**, worst of {len(rows)} cells:

{_table(["", "promised", "now", "before"], lines)}

*Before*: three seeds chose the rate (two of six) and were not reported. The others were compared at that rate
by a plain t interval. A difference was called where the interval excluded 0 and the mean reached the margin.
A wrong choice is the same in every reported seed. So its p value can be tiny, and the correction for a family
does not catch it.
"""


def _pipeline(tables: dict[str, list[Row]]) -> str:
    rows, before = tables["pipeline"], tables["pipeline-before"]

    def line(label: str, kept: Callable[[Row], bool]) -> list[str]:
        now, then = [row for row in rows if kept(row)], [row for row in before if kept(row)]
        cells = [
            f"{_percent(max(_value(r, name) for r in now))} ({_percent(max(_value(r, name) for r in then))})"
            for name in ERRORS
        ]
        least, least_before = (min(_value(r, "coverage") for r in part) for part in (now, then))
        cells.append(f"{_percent(least)} ({_percent(least_before)})")
        return [label, *cells]

    head = [
        "",
        "equal arms called different",
        f"any of {FAMILY}",
        "one margin called negligible",
        "interval holds the truth, at least",
    ]
    by_world = [line(WORLDS[noise], lambda row, noise=noise: row["world"] == noise) for noise in NOISES]  # type: ignore[misc]
    ladders = list(dict.fromkeys(row["ladder"] for row in rows))
    by_ladder = [line(f"`{name}`", lambda row, name=name: row["ladder"] == name) for name in ladders]  # type: ignore[misc]
    return f"""## By kind of noise and by ladder

Worst of all cells in a row; before in brackets. `pipeline.csv` and `pipeline-before.csv` have every cell.

{_table(head, by_world)}

{_table(["ladder", *head[1:]], by_ladder)}

Where a ladder is written in two parts, the arms have different ladders: control | treatment.
"""


def _by_seeds(tables: dict[str, list[Row]]) -> str:
    rows = {
        name: [row for row in tables[name] if row["world"] == "gaussian"] for name in ("pipeline", "pipeline-before")
    }
    sizes = [row for row in tables["pipeline-sizes"] if row["world"] == "gaussian"]

    def mean(part: Iterable[Row], seeds: int, column: str) -> float:
        values = [_value(row, column) for row in part if int(row["num_seeds"]) == seeds]
        return sum(values) / len(values)

    lines = []
    for seeds in SEEDS:
        powers = [
            f"{mean(rows['pipeline'], seeds, name):.0%} ({mean(rows['pipeline-before'], seeds, name):.0%})"
            for name in ("power_one_margin", "power_two_margins")
        ]
        shown = [f"{mean(sizes, seeds, f'size_shown_at_{effect}'):.0%}" for effect in ("1.5", "2", "3")]
        lines.append([str(seeds), *powers, *shown, f"{mean(sizes, seeds, 'zero_called_negligible'):.0%}"])
    head = [
        "seeds",
        "direction shown at 1 margin",
        "at 2 margins",
        "size shown at 1.5 margins",
        "at 2",
        "at 3",
        "true zero called negligible",
    ]
    worst = min(
        (row for row in rows["pipeline"] if row["num_seeds"] == "10"), key=lambda r: _value(r, "power_one_margin")
    )
    return f"""## How much it finds

Normal noise, mean over the ladders; before in brackets. A run's noise is 1 point, of which the seed gives 30
% of the variance to both arms. The *direction* is shown where the interval excludes 0. The *size* is shown
where the interval lies beyond the margin.

{_table(head, lines)}

Before, no effect of one margin could be found in more than about half of the studies, because its observed
mean had to reach the margin too. Six seeds are few: they show an effect of one margin in about one study of
four, and they almost never show that nothing is there. The least at 10 seeds is
{_percent(_value(worst, "power_one_margin"))} (`{worst["ladder"]}`): there the treatment has one good rate and
the control has four, and any of the four may be its best.
"""


def _not_kept(tables: dict[str, list[Row]]) -> str:
    found = [(row, names) for row in tables["pipeline"] if (names := passed(row))]
    num = int(tables["pipeline"][0]["num_worlds"])
    bound, family_bound = upper_bound(0.05, num), upper_bound(0.05, num // FAMILY)
    over = [row for row in tables["pipeline"] if any(_value(row, name) > 0.05 for name in ERRORS)]
    text = f"""## Where it does not hold

A cell has {num:,} comparisons and {num // FAMILY:,} families. A share of 5.0 % found has an upper 95 % bound of
{_percent(bound)} for comparisons and of {_percent(family_bound)} for families.
"""
    if found:
        again = {(r["world"], r["ladder"], r["num_seeds"]): r for r in tables["pipeline-again"]}
        text += f"\nThese cells have a bound above {MOST:.0%}, or coverage below {LEAST_COVERAGE:.0%}:\n\n"
        lines = []
        for row, names in found:
            fresh = again[row["world"], row["ladder"], row["num_seeds"]]
            lines += [
                [row["world"], f"`{row['ladder']}`", row["num_seeds"], name, _percent(_value(row, name)),
                 _percent(_value(fresh, name))]
                for name in names
            ]  # fmt: skip
        text += _table(["world", "ladder", "seeds", "what", "found", "with fresh draws, four times as many"], lines)
    else:
        text += f"No cell has a bound above {MOST:.0%}, and none covers less than {LEAST_COVERAGE:.0%}."
    if over:
        what = "; ".join(
            f"{row['world']}, `{row['ladder']}`, {row['num_seeds']} seeds: "
            + ", ".join(
                f"{name.replace('_', ' ')} {_percent(_value(row, name))}" for name in ERRORS if _value(row, name) > 0.05
            )
            for row in over
        )
        text += f" Found above 5.0 %, by no more than simulation allows: {what}."
    return text + "\n"


def _limits(rows: list[Row]) -> str:
    cases = list(dict.fromkeys(row["case"] for row in rows))
    lines = []
    for case in cases:
        kept = [row for row in rows if row["case"] == case]
        lines.append(
            [
                case,
                _percent(max(_value(row, "false_difference") for row in kept)),
                _percent(max(_value(row, "false_equivalence") for row in kept)),
                _percent(min(_value(row, "coverage") for row in kept)),
                f"{sum(_value(row, 'power_one_margin') for row in kept) / len(kept):.0%}",
            ]
        )
    head = [
        "what is added",
        "equal arms called different",
        "one margin called negligible",
        "coverage",
        "power, 1 margin",
    ]
    return f"""Other things that real runs do, with normal noise, 6 and 10 seeds, worst of five ladders (`limits.csv`):

{_table(head, lines)}

**One thing breaks it.** All seeds choose on the same validation images. If those images favour some rates by
about as much as the ladder's rates differ, then every seed is misled alike and no number of seeds shows it.
Shifts of 0.6 points, about what 300 images do, are harmless here. Shifts of 1.2 points are not: use more
validation images, or let each seed draw its own split (`data.split=per_seed`).

Not simulated: rates beyond the ends of the ladder, which no rule can know of. The report warns where the best
rate is the first or the last.
"""


def _sums(rows: list[Row]) -> str:
    worst = max(rows, key=lambda row: _value(row, "false_difference"))
    least = min(_value(row, "coverage") for row in rows)
    return f"""## Other shapes of a claim

One arm against a constant, an interaction of four arms, a slope over three levels (`sums.csv`): false
differences in at most {_percent(_value(worst, "false_difference"))} ({worst["shape"]}, {worst["num_seeds"]}
seeds), coverage of at least {_percent(least)}.
"""


def _procedures(rows: list[Row]) -> str:
    lines = [
        [
            row["procedure"],
            f"{_percent(_value(row, 'false_difference_mean'))} / {_percent(_value(row, 'false_difference_worst'))}",
            f"{_value(row, 'power_one_margin_little_noise'):.0%} / {_value(row, 'power_one_margin_much_noise'):.0%}",
            f"{DESIGNED[row['procedure']][0]} / {DESIGNED[row['procedure']][1]} %",
            f"{DESIGNED[row['procedure']][2]} / {DESIGNED[row['procedure']][3]} %",
        ]
        for row in rows
    ]
    head = [
        "procedure",
        "false differences, mean / worst",
        "power at 1 margin, validation noise 0.5 / 1.5 points",
        "the same in the design",
        "",
    ]
    return f"""## Other ways to do it

10 seeds, normal noise, eleven ladders, no margin asked of any (`procedures.csv`). The last columns are what a
separate simulation found when the procedure was designed, before it was written; these numbers reproduce it.

{_table(head, lines)}

*Best rates known* is what could be had if nobody had to choose. *Leave-one-out*: each seed is compared at the
rates that the others chose. bnexp compares the chosen rate with every rate of the other arm that validation
does not rule out (one sided, {STRICT:.0%}), and takes off how much the choice flatters.
"""


def _measures(rows: list[Row]) -> str:
    levels = sorted({float(row["level"]) for row in rows})
    lines = []
    for level in levels:
        kept = [row for row in rows if float(row["level"]) == level]
        same = [row for row in kept if "|" not in row["ladder"]]
        unlike = [row for row in kept if "|" in row["ladder"]]
        lines.append(
            [
                f"{level:g}" + (" (used)" if level == LOOSE else ""),
                _percent(max(_value(row, "false_difference") for row in same)),
                _percent(max(_value(row, "false_difference") for row in unlike)),
                _percent(max(_value(row, "false_equivalence") for row in kept)),
                f"{sum(_value(row, 'power_two_margins') for row in kept) / len(kept):.0%}",
            ]
        )
    good = [float(row["level"]) for row in rows]
    kept_levels = [
        level
        for level in sorted(set(good))
        if all(_value(row, "false_difference") <= 0.055 for row in rows if float(row["level"]) == level)
    ]
    head = [
        "level",
        "equal arms called different",
        "unlike ladders, called different",
        "one margin called negligible",
        "power at 2 margins, mean",
    ]
    return f"""## A measure that no rate is chosen for

A gap, a time or a drift may depend on the rate, and its best rate is still where accuracy is best. Its
interval holds for every pair of rates that validation cannot tell from the best, at a one-sided level. Here
the measure changes by 0, 1 or 3 points from one rate to the next (`measures.csv`):

{_table(head, lines)}

*Unlike ladders*: one arm has a clear best rate, and the other's best is ahead by 0.1 points only. There a
rate that is as good but for a tenth of a point takes the measure of another rate with it. A level of
{max(kept_levels):g} keeps 5 % even there.
"""


def _images(rows: list[Row]) -> str:
    worst = min(rows, key=lambda row: _value(row, "coverage_seeds_and_images"))
    alone = min(rows, key=lambda row: _value(row, "coverage_seeds_alone"))
    return f"""## Seeds and test images

Simulated test sets of 360 and 2,000 images with true effects of images, seeds and both (`images.csv`). The 95
% interval over seeds and images holds the truth about new seeds and new images in at least
{_percent(_value(worst, "coverage_seeds_and_images"))}. The interval over seeds alone does so in as little as
{_percent(_value(alone, "coverage_seeds_alone"))} ({alone["world"]}; {int(alone["num_images"]):,} images,
{alone["num_seeds"]} seeds). Where no image favours an arm, the two are about as wide.
"""


def _splits(rows: list[Row]) -> str:
    with_factor = [_value(row, "coverage_with_factor") for row in rows]
    without = [_value(row, "coverage_without") for row in rows]
    wider = [_value(row, "half_width_with_factor") / _value(row, "half_width_without") for row in rows]
    return f"""## A split of its own for every seed

Classifiers trained on splits of one data set of 1,797 examples, and the truth from fresh data (`splits.csv`).
The 95 % interval with Nadeau & Bengio's factor holds it in {_percent(min(with_factor))} to
{_percent(max(with_factor))}; without the factor, in {_percent(min(without))} to {_percent(max(without))}. The
factor makes intervals {min(wider):.1f} to {max(wider):.1f} times as wide. It is careful: it is needed where
the split decides, and too much where a seed's own luck does.
"""


def _fixed_rate(cells: Sequence[Cell]) -> str:
    errors = [cell for cell in cells if cell.question == SAME and cell.decided_by == "rule"]
    by_failures = {cell.num_pairs: cell.found for cell in cells if cell.question == BY_FAILURES}
    lost = max((cell for cell in cells if cell.question == LOSSES), key=lambda cell: cell.found)
    promises = [cell for cell in cells if cell.question in (EFFECTS, ZEROS, NO_LOSSES)]
    worst = max(errors, key=lambda cell: cell.found)
    far = max(promises, key=lambda cell: abs(cell.found - cell.expected))
    by_t = [cell for cell in cells if cell.decided_by == "t alone"]
    lopsided = {cell.num_pairs: cell.found for cell in by_t if cell.world == LOPSIDED}
    bca = max(cell.found for cell in cells if cell.question == SAME and cell.decided_by == "BCa alone")
    alone = max(cell.found for cell in by_t if cell.question == SAME)
    return f"""## At one learning rate

The rule itself, where nothing is chosen (`rates.csv`):

![error rates](rates.png)

- **The same arm twice** is called different in at most {_percent(worst.found)} of {worst.num_studies:,}
  studies ({worst.world}, {worst.num_pairs} seeds); 5 % is allowed. The margin is a hundredth of the spread,
  the worst case.
- **A loss of just the margin**, where both arms fail alike, is said to be "not lower by the margin" in at most
  {_percent(lost.found)} ({lost.world}, {lost.num_pairs} seeds); 2.5 % is allowed, one end of a 95 % interval.
- **Power is as promised**: the largest gap between the power found and the power promised by `bnexp plan` is
  {abs(far.found - far.expected) * 100:.1f} points ({far.question}, {far.world}, {far.num_pairs} seeds).
- **BCa intervals do not decide**: alone they would err in up to {_percent(bca)}. t alone would in up to
  {_percent(alone)}, where nearly half the runs fail. So the exact sign-flip test has to agree where a run
  failed.
- **What no rule can do.** Differences of mean 0 may be lopsided (exponential; those of the same arm twice
  never are). Then t errs in {_percent(lopsided[6])}, {_percent(lopsided[10])} and {_percent(lopsided[30])} at
  6, 10 and 30 seeds. And no rule knows of failures that its seeds did not meet: where all of the loss is that
  a treatment fails now and then, "not lower" errs in {by_failures[6]:.0%}, {by_failures[10]:.0%} and
  {by_failures[30]:.0%}. Every report shows failure rates for that reason.

A failed run scores 0.1 where others score 0.9. "Fewer failures": the control fails more often than the
treatment, and the margin is half of what that costs.
"""


def _how(tables: dict[str, list[Row]]) -> str:
    counts = ", ".join(f"{name} {int(rows[0].get('num_worlds') or rows[0]['num_studies']):,}"
                       for name, rows in tables.items() if rows and name != "pipeline-again")  # fmt: skip
    return f"""## How it was simulated

Studies a cell: {counts}. Validation adds 0.5 points of noise of its own to a run's luck, which test shares:
of 0.5 and 1.5 points the one with more false differences (`procedures.csv` has the power with both). The last
two ladders of
`pipeline.csv` are the hardest of some sixty that were tried. A failed run scores chance, 80 points below. A direction
counts as shown even where the whole interval lies inside the margin. Before, with six seeds, four were left:
too few for that rule to decide, so those rows say what its interval would have said.
"""


def _value(row: Row, name: str) -> float:
    return float(row[name])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(line)} |" for line in lines)]
    )
