"""Whether what a report is made of is as it was written, and how often else its question was tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bnexp.ledger import NAME as LEDGER
from bnexp.ledger import Ledger, study_digest
from bnexp.report.tries import Try, other_tries, tries_words
from bnexp.store import PREDICTIONS, RECORD, Store
from bnexp.study import StudySpec

MOST_NAMED = 4  # runs that are named
# where the choice of a config group is written in a run's config
PLAIN_KEYS = {"model": "model.name", "norm": "norm.kind", "optim": "optim.name", "schedule": "schedule.name"}


@dataclass(frozen=True)
class Integrity:
    """What the ledger, and other studies, say of a study.

    Attributes:
        altered_runs: ids of runs of which a file that reports read is not as it was written.
        altered_declaration: study.json is not as it was frozen.
        misplaced_arms: arms that hold runs of another arm.
        removed_runs: ids of runs whose record was written and is gone.
        unledgered: how many records the ledger does not know.
        note: why nothing, or not all, can be checked; empty where it can.
        others: other starts of the same comparison, here and in other results folders known.
        attempts: the train commands on the study, in order; empty for studies of older versions.
    """

    altered_runs: tuple[str, ...] = ()
    altered_declaration: bool = False
    misplaced_arms: tuple[str, ...] = ()
    removed_runs: tuple[str, ...] = ()
    unledgered: int = 0
    note: str = ""
    others: tuple[Try, ...] = ()
    attempts: tuple[Mapping[str, Any], ...] = ()

    @property
    def reason(self) -> str:
        """Why no verdict can be believed, in a phrase; empty where nothing was altered."""
        if self.altered_runs:
            return "files of its runs were changed after they were written"
        if self.altered_declaration:
            return "study.json was changed after it was frozen"
        return "study.json lists runs under the wrong arm" if self.misplaced_arms else ""

    @property
    def altered(self) -> bool:
        return bool(self.reason)

    @property
    def sentences(self) -> list[str]:
        """What a reader must know, the worst first."""
        told = []
        if self.altered_runs:
            runs = "1 run" if len(self.altered_runs) == 1 else f"{len(self.altered_runs)} runs"
            told.append(
                f"Altered: files of {runs} were changed, added or removed after they were written: "
                f"{_named(self.altered_runs)}; no verdict is given."
            )
        if self.altered_declaration:
            told.append(
                "Altered: study.json was changed after it was frozen: its declaration, its arms, its runs or whether "
                "it is exploratory; no verdict is given."
            )
        if self.misplaced_arms:
            told.append(
                f"Altered: study.json lists runs under the wrong arm, by the runs' own configs: "
                f"{_named(self.misplaced_arms)}; no verdict is given."
            )
        if self.removed_runs:
            records = "record was" if len(self.removed_runs) == 1 else "records were"
            told.append(
                f"{len(self.removed_runs)} run {records} removed after the run had ended: {_named(self.removed_runs)}."
            )
        if self.unledgered:
            records, they = ("record is", "it") if self.unledgered == 1 else ("records are", "they")
            told.append(f"{self.unledgered} run {records} not in the ledger: {they} cannot be checked for changes.")
        return [*told, *([self.note] if self.note else []), *tries_words(self.others), *_commits_words(self.attempts)]


def check_study(
    store: Store, name: str, frozen: Mapping[str, Any], spec: StudySpec, runs: pd.DataFrame | None = None
) -> Integrity:
    """Hold a started study against the ledger, against its runs' own configs, and against other studies.

    Args:
        frozen: study.json.
        spec: what it declares.
        runs: a row a run that ended, with run_id and dotted config keys; None: arms are not checked.
    """
    ledger = store.ledger()
    known = [*frozen["run_ids"], *(() if runs is None or runs.empty else runs["run_id"])]  # with those of added rates
    altered, removed, unledgered = _check_runs(store, known, ledger)
    seen = ledger.last_study(name)
    return Integrity(
        altered_runs=altered,
        altered_declaration=seen is not None and seen.get("digest") != study_digest(frozen),
        misplaced_arms=() if runs is None else misplaced_arms(spec.arms, frozen["arms"], runs),
        removed_runs=removed,
        unledgered=unledgered,
        note=_note(ledger, store, is_seen=seen is not None, is_started="started" in frozen),
        others=tuple(other_tries(store, name, frozen, spec, ledger)),
        attempts=tuple(frozen.get("attempts", ())),
    )


def check_runs(store: Store, run_ids: Iterable[str]) -> Integrity:
    """Hold runs that are of no one study against the ledger."""
    ledger = store.ledger()
    altered, removed, unledgered = _check_runs(store, run_ids, ledger)
    note = _note(ledger, store, is_seen=True, is_started=False)
    return Integrity(altered_runs=altered, removed_runs=removed, unledgered=unledgered, note=note)


def misplaced_arms(
    arms: Mapping[str, Mapping[str, Any]], run_ids: Mapping[str, Sequence[str]], runs: pd.DataFrame
) -> tuple[str, ...]:
    """The arms with a run whose config has another arm's value of an override, and not the arm's own.

    A value that no run's config has as it is spelled, as that of a choice with other options, says nothing.

    Args:
        arms: name -> overrides.
        run_ids: name -> its runs.
        runs: a row a run, with run_id and dotted config keys.
    """
    table = runs.set_index("run_id")
    found = []
    for arm, overrides in arms.items():
        own = table.loc[table.index.intersection(list(run_ids.get(arm, ())))]
        for key, value in overrides.items():
            column = PLAIN_KEYS.get(key, key)
            rivals = [others[key] for others in arms.values() if key in others and others[key] != value]
            spelled = column in table and _is_plain(value) and (table[column] == value).any()
            if spelled and ((own[column] != value) & own[column].isin([r for r in rivals if _is_plain(r)])).any():
                found.append(arm)
                break
    return tuple(found)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _check_runs(store: Store, run_ids: Iterable[str], ledger: Ledger) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Runs that were altered, runs whose record is gone, and the number of records that the ledger does not know."""
    suspects, removed, unledgered = [], [], 0
    for run_id in dict.fromkeys(run_ids):
        event = ledger.records.get(run_id)
        digests = store.digests(run_id)
        if event is None:
            unledgered += RECORD in digests
        elif RECORD not in digests:
            removed.append(run_id)
        elif not _matches(event, digests):
            suspects.append(run_id)
    if suspects:  # a run may have been written between the two looks, or be about to be
        ledger, fresh = Store(store.root).ledger(), Store(store.root)
        suspects = [
            run_id
            for run_id in suspects
            if not _is_locked(store, run_id) and not _matches(ledger.records[run_id], fresh.digests(run_id))
        ]
    return tuple(suspects), tuple(removed), unledgered if ledger.exists else 0


def _matches(event: Mapping[str, Any], digests: Mapping[str, str]) -> bool:
    """Whether a run's files are those that the ledger knows, and no others; of a run that failed it knows none.

    Predictions may be gone, as from a copy without them: verdicts are then for these test images, and say so.
    """
    known, there = (
        {name: files[name] for name in files if name != RECORD} for files in (event.get("files", {}), digests)
    )
    if PREDICTIONS not in there:
        known.pop(PREDICTIONS, None)
    return event.get("sha256") == digests.get(RECORD) and (not known or known == there)


def _is_locked(store: Store, run_id: str) -> bool:
    try:
        return store.is_locked(run_id)
    except OSError:  # a folder that may only be read
        return False


def _note(ledger: Ledger, store: Store, *, is_seen: bool, is_started: bool) -> str:
    if not ledger.exists and is_started:
        return f"The ledger, {(store.root / LEDGER).name}, is gone: run records cannot be checked for changes."
    if not ledger.exists:
        return "This results folder has no ledger: run records cannot be checked for changes."
    return "" if is_seen else "The ledger does not have this study: its declaration cannot be checked for changes."


def _commits_words(attempts: Sequence[Mapping[str, Any]]) -> list[str]:
    commits = list(dict.fromkeys(str(attempt["commit"]) for attempt in attempts if attempt.get("commit")))
    if len(commits) < 2:
        return []
    return [f"It was trained by {len(attempts)} commands at {len(commits)} commits of bnexp: {_named(commits)}."]


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")
