"""ledger.jsonl: one line for each record and study that was written to a results folder, so that changes show.

The file only grows. It does not stop anyone who rewrites it too; it makes a changed number visible to everybody else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from bnexp.identity import canonical_json

NAME = "ledger.jsonl"
LOCK_SECONDS = 300.0  # another process holds the lock for one short write
THRESHOLDS = ("margin", "target", "within", "least")  # of a comparison: how much, and not what, is asked
GROWING = ("started", "attempts", "command")  # of study.json: what another train command may add to or replace

Append = Callable[..., None]


@dataclass(frozen=True)
class Ledger:
    """What a results folder's ledger says.

    Attributes:
        exists: false for folders of versions that wrote none.
        records: run id -> the last event of its record.
        studies: each time that a study was frozen, in order.
        attempts: each train command on a study, in order.
    """

    exists: bool = False
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    studies: tuple[Mapping[str, Any], ...] = ()
    attempts: tuple[Mapping[str, Any], ...] = ()

    def last_study(self, name: str) -> Mapping[str, Any] | None:
        """The last event of the study of this name."""
        return next((event for event in reversed(self.studies) if event.get("name") == name), None)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Add one JSON line durably, and whole whatever a crash left of the line before; the caller holds the lock."""
    data = (json.dumps(content, allow_nan=False) + "\n").encode()
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            data = data if file.read(1) == b"\n" else b"\n" + data
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, needle: str = "") -> list[dict[str, Any]]:
    """The JSON objects of a file, a line each, that have this text in them; a line that is not whole is passed over."""
    try:
        text = path.read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    rows = []
    for line in (line for line in text.splitlines() if needle in line):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows


@contextmanager
def appending(root: Path) -> Iterator[Append]:
    """Hold the ledger's lock; yields what appends an event: its kind, and its fields."""
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".ledger.lock", timeout=LOCK_SECONDS):
        yield lambda event, **fields: append_line(root / NAME, {"event": event, **fields, "time": now()})


def read_ledger(root: Path) -> Ledger:
    """The whole ledger of a results folder."""
    rows = read_lines(root / NAME)
    records: dict[str, dict[str, Any]] = {}
    for row in rows:
        run_id = row.get("run_id", "")
        if row.get("event") == "record" and run_id:
            records[run_id] = row
        elif row.get("event") == "file" and run_id in records:  # added to a run that had ended
            added = {row.get("name", ""): row.get("sha256", "")}
            records[run_id] = records[run_id] | {"files": {**records[run_id].get("files", {}), **added}}
    return Ledger(
        exists=(root / NAME).is_file(),
        records=records,
        studies=tuple(row for row in rows if row.get("event") == "study"),
        attempts=tuple(row for row in rows if row.get("event") == "attempt"),
    )


def read_study_events(root: Path) -> list[dict[str, Any]]:
    """The studies of a ledger, without the time that its records would take."""
    return [row for row in read_lines(root / NAME, '"event": "study"') if row.get("event") == "study"]


def study_event(root: Path, name: str, study: Mapping[str, Any], *, again: bool) -> dict[str, Any]:
    """What the ledger says of a study that is frozen.

    Args:
        study: the content of study.json.
        again: the study was started before; this goes on with it.
    """
    declaration = study.get("declaration", {})
    return {
        "name": name,
        "tier": study.get("tier"),
        "hash": study.get("hash"),
        "digest": study_digest(study),
        "claim_key": claim_key(declaration),
        "margins": margins(declaration),
        "exploratory": study.get("exploratory"),
        "rounds": "looks" in study,
        "fork_of": study.get("fork_of"),
        "again": again,
        "folder": root.resolve().as_posix(),
    }


def study_digest(study: Mapping[str, Any]) -> str:
    """A hash of all of study.json that decides a verdict; the order of runs does not matter."""
    settled = {key: value for key, value in study.items() if key not in GROWING}
    for key in ("run_ids", "overrides"):
        settled[key] = sorted(settled.get(key, ()))
    settled["arms"] = {arm: sorted(run_ids) for arm, run_ids in settled.get("arms", {}).items()}
    return _hash(settled)


def claim_key(declaration: Mapping[str, Any]) -> str:
    """A hash of what a study asks, whatever its name, tier, seeds and margins: studies that share it are tries of one
    question.

    Args:
        declaration: as frozen in study.json.
    """
    asked = {
        "comparisons": sorted(margins(declaration)),
        "strata": sorted(declaration.get("strata", ())),
        "metric": declaration.get("metric"),
    }
    return _hash(asked)


def margins(declaration: Mapping[str, Any]) -> dict[str, float | None]:
    """A hash of what each comparison asks -> its margin, in the order of the declaration."""
    arms = declaration.get("arms", {})
    return {comparison_key(each, arms): each.get("margin") for each in declaration.get("comparisons", ())}


def comparison_key(comparison: Mapping[str, Any], arms: Mapping[str, Any]) -> str:
    """A hash of what a comparison asks: arms go by their overrides, for their names are free."""
    asked = {key: value for key, value in comparison.items() if value is not None and key not in THRESHOLDS}
    for key in ("treatment", "control"):
        if key in asked:
            asked[key] = arms.get(asked[key])
    if "against" in asked:
        asked["against"] = [arms.get(arm) for arm in asked["against"]]
    if "levels" in asked:
        asked["levels"] = [[arms.get(arm), level] for arm, level in asked["levels"]]
    return _hash(asked)


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
