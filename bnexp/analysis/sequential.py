"""Adding seeds in rounds without paying in errors: an alpha-spending rule that is valid for any data.

Look k is judged at level alpha_k, an increment of the spending function alpha · (n_k / n_last)^rho. The increments sum
to alpha, and a chance of any of several errors is at most the sum of their chances, so the error over all looks is at
most alpha whenever each look's own test keeps its level: no normality, no independent increments, no asymptotics. The
same sum covers Holm's families and the equivalence. The price is a level that could be larger if the looks' correlation
were used; after an early stop the effect is biased away from 0, as after every early stop.

Source: Lan & DeMets 1983, "Discrete sequential boundaries"; Kim & DeMets 1987 for the power family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bnexp.analysis.rule import ALPHA, MIN_PAIRS
from bnexp.analysis.verdicts import DECIDED, Verdict

RHO = 1.0  # each seed spends alike; larger saves alpha for the last look
STEP = 2  # seeds that a round adds
FINAL = (*DECIDED, "invalid")  # what no seed that is added can change


@dataclass(frozen=True)
class Look:
    """One planned look at the data.

    Attributes:
        number: from 1.
        num_pairs: seeds that every arm has by then.
        alpha: what `Rule.alpha` is at this look; a family shares it by Holm.
        last: no seeds are added after it.
    """

    number: int
    num_pairs: int
    alpha: float
    last: bool


def plan_looks(num_pairs: Sequence[int], *, alpha: float = ALPHA, rho: float = RHO) -> tuple[Look, ...]:
    """The looks and their levels, to be declared before the first run.

    Args:
        num_pairs: seeds at each look, increasing, six at least.
        alpha: over all looks together.
        rho: of the spending function, above 0.

    Raises:
        ValueError: looks that do not increase, that start under six, or a rho that is not above 0.
    """
    if not num_pairs or num_pairs[0] < MIN_PAIRS:
        raise ValueError(f"the first look needs {MIN_PAIRS} pairs at least")
    if any(later <= earlier for earlier, later in pairwise(num_pairs)):
        raise ValueError("every look needs more pairs than the one before")
    if rho <= 0:
        raise ValueError(f"rho: {rho!r} is not above 0")
    spent = [0.0, *(alpha * (num / num_pairs[-1]) ** rho for num in num_pairs)]
    return tuple(
        Look(number, num, spent[number] - spent[number - 1], last=number == len(num_pairs))
        for number, num in enumerate(num_pairs, start=1)
    )


def default_looks(num_pairs: int) -> tuple[int, ...]:
    """Seeds at each look where a study says no more: 6, then two more at a time, up to all."""
    return (*range(MIN_PAIRS, num_pairs, STEP), num_pairs)


def frozen_looks(num_pairs: Sequence[int]) -> dict[str, Any]:
    """What study.json says of planned looks: all that their levels follow from."""
    return {"looks": list(num_pairs), "spending": {"alpha": ALPHA, "rho": RHO}}


def looks_of(frozen: Mapping[str, Any]) -> tuple[Look, ...]:
    """The looks as a study was started with, whatever the defaults are by now; none where it has but one."""
    return plan_looks(frozen["looks"], **frozen.get("spending", {})) if frozen.get("looks") else ()


def settle(earlier: Mapping[str, Verdict], now: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Each comparison's verdict after a look: the first decision stands, what later seeds say notwithstanding.

    Args:
        earlier: as settled after the look before; empty at the first.
        now: as judged at this look, at its alpha.
    """
    return {
        name: earlier[name] if name in earlier and earlier[name].outcome in FINAL else verdict
        for name, verdict in now.items()
    }


def should_stop(look: Look, settled: Mapping[str, Verdict]) -> bool:
    """Whether no more seeds are to be added after a look that had all its runs: all are decided, or it was the last.

    What is untested though all its runs are there lacks a value, and no seed that is added gives it one.
    """
    return look.last or all(verdict.outcome in (*FINAL, "untested") for verdict in settled.values())
