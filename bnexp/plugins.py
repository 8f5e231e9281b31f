"""What a user's own package adds: norms, models and data sets behind entry points, found without a registry.

[project.entry-points."bnexp.norms"]
mine = "my_package:MyNorm"

A norm is a class whose constructor's parameters are its options (each with a default) and which has
`make(num_features, *, ndim)`; a model is an `nn.Module` class with the signature of `bnexp.nn.cnn.Cnn`; a data set is a
function of one argument, the root folder or None, that gives (train_images, train_labels, test_images, test_labels):
uint8 (N, C, H, W) and int64 (N,).
"""

from __future__ import annotations

import inspect
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bnexp.errors import ConfigError

GROUPS = {"norm": "bnexp.norms", "model": "bnexp.models", "data": "bnexp.data"}
LABELS = {"norm": "norm.kind", "model": "model.name", "data": "data.name"}


def plugin_names(axis: str) -> tuple[str, ...]:
    """The choices that installed packages add to `axis`: norm, model or data. Imports none of them."""
    return tuple(sorted(_entries(axis)))


def load_plugin(axis: str, name: str) -> Any:
    """The object behind an entry point.

    Raises:
        ConfigError: its package cannot be imported, or lacks it.
    """
    entry = _entries(axis)[name]
    try:
        return entry.load()
    except Exception as error:  # whatever a user's module raises when it is imported is the user's to read
        raise plugin_error(axis, name, f"cannot be imported: {type(error).__name__}: {error}") from error


def plugin_options(axis: str, name: str, *, given: tuple[str, ...] = ()) -> dict[str, Any]:
    """Option -> default, from the parameters of the constructor.

    Args:
        given: parameters that bnexp fills in itself.

    Raises:
        ConfigError: an option without a default, or with one that YAML cannot hold.
    """
    options: dict[str, Any] = {}
    for parameter in inspect.signature(load_plugin(axis, name)).parameters.values():
        if parameter.name in given or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if not isinstance(parameter.default, bool | int | float | str | None):
            why = "has no default" if parameter.default is parameter.empty else "has a default that YAML cannot hold"
            raise plugin_error(axis, name, f"option {parameter.name!r} {why}")
        options[parameter.name] = parameter.default
    return options


def require_signature(axis: str, name: str, function: Any, expected: str, *args: Any, **kwargs: Any) -> None:
    """Raises ConfigError where `function` cannot be called with these arguments."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise plugin_error(axis, name, f"must accept {expected} ({error})") from error


def plugin_error(axis: str, name: str, problem: str) -> ConfigError:
    """The one line that says which package misbehaves and how."""
    entry = _entries(axis)[name]
    origin = f" of package {entry.dist.name!r}" if entry.dist is not None else ""
    return ConfigError(LABELS[axis], got=name, hint=f"{entry.value}{origin} {problem}")


@cache  # reading the metadata of all that is installed takes milliseconds, and a grid asks thousands of times
def _entries(axis: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUPS[axis])}
