"""Numbers, tables and paragraphs as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

Row = dict[str, str]


def value(row: Row, name: str) -> float:
    return float(row[name])


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def whole(share: float) -> str:
    return f"{100 * share:.0f} %"


def ladder(text: str) -> str:
    """A vertical bar would end a cell of a table."""
    control, _, treatment = text.partition(" | ")
    return f"`{control}` against `{treatment}`" if treatment else f"`{control}`"


def filled(text: str) -> str:
    """Paragraphs and items with lines of one length, whatever numbers came into them."""
    blocks = []
    for block in text.split("\n\n"):
        if block.startswith(("|", "#", "!")):
            blocks.append(block)
            continue
        items = re.split(r"\n(?=- )", block.strip("\n"))
        blocks.append(
            "\n".join(
                textwrap.fill(
                    " ".join(item.split()),
                    110,
                    subsequent_indent="  " if item.startswith("- ") else "",
                    break_long_words=False,
                    break_on_hyphens=False,
                )
                for item in items
            )
        )
    return "\n\n".join(blocks) + "\n"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(line)} |" for line in lines)]
    )
