"""The folder of a report: made beside itself, then put in place, so that a reader never meets half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from bnexp.errors import StoreError

SUFFIXES = {"figures": (".png", ".svg", ".pdf"), "tables": (".csv", ".md", ".tex")}
CAPTIONS = "captions.md"
PAGE = "report.html"


def publish(folder: Path, make: Callable[[Path], None], *, is_ours: Callable[[str], bool]) -> Path:
    """Have a report made and put into `folder`; returns its page.

    Args:
        make: writes report.html, figures/ and tables/ into the empty folder that it is given.
        is_ours: whether a figure or table of this name is an earlier report's, to be removed; all else is left alone.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as making:
            work = Path(making)
            for part in SUFFIXES:
                (work / part).mkdir()
            make(work)
            for part in SUFFIXES:
                _move(work / part, folder / part, is_ours)
            (work / PAGE).replace(folder / PAGE)
    except OSError as error:
        raise StoreError(f"--out: cannot write to {str(folder)!r}: {error.strerror or error}") from error
    return folder / PAGE


def _move(made: Path, target: Path, is_ours: Callable[[str], bool]) -> None:
    target.mkdir(exist_ok=True)
    new = {path.name for path in made.iterdir()}
    for path in made.iterdir():
        os.replace(path, target / path.name)
    for path in target.iterdir():
        ours = path.name == CAPTIONS or (path.suffix in SUFFIXES[made.name] and is_ours(path.stem))
        if ours and path.name not in new:
            path.unlink()
