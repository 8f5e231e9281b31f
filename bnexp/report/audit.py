"""The audit: one page over all declared studies, with a row and a section for each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from bnexp.catalog import list_studies
from bnexp.report import ReportResult
from bnexp.report.audit_data import Audit, Entry, collect
from bnexp.report.audit_page import render_audit
from bnexp.report.audit_words import (
    entry_word,
    error_rate,
    error_rate_words,
    gates,
    primary_effect,
    primary_pairs,
    tally,
    texts_words,
)
from bnexp.report.effect_words import claimed, compared
from bnexp.report.figures import AUDIT_FIGURES, FigureFile, save_figures, write_captions
from bnexp.report.folder import PAGE, publish
from bnexp.report.printing import wrap
from bnexp.report.tables import Rows, Table, write_tables
from bnexp.report.verdict_words import flips_table, verdicts_table
from bnexp.report.words import at_ladder_ends
from bnexp.store import Store
from bnexp.study import StudySpec

NAME = "audit"
EFFECT = "effect [interval that decided] at its level"
TITLE = "Every claim, tested as a declared study"


def make_audit(
    store: Store, *, out: Path | None = None, declared: Mapping[str, StudySpec] | None = None
) -> ReportResult:
    """Judge every study that was started in a results folder and write the audit over them.

    Args:
        out: folder to write, as for a report.
        declared: the studies that have a row whether they were started or not; None: those that bnexp declares.

    Raises:
        StoreError: the folder cannot be written.
    """
    audit = collect(store, list_studies() if declared is None else declared)
    figures: list[FigureFile] = []

    def make(work: Path) -> None:
        for entry in audit.entries:
            figures.extend(_draw(entry, work / "figures"))
        write_captions(figures, work / "figures")
        write_tables(audit_tables(audit), work / "tables")
        (work / PAGE).write_text(render_audit(audit, figures, work / "figures"))

    html = publish(out or store.report_dir(NAME), make, is_ours=_is_ours)
    return ReportResult(NAME, html, tuple(figures), summarize(audit))


def audit_tables(audit: Audit) -> list[Table]:
    """`audit`, a row a study; as CSV alone `verdicts`, a row a comparison and stratum, and `flips`, a row a reading."""
    exact: Rows = []
    shown: Rows = []
    for entry in audit.entries:
        effect, otherwise = "; ".join(primary_effect(entry)), "; ".join(gates(entry))
        exact.append({
            "tier": entry.tier, "number": entry.spec.number, "study": entry.spec.name, "claim": entry.spec.claim,
            "sources": " ".join(entry.spec.sources), "against": " ".join(entry.spec.against),
            "verdict": entry_word(entry), "primary": entry_word(entry, primary=True),
            "compared": compared(entry.spec.comparisons[0]),
            "claimed": claimed(entry.spec.comparisons[0]), "effect": effect,
            "n": primary_pairs(entry), "otherwise": otherwise,
            "at_ladder_ends": "; ".join(at_ladder_ends(entry.judged.selection, entry.spec)) if entry.judged else "",
            "runs": len(entry.judged.frame.runs) if entry.judged else 0,
            "declaration": entry.judged.frozen["hash"] if entry.judged else "",
        })  # fmt: skip
        tier = {"tier": entry.tier} if len(audit.tiers) > 1 else {}
        shown.append({
            **tier, "#": str(entry.spec.number), "study": entry.spec.name, "claim": entry.spec.claim,
            "texts": texts_words(entry.spec), "verdict": entry_word(entry), EFFECT: effect,
            "n": primary_pairs(entry), "other analyses": otherwise,
        })  # fmt: skip
    return [
        Table(NAME, TITLE, pd.DataFrame(exact), pd.DataFrame(shown)),
        *(_of_all(audit, name) for name in ("verdicts", "flips")),
    ]


def summarize(audit: Audit) -> str:
    """What the command line prints: two lines a study."""
    lines = []
    for tier, entries in audit.tiers.items():
        lines.append(f"{TITLE}: tier {tier}")
        for what, primary in (("all comparisons", False), ("the first comparison of each", True)):
            counts = "; ".join(f"{number} {word}" for word, number in tally(entries, primary=primary).items())
            lines.append(f"{what}: {counts}")
        lines += ["", *(wrap("", line) for line in error_rate_words(error_rate(e for e in entries if e.ours)))]
        lines.append("")
        for entry in entries:
            lines.append(wrap("", f"{entry.spec.number:>2} {entry.spec.name}: {entry_word(entry)}"))
            if entry.claims:
                told = f"{compared(entry.spec.comparisons[0])}: {'; '.join(primary_effect(entry))}"
                lines.append(wrap("   ", told))
            if entry.judged is not None:
                lines += [wrap("   Note: ", sentence) for sentence in entry.judged.integrity.sentences]
        lines.append("")
    lines += [wrap("Note: ", f"{aside.key} is in no row: {aside.why}.") for aside in audit.asides]
    return "\n".join(lines).rstrip()


def _draw(entry: Entry, folder: Path) -> list[FigureFile]:
    if entry.judged is None:
        return []
    drawings = [
        (f"{entry.key}-{kind}", f"{entry.spec.name}: {title[0].lower()}{title[1:]}",
         partial(draw, entry.claims, entry.judged.selection))
        for kind, title, draw in AUDIT_FIGURES
    ]  # fmt: skip
    # half the time of a figure is its PDF, and a study's own report has one
    return save_figures(drawings, folder, pdf=False)


def _of_all(audit: Audit, name: str) -> Table:
    """The rows of all studies in one CSV file."""
    frames = []
    for entry in audit.entries:
        if entry.judged is not None:
            make = {"verdicts": verdicts_table, "flips": flips_table}[name]
            table = make(entry.claims, entry.judged.selection)
            if table is not None:
                frames.append(table.exact.assign(study=entry.spec.name, tier=entry.tier))
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["study", "tier"])
    first = ["study", "tier"]
    return Table(name, "", rows[[*first, *(column for column in rows if column not in first)]], pd.DataFrame())


def _is_ours(stem: str) -> bool:
    return stem in (NAME, "verdicts", "flips") or stem.endswith(tuple(f"-{kind}" for kind, _, _ in AUDIT_FIGURES))
