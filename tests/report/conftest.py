"""One placement study for all report tests: made and drawn once, for those that only read it, and copied for others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fabricate import placement_store

from bnexp.report import ReportResult, make_report
from bnexp.store import Store


@pytest.fixture(scope="session")
def placement(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """To be read, not written."""
    return placement_store(tmp_path_factory.mktemp("placement"))


@pytest.fixture(scope="session")
def placement_report(placement: Store) -> ReportResult:
    """The whole report, with figures and page; to be read, not written."""
    return make_report(placement, "placement")


@pytest.fixture
def own_placement(placement: Store, tmp_path: Path) -> Store:
    """A copy without a report, to do with as the test likes."""
    for part in ("runs", "studies"):
        shutil.copytree(placement.root / part, tmp_path / part)
    return Store(tmp_path)
