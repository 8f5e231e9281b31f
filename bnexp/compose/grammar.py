"""Hydra's grammar of overrides: what is one value, what is an axis of a grid, and of what type each is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnexp.catalog import yaml_error
from bnexp.compose.studies import is_outside_study
from bnexp.errors import ConfigError


@dataclass
class Overrides:
    """Overrides, taken apart.

    Attributes:
        plain: key -> value, as it was written.
        axes: key -> values of those that are swept.
    """

    plain: dict[str, str] = field(default_factory=dict)
    axes: dict[str, list[str]] = field(default_factory=dict)

    def items(self) -> list[tuple[str, list[str]]]:
        """Key -> values of all of them."""
        return [*((key, [value]) for key, value in self.plain.items()), *self.axes.items()]


class Grammar:
    """Parses overrides; each text is parsed once, for that takes Hydra longer than all that is done with it."""

    def __init__(self) -> None:
        self._parser = OverridesParser.create()
        self._parsed: dict[str, Override] = {}
        self._values: dict[str, Any] = {}

    def split(self, overrides: Sequence[str], *, multirun: bool) -> Overrides:
        """Sort overrides into those with one value and the axes of a grid.

        Raises:
            ConfigError: one that Hydra cannot read, that is given twice, or that is swept and may not be.
        """
        found = Overrides()
        for text in overrides:
            override = self._parse(text)
            key, value = override.key_or_group, text.partition("=")[2]
            if override.is_add() or override.is_delete() or override.package is not None:
                raise ConfigError("argument", got=text, hint="keys are set, not added or deleted: write KEY=VALUE")
            if key in found.plain or key in found.axes:
                raise ConfigError(key, got=text, hint="this key is given twice")
            if override.is_sweep_override():
                _check_axis(key, text, multirun=multirun)
                found.axes[key] = _values_of(override, key, value)
            else:
                found.plain[key] = value
        return found

    def value(self, key: str, text: str) -> Any:
        """The typed value of `KEY=text`, by Hydra's grammar: 1e-3 is a number, [1,2] a list, null None."""
        whole = f"{key}={text}"
        if whole not in self._values:
            plain = OmegaConf.to_container(OmegaConf.create({"value": self._parse(whole).value()}), resolve=True)
            assert isinstance(plain, dict)
            self._values[whole] = plain["value"]
        return self._values[whole]

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            try:
                self._parsed[text] = self._parser.parse_override(text)
            except HydraException as error:
                raise ConfigError("argument", got=text, hint=first_line(error)) from error
        return self._parsed[text]


def _check_axis(key: str, text: str, *, multirun: bool) -> None:
    value = text.partition("=")[2]
    if key == "probes":
        refuse_probes_as_grid(value)
    if is_outside_study(key):
        raise ConfigError(key, got=value, hint="where runs are executed cannot be an axis of a grid")
    if not multirun:
        raise ConfigError(key, got=value, hint=f"several values are a grid; add -m: bnexp train -m {text}")


def _values_of(override: Override, key: str, value: str) -> list[str]:
    try:
        return [str(value) for value in override.sweep_string_iterator()]
    except HydraException as error:
        hint = f"a grid needs a list, choice(...) or range(...): {first_line(error)}"
        raise ConfigError(key, got=value, hint=hint) from error


def refuse_probes_as_grid(value: str) -> None:
    """Raises ConfigError for the spelling that everybody tries first: probes=gradients,shift."""
    if re.fullmatch(r"\w+(,\w+)+", value):
        raise ConfigError("probes", got=value, hint=f"several probes are a list: probes=[{value}]")


class one_line_errors:
    """Turns what Hydra, OmegaConf and YAML raise over the user's input into one ConfigError."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, yaml.YAMLError):
            raise yaml_error(error, None) from error
        if isinstance(error, HydraException | OmegaConfBaseException):
            cause = error.__cause__
            if isinstance(cause, yaml.YAMLError):
                raise yaml_error(cause, None) from error
            raise ConfigError("config", got=first_line(error), hint="Hydra could not compose this") from error


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
