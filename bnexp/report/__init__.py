"""Figures, tables and one HTML page, from the records alone: no torch, no data, no GPU."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnexp.analysis.frame import Frame, load_frame
from bnexp.analysis.select import own_best_effects, select
from bnexp.errors import ConfigError, StoreError
from bnexp.report.figures import draw_figures
from bnexp.report.page import render_page
from bnexp.report.tables import Table, make_tables, write_tables
from bnexp.report.words import limit_readings, notes, reading
from bnexp.store import Store
from bnexp.study import StudySpec, study_from_dict

EVERYTHING = "all"
PRINTED = ("arms", "largest-healthy-lr")  # the tables that the command line shows; the page has all


@dataclass(frozen=True)
class ReportResult:
    """Where the page lies, and what the command line prints."""

    name: str
    html: Path
    table: str


def make_report(store: Store, study: str | None, *, out: Path | None = None) -> ReportResult:
    """Draw, tabulate and write the report of one study, or of every run in the results folder.

    Args:
        out: folder to write; its figures/ and tables/ are replaced.

    Raises:
        ConfigError: no such study was started here.
        StoreError: nothing has ended yet, or the folder cannot be written.
    """
    frozen, spec = _frozen(store, study)
    frame = load_frame(store, list(frozen["run_ids"]) if frozen else None)
    name = study or EVERYTHING
    if frame.runs.empty:
        what = f"study {study!r}" if study else f"{str(store.root)!r}"
        hint = f"; {len(frame.failed)} crashed" if frame.failed else ""
        raise StoreError(
            f"{what}: no run has ended yet{hint}; train some first, for example: bnexp train -m study=placement"
        )
    selection = select(frame.runs, spec)
    tables = make_tables(selection)
    readings = limit_readings(selection) + [reading(effect, selection) for effect in own_best_effects(selection)]
    exploratory = (
        ["Exploratory: the declared study was changed on the command line."] if frozen and frozen["exploratory"] else []
    )
    remarks = exploratory + notes(selection) + _completeness(frame, frozen is not None)
    folder = out or store.report_dir(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as making:
            work = Path(making)
            (work / "figures").mkdir()
            (work / "tables").mkdir()
            figures = draw_figures(selection, store, work / "figures")
            write_tables(tables, work / "tables")
            page = render_page(
                name, frozen=frozen, spec=spec, frame=frame, selection=selection, tables=tables, figures=figures,
                readings=readings, remarks=remarks, figure_folder=work / "figures",
            )  # fmt: skip
            (work / "report.html").write_text(page)
            for part in ("figures", "tables"):
                shutil.rmtree(folder / part, ignore_errors=True)
                (work / part).rename(folder / part)
            (work / "report.html").replace(folder / "report.html")
    except OSError as error:
        raise StoreError(f"--out: cannot write to {str(folder)!r}: {error.strerror or error}") from error
    return ReportResult(name, folder / "report.html", _console(name, spec, tables, readings, remarks))


def _frozen(store: Store, study: str | None) -> tuple[dict[str, Any] | None, StudySpec | None]:
    if study is None:
        return None, None
    frozen = store.study(study)
    if frozen is None:
        names = store.study_names()
        hint = (
            "" if names else f"no study was started in {str(store.root)!r}; start one: bnexp train -m study=placement"
        )
        raise ConfigError("study", got=study, choices=names, hint=hint)
    return frozen, study_from_dict(frozen["declaration"])


def _completeness(frame: Frame, is_study: bool) -> list[str]:
    remarks = []
    if frame.failed:
        remarks.append(
            f"{len(frame.failed)} runs crashed and are not in any number: the same train command tries them again."
        )
    if frame.missing:
        what = "planned runs have no record yet" if is_study else "runs have not ended"
        remarks.append(f"{len(frame.missing)} {what}: the report is incomplete.")
    return remarks


def _console(name: str, spec: StudySpec | None, tables: list[Table], readings: list[str], remarks: list[str]) -> str:
    lines = [spec.question if spec else f"Every run in the results folder ({name})", ""]
    lines.append("\n\n".join(plain_text(table) for table in tables if table.name in PRINTED))
    lines += [""] + [f"- {line}" for line in readings] if readings else []
    lines += [""] + [f"Note: {line}" for line in remarks] if remarks else []
    return "\n".join(lines)


def plain_text(table: Table) -> str:
    """A table in aligned columns for a terminal."""
    rows = [list(map(str, table.shown.columns)), *table.shown.astype(str).to_numpy().tolist()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([table.title, *lines])
