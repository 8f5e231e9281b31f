"""Tables and sentences in the columns of a terminal."""

from __future__ import annotations

import textwrap

import pandas as pd

from bnexp.report.tables import Table

COLUMNS = 100
# (what goes on a line of its own above its rows, what is left out) where a table is too wide: the first that suffices.
# What other analyses say is told by the sentences below the table too.
LAYOUTS = (
    (("stratum",), ()),
    (("compared", "claimed"), ()),
    (("compared", "claimed"), ("other analyses",)),
    (("compared", "claimed", "stratum"), ("other analyses",)),
)


def plain_text(table: Table) -> str:
    """A table in aligned columns; where it is too wide, what many rows share becomes a heading."""
    shown = table.shown.astype(str)
    lines = _align([list(shown.columns), *shown.to_numpy().tolist()])
    for heading, left_out in LAYOUTS:
        if max(map(len, lines)) <= COLUMNS:
            break
        if {*heading, *left_out} <= set(shown.columns):
            lines = _under_headings(shown.drop(columns=list(left_out)), list(heading))
    return "\n".join([table.title, *lines])


def wrap(mark: str, line: str) -> str:
    """A line behind a mark, broken where the terminal ends."""
    return textwrap.fill(
        mark + line, COLUMNS, subsequent_indent=" " * len(mark), break_long_words=False, break_on_hyphens=False
    )


def _under_headings(shown: pd.DataFrame, heading: list[str]) -> list[str]:
    rest = shown.drop(columns=heading)
    head, *rows = _align([list(rest.columns), *rest.to_numpy().tolist()])
    lines, last = [f"  {head}"], None
    for words, row in zip(shown[heading].to_numpy().tolist(), rows, strict=True):
        named = zip(heading[1:], words[1:], strict=True)
        told = wrap("", "; ".join([words[0], *(f"{column}: {word}" for column, word in named)]))
        lines += [*([] if told == last else told.split("\n")), f"  {row}"]
        last = told
    return lines


def _align(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
