"""The sections of the page beyond the main table, each from its own table."""

from __future__ import annotations

from collections.abc import Sequence

from bnexp.analysis.choice import LOOSE, STRICT
from simulated.fixed_rate import BY_FAILURES, EFFECTS, LOPSIDED, LOSSES, NO_LOSSES, SAME, ZEROS, Cell
from simulated.markdown import Row, percent, table, value, whole

# of the note in which the procedure was designed, before a line of it was written: mean and worst false differences,
# and power at one margin with little and much noise of validation, in %
DESIGNED = {
    "best rates known": ("5.1", "6.1", "66", "66"),
    "three tuning seeds, t": ("12.8", "37.2", "47", "47"),
    "leave-one-out, t": ("12.0", "20.0", "65", "64"),
    "leave-one-out against every rate": ("2.6", "5.3", "52", "47"),
    "bnexp": ("2.4", "4.8", "59", "53"),
}


def about_limits(rows: list[Row]) -> str:
    cases = list(dict.fromkeys(row["case"] for row in rows))
    lines = []
    for case in cases:
        kept = [row for row in rows if row["case"] == case]
        lines.append(
            [
                case,
                percent(max(value(row, "false_difference") for row in kept)),
                percent(max(value(row, "false_equivalence") for row in kept)),
                percent(min(value(row, "coverage") for row in kept)),
                f"{whole(sum(value(row, 'power_one_margin') for row in kept) / len(kept))}",
            ]
        )
    head = [
        "what is added",
        "equal arms called different",
        "one margin called negligible",
        "coverage",
        "power, 1 margin",
    ]
    return f"""Other things that real runs do, with normal noise, 6 and 10 seeds, worst of six ladders (`limits.csv`):

{table(head, lines)}

All seeds choose on the same validation images. If those images favour some rates by about as much as the
ladder's rates differ, every seed is misled alike and no number of seeds shows it. So validation rules out a
rate only where it is 5 points behind or more; a standard deviation of 0.6 points is roughly what 300 images
do. A rule without that limit called equal arms different in up to 20 % at 1.2 points.

**One thing breaks it: failures in one arm alone, as likely at every rate.** A chance of failing that shows in no run
is in no interval. At a single rate that nobody chose (ladder `0` in `limits.csv`) it misleads in the same way: of
ten seeds none fails in half of all studies where 7 % do. The choice adds nothing to that, for where more runs failed at
a smaller rate than the chosen one, the interval holds at the smaller one too.

Not simulated: rates beyond the ends of the ladder, which no rule can know of. The report warns where the best
rate is the first or the last.
"""


def about_sums(rows: list[Row]) -> str:
    worst = max(rows, key=lambda row: value(row, "false_difference"))
    least = min(value(row, "coverage") for row in rows)
    return f"""## Other shapes of a claim

One arm against a constant, an interaction of four arms, a slope over three levels (`sums.csv`): false
differences in at most {percent(value(worst, "false_difference"))} ({worst["shape"]}, {worst["num_seeds"]}
seeds), coverage of at least {percent(least)}.
"""


def about_procedures(rows: list[Row]) -> str:
    lines = [
        [
            row["procedure"],
            f"{percent(value(row, 'false_difference_mean'))} / {percent(value(row, 'false_difference_worst'))}",
            " / ".join(whole(value(row, f"power_one_margin_{noise}_noise")) for noise in ("little", "much")),
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

{table(head, lines)}

*Best rates known*: nobody has to choose, so no procedure can do better. *Leave-one-out*: each seed is compared at the
rates that the others chose. bnexp compares the chosen rate with every rate of the other arm that validation
does not rule out (one sided, {whole(STRICT)}), and takes off how much the choice flatters.
"""


def about_measures(rows: list[Row]) -> str:
    levels = sorted({float(row["level"]) for row in rows})
    lines = []
    for level in levels:
        kept = [row for row in rows if float(row["level"]) == level]
        same = [row for row in kept if "|" not in row["ladder"]]
        unlike = [row for row in kept if "|" in row["ladder"]]
        lines.append(
            [
                f"{level:g}" + (" (used)" if level == LOOSE else ""),
                percent(max(value(row, "false_difference") for row in same)),
                percent(max(value(row, "false_difference") for row in unlike)),
                percent(max(value(row, "false_equivalence") for row in kept)),
                f"{whole(sum(value(row, 'power_two_margins') for row in kept) / len(kept))}",
            ]
        )
    good = [float(row["level"]) for row in rows]
    kept_levels = [
        level
        for level in sorted(set(good))
        if all(value(row, "false_difference") <= 0.055 for row in rows if float(row["level"]) == level)
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

{table(head, lines)}

*Unlike ladders*: one arm has a clear best rate, and the other's best is ahead by 0.1 points only. There a
rate that is as good but for a tenth of a point takes the measure of another rate with it. A level of
{max(kept_levels):g} keeps 5 % even there.
"""


def about_images(rows: list[Row]) -> str:
    worst = min(rows, key=lambda row: value(row, "coverage_seeds_and_images"))
    alone = min(rows, key=lambda row: value(row, "coverage_seeds_alone"))
    return f"""## Seeds and test images

Simulated test sets of 360 and 2,000 images with true effects of images, seeds and both (`images.csv`). The 95
% interval over seeds and images holds the truth about new seeds and new images in at least
{percent(value(worst, "coverage_seeds_and_images"))}. The interval over seeds alone does so in as little as
{percent(value(alone, "coverage_seeds_alone"))} ({alone["world"]}; {int(alone["num_images"]):,} images,
{alone["num_seeds"]} seeds). Where no image favours an arm, the two are about as wide.
"""


def about_splits(rows: list[Row]) -> str:
    with_factor = [value(row, "coverage_with_factor") for row in rows]
    without = [value(row, "coverage_without") for row in rows]
    wider = [value(row, "half_width_with_factor") / value(row, "half_width_without") for row in rows]
    return f"""## A split of its own for every seed

Classifiers trained on splits of one data set of 1,797 examples, and the truth from fresh data (`splits.csv`).
The 95 % interval with Nadeau & Bengio's factor holds it in {percent(min(with_factor))} to
{percent(max(with_factor))}; without the factor, in {percent(min(without))} to {percent(max(without))}. The
factor makes intervals {min(wider):.1f} to {max(wider):.1f} times as wide. It is careful: it is needed where
the split decides, and too much where a seed's own luck does.
"""


def about_fixed_rate(cells: Sequence[Cell]) -> str:
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

- **The same arm twice** is called different in at most {percent(worst.found)} of {worst.num_studies:,}
  studies ({worst.world}, {worst.num_pairs} seeds); 5 % is allowed. The margin is a hundredth of the spread,
  the worst case.
- **A loss of just the margin**, where both arms fail alike, is said to be "not lower by the margin" in at most
  {percent(lost.found)} ({lost.world}, {lost.num_pairs} seeds); 2.5 % is allowed, one end of a 95 % interval.
- **Power is as promised**: the largest gap between the power found and the power computed beforehand is
  {abs(far.found - far.expected) * 100:.1f} points ({far.question}, {far.world}, {far.num_pairs} seeds).
- **BCa intervals do not decide**: alone they would err in up to {percent(bca)}. t alone would in up to
  {percent(alone)}, where nearly half the runs fail. So the exact sign-flip test has to agree where a run
  failed.
- **What no rule can do.** Differences of mean 0 may be lopsided (exponential; those of the same arm twice
  never are). Then t errs in {percent(lopsided[6])}, {percent(lopsided[10])} and {percent(lopsided[30])} at
  6, 10 and 30 seeds. And no rule knows of failures that its seeds did not meet: where all of the loss is that
  a treatment fails now and then, "not lower" errs in {whole(by_failures[6])}, {whole(by_failures[10])} and
  {whole(by_failures[30])}. Every report shows failure rates for that reason.

A failed run scores 0.1 where others score 0.9. "Fewer failures": the control fails more often than the
treatment, and the margin is half of what that costs.
"""
