"""What the audit says of a study in words, by rule: they would say the opposite if the verdicts did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bnexp.analysis.claims import ClaimVerdict
from bnexp.analysis.flips import answers
from bnexp.analysis.rule import ALPHA
from bnexp.analysis.verdicts import OUTCOMES, UNJUDGED
from bnexp.report.audit_data import Entry
from bnexp.report.effect_words import compared, scale_of
from bnexp.report.judged import rounds_words
from bnexp.report.verdict_words import deciding_p, effect_words, survival_words
from bnexp.report.words import count
from bnexp.sources import title_of
from bnexp.study import StudySpec

NOT_STARTED, NO_VERDICT = "not started", "cannot be judged"
FEW_TEXTS = 2  # that have room in a cell
FEW = 3  # strata that are told one by one


def verdict_word(claims: Sequence[ClaimVerdict]) -> str:
    """One word where all verdicts agree, else `mixed: 2 supported; 1 inconclusive`, the primary comparison's first.

    Premises do not count, for what they come to shows in the verdicts that rest on them; nor does what is no claim.
    """
    counts = Counter(claim.outcome for claim in claims if claim.comparison.role == "claim")  # in their order
    if len(counts) == 1:
        return next(iter(counts))
    return f"mixed: {'; '.join(f'{number} {outcome}' for outcome, number in counts.items())}"


def entry_word(entry: Entry, *, primary: bool = False) -> str:
    """The verdict of a row, or of its primary comparison alone, or why there is none."""
    if entry.problem:
        return f"{NO_VERDICT}: {entry.problem}"
    return verdict_word(entry.primary if primary else entry.claims) if entry.claims else NOT_STARTED


def primary_effect(entry: Entry) -> list[str]:
    """The primary comparison's effect with its interval in each stratum; of many strata the range, never a pool."""
    judged = [claim for claim in entry.primary if claim.verdict.effect]
    if not judged:
        return ["—"]
    if len(entry.primary) <= FEW:
        return [_in_stratum(claim.stratum, effect_words(claim)) for claim in entry.primary]
    scale = scale_of(entry.spec.comparisons[0])
    means = sorted(claim.verdict.effect.plain.mean for claim in judged if claim.verdict.effect)
    unit = f" {scale.unit}" if scale.unit else ""
    return [f"from {scale.number(means[0])} to {scale.number(means[-1])}{unit} over {len(judged)} strata"]


def primary_pairs(entry: Entry) -> str:
    """`8`, or `6 to 8`, pairs of the primary comparison."""
    numbers = sorted({claim.verdict.num_pairs for claim in entry.primary if claim.verdict.effect})
    return "—" if not numbers else f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def gates(entry: Entry) -> list[str]:
    """Whether the primary comparison's verdicts hold in other analyses, stratum by stratum."""
    read = [claim for claim in entry.primary if claim.readings and claim.verdict.outcome not in UNJUDGED]
    if not read:
        return ["—"]
    if len(entry.primary) <= FEW:
        return [_in_stratum(claim.stratum, survival_words(claim)) for claim in read]
    flipped = [claim for claim in read if "flips" in answers(claim).values()]
    if flipped:
        named = "; ".join(claim.stratum for claim in flipped[:FEW])
        more = f" and {len(flipped) - FEW} more" if len(flipped) > FEW else ""
        return [f"flips in {len(flipped)} of {len(read)} strata: {named}{more}"]
    whole = sum(set(answers(claim).values()) == {"survives"} for claim in read)
    return [f"flips in none of {len(read)} strata, holds in every analysis in {whole or 'none'}"]


def meaning(entry: Entry) -> list[str]:
    """What it means for which text: a sentence for each outcome of the primary comparison, then the others'."""
    strata: dict[str, list[ClaimVerdict]] = {}
    for claim in entry.primary:
        strata.setdefault(claim.verdict.outcome, []).append(claim)
    sentences = []
    for outcome, claims in strata.items():
        where = "On these data and networks"
        if len(strata) > 1:
            named = "; ".join(claim.stratum for claim in claims)
            where = f"In {len(claims)} of {len(entry.primary)} strata ({named})"
        sentences.append(f"{where} {_means(outcome, entry.spec, claims[0])}.")
    for comparison in entry.spec.comparisons[1:]:
        outcomes = Counter(claim.outcome for claim in entry.claims if claim.comparison == comparison)
        told = "; ".join(outcomes if len(outcomes) == 1 else (f"{number} {word}" for word, number in outcomes.items()))
        where = {"claim": "Beside it", "premise": "Its premise", "context": "For context"}[comparison.role]
        sentences += [f"{where}, {compared(comparison)}: {told}."] if outcomes else []
    return sentences


def label(text: str) -> str:
    """`Study Guide` for `004_8bfcc196da360525`; a text of a user's own keeps its name."""
    return title_of(text)


def texts_words(spec: StudySpec) -> str:
    """`Role and Importance, Study Guide; against: Interview Questions`; of more than two on a side, how many."""
    own, other = (
        ", ".join(map(label, side)) if len(side) <= FEW_TEXTS else f"{len(side)} texts"
        for side in (spec.sources, spec.against)
    )
    return f"{own or '—'}; against: {other}" if other else own or "—"


def left_out(entry: Entry) -> list[str]:
    """What is in no number of the study: crashed, missing and undeclared runs."""
    if entry.judged is None:
        return []
    frame, found = entry.judged.frame, []
    if frame.failed:
        found.append(f"{count(len(frame.failed), 'run')} crashed: in no number; the same command tries again.")
    if frame.missing:
        found.append(f"{count(len(frame.missing), 'declared run')} without a record: not run yet, or not to the end.")
    undeclared = sorted({seed for claim in entry.claims for seed in claim.verdict.undeclared})
    if undeclared:
        found.append(f"Seeds that were not declared: {', '.join(map(str, undeclared))}.")
    return [*entry.judged.integrity.sentences, *rounds_words(entry.judged), *found] or [
        "No declared run is missing, and none has crashed."
    ]


def tally(entries: Iterable[Entry], *, primary: bool = False) -> dict[str, int]:
    """Outcome, `mixed`, `not started` or `cannot be judged` -> how many studies; in the order of a verdict's words."""
    order = (*(word for word in OUTCOMES if word not in UNJUDGED), "mixed", *UNJUDGED, NO_VERDICT, NOT_STARTED)
    counts = Counter(entry_word(entry, primary=primary).partition(":")[0] for entry in entries)
    return {word: counts[word] for word in order if counts[word]}


@dataclass(frozen=True)
class ErrorRate:
    """How often an audit errs over all of its studies.

    Attributes:
        num_studies: that have a verdict on a claim, each of which is a family at 5 %.
        num_decided: verdicts on claims that say something: all but the inconclusive ones.
        num_standing: how many of them would stand if all studies were one family.
    """

    num_studies: int
    num_decided: int
    num_standing: int

    @property
    def expected(self) -> float:
        """Studies with a false finding of a kind, on average, at most, where nothing is there to be found."""
        return ALPHA * self.num_studies

    @property
    def at_least_one(self) -> float:
        """The chance of at least one, at most, if studies were independent."""
        return 1 - (1 - ALPHA) ** self.num_studies


def error_rate(entries: Iterable[Entry]) -> ErrorRate:
    """Over studies of one tier; Bonferroni over them, on top of the correction within each.

    Premises and context are no verdicts on a claim and are not counted.
    """
    studies = [(entry, found) for entry in entries if (found := _claims_with_verdict(entry))]
    decided = [(entry, claim) for entry, found in studies for claim in found if claim.verdict.outcome != "inconclusive"]
    standing = sum(deciding_p(claim) * len(studies) <= _alpha_of(entry, claim) for entry, claim in decided)
    return ErrorRate(len(studies), len(decided), standing)


def error_rate_words(rate: ErrorRate) -> list[str]:
    """What to expect of many verdicts, in plain words; nothing where fewer than two studies were judged."""
    if rate.num_studies < 2:
        return []
    num = rate.num_studies
    return [
        "Each study allows an error of 5 % over all its comparisons together, for each kind of finding: a "
        f"difference, one that matters, one too small to matter. If there were no difference in any of these {num} "
        f"studies, up to {rate.expected:.1f} of them would still find one on average. The chance of at least one "
        f"such error would be up to {100 * rate.at_least_one:.0f} % if the studies were independent (some share "
        "runs).",
        f"{rate.num_standing} of {count(rate.num_decided, 'verdict')} would stand if all {num} studies were one "
        f"family: their p values, corrected within the study and multiplied by {num} (Bonferroni), are still at most "
        "5 %. Inconclusive verdicts are not counted.",
    ]


def _claims_with_verdict(entry: Entry) -> list[ClaimVerdict]:
    return [claim for claim in entry.claims if claim.comparison.role == "claim" and claim.verdict.effect is not None]


def _alpha_of(entry: Entry, claim: ClaimVerdict) -> float:
    """What the corrected p was held against: less than 5 % at each of several looks."""
    looks = entry.judged.looks if entry.judged else ()
    return looks[claim.look - 1].alpha if looks and claim.look else ALPHA


def _means(outcome: str, spec: StudySpec, claim: ClaimVerdict) -> str:
    own, other = say(spec.sources) or "the claim", say(spec.against)
    both = say([*spec.sources, *spec.against]) or "the claim"
    match outcome:
        case "supported":
            as_they_say = f", as {_says(spec.sources)}" if spec.sources else ""
            return f"the claim holds{as_they_say}{_though(claim)}" + (
                f", and not the opposite, as {_says(spec.against)}" if other else ""
            )
        case "contradicted":
            found = {
                "same": f"there is a difference that matters ({_sign(claim)})",
                "not lower": "it is lower by an amount that matters",
            }.get(claim.comparison.direction, "the opposite holds")
            return f"{found}: this speaks against {own}" + (f" and for {other}" if other else "")
        case "supported, direction only":
            return f"the effect goes the way of {own}; whether it is large enough to matter is open"
        case "contradicted, direction only":
            return (
                f"the effect goes against {own}"
                + (f" and with {other}" if other else "")
                + ("; whether it is large enough to matter is open")
            )
        case "negligible":
            return f"the effect is too small to matter: this speaks against {own}" + (
                f", and does not bear out {other}" if other else ""
            )
        case "inconclusive":
            return f"the question is open: these runs neither bear out nor refute {both}"
        case _:
            return f"nothing can be said about {both}: {claim.verdict.reason}"


def _though(claim: ClaimVerdict) -> str:
    """That little is lost is no word on whether anything is."""
    effect = claim.verdict.effect
    lower = claim.comparison.direction == "not lower" and effect is not None and effect.deciding.high < 0
    return ", though it is lower" if lower else ""


def _sign(claim: ClaimVerdict) -> str:
    assert claim.verdict.effect is not None
    side = "higher" if claim.verdict.effect.plain.mean > 0 else "lower"
    return f"{claim.comparison.treatment} is {side}"


def _says(texts: Mapping[str, str]) -> str:
    return f"{say(texts)} {'says' if len(texts) == 1 else 'say'}"


def say(texts: Mapping[str, str] | Sequence[str]) -> str:
    """`“Role and Importance”, “Interview Questions” and “Study Guide”`; empty where there is none."""
    *others, last = ["", *(f"“{label(text)}”" for text in texts)]
    return f"{', '.join(others[1:])} and {last}" if len(others) > 1 else last


def _in_stratum(stratum: str, words: str) -> str:
    return f"{stratum}: {words}" if stratum else words
