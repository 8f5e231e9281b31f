"""Figures, tables and one HTML page, from the records alone: no torch, no data, no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnexp.analysis.claims import ClaimVerdict
from bnexp.analysis.effects import own_best_effects
from bnexp.analysis.frame import Frame, load_frame
from bnexp.analysis.select import Selection, select
from bnexp.analysis.test_images import images_of
from bnexp.report.figures import FIGURE_NAMES, FigureFile, draw_figures
from bnexp.report.folder import PAGE, publish
from bnexp.report.integrity import check_runs
from bnexp.report.judged import judge_started, nothing_ended, rounds_words
from bnexp.report.page import render_page
from bnexp.report.printing import plain_text, wrap
from bnexp.report.tables import TABLES, Table, make_tables, write_tables
from bnexp.report.verdict_words import flips_table, verdict_sentences, verdicts_table
from bnexp.report.words import count, limit_readings, notes, reading
from bnexp.store import Store
from bnexp.study import StudySpec

EVERYTHING = "all"
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
        frozen, spec, claims: of a study: study.json, what it declares, its verdicts; None for a report of every run.
        readings: one sentence a comparison.
        remarks: what a reader must know before trusting the numbers.
    """

    name: str
    frozen: Mapping[str, Any] | None
    spec: StudySpec | None
    claims: list[ClaimVerdict] | None
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
    figures: list[FigureFile] = []

    def make(work: Path) -> None:
        figures.extend(draw_figures(numbers.selection, store, work / "figures", numbers.claims))
        write_tables(numbers.tables, work / "tables")
        page = render_page(
            numbers.name, frozen=numbers.frozen, spec=numbers.spec, frame=numbers.frame,
            selection=numbers.selection, tables=[table for table in numbers.tables if len(table.shown)],
            figures=figures, readings=numbers.readings, remarks=numbers.remarks, figure_folder=work / "figures",
        )  # fmt: skip
        (work / PAGE).write_text(page)

    names = {*FIGURE_NAMES, *TABLES}
    html = publish(out or store.report_dir(numbers.name), make, is_ours=names.__contains__)
    return ReportResult(numbers.name, html, tuple(figures), summarize(numbers))


def evaluate(store: Store, study: str | None) -> Numbers:
    """Everything but the figures; raises what `make_report` raises, but for what concerns the folder to write."""
    if study is not None:
        return _of_study(store, study)
    frame = load_frame(store, None)
    if frame.runs.empty:
        raise nothing_ended(repr(str(store.root)), frame)
    selection = replace(select(frame.runs, None), images=images_of(frame.runs, store))
    return Numbers(
        name=EVERYTHING,
        frozen=None,
        spec=None,
        claims=None,
        frame=frame,
        selection=selection,
        tables=make_tables(selection, store),
        readings=limit_readings(selection) + [reading(effect, selection) for effect in own_best_effects(selection)],
        remarks=check_runs(store, frame.runs["run_id"]).sentences
        + notes(selection, None)
        + completeness(frame, is_study=False),
    )


def _of_study(store: Store, name: str) -> Numbers:
    judged = judge_started(store, name)
    selection, claims, frozen = judged.selection, judged.claims, judged.frozen
    flips = flips_table(claims, selection)
    exploratory = ["Exploratory: the declared study was changed on the command line."] * bool(frozen["exploratory"])
    return Numbers(
        name=name,
        frozen=frozen,
        spec=judged.spec,
        claims=claims,
        frame=judged.frame,
        selection=selection,
        tables=[
            verdicts_table(claims, selection),
            *([] if flips is None else [flips]),
            *make_tables(selection, store, effects=False),
        ],
        readings=verdict_sentences(claims, selection),
        remarks=judged.integrity.sentences
        + exploratory
        + rounds_words(judged)
        + notes(selection, judged.spec, judged.ladders, claims)
        + completeness(judged.frame, is_study=True),
    )


def summarize(numbers: Numbers) -> str:
    """What the command line prints."""
    question = numbers.spec.question if numbers.spec else f"Every run in the results folder ({numbers.name})"
    lines = [question, ""]
    lines.append("\n\n".join(plain_text(table) for table in numbers.tables if table.name in PRINTED))
    lines += [""] + [wrap("- ", line) for line in numbers.readings] if numbers.readings else []
    lines += [""] + [wrap("Note: ", line) for line in numbers.remarks] if numbers.remarks else []
    return "\n".join(lines)


def completeness(frame: Frame, *, is_study: bool) -> list[str]:
    """What crashed, and what has not run."""
    remarks = []
    if frame.failed:
        remarks.append(
            f"{count(len(frame.failed), 'run')} crashed, in no number here: the same train command tries again."
        )
    if frame.missing:
        what = count(len(frame.missing), "planned run" if is_study else "run")
        remarks.append(f"{what} without a record yet: the report is incomplete.")
    return remarks
