"""What can go wrong through no bug of ours: typed, and each readable as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BnexpError(Exception):
    """A mistake the user can mend: printed as one line, exit code 2."""


class ConfigError(BnexpError):
    """A key whose value cannot be used.

    Args:
        key: the dotted key as the user would type it, e.g. `norm.kind`.
        got: the value that was refused.
        choices: the values that would do, where they can be listed.
        hint: what is expected, or what to do instead.
    """

    def __init__(self, key: str, *, got: object, choices: Iterable[str] = (), hint: str = "") -> None:
        self.key, self.got, self.choices = key, got, tuple(choices)
        if self.choices:
            text = f"{got!r} is not one of {', '.join(self.choices)}{did_you_mean(got, self.choices)}"
            text += f"; {hint}" if hint else ""
        else:
            text = f"{got!r}: {hint}"
        super().__init__(f"{key}: {text}")

    def __reduce__(self) -> tuple[object, ...]:  # crosses process borders with its text
        return (_rebuild, (type(self), str(self)))


class DataError(BnexpError):
    """A data set that is missing, broken or inconsistent."""


class StoreError(BnexpError):
    """A results folder that cannot be read or written."""


class RunError(BnexpError):
    """A run that cannot be executed as asked on this machine."""


def did_you_mean(got: object, choices: Iterable[str]) -> str:
    """` (did you mean 'batch'?)` for the nearest choice, or an empty string."""
    near = difflib.get_close_matches(str(got), list(choices), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _rebuild(cls: type[BnexpError], text: str) -> BnexpError:
    error = cls.__new__(cls)
    Exception.__init__(error, text)
    return error
