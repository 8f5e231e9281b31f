"""Verdicts as a reader meets them: a table of all, one sentence each, and what other analyses of the same runs say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

from bnexp.analysis.claims import STATISTICS, THESE_IMAGES, ClaimVerdict, Reading, rule_of, with_other_inits
from bnexp.analysis.flips import Survival, answer_of, answers, survival
from bnexp.analysis.outside import outside_equal_rates
from bnexp.analysis.rule import Decision
from bnexp.analysis.select import Selection
from bnexp.analysis.verdicts import UNJUDGED, Outcome, Verdict, deciding_kind
from bnexp.comparison import FACTORS, Comparison
from bnexp.metrics import NEEDS_TARGET, metric_of
from bnexp.report.effect_words import OF_FAILURES, claimed, compared, reference_words, scale_of
from bnexp.report.tables import Rows, Table, table_of
from bnexp.report.words import NEW_IMAGES, count, covers

TITLE = "Verdicts, each arm at its own best learning rate, with the interval that decided"
FLIPS_TITLE = (
    "The same comparisons analysed in other ways: both arms at one learning rate, or evaluated with other statistics"
)
STRAWMAN = "an initialization that handicaps the network without a norm"
OWN_RATE = "own best rate"
FEW_CELLS = 4  # arms whose learning rates are named in a sentence


def verdicts_table(claims: Sequence[ClaimVerdict], selection: Selection) -> Table:
    """A row for each comparison and stratum. Exact numbers of a factor are logarithms, base 10 for a reach, else e."""
    exact: Rows = []
    shown: Rows = []
    for claim in with_other_inits(claims):
        comparison, verdict, effect = claim.comparison, claim.verdict, claim.verdict.effect
        exact.append({
            "stratum": claim.stratum, **_exact_comparison(comparison), "direction": comparison.direction,
            "margin": comparison.margin, "verdict": claim.outcome, "reason": verdict.reason, "n": verdict.num_pairs,
            **_exact_numbers(verdict), "sd": effect and effect.sd, "share_above": effect and effect.above,
            **_exact_choice(claim), "pairing_gain": effect and effect.gain,
            "healthy_mean": effect and effect.healthy and effect.healthy.mean, "failed_seeds": _seeds(claim.failed),
            "undeclared_seeds": _seeds(verdict.undeclared), "incomplete": "; ".join(verdict.incomplete),
            "otherwise": " ".join(f"{r.value}:{other.outcome}" for r, other in claim.readings.items()),
        })  # fmt: skip
        shown.append({
            "stratum": claim.stratum, "compared": compared(comparison), "claimed": claimed(comparison),
            "verdict": claim.outcome, "effect [interval that decided]": effect_words(claim),
            "p": "—" if effect is None else _p(deciding_p(claim)), "n": str(verdict.num_pairs),
            "other analyses": survival_words(claim) or "—",
        })  # fmt: skip
    return table_of("verdicts", TITLE, exact, shown, selection)


def flips_table(claims: Sequence[ClaimVerdict], selection: Selection) -> Table | None:
    """A CSV row for each reading; shown is a row for each comparison and stratum. None where nothing is read twice."""
    if not any(claim.readings for claim in claims):
        return None
    exact: Rows = []
    shown: Rows = []
    columns = reading_columns(claims)
    for claim in with_other_inits(claims):
        key = {"stratum": claim.stratum, **_exact_comparison(claim.comparison)}
        for reading, answer in answers(claim).items():
            other = claim.readings[reading]
            exact.append({
                **key, "verdict": claim.outcome, "kind": reading.kind, "value": reading.value, "read": other.outcome,
                "answer": answer, "n": other.num_pairs, **_exact_numbers(other),
            })  # fmt: skip
        others = claim.readings
        read = {column_title(r): others[r].outcome if r in others else "" for r in columns}
        shown.append({
            "stratum": claim.stratum, "compared": compared(claim.comparison), OWN_RATE: claim.outcome, **read,
            "in short": survival_words(claim) or "—",
        })  # fmt: skip
    return table_of("flips", FLIPS_TITLE, exact, shown, selection)


def reading_columns(claims: Sequence[ClaimVerdict]) -> list[Reading]:
    """Every reading that has a column: learning rates ascending, then statistics; inits have rows of their own."""
    found = {reading for claim in with_other_inits(claims) for reading in claim.readings}
    rates = sorted((r for r in found if r.kind == "learning rate"), key=lambda reading: float(reading.value))
    others = [*(Reading("statistics", value) for value in STATISTICS), Reading("images", THESE_IMAGES)]
    return [*rates, *(reading for reading in others if reading in found)]


def column_title(reading: Reading) -> str:
    """`both at 0.1`, `precise statistics`."""
    if reading.kind == "images":
        return f"{reading.value} alone"
    return f"both at {reading.value:g}" if reading.kind == "learning rate" else f"{reading.value} statistics"


def verdict_sentences(claims: Sequence[ClaimVerdict], selection: Selection) -> list[str]:
    """One for each row of the table of verdicts."""
    return [verdict_sentence(claim, selection) for claim in with_other_inits(claims)]


def verdict_sentence(claim: ClaimVerdict, selection: Selection) -> str:
    """`relu: supported. after − before, test accuracy: +1.20 points [...], 6 pairs: why.` and what else to know."""
    comparison, verdict, effect = claim.comparison, claim.verdict, claim.verdict.effect
    where = f"{claim.stratum}: " if claim.stratum else ""
    head = f"{where}{claim.outcome}. {compared(comparison)}:"
    if effect is None:
        lacking = f" ({some(verdict.incomplete)})" if verdict.incomplete else ""
        return f"{head} {verdict.reason}{lacking}."
    reason = verdict.reason
    if comparison.shape in FACTORS:  # a factor of 1 is a logarithm of 0
        reason = reason.replace("excludes 0", "excludes 1").replace("includes 0", "includes 1")
    if comparison.shape == "level":  # what is shown, and judged, is the distance to it
        reason = reason.replace("des 0", f"des a distance of 0 from {reference_words(comparison)}")
    parts = [f"{head} {effect_words(claim)}, {counted(claim)}: {reason}."]
    if verdict.needed is not None:
        parts.append(_needed(claim))
    parts += [*_above(claim), *_choice(claim), *_failures(claim), *_as_reading(claim), *_otherwise(claim)]
    return " ".join([*parts, *_outside(claim)])


def effect_words(claim: ClaimVerdict) -> str:
    """`+1.20 points [+0.50, +1.90] at 99.2 %`, and a dash where nothing may be quoted."""
    effect = claim.verdict.effect
    if effect is None:
        return "—"
    words = scale_of(claim.comparison).interval(effect.deciding)
    return words if math.isnan(effect.deciding.low) else f"{words} at {level_word(effect.level)}"


def level_word(level: float) -> str:
    """`95 %`, `99.2 %`."""
    return f"{100 * level:.1f}".removesuffix(".0") + " %"


def deciding_p(claim: ClaimVerdict) -> float:
    """The corrected p of the statement that a verdict rests on; of the direction where it rests on none."""
    effect = claim.verdict.effect
    if effect is None:
        return math.nan
    kind = deciding_kind(cast(Decision, claim.verdict.outcome), rule_of(claim.comparison))
    return {"size": effect.p_size, "equivalence": effect.p_equivalence}.get(str(kind), effect.p_direction)


def counted(claim: ClaimVerdict) -> str:
    """`6 seeds`."""
    return count(claim.verdict.num_pairs, "seed")


def survival_words(claim: ClaimVerdict) -> str:
    """`holds at 3 of 4 shared learning rates, flips to contradicted at 0.316`; empty: no other analysis."""
    own = (claim.reading_of or claim.verdict).outcome
    if own in UNJUDGED:
        return ""
    rates, says_something = survival(claim, "learning rate"), own != "inconclusive"
    parts = [_at_rates(rates, says_something=says_something)] if rates.num else []
    turn = "flips to " if says_something else ""
    for kind, what in (("statistics", "{} statistics"), ("images", "{} alone"), ("init", "init {}")):
        found = survival(claim, kind)
        told = [(word, values) for word, values in (("holds", found.survives), ("left open", found.open)) if values]
        parts += [f"{word} with {what.format(' and '.join(map(str, values)))}" for word, values in told]
        parts += [f"{turn}{outcome} with {what.format(values)}" for outcome, values in _by_outcome(found.flips)]
    return "; ".join(parts)


def some(phrases: Sequence[str], most: int = 4) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(phrases) - most} more" if len(phrases) > most else ""
    return "; ".join(phrases[:most]) + more


def _at_rates(found: Survival, *, says_something: bool) -> str:
    flips = _by_outcome(found.flips)
    if not says_something:
        turns = ", ".join(f"{outcome} at {rates}" for outcome, rates in flips)
        return ", ".join(part for part in (_share("inconclusive", len(found.open), found.num), turns) if part)
    turns = " and ".join(f"to {outcome} at {rates}" for outcome, rates in flips)
    kept = _share("holds", len(found.survives), found.num) or f"holds at none of {_shared_rates(found.num)}"
    return f"{kept}, flips {turns}" if flips else kept


def _share(word: str, number: int, of: int) -> str:
    """`holds at 2 of 4 shared learning rates`; empty of none."""
    if not number:
        return ""
    if number < of:
        return f"{word} at {number} of {_shared_rates(of)}"
    return f"{word} at the one shared learning rate" if of == 1 else f"{word} at all {_shared_rates(of)}"


def _shared_rates(number: int) -> str:
    return f"{number} shared learning rate{'s' * (number != 1)}"


def _by_outcome(flips: Mapping[float | str, Outcome]) -> list[tuple[str, str]]:
    """(outcome, `0.03, 0.1`) for each outcome."""
    values: dict[str, list[str]] = {}
    for value, outcome in flips.items():
        values.setdefault(outcome, []).append(f"{value:g}" if isinstance(value, float) else value)
    return [(outcome, ", ".join(found)) for outcome, found in values.items()]


def _otherwise(claim: ClaimVerdict) -> list[str]:
    """`With one learning rate for both: supported at 0.1; inconclusive at 0.3.` and the like of statistics."""
    sentences = []
    for kind, opening, at in (
        ("learning rate", "With one learning rate for all arms", "at"),
        ("statistics", "Evaluated with other statistics", "with"),
        ("images", "For new seeds alone", "on"),
    ):
        values: dict[str, list[str]] = {}
        for reading, verdict in claim.readings.items():
            if reading.kind == kind:
                value = f"{reading.value:g}" if isinstance(reading.value, float) else reading.value
                values.setdefault(verdict.outcome, []).append(value)
        if values:
            parts = (f"{outcome} {at} {', '.join(found)}" for outcome, found in values.items())
            sentences.append(f"{opening}: {'; '.join(parts)}.")
    return sentences


def _as_reading(claim: ClaimVerdict) -> list[str]:
    """Of a reading with another init: that it is no verdict, and what it says of the one that it reads."""
    if claim.reading_of is None:
        return []
    said = {"survives": "agrees with the verdict", "flips": "reverses the verdict", "open": "leaves the verdict open"}[
        answer_of(claim.reading_of.outcome, claim.verdict.outcome)
    ]
    return [f"This row has {STRAWMAN}, so it is no verdict of its own; it {said}."]


def _failures(claim: ClaimVerdict) -> list[str]:
    """How many runs failed, and what that made of their numbers."""
    comparison, effect = claim.comparison, claim.verdict.effect
    failures = effect and effect.failures
    if not claim.failed or comparison.shape in OF_FAILURES:
        return []
    late = comparison.measure in NEEDS_TARGET and comparison.shape == "ratio"
    what, scored = ("Never got there", "") if late else ("Diverged or collapsed", _scored(comparison))
    if failures and comparison.shape in ("difference", "matched", "ratio"):
        who = f"{failures.treatment} of {comparison.treatment}, {failures.control} of {comparison.control}"
        return [f"{what}: {who}{scored}.", *_healthy(claim)]
    return [f"{what}: a run behind {count(len(claim.failed), 'seed')}{scored}."]


def _scored(comparison: Comparison) -> str:
    metric = metric_of(str(comparison.measure))
    return ", scored at chance" if metric.unit == "fraction" and metric.direction == "higher" else ""


def _exact_comparison(comparison: Comparison) -> dict[str, object]:
    return {
        "shape": comparison.shape, "measure": comparison.measure, "treatment": comparison.treatment,
        "control": comparison.control, "compared": compared(comparison),
    }  # fmt: skip


def _exact_numbers(verdict: Verdict) -> dict[str, object]:
    effect = verdict.effect
    return {
        "mean": effect and effect.deciding.mean, "low": effect and effect.deciding.low,
        "high": effect and effect.deciding.high, "level": effect and effect.level,
        "low_95": effect and effect.plain.low, "high_95": effect and effect.plain.high, "p": effect and effect.p,
        "p_direction": effect and effect.p_direction, "p_size": effect and effect.p_size,
        "p_equivalence": effect and effect.p_equivalence,
    }  # fmt: skip


def _exact_choice(claim: ClaimVerdict) -> dict[str, object]:
    effect, contrast = claim.verdict.effect, claim.contrast
    choice = contrast.choice if contrast and effect else None
    crossed = contrast.crossed if contrast and effect else None
    return {
        "rates": choice and _rates(choice.chosen), "plausible_rates": choice and _plausible(choice.plausible),
        "low_at": choice and _rates(choice.lower_at), "high_at": choice and _rates(choice.upper_at),
        "same_choice": choice and choice.same, "same_verdict": effect and effect.same_verdict,
        "covers": effect and covers(claim), "sd_of_mean_seeds": crossed and math.sqrt(crossed.seeds),
        "sd_of_mean_images": crossed and math.sqrt(crossed.images),
        "sd_of_mean_rest": crossed and math.sqrt(crossed.rest),
    }  # fmt: skip


def _rates(rates: Mapping[tuple[str, str], float]) -> str:
    """`before 0.3, after 1`."""
    several = len({stratum for _, stratum in rates}) > 1
    return ", ".join(f"{arm}{f' ({stratum})' if several else ''} {lr:g}" for (arm, stratum), lr in rates.items())


def _plausible(rates: Mapping[tuple[str, str], tuple[float, ...]]) -> str:
    several = len({stratum for _, stratum in rates}) > 1
    return "; ".join(
        f"{arm}{f' ({stratum})' if several else ''} {'/'.join(f'{lr:g}' for lr in own)}"
        for (arm, stratum), own in rates.items()
    )


def _above(claim: ClaimVerdict) -> list[str]:
    """How often the one beats the other, where both are arms."""
    comparison, effect = claim.comparison, claim.verdict.effect
    if effect is None or comparison.shape != "difference" or comparison.treatment == comparison.control:
        return []
    wins = effect.above * claim.verdict.num_pairs
    half = " (a tie counts half)" if wins != round(wins) else ""
    return [f"{comparison.treatment} is higher in {wins:g} of {counted(claim)}{half}."]


def _choice(claim: ClaimVerdict) -> list[str]:
    """Which rates were chosen, how firmly, and whether one seed decides the verdict."""
    effect, choice = claim.verdict.effect, claim.contrast.choice if claim.contrast else None
    if effect is None:
        return []
    words = []
    if choice is not None and len(choice.chosen) <= FEW_CELLS:
        open_yet = {cell: own for cell, own in choice.plausible.items() if len(own) > 1}
        told = f"Learning rates chosen: {_rates(choice.chosen)}; {_again(choice.same)}."
        words += [told, *([f"Validation cannot tell apart {_plausible(open_yet)}."] if open_yet else [])]
    elif choice is not None:
        words.append(f"Learning rates chosen in {len(choice.chosen)} places; all {_again(choice.same)}.")
    if choice is not None and choice.by_failures:
        words.append(
            f"More runs failed at a smaller rate, {_rates(choice.by_failures)}: with other seeds as many may fail at "
            "the chosen one, and the interval allows for that."
        )
    if choice is not None and choice.partial:
        words.append("There were too many combinations of rates to read: one arm's rate was varied at a time.")
    if effect.same_verdict is not None:
        num = claim.verdict.num_pairs
        stays = "every time" if effect.same_verdict == num else f"{effect.same_verdict or 'none'} of {num} times"
        words.append(f"With any one seed left out, the verdict stays the same {stays}.")
    return words


def _again(share: float) -> str:
    return f"the same in {100 * share:.0f} % of bootstrap resamples of the seeds"


def _healthy(claim: ClaimVerdict) -> list[str]:
    """The effect among the pairs in which nothing failed, which the mean over all may bury."""
    effect = claim.verdict.effect
    if effect is None or effect.healthy is None:
        return []
    shown = scale_of(claim.comparison).interval(effect.healthy)
    return [
        f"Among the {count(effect.healthy.num, 'seed')} without a failed run: {shown} (95 %, over seeds alone; no "
        "verdict rests on it)."
    ]


def _outside(claim: ClaimVerdict) -> list[str]:
    """Says so where the effect at own best rates is larger, or smaller, than at any rate that the arms share."""
    effect = claim.verdict.effect
    means = {lr: v.effect.plain.mean for lr, v in claim.same_lr.items() if v.effect is not None}
    found = effect and outside_equal_rates(effect.plain.mean, means)
    if not found:
        return []
    scale = scale_of(claim.comparison)
    low, high = scale.number(found.low), scale.number(found.high)
    return [
        f"At each shared learning rate the mean lies between {low} and {high}: "
        "part of this effect comes from the arms running at different rates."
    ]


def _needed(claim: ClaimVerdict) -> str:
    needed = claim.verdict.needed
    assert needed is not None
    if_so = "If the true mean and spread are these"
    on_images = ", on as many test images," if covers(claim) == NEW_IMAGES else ""
    if needed.num_pairs is None:
        return f"{if_so}, not even a new study of 1,000 seeds{on_images} would settle it."
    return (
        f"{if_so}, a new study of about {count(needed.num_pairs, 'seed')}{on_images} would settle it as "
        f"{needed.decision}, with a chance of 80 %."
    )


def _seeds(seeds: Sequence[int] | frozenset[int]) -> str:
    return " ".join(map(str, sorted(seeds)))


def _p(value: float) -> str:
    if not math.isfinite(value):
        return "—"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
