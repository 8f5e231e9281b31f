"""Sentences made by rule from numbers: they would say the opposite if the numbers did."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bnexp.analysis.claims import ClaimVerdict
from bnexp.analysis.effects import Effect
from bnexp.analysis.select import Selection, healthy_limits
from bnexp.analysis.widening import Widened
from bnexp.metrics import METRICS, Metric
from bnexp.report.ladder_words import ladder_notes
from bnexp.report.style import MOST_PANELS
from bnexp.study import StudySpec

NEW_SPLITS, NEW_IMAGES = "new seeds, splits and images", "new seeds and images"
THIS_TEST_SET = "new seeds, on this test set"
FEW_ENDS = 3  # arms at an end of their ladder that are named
LADDER = 5  # learning rates; fewer tune an arm, so many ask how far it goes
SHOWN_FIXED = ("data.name", "model.name", "model.depth", "model.width", "model.activation", "model.init", "norm.kind",
               "optim.name", "lr", "batch_size", "epochs", "schedule.name", "data.augment", "precision")  # fmt: skip


def reading(effect: Effect, selection: Selection) -> str:
    """One cautious line for one comparison."""
    metric = METRICS[selection.metric]
    unit = "points" if metric.unit == "fraction" else metric.shown_unit
    estimate = effect.difference.t
    where = f"{effect.stratum}: " if effect.stratum else ""
    name = f"{where}{effect.treatment} − {effect.control}"
    mean = f"{signed(estimate.mean, metric)} {unit}"
    if not math.isfinite(estimate.low):
        return f"{name}: {mean}, {count(estimate.num, 'seed')}: no interval, so nothing can be said."
    low, high = (signed(bound, metric) for bound in (estimate.low, estimate.high))
    line = f"{name}: {mean} [{low}, {high}], {count(estimate.num, 'seed')}: {_judgement(effect, selection)}."
    if not effect.unhealthy:
        return line
    had = f"In {count(len(effect.unhealthy), 'seed')} a run diverged (scored at chance) or collapsed"
    return f"{line} {had}: look at the seeds before the mean."


def signed(value: float, metric: Metric) -> str:
    """A difference as shown, with its sign; the minus is the one that tables use."""
    return f"{value * metric.scale:+.{metric.digits}f}".replace("-", "−")


def count(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def limit_readings(selection: Selection) -> list[str]:
    """For each comparison over a ladder of learning rates: up to which one the runs of each arm stay healthy."""
    if selection.runs["lr"].nunique() < LADDER:
        return []
    limits = healthy_limits(selection)
    lines = []
    for stratum, control, treatment in selection.pairs:
        if (control, stratum) not in limits or (treatment, stratum) not in limits:
            continue
        where = f"{stratum}: " if stratum else ""
        told = " and ".join(f"{_limit(limits[arm, stratum])} for {arm}" for arm in (treatment, control))
        lines.append(f"{where}the largest learning rate with at least 80 % healthy runs is {told}.")
    return lines


def _limit(limit: float | None) -> str:
    return "none of those tried" if limit is None else f"{limit:g}"


def _judgement(effect: Effect, selection: Selection) -> str:
    estimate, metric = effect.difference.t, METRICS[selection.metric]
    excludes = estimate.low > 0 or estimate.high < 0
    higher = effect.treatment if estimate.mean > 0 else effect.control
    text = f"the interval excludes 0; {higher} is higher" if excludes else "the interval includes 0"
    if selection.margin is None:
        return text
    shown = f"{selection.margin * metric.scale:g}"
    if max(abs(estimate.low), abs(estimate.high)) < selection.margin:
        return f"{text}, and all of it lies within the margin of ±{shown}"
    if excludes:
        size = "at least" if abs(estimate.mean) >= selection.margin else "less than"
        return f"{text}, on average by {size} the margin of {shown}"
    return f"{text} and reaches beyond the margin of ±{shown}: undecided"


def fixed_words(selection: Selection) -> str:
    """`Fixed: data digits, model cnn, ...` for captions."""
    words = [
        f"{key.removesuffix('.name')} {value:g}" if isinstance(value, float) else f"{key.removesuffix('.name')} {value}"
        for key in SHOWN_FIXED
        if (value := selection.fixed.get(key)) is not None
    ]
    return f"Fixed: {', '.join(words)}." if words else ""


def panel_note(selection: Selection) -> str:
    """Says so where there are more strata than panels."""
    missing = len(selection.strata) - MOST_PANELS
    return (
        f" Shown: the first {MOST_PANELS} of {len(selection.strata)} strata; the tables have all."
        if missing > 0
        else ""
    )


def covers(claim: ClaimVerdict) -> str:
    """What the interval is about, besides new seeds."""
    contrast = claim.contrast
    if contrast is not None and contrast.overlap > 1:
        return NEW_SPLITS
    if contrast is not None and contrast.crossed is not None:
        return NEW_IMAGES
    return THIS_TEST_SET


def images_note(selection: Selection, claims: Sequence[ClaimVerdict] | None = None) -> str:
    """What the intervals are about besides new seeds.

    Args:
        claims: the verdicts of a study, each of which knows; None: of a report of every run.
    """
    images = selection.images
    whose = "The intervals of differences" if claims is None else "The intervals of the verdicts"
    if images is not None and images.per_seed:
        return (
            f"Each seed drew its own training, validation and test images. {whose} are for new seeds and new "
            "splits of data like these. They are wider than for seeds alone, because the splits share images "
            "(Nadeau & Bengio 2003)."
        )
    if claims is not None:
        judged = [claim for claim in claims if claim.verdict.effect is not None]
        num_new, num = sum(covers(claim) == NEW_IMAGES for claim in judged), len(judged)
    else:
        kept = images is not None and images.scores(list(selection.reporting()["run_id"].unique())) is not None
        num_new, num = (1, 1) if kept else (0, 1)
    if num_new and num_new == num:
        return f"{whose} are for new seeds and new test images like these, not for another split of the data."
    if num_new:
        return (
            f"In {num_new} of {count(num, 'comparison')} the interval is for new seeds and new test images like "
            "these. In the others it shows how much seeds vary, on this test set: they compare other measures than "
            "test accuracy, or not all of their runs kept their predictions. No interval is for another split of "
            "the data."
        )
    return (
        f"{whose} show how much seeds vary, on this test set and this split of the data. They say nothing about "
        "other images."
    )


def notes(
    selection: Selection,
    study: StudySpec | None,
    ladders: Sequence[Widened] = (),
    claims: Sequence[ClaimVerdict] | None = None,
) -> list[str]:
    """What a reader must know before trusting the numbers.

    Args:
        claims: the verdicts of a study.
        ladders: of a study, as it widened them.
        study: that the verdicts are on, corrected for their number; None: every run of a folder is shown.
    """
    found = []
    if selection.runs["lr"].nunique() > 1:
        found.append(
            "Each arm runs at its own best learning rate: the one with the best mean on validation over all seeds. "
            "All seeds choose, and all are reported. What is estimated is the difference of the arms, each at the "
            "best rate tried; the intervals cover the rates that could have been chosen."
        )
    if selection.gaps:
        gaps = (f"{_place(*key)} at {', '.join(f'{lr:g}' for lr in lrs)}" for key, lrs in selection.gaps.items())
        found.append(
            f"Not run at a learning rate that others in its stratum were, or not with all of its seeds: "
            f"{'; '.join(gaps)}. The search was not the same for all arms."
        )
    ends = at_ladder_ends(selection, study)
    if ends and not ladders:
        more = f" and {len(ends) - FEW_ENDS} more" if len(ends) > FEW_ENDS else ""
        found.append(
            f"The best learning rate was the smallest or largest tried: {'; '.join(ends[:FEW_ENDS])}{more}. A wider "
            "search might do better."
        )
    found += ladder_notes(ladders)
    if selection.confounded:
        found.append(
            f"The arms differ in {', '.join(selection.confounded)} too: an effect cannot be put down to one of them."
        )
    scored = selection.reporting()
    if len(selection.pairs) > 1 and study is None:
        found.append(
            "The intervals are not corrected for the number of comparisons: among many, some exclude 0 by luck."
        )
    found.append(images_note(selection, claims))
    smallest = int(scored.groupby(["arm", "stratum"]).size().min()) if len(scored) else 0
    if smallest < 6:
        seeds = f"{smallest} reported seed{'s' * (smallest != 1)}"
        found.append(f"Some arms have only {seeds}: with under six, nothing is decided.")
    return found


def at_ladder_ends(selection: Selection, study: StudySpec | None) -> list[str]:
    """`batch (cnn) at 1`: arms whose best learning rate is the smallest or the largest that was tried.

    Args:
        study: only the arms of its claims that are judged at their best rates; None: all arms.
    """
    arms = set(selection.arms)
    if study is not None:
        claims = (c for c in study.comparisons if c.role == "claim" and c.over != "lr" and c.shape != "search")
        arms = {arm for comparison in claims for arm in comparison.arms}
    return [
        f"{_place(*key)} at {lr:g}"
        for key, lr in selection.best_lr.items()
        if key[0] in arms and is_at_ladder_end(selection, *key)
    ]


def is_at_ladder_end(selection: Selection, arm: str, stratum: str) -> bool:
    """Whether the best learning rate is the smallest or the largest of several that were tried."""
    tried = selection.cell(selection.runs, arm, stratum)["lr"]
    return tried.nunique() > 1 and selection.best_lr[arm, stratum] in (tried.min(), tried.max())


def _place(arm: str, stratum: str) -> str:
    return f"{arm} ({stratum})" if stratum else arm
