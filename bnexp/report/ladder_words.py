"""What a report says of ladders of learning rates that were widened: `analysis.widening` has the rule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bnexp.analysis.widening import Widened

FEW = 3  # of each kind that are named


def ladder_notes(ladders: Sequence[Widened]) -> list[str]:
    """The rates that were added, the arms that are still best at an end, and the ladders that are not settled.

    Args:
        ladders: `Judged.ladders`; none where the study does not widen.
    """
    added = [
        f"{_where(widened)}{rung.lr:g}, for {_arms(rung.reasons)}" for widened in ladders for rung in widened.rungs
    ]
    at_bound = [
        f"{_place(arm, widened)} at {end.best:g}, the {end.side}"
        for widened in ladders
        for arm, end in widened.ends.items()
        if end.at_bound
    ]
    ended_unhealthy = [
        f"{_place(arm, widened)} at {end.best:g}"
        for widened in ladders
        for arm, end in widened.ends.items()
        if end.side is not None and end.proven
    ]
    open_yet = [widened.ladder.stratum or "this study" for widened in ladders if not widened.settled]
    notes = []
    if added:
        notes.append(
            "Learning rates were added for all arms where an arm was best at the smallest or largest rate tried: "
            f"{_few(added)}."
        )
    if at_bound:
        notes.append(
            f"Still best at the smallest or largest rate that this study may try: {_few(at_bound)}. "
            "A better rate may lie beyond."
        )
    if ended_unhealthy:
        notes.append(
            f"Best at an added rate where fewer than 80 % of the runs are healthy: {_few(ended_unhealthy)}. "
            "No rate beyond was tried."
        )
    if open_yet:
        notes.append(
            f"The ladder of learning rates is not complete for {_few(open_yet)}: runs are missing, and until they are "
            "there, no verdict there compares arms at their best rates."
        )
    return notes


def _where(widened: Widened) -> str:
    return f"{widened.ladder.stratum}: " if widened.ladder.stratum else ""


def _place(arm: str, widened: Widened) -> str:
    return f"{arm} ({widened.ladder.stratum})" if widened.ladder.stratum else arm


def _arms(reasons: Iterable[str]) -> str:
    return " and ".join(reasons)


def _few(entries: Sequence[str]) -> str:
    more = f"; and {len(entries) - FEW} more" if len(entries) > FEW else ""
    return f"{'; '.join(entries[:FEW])}{more}"
