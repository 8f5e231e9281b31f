"""README.md of the reference, from its tables."""

from __future__ import annotations

from pathlib import Path


def write_page(folder: Path, root: Path) -> None: ...
