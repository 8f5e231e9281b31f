"""`norm.where`: which of a network's norm positions have their norm."""

from __future__ import annotations

import re

from bnexp.errors import ConfigError

EXPECTED = "expected all, none, input, first, last or a layer's number, joined by + and -, such as all-2 or input+first"
TERM = re.compile(r"([+-]?)(all|none|input|first|last|\d+)")


def select_positions(where: str, count: int) -> tuple[frozenset[int], bool]:
    """The selected positions, numbered from 0 in forward order, and whether the network's input has a norm too.

    Terms apply from left to right: `all-2` leaves one out, `3` puts one in, `input+all` adds one on the input.

    Args:
        count: norm positions of the network, the input's not counted.

    Raises:
        ConfigError: it does not read so, or names a position that the network does not have.
    """
    terms = TERM.findall(where)
    if not terms or "".join(sign + term for sign, term in terms) != where or terms[0][0] == "-":
        raise ConfigError("norm.where", got=where, hint=EXPECTED)
    chosen: set[int] = set()
    on_input = False
    for index, (sign, term) in enumerate(terms):
        if index and not sign:
            raise ConfigError("norm.where", got=where, hint=EXPECTED)
        if term == "input":
            on_input = sign != "-"
            continue
        named = _positions(term, count, where)
        chosen = chosen - named if sign == "-" else chosen | named
    return frozenset(chosen), on_input


def canonical_where(where: str, count: int) -> str:
    """One spelling for each selection, so that `first` and `0` are the same run."""
    chosen, on_input = select_positions(where, count)
    rest = "all" if 0 < len(chosen) == count else _shortest(chosen, count)
    if not on_input:
        return rest or "none"
    return f"input+{rest}" if rest else "input"


def _positions(term: str, count: int, where: str) -> set[int]:
    if term in ("all", "none"):
        return set(range(count)) if term == "all" else set()
    position = {"first": 0, "last": count - 1}.get(term, int(term) if term.isdigit() else 0)
    if not 0 <= position < count:
        few = {0: "no norm layer", 1: "one norm layer, 0,"}
        named = few.get(count, f"{count} norm layers, 0 to {count - 1},")
        hint = f"this network has {named} besides the input"
        raise ConfigError("norm.where", got=where, hint=hint)
    return {position}


def _shortest(chosen: frozenset[int], count: int) -> str:
    """`0+3`, or `all-2` where fewer are left out than kept."""
    left_out = sorted(set(range(count)) - chosen)
    if len(left_out) < len(chosen):
        return "all" + "".join(f"-{index}" for index in left_out)
    return "+".join(map(str, sorted(chosen)))
