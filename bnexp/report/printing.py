"""Tables and sentences in the columns of a terminal."""

from __future__ import annotations

import textwrap

from bnexp.report.tables import Table

COLUMNS = 100
# what goes on a line of its own above its rows where a table is too wide, the first that suffices
HEADINGS = (("stratum",), ("compared", "claimed"), ("compared", "claimed", "stratum"))


def plain_text(table: Table) -> str:
    """A table in aligned columns; where it is too wide, what many rows share becomes a heading."""
    lines = _align([list(map(str, table.shown.columns)), *table.shown.astype(str).to_numpy().tolist()])
    for heading in HEADINGS:
        if max(map(len, lines)) <= COLUMNS:
            break
        if set(heading) <= set(table.shown.columns) and len(table.shown.columns) > len(heading):
            lines = _under_headings(table, list(heading))
    return "\n".join([table.title, *lines])


def wrap(mark: str, line: str) -> str:
    """A line behind a mark, broken where the terminal ends."""
    return textwrap.fill(
        mark + line, COLUMNS, subsequent_indent=" " * len(mark), break_long_words=False, break_on_hyphens=False
    )


def _under_headings(table: Table, heading: list[str]) -> list[str]:
    rest = table.shown.drop(columns=heading).astype(str)
    head, *rows = _align([list(rest.columns), *rest.to_numpy().tolist()])
    lines, last = [f"  {head}"], None
    for words, row in zip(table.shown[heading].astype(str).to_numpy().tolist(), rows, strict=True):
        told = wrap("", ": ".join(words))
        lines += [f"  {row}"] if told == last else [told, f"  {row}"]
        last = told
    return lines


def _align(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
