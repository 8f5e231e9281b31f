"""Figures, tables and one HTML page, from the records alone: no torch, no data, no GPU."""

from __future__ import annotations

import os
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnexp.analysis.frame import Frame, load_frame
from bnexp.analysis.select import own_best_effects, select
from bnexp.errors import ConfigError, StoreError
from bnexp.report.figures import CAPTIONS, FIGURES, draw_figures
from bnexp.report.page import render_page
from bnexp.report.tables import TABLES, Table, make_tables, write_tables
from bnexp.report.words import count, limit_readings, notes, reading
from bnexp.store import Store
from bnexp.study import StudySpec, study_from_dict

EVERYTHING = "all"
COLUMNS = 100
SUFFIXES = {"figures": (".png", ".svg", ".pdf"), "tables": (".csv", ".md", ".tex")}
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
        out: folder to write. Files of an earlier report there are replaced or removed, others are left alone.

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
    tables = make_tables(selection, store)
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
                name, frozen=frozen, spec=spec, frame=frame, selection=selection,
                tables=[table for table in tables if len(table.shown)], figures=figures, readings=readings,
                remarks=remarks, figure_folder=work / "figures",
            )  # fmt: skip
            (work / "report.html").write_text(page)
            _move(work / "figures", folder / "figures", names={name for name, _, _ in FIGURES})
            _move(work / "tables", folder / "tables", names=set(TABLES))
            (work / "report.html").replace(folder / "report.html")
    except OSError as error:
        raise StoreError(f"--out: cannot write to {str(folder)!r}: {error.strerror or error}") from error
    return ReportResult(name, folder / "report.html", _console(name, spec, tables, readings, remarks))


def _move(made: Path, target: Path, *, names: set[str]) -> None:
    """Put the files of `made` into `target`; of the rest there, only what an earlier report made is removed."""
    target.mkdir(exist_ok=True)
    new = {path.name for path in made.iterdir()}
    for path in made.iterdir():
        os.replace(path, target / path.name)
    ours = {f"{name}{suffix}" for name in names for suffix in SUFFIXES[made.name]} | {CAPTIONS}
    for path in target.iterdir():
        if path.name in ours - new:
            path.unlink()


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
            f"{count(len(frame.failed), 'run')} crashed, in no number here: the same train command tries again."
        )
    if frame.missing:
        what = count(len(frame.missing), "planned run" if is_study else "run")
        remarks.append(f"{what} without a record yet: the report is incomplete.")
    return remarks


def _console(name: str, spec: StudySpec | None, tables: list[Table], readings: list[str], remarks: list[str]) -> str:
    lines = [spec.question if spec else f"Every run in the results folder ({name})", ""]
    lines.append("\n\n".join(plain_text(table) for table in tables if table.name in PRINTED))
    lines += [""] + [_wrap("- ", line) for line in readings] if readings else []
    lines += [""] + [_wrap("Note: ", line) for line in remarks] if remarks else []
    return "\n".join(lines)


def _wrap(mark: str, line: str) -> str:
    return textwrap.fill(
        mark + line, COLUMNS, subsequent_indent=" " * len(mark), break_long_words=False, break_on_hyphens=False
    )


def plain_text(table: Table) -> str:
    """A table in aligned columns for a terminal; where it is too wide, the stratum goes on a line of its own."""
    lines = _align([list(map(str, table.shown.columns)), *table.shown.astype(str).to_numpy().tolist()])
    if max(map(len, lines)) > COLUMNS and "stratum" in table.shown:
        rest = table.shown.drop(columns="stratum").astype(str)
        head, *rows = _align([list(rest.columns), *rest.to_numpy().tolist()])
        lines, last = [f"  {head}"], None
        for stratum, row in zip(table.shown["stratum"], rows, strict=True):
            lines += [f"  {row}"] if stratum == last else [str(stratum), f"  {row}"]
            last = stratum
    return "\n".join([table.title, *lines])


def _align(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
