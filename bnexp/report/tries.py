"""How often else the question of a study was tried: under other names, margins and tiers, and in other folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnexp.errors import StoreError
from bnexp.folders import known_folders
from bnexp.ledger import Ledger, claim_key, read_study_events, study_event
from bnexp.report.effect_words import scale_of
from bnexp.store import Store
from bnexp.study import StudySpec

MOST_NAMED = 4  # tries that are named


@dataclass(frozen=True)
class Try:
    """Another start of the same comparison.

    Attributes:
        name: of the study, in its results folder.
        how: what tells it from the study at hand, in a few words; may be empty.
        folder: the other results folder, or None for the same one.
    """

    name: str
    how: str
    folder: str | None = None


def other_tries(store: Store, name: str, frozen: Mapping[str, Any], spec: StudySpec, ledger: Ledger) -> Iterable[Try]:
    """Starts of the same comparison: other studies here, those that were here, and those in other folders."""
    key = claim_key(frozen["declaration"])
    own = study_event(store.root, name, frozen, again=False)
    there = {other: _event_here(store, other) for other in store.study_names() if other != name}
    for other, event in there.items():
        if event is not None and event["claim_key"] == key:
            yield Try(other, _how(event, own, spec))
    starts = [event for event in ledger.studies if "name" in event and not event.get("again")]
    lying = {event["name"]: event for event in starts if event["name"] == name or event["name"] in there}
    for start in starts:
        # the last start of a name is what lies in the folder, if anything does
        if start.get("claim_key") == key and start is not lying.get(start["name"]):
            yield Try(f"an earlier {start['name']}", _how(start, own, spec))
    known = {_start(event) for event in ledger.studies}
    for folder in known_folders():
        if folder.resolve() == store.root.resolve():
            continue
        for event in _read_events(folder):
            is_copy = _start(event) in known  # of a folder that was copied with its ledger
            if event.get("claim_key") == key and not event.get("again") and not is_copy:
                yield Try(str(event.get("name")), _how(event, own, spec), folder.as_posix())


def _read_events(folder: Path) -> list[dict[str, Any]]:
    try:
        return read_study_events(folder)
    except OSError:  # somebody else's, or on a disk that is away
        return []


def _start(event: Mapping[str, Any]) -> tuple[Any, ...]:
    return event.get("name"), event.get("hash"), event.get("time"), event.get("folder")


def _event_here(store: Store, name: str) -> dict[str, Any] | None:
    try:
        study = store.study(name)
        return study_event(store.root, name, study, again=False) if study and "declaration" in study else None
    except (StoreError, AttributeError, KeyError, TypeError, ValueError):  # a damaged file is its own report's to tell
        return None


def _how(event: Mapping[str, Any], own: Mapping[str, Any], spec: StudySpec) -> str:
    """What tells another start of a comparison from the study at hand."""
    told = []
    if event.get("exploratory"):
        told.append("exploratory")
    if event.get("tier") != own["tier"]:
        told.append("another tier")
    elif told_margin := _margin_words(event.get("margins", {}), own["margins"], spec):
        told.append(told_margin)
    if event.get("rounds") != own["rounds"]:
        told.append("seeds in rounds" if event.get("rounds") else "all seeds at once")
    if event.get("fork_of") and not told:
        told.append("a fork")
    return ", ".join(told)


def _margin_words(other: Mapping[str, Any], own: Mapping[str, Any], spec: StudySpec) -> str:
    """The first margin that differs: `margin 0.5 points`."""
    for key, comparison in zip(own, spec.comparisons, strict=False):
        margin = other.get(key)
        if margin is not None and margin != comparison.margin:
            return f"margin {scale_of(comparison).amount(margin)}"
    return ""


def tries_words(others: Sequence[Try]) -> list[str]:
    """One sentence that names them and counts them; none where there are none."""
    if not others:
        return []
    here = [f"{other.name} ({other.how})" if other.how else other.name for other in others if other.folder is None]
    away = [other.folder for other in others if other.folder is not None]
    where = [", ".join(_few(here))] if here else []
    if away:
        times = "once" if len(away) == 1 else f"{len(away)} times"
        folders = len(set(away))
        where.append(f"{times} in {'another results folder' if folders == 1 else f'{folders} other results folders'}")
    also = ("as " if here else "") + ", and ".join(where)
    return [
        f"The same comparison was also started {also}: {len(others) + 1} tries in all; a verdict picked among them "
        "errs more often than 5 %."
    ]


def _few(names: Sequence[str]) -> list[str]:
    more = len(names) - MOST_NAMED
    return [*names[:MOST_NAMED], *([f"{more} more"] if more > 0 else [])]
