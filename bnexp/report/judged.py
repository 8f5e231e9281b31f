"""A study of the results folder with its runs and its verdicts: what its report and the audit are both made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bnexp.analysis.claims import ClaimVerdict, declared_of, judge_study, load_study
from bnexp.analysis.frame import Frame
from bnexp.analysis.select import Selection
from bnexp.errors import ConfigError, StoreError
from bnexp.store import Store
from bnexp.study import StudySpec, declaration_hash, study_from_dict

NEEDED = ("tier", "declaration", "hash", "exploratory", "run_ids", "arms")


@dataclass(frozen=True)
class Judged:
    """One started study.

    Attributes:
        name: that of its folder.
        frozen: study.json.
        spec: what it declares, at the one tier it was started at.
        claims: the verdicts, by comparison and stratum.
    """

    name: str
    frozen: Mapping[str, Any]
    spec: StudySpec
    frame: Frame
    selection: Selection
    claims: list[ClaimVerdict]


def judge_started(store: Store, name: str) -> Judged:
    """Read a started study and judge it.

    Raises:
        ConfigError: no such study was started here, or its declaration is none.
        StoreError: its declaration was changed, nothing has ended yet, or two runs claim one place.
    """
    frozen, spec = read_frozen(store, name)
    frame, selection = load_study(store, spec, list(frozen["run_ids"]), frozen["arms"])
    if selection is None:
        raise nothing_ended(f"study {name!r}", frame)
    declared = None if frozen["exploratory"] else declared_of(spec, frozen["tier"])
    return Judged(name, frozen, spec, frame, selection, judge_study(selection, spec, declared=declared))


def read_frozen(store: Store, name: str) -> tuple[dict[str, Any], StudySpec]:
    """study.json and what it declares."""
    frozen = store.study(name)
    if frozen is None:
        names = store.study_names()
        hint = (
            "" if names else f"no study was started in {str(store.root)!r}; start one: bnexp train -m study=placement"
        )
        raise ConfigError("study", got=name, choices=names, hint=hint)
    lacking = [key for key in NEEDED if key not in frozen]
    if lacking:
        raise StoreError(f"{str(store.study_path(name))!r} lacks {', '.join(lacking)}: it is no frozen study")
    spec = study_from_dict(frozen["declaration"])
    if declaration_hash(frozen["declaration"]) != frozen["hash"]:
        raise StoreError(
            f"study {name!r}: the declaration in {str(store.study_path(name))!r} was changed after it was frozen"
        )
    return frozen, spec


def nothing_ended(what: str, frame: Frame) -> StoreError:
    """Says so, in one line."""
    hint = f"; {len(frame.failed)} crashed" if frame.failed else ""
    return StoreError(
        f"{what}: no run has ended yet{hint}; train some first, for example: bnexp train -m study=placement"
    )
