"""README.md of the reference, from its tables."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

from bnexp.analysis.choice import LOOSE
from simulated.fixed_rate import read_cells
from simulated.markdown import Row, filled, ladder, percent, table, value, whole
from simulated.pipeline import FAMILY, LEAST_COVERAGE, MOST, passed
from simulated.sections import (
    about_fixed_rate,
    about_images,
    about_limits,
    about_measures,
    about_procedures,
    about_splits,
    about_sums,
)
from simulated.tables import NOISES, SEEDS, read_rows, upper_bound

ERRORS = ("false_difference", "false_difference_family", "false_equivalence")
WORLDS = {
    "gaussian": "normal noise",
    "skewed": "exponential noise, its tail to the bad side",
    "growing": "normal noise that grows fourfold along the ladder",
    "failing": "runs that fail, from 0 % at the first rate to 10 % at the last",
}


def write_page(folder: Path, root: Path) -> None:
    tables = {path.stem: list(read_rows(path)) for path in sorted(folder.glob("*.csv"))}
    parts = [
        _head(root, tables),
        _pipeline(tables),
        _by_seeds(tables),
        _not_kept(tables),
        about_limits(tables["limits"]),
        about_sums(tables["sums"]),
        about_procedures(tables["procedures"]),
        about_measures(tables["measures"]),
        about_images(tables["images"]),
        about_splits(tables["splits"]),
        about_fixed_rate(read_cells(folder / "rates.csv")),
        _how(tables),
    ]
    (folder / "README.md").write_text(filled("\n".join(parts)))


def _head(root: Path, tables: dict[str, list[Row]]) -> str:
    asked = ["git", "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "matplotlib"))
    rows, before = tables["pipeline"], tables["pipeline-before"]
    worst = {name: max(value(row, name) for row in rows) for name in ERRORS}
    earlier = {name: max(value(row, name) for row in before) for name in ERRORS}
    least, least_before = (min(value(row, "coverage") for row in part) for part in (rows, before))
    names = (
        "equal arms called different, one comparison",
        f"equal arms called different, any of {FAMILY}",
        "effect of one margin called negligible",
    )
    lines = [
        [label, "5 %", percent(worst[name]), percent(earlier[name])] for label, name in zip(names, ERRORS, strict=True)
    ]
    covers = f"{whole(LEAST_COVERAGE)}"
    lines.append(["95 % interval holds the truth, at least", covers, percent(least), percent(least_before)])
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
{whole(LEAST_COVERAGE)}.

**Measured**, worst of {len(rows)} cells:

{table(["", "promised", "now", "before"], lines)}

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
            f"{percent(max(value(r, name) for r in now))} ({percent(max(value(r, name) for r in then))})"
            for name in ERRORS
        ]
        least, least_before = (min(value(r, "coverage") for r in part) for part in (now, then))
        cells.append(f"{percent(least)} ({percent(least_before)})")
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
    by_ladder = [line(ladder(name), lambda row, name=name: row["ladder"] == name) for name in ladders]  # type: ignore[misc]
    return f"""## By kind of noise and by ladder

Worst of all cells in a row; before in brackets. `pipeline.csv` and `pipeline-before.csv` have every cell.

{table(head, by_world)}

{table(["ladder", *head[1:]], by_ladder)}

Where there are two ladders, the first is the control's and the second the treatment's.
"""


def _by_seeds(tables: dict[str, list[Row]]) -> str:
    rows = {
        name: [row for row in tables[name] if row["world"] == "gaussian"] for name in ("pipeline", "pipeline-before")
    }
    sizes = [row for row in tables["pipeline-sizes"] if row["world"] == "gaussian"]

    def mean(part: Iterable[Row], seeds: int, column: str) -> float:
        values = [value(row, column) for row in part if int(row["num_seeds"]) == seeds]
        return sum(values) / len(values)

    lines = []
    for seeds in SEEDS:
        powers = [
            f"{whole(mean(rows['pipeline'], seeds, name))} ({whole(mean(rows['pipeline-before'], seeds, name))})"
            for name in ("power_one_margin", "power_two_margins")
        ]
        shown = [whole(mean(sizes, seeds, f"size_shown_at_{effect}")) for effect in ("1.5", "2", "3")]
        lines.append([str(seeds), *powers, *shown, whole(mean(sizes, seeds, "zero_called_negligible"))])
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
        (row for row in rows["pipeline"] if row["num_seeds"] == "10"), key=lambda r: value(r, "power_one_margin")
    )
    return f"""## How much it finds

Normal noise, mean over the ladders; before in brackets. A run's noise is 1 point, of which the seed gives 30
% of the variance to both arms. The *direction* is shown where the interval excludes 0. The *size* is shown
where the interval lies beyond the margin.

{table(head, lines)}

Before, no effect of one margin could be found in more than about half of the studies, because its observed
mean had to reach the margin too. Six seeds are few: they show an effect of one margin in about one study of
four, and they almost never show that nothing is there. The least at 10 seeds is
{percent(value(worst, "power_one_margin"))} ({ladder(worst["ladder"])}): there the treatment has one good rate and
the control has four, and any of the four may be its best.
"""


def _not_kept(tables: dict[str, list[Row]]) -> str:
    found = [(row, names) for row in tables["pipeline"] if (names := passed(row))]
    num = int(tables["pipeline"][0]["num_worlds"])
    bound, family_bound = upper_bound(0.05, num), upper_bound(0.05, num // FAMILY)
    over = [row for row in tables["pipeline"] if any(value(row, name) > 0.05 for name in ERRORS)]
    text = f"""## Where it does not hold

A cell has {num:,} comparisons and {num // FAMILY:,} families. A share of 5.0 % found has an upper 95 % bound of
{percent(bound)} for comparisons and of {percent(family_bound)} for families.
"""
    if found:
        again = {(r["world"], r["ladder"], r["num_seeds"]): r for r in tables["pipeline-again"]}
        text += f"\nThese cells have a bound above {whole(MOST)}, or coverage below {whole(LEAST_COVERAGE)}:\n\n"
        lines = []
        for row, names in found:
            fresh = again[row["world"], row["ladder"], row["num_seeds"]]
            lines += [
                [row["world"], ladder(row["ladder"]), row["num_seeds"], name, percent(value(row, name)),
                 percent(value(fresh, name))]
                for name in names
            ]  # fmt: skip
        text += table(["world", "ladder", "seeds", "what", "found", "with fresh draws, four times as many"], lines)
    else:
        text += f"No cell has a bound above {whole(MOST)}, and none covers less than {whole(LEAST_COVERAGE)}."
    if over:
        what = "; ".join(
            f"{WORLDS[row['world']]}, {ladder(row['ladder'])}, {row['num_seeds']} seeds: "
            + ", ".join(
                f"{name.replace('_', ' ')} {percent(value(row, name))}" for name in ERRORS if value(row, name) > 0.05
            )
            for row in over
        )
        text += f" Found above 5.0 %, by no more than simulation allows: {what}."
    unlike = [row for row in tables["measures"] if float(row["level"]) == LOOSE and "|" in row["ladder"]]
    return f"""{text}

A measure that no rate is chosen for is called different in up to
{percent(max(value(row, "false_difference") for row in unlike))} where the arms have unlike ladders; see below.
"""


def _how(tables: dict[str, list[Row]]) -> str:
    counts = ", ".join(f"{name} {int(rows[0].get('num_worlds') or rows[0]['num_studies']):,}"
                       for name, rows in tables.items() if rows and name != "pipeline-again")  # fmt: skip
    return f"""## How it was simulated

Studies a cell: {counts}. Validation adds 0.5 points of noise of its own to a run's luck, which test shares:
of 0.5 and 1.5 points the one with more false differences (`procedures.csv` has the power with both). The last
two ladders of
`pipeline.csv` are the hardest of some fifty that were tried. A failed run scores chance, 80 points below. A direction
counts as shown even where the whole interval lies inside the margin. Before, with six seeds, four were left:
too few for that rule to decide, so those rows say what its interval would have said.
"""
