"""Figures, tables and one HTML page, from the records alone: no torch, no data, no GPU."""

from __future__ import annotations

import os
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnexp.analysis.claims import declared_of, judge_study
from bnexp.analysis.frame import Frame, load_frame
from bnexp.analysis.select import Selection, own_best_effects, select
from bnexp.errors import ConfigError, StoreError
from bnexp.report.figures import CAPTIONS, FIGURES, FigureFile, draw_figures
from bnexp.report.page import render_page
from bnexp.report.tables import TABLES, Table, make_tables, write_tables
from bnexp.report.verdict_words import verdict_sentence, verdicts_table
from bnexp.report.words import count, limit_readings, notes, reading
from bnexp.store import Store
from bnexp.study import StudySpec, declaration_hash, study_from_dict

EVERYTHING = "all"
COLUMNS = 100
SUFFIXES = {"figures": (".png", ".svg", ".pdf"), "tables": (".csv", ".md", ".tex")}
PRINTED = ("verdicts", "arms", "largest-healthy-lr")  # the tables that the command line shows; the page has all


@dataclass(frozen=True)
class ReportResult:
    """Where the page lies, what is drawn on it, and what the command line prints."""

    name: str
    html: Path
    figures: tuple[FigureFile, ...]
    table: str


@dataclass(frozen=True)
class Numbers:
    """All that a report says in numbers and words: what is left is to draw and to write it.

    Attributes:
        frozen, spec: study.json and the study it declares; None for a report of every run.
        readings: one sentence a comparison.
        remarks: what a reader must know before trusting the numbers.
    """

    name: str
    frozen: dict[str, Any] | None
    spec: StudySpec | None
    frame: Frame
    selection: Selection
    tables: list[Table]
    readings: list[str]
    remarks: list[str]


def make_report(store: Store, study: str | None, *, out: Path | None = None) -> ReportResult:
    """Draw, tabulate and write the report of one study, or of every run in the results folder.

    Args:
        out: folder to write. Files of an earlier report there are replaced or removed, others are left alone.

    Raises:
        ConfigError: no such study was started here.
        StoreError: nothing has ended yet, or the folder cannot be written.
    """
    numbers = evaluate(store, study)
    folder = out or store.report_dir(numbers.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as making:
            work = Path(making)
            (work / "figures").mkdir()
            (work / "tables").mkdir()
            figures = draw_figures(numbers.selection, store, work / "figures")
            write_tables(numbers.tables, work / "tables")
            page = render_page(
                numbers.name, frozen=numbers.frozen, spec=numbers.spec, frame=numbers.frame,
                selection=numbers.selection, tables=[table for table in numbers.tables if len(table.shown)],
                figures=figures, readings=numbers.readings, remarks=numbers.remarks, figure_folder=work / "figures",
            )  # fmt: skip
            (work / "report.html").write_text(page)
            _move(work / "figures", folder / "figures", names={name for name, _, _ in FIGURES})
            _move(work / "tables", folder / "tables", names=set(TABLES))
            (work / "report.html").replace(folder / "report.html")
    except OSError as error:
        raise StoreError(f"--out: cannot write to {str(folder)!r}: {error.strerror or error}") from error
    return ReportResult(numbers.name, folder / "report.html", tuple(figures), summarize(numbers))


def evaluate(store: Store, study: str | None) -> Numbers:
    """Everything but the figures; raises what `make_report` raises, but for what concerns the folder to write."""
    frozen, spec = _frozen(store, study)
    frame = load_frame(store, list(frozen["run_ids"]) if frozen else None)
    if frame.runs.empty:
        what = f"study {study!r}" if study else f"{str(store.root)!r}"
        hint = f"; {len(frame.failed)} crashed" if frame.failed else ""
        raise StoreError(
            f"{what}: no run has ended yet{hint}; train some first, for example: bnexp train -m study=placement"
        )
    selection = select(frame.runs, spec, frozen["arms"] if frozen else None)
    tables = make_tables(selection, store)
    if spec is None or frozen is None:
        readings = limit_readings(selection) + [reading(effect, selection) for effect in own_best_effects(selection)]
    else:
        declared = None if frozen["exploratory"] else declared_of(spec, frozen["tier"])
        claims = judge_study(selection, spec, declared=declared)
        tables = [verdicts_table(claims, selection), *tables]
        readings = [verdict_sentence(claim, selection) for claim in claims]
    exploratory = (
        ["Exploratory: the declared study was changed on the command line."] if frozen and frozen["exploratory"] else []
    )
    return Numbers(
        name=study or EVERYTHING,
        frozen=frozen,
        spec=spec,
        frame=frame,
        selection=selection,
        tables=tables,
        readings=readings,
        remarks=exploratory + notes(selection, corrected=spec is not None) + _completeness(frame, frozen is not None),
    )


def summarize(numbers: Numbers) -> str:
    """What the command line prints."""
    question = numbers.spec.question if numbers.spec else f"Every run in the results folder ({numbers.name})"
    lines = [question, ""]
    lines.append("\n\n".join(plain_text(table) for table in numbers.tables if table.name in PRINTED))
    lines += [""] + [_wrap("- ", line) for line in numbers.readings] if numbers.readings else []
    lines += [""] + [_wrap("Note: ", line) for line in numbers.remarks] if numbers.remarks else []
    return "\n".join(lines)


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
    spec = study_from_dict(frozen["declaration"])
    if declaration_hash(frozen["declaration"]) != frozen["hash"]:
        raise StoreError(
            f"study {study!r}: the declaration in {str(store.study_path(study))!r} was changed after it was frozen"
        )
    return frozen, spec


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
