"""Reads one mapping of a config key by key, with types and ranges, and refuses in one line what does not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bnexp.errors import ConfigError, did_you_mean


class Section:
    """Reads the keys of one mapping with their types and ranges, then refuses what is left over."""

    def __init__(self, prefix: str, raw: Any) -> None:
        if not isinstance(raw, Mapping):
            raise ConfigError(prefix or "config", got=raw, hint="expected a mapping of keys")
        self.prefix, self.raw, self.read = prefix, dict(raw), set[str]()

    def key(self, name: str) -> str:
        return f"{self.prefix}.{name}" if self.prefix else name

    def take(self, name: str) -> Any:
        if name not in self.raw:
            raise ConfigError(self.key(name), got=None, hint="this key is missing")
        self.read.add(name)
        return self.raw[name]

    def choice(self, name: str, choices: Sequence[str]) -> str:
        value = self.take(name)
        value = "none" if value is None and "none" in choices else value
        if value not in choices:
            raise ConfigError(self.key(name), got=value, choices=choices)
        return str(value)

    def boolean(self, name: str) -> bool:
        value = self.take(name)
        if not isinstance(value, bool):
            raise ConfigError(self.key(name), got=value, choices=("true", "false"))
        return value

    def integer(self, name: str, *, at_least: int) -> int:
        value = self.take(name)
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or value < at_least:
            raise ConfigError(self.key(name), got=value, hint=f"expected a whole number of at least {at_least}")
        return int(value)

    def number(
        self, name: str, *, above: float = -math.inf, at_least: float = -math.inf, at_most: float = math.inf,
        below: float = math.inf,
    ) -> float:  # fmt: skip
        value = self.take(name)
        bounds = [
            text
            for bound, text in (
                (above, f"above {above:g}"),
                (at_least, f"at least {at_least:g}"),
                (at_most, f"at most {at_most:g}"),
                (below, f"below {below:g}"),
            )
            if math.isfinite(bound)
        ]
        hint = f"expected a finite number {' and '.join(bounds)}".rstrip()
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(self.key(name), got=value, hint=hint)
        if not (above < value < below and at_least <= value <= at_most):
            raise ConfigError(self.key(name), got=value, hint=hint)
        return float(value)

    def optional_integer(self, name: str, *, at_least: int) -> int | None:
        return None if self.take(name) is None else self.integer(name, at_least=at_least)

    def optional_number(self, name: str, **bounds: float) -> float | None:
        return None if self.take(name) is None else self.number(name, **bounds)

    def plain(self, name: str) -> Any:
        """A value that is kept as it is: null, a flag, a number or a text."""
        value = self.take(name)
        if not isinstance(value, bool | int | float | str | None) or (
            isinstance(value, float) and not math.isfinite(value)  # JSON has no name for it
        ):
            raise ConfigError(self.key(name), got=value, hint="expected null, true or false, a finite number or a text")
        return value

    def checked(self, name: str, method: str, bounds: Mapping[str, Any]) -> Any:
        """What the method of this name reads."""
        return getattr(self, method)(name, **bounds)

    def close(self) -> None:
        unknown = sorted(set(self.raw) - self.read)
        if unknown:
            raise unknown_key(self.key(unknown[0]), [self.key(name) for name in sorted(self.read)])


def unknown_key(key: str, known: Sequence[str]) -> ConfigError:
    """The error for a key that does not exist, with the nearest one that does."""
    stem, _, leaf = key.rpartition(".")
    siblings = [name for name in sorted(set(known)) if name.rpartition(".")[0] == stem]
    shown = ", ".join(siblings or (name for name in sorted(set(known)) if "." not in name))
    return ConfigError(key, got=leaf, hint=f"no such key; keys here: {shown or 'none'}{did_you_mean(key, known)}")
