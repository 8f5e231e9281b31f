"""What the audit is made of: every declared study and every started one, judged once, each run read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bnexp.analysis.claims import ClaimVerdict
from bnexp.errors import BnexpError
from bnexp.ledger import Ledger
from bnexp.records import RunRecord
from bnexp.report.judged import Judged, judge_started, read_frozen
from bnexp.store import Store
from bnexp.study import TIERS, StudySpec


@dataclass(frozen=True)
class Entry:
    """One study of one tier.

    Attributes:
        key: its folder's name, and its anchor on the page.
        spec: at its tier.
        judged: None where it was not started, or cannot be judged.
        problem: why it cannot be judged, in a line; empty where it can, or was not started.
        ours: its number is one of the declared claims'.
        changed: the study's file declares something else by now.
    """

    key: str
    tier: str
    spec: StudySpec
    judged: Judged | None = None
    problem: str = ""
    ours: bool = True
    changed: bool = False

    @property
    def claims(self) -> list[ClaimVerdict]:
        """The verdicts, the primary comparison's first; none where it was not judged."""
        return self.judged.claims if self.judged else []

    @property
    def primary(self) -> list[ClaimVerdict]:
        """Those of the primary comparison."""
        return [claim for claim in self.claims if claim.comparison == self.spec.comparisons[0]]


@dataclass(frozen=True)
class Aside:
    """A study of the folder that stands for no claim: exploratory, forked, or not to be read at all."""

    key: str
    why: str


@dataclass(frozen=True)
class Audit:
    """All studies.

    Attributes:
        tiers: tier -> its studies by number; that of the first has all declared ones, started or not.
    """

    tiers: dict[str, list[Entry]]
    asides: list[Aside]

    @property
    def entries(self) -> list[Entry]:
        return [entry for entries in self.tiers.values() for entry in entries]


class ReadOnce(Store):
    """A results folder of which everything is read once, however many studies share a run."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.root)
        self._records: dict[str, RunRecord | None] = {}
        self._histories: dict[str, list[dict[str, Any]]] = {}
        self._digests: dict[str, dict[str, str]] = {}
        self._studies: dict[str, dict[str, Any] | None] = {}
        self._ledger: Ledger | None = None

    def record(self, run_id: str) -> RunRecord | None:
        if run_id not in self._records:
            self._records[run_id] = super().record(run_id)
        return self._records[run_id]

    def history(self, run_id: str) -> list[dict[str, Any]]:
        if run_id not in self._histories:
            self._histories[run_id] = super().history(run_id)
        return self._histories[run_id]

    def digests(self, run_id: str) -> dict[str, str]:
        if run_id not in self._digests:
            self._digests[run_id] = super().digests(run_id)
        return self._digests[run_id]

    def study(self, name: str) -> dict[str, Any] | None:
        if name not in self._studies:
            self._studies[name] = super().study(name)
        return self._studies[name]

    def ledger(self) -> Ledger:
        if self._ledger is None:
            self._ledger = super().ledger()
        return self._ledger


def collect(store: Store, declared: Mapping[str, StudySpec]) -> Audit:
    """Judge every started study of a results folder, and name the others.

    A study that cannot be judged becomes an entry that says why.
    """
    reader = ReadOnce(store)
    started: dict[str, dict[str, Entry]] = {}
    asides: list[Aside] = []
    for key in store.study_names():
        found = _started(reader, key, declared)
        if isinstance(found, Entry) and found.spec.name in started.get(found.tier, {}):
            found = Aside(key, "decided in rounds; the table has the study with all its seeds")
        if isinstance(found, Aside):
            asides.append(found)
        else:
            started.setdefault(found.tier, {})[found.spec.name] = found
    present = [tier for tier in TIERS if tier in started] or [TIERS[0]]
    first = present[0]
    for name, spec in declared.items():
        if first in spec.tiers and name not in started.get(first, {}):
            started.setdefault(first, {})[name] = Entry(name_on_disk(name, first), first, spec.at(first))
    return Audit({tier: _by_number(list(started.get(tier, {}).values())) for tier in present}, asides)


def name_on_disk(name: str, tier: str) -> str:
    """The folder of a study as declared; exploratory and forked ones have others."""
    return name if tier == "small" else f"{name}-{tier}"


def _started(store: Store, key: str, declared: Mapping[str, StudySpec]) -> Entry | Aside:
    try:
        frozen, spec = read_frozen(store, key)
    except BnexpError as error:
        return _unreadable(key, declared, error)
    if frozen["exploratory"]:
        return Aside(key, f"exploratory, changed on the command line: {' '.join(frozen.get('overrides', ()))}")
    if "fork_of" in frozen:
        return Aside(
            key, f"a fork of {frozen['fork_of']} under another declaration: {', '.join(frozen.get('changed', ()))}"
        )
    tier = str(frozen["tier"])
    ours = spec.name in declared
    changed = ours and (tier not in declared[spec.name].tiers or declared[spec.name].at(tier) != spec)
    entry = Entry(key, tier, spec, ours=ours, changed=changed)
    try:
        return replace(entry, judged=judge_started(store, key))
    except BnexpError as error:
        return replace(entry, problem=" ".join(str(error).split()))


def _unreadable(key: str, declared: Mapping[str, StudySpec], error: BnexpError) -> Entry | Aside:
    """The place of a declared study that its study.json cannot take; any other is named beside the table."""
    problem = " ".join(str(error).split())
    for name, spec in declared.items():
        for tier in spec.tiers:
            if name_on_disk(name, tier) == key:
                return Entry(key, tier, spec.at(tier), problem=problem)
    return Aside(key, f"cannot be read: {problem}")


def _by_number(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (not entry.ours, entry.spec.number, entry.key))
