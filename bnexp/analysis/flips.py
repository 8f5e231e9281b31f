"""Whether a verdict survives being read otherwise: at one learning rate, under other statistics, from a poor init."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bnexp.analysis.claims import ClaimVerdict, Reading
from bnexp.analysis.verdicts import DECIDED, UNJUDGED, Outcome

Answer = Literal["survives", "flips", "open"]


@dataclass(frozen=True)
class Survival:
    """How a verdict fares in one kind of reading, in one stratum.

    Attributes:
        survives, open: the learning rates, statistics or inits at which it does.
        flips: the same -> what the verdict is there.
    """

    survives: tuple[float | str, ...]
    flips: Mapping[float | str, Outcome]
    open: tuple[float | str, ...]

    @property
    def num(self) -> int:
        return len(self.survives) + len(self.flips) + len(self.open)


def answer_of(own: Outcome, other: Outcome) -> Answer:
    """What a reading's outcome says of the verdict at own best rates.

    A reading flips it where it says something else, be the verdict decided or not. One that says nothing, or shows the
    same direction alone where the verdict has a size, leaves it open, and so does every reading of what was not judged.
    """
    if own in UNJUDGED or other in (*UNJUDGED, "inconclusive"):
        return "open"
    if own == other:
        return "survives"
    if own.partition(",")[0] == other.partition(",")[0]:
        return "survives" if other in DECIDED else "open"
    return "flips"


def answers(claim: ClaimVerdict) -> dict[Reading, Answer]:
    """What each reading says of the verdict; one with another init, and what it is read as, of the one it reads."""
    own = (claim.reading_of or claim.verdict).outcome
    return {reading: answer_of(own, verdict.outcome) for reading, verdict in claim.readings.items()}


def survival(claim: ClaimVerdict, kind: str) -> Survival:
    """All readings of one kind, in their order."""
    found = {reading.value: answer for reading, answer in answers(claim).items() if reading.kind == kind}
    outcomes = {reading.value: verdict.outcome for reading, verdict in claim.readings.items() if reading.kind == kind}
    return Survival(
        survives=tuple(value for value, answer in found.items() if answer == "survives"),
        flips={value: outcomes[value] for value, answer in found.items() if answer == "flips"},
        open=tuple(value for value, answer in found.items() if answer == "open"),
    )
