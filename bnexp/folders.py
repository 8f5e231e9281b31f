"""The results folders in which this user has started studies, so that a report knows of tries elsewhere."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from bnexp.ledger import append_line, now, read_lines

NAME = "folders.jsonl"
LOCK_SECONDS = 5.0


def state_folder() -> Path:
    """$BNEXP_STATE, else bnexp/ in the user's folder for the state of programs."""
    if os.environ.get("BNEXP_STATE"):
        return Path(os.environ["BNEXP_STATE"])
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "bnexp"


def remember_folder(root: Path) -> None:
    """Add a results folder to those known; where that cannot be written, nothing is lost but a reminder."""
    with suppress(OSError, RuntimeError):  # Path.home raises RuntimeError for a user without a home
        folder, state = root.resolve().as_posix(), state_folder()
        if folder in _listed(state):
            return
        state.mkdir(parents=True, exist_ok=True)
        with FileLock(state / ".folders.lock", timeout=LOCK_SECONDS):
            append_line(state / NAME, {"folder": folder, "time": now()})


def known_folders() -> list[Path]:
    """The results folders known that still exist, the first known first."""
    with suppress(OSError, RuntimeError):
        return [path for folder in _listed(state_folder()) if (path := Path(folder)).is_dir()]
    return []


def _listed(state: Path) -> list[str]:
    rows = read_lines(state / NAME)
    return list(dict.fromkeys(row["folder"] for row in rows if isinstance(row.get("folder"), str)))
