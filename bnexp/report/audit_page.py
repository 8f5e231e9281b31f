"""The page of the audit: the table of all claims, then a section for each study that was judged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bnexp.analysis.claims import with_other_inits
from bnexp.report import flip_figure, verdict_figure
from bnexp.report.audit_data import Audit, Entry
from bnexp.report.audit_words import (
    NO_VERDICT,
    NOT_STARTED,
    entry_word,
    error_rate,
    error_rate_words,
    gates,
    label,
    left_out,
    meaning,
    primary_effect,
    primary_pairs,
    tally,
    texts_words,
    verdict_word,
)
from bnexp.report.effect_words import compared
from bnexp.report.figures import AUDIT_FIGURES, FigureFile
from bnexp.report.page import environments_of, inline_svg, template
from bnexp.report.tables import arms_table
from bnexp.report.verdict_words import verdict_sentences
from bnexp.report.words import fixed_words, notes

DIRECTION_ONLY = "direction only"
HOW_TO_READ = (verdict_figure.HOW_TO_READ, flip_figure.HOW_TO_READ)
GLOSSARY = (
    ("supported", "All of the interval lies on the claimed side, beyond the margin: the smallest difference that "
     "matters. For a claim of no difference or of no loss: any difference or loss is smaller than the margin."),
    ("contradicted", "All of the interval lies on the opposite side, beyond the margin. For a claim of no difference "
     "or of no loss: there is one that matters."),
    (DIRECTION_ONLY, "Added to supported or contradicted: all of the interval lies on that side of 0, but the "
     "difference may be too small to matter."),
    ("negligible", "All of the interval lies inside the margin: any difference is too small to matter."),
    ("inconclusive", "None of these: the interval allows too much. The section says about how many seeds a new study "
     "would need."),
    ("mixed", "Comparisons or strata of the study came out differently."),
    ("untested", "Runs or values are missing, so no number is given."),
    ("invalid", "There is no fair comparison, or the records were altered. No number is given; the section says why."),
    (NO_VERDICT, "The files in the results folder do not fit together; the row says how."),
    (NOT_STARTED, "No run was started yet."),
)  # fmt: skip


def render_audit(audit: Audit, figures: Sequence[FigureFile], figure_folder: Path) -> str:
    """The HTML text, with every figure inline."""
    drawn = {figure.name: figure for figure in figures}
    tiers = [
        {
            "name": tier,
            "tally": tally((entry for entry in entries if entry.ours), primary=True),
            "num_claims": sum(entry.ours for entry in entries),
            "num_judged": sum(bool(entry.claims) for entry in entries if entry.ours),
            "num_agreed": sum(
                ":" not in verdict_word(entry.claims) for entry in entries if entry.ours and entry.claims
            ),
            "errors": error_rate_words(error_rate(entry for entry in entries if entry.ours)),
            "rows": [_row(entry, drawn, figure_folder) for entry in entries],
        }
        for tier, entries in audit.tiers.items()
    ]
    used = {entry_word(entry).partition(":")[0] for entry in audit.entries}
    used |= {row.verdict.outcome for entry in audit.entries for row in with_other_inits(entry.claims)}
    used = {part for word in used for part in word.split(", ")}
    texts = {text for entry in audit.entries for text in (*entry.spec.sources, *entry.spec.against)}
    return template("audit.html.j2").render(
        name="audit",
        tiers=tiers,
        glossary=[(word, words) for word, words in GLOSSARY if word in used],
        files={label(text): text for text in sorted(texts)},
        asides=audit.asides,
        how_to_read=HOW_TO_READ,
    )


def _row(entry: Entry, drawn: dict[str, FigureFile], figure_folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": entry.key, "spec": entry.spec, "ours": entry.ours, "texts": texts_words(entry.spec),
        "verdict": entry_word(entry), "judged": entry.judged is not None, "changed": entry.changed,
    }  # fmt: skip
    if entry.judged is None:
        return row
    judged, selection = entry.judged, entry.judged.selection
    own = [name for kind, _, _ in AUDIT_FIGURES if (name := f"{entry.key}-{kind}") in drawn]
    return {
        **row,
        "compared": compared(entry.spec.comparisons[0]),
        "primary": entry_word(entry, primary=True),
        "num": len(entry.claims),
        "effect": [_unbroken(line) for line in primary_effect(entry)],
        "pairs": primary_pairs(entry),
        "gates": gates(entry),
        "meaning": meaning(entry),
        "figures": [(_captioned_once(drawn[name]), inline_svg(figure_folder / f"{name}.svg", name)) for name in own],
        "readings": verdict_sentences(entry.claims, selection),
        "arms": arms_table(selection),
        "left_out": left_out(entry),
        "remarks": notes(selection, entry.spec, judged.ladders, entry.claims),
        "frozen": judged.frozen,
        "statuses": judged.frame.runs["status"].value_counts().to_dict(),
        "fixed": fixed_words(selection).removeprefix("Fixed: "),
        "environments": environments_of(judged.frame),
    }


def _captioned_once(figure: FigureFile) -> FigureFile:
    """Without what the page says once for all figures."""
    caption = figure.caption
    for words in HOW_TO_READ:
        caption = caption.removeprefix(words).lstrip()
    return replace(figure, caption=caption)


def _unbroken(line: str) -> str:
    """With intervals that no line break parts."""
    return re.sub(r"\[.*?\]", lambda interval: interval.group().replace(" ", "\u00a0"), line)
