"""What a user's own package adds: norms, models and data sets behind entry points, found without a registry.

[project.entry-points."bnexp.norms"]
mine = "my_package:MyNorm"

A norm is a class whose constructor's parameters are its options (each with a default) and which has
`make(num_features, *, ndim)`; a model is an `nn.Module` class with the signature of `bnexp.nn.cnn.Cnn`; a data set is a
function of one argument, the root folder or None, that gives (train_images, train_labels, test_images, test_labels):
uint8 (N, C, H, W) and int64 (N,). A layer has running statistics, for probes and evaluation, where it has buffers
`running_mean` and `running_var` of shape (C,).
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from bnexp.errors import BnexpError, ConfigError

GROUPS = {"norm": "bnexp.norms", "model": "bnexp.models", "data": "bnexp.data"}
LABELS = {"norm": "norm.kind", "model": "model.name", "data": "data.name"}
# parameters that bnexp fills in itself, and names that are keys of every norm or model and so cannot be options
GIVEN = {"model": ("in_channels", "image_size", "num_classes", "depth", "width", "units")}
RESERVED = {
    "norm": ("kind", "placement", "where", "code"),
    "model": (
        "name", "activation", "init", "init_gain", "dropout", "dropout_placement", "norm", "placement", "where",
        "positions", "code",
    ),
}  # fmt: skip


def plugin_names(axis: str) -> tuple[str, ...]:
    """The choices that installed packages add to `axis`: norm, model or data. Imports none of them."""
    return tuple(sorted(_entries(axis)))


def load_plugin(axis: str, name: str) -> Any:
    """The object behind an entry point.

    Raises:
        ConfigError: its package cannot be imported, or lacks it.
    """
    with plugin_errors(axis, name, "cannot be imported"):
        return _entries(axis)[name].load()


def code_of(axis: str, name: str) -> str:
    """`my-package 1.0 0123456789ab`: distribution, version, and the start of the SHA-256 of its source.

    The source is the file of the module that the entry point names and, where the object comes from another, of that.
    What these import is told apart by the version alone.
    """
    entry = _entries(axis)[name]
    modules = dict.fromkeys((entry.module, getattr(load_plugin(axis, name), "__module__", entry.module)))
    paths = [Path(getattr(sys.modules.get(module), "__file__", None) or "") for module in modules]
    sources = [path.read_bytes() for path in paths if path.is_file()]
    digest = hashlib.sha256(b"".join(sources)).hexdigest()[:12] if sources else "without-file"
    return " ".join(([entry.dist.name, entry.dist.version] if entry.dist is not None else []) + [digest])


def plugin_headline(axis: str, name: str) -> str:
    """The first line of its docstring and its package's name, or why it cannot be imported."""
    entry = _entries(axis)[name]
    origin = entry.dist.name if entry.dist is not None else entry.value
    try:
        text = str(getattr(load_plugin(axis, name), "__doc__", None) or "").strip().partition("\n")[0]
    except ConfigError as error:
        text = f"cannot be imported: {what_happened(error.__cause__ or error)}"
    return f"{text} (package {origin})" if text else f"from package {origin}"


def plugin_options(axis: str, name: str) -> dict[str, Any]:
    """Option -> default, from the parameters of the constructor.

    Raises:
        ConfigError: an option without a default, with one that YAML cannot hold, or named as a key of bnexp's own.
    """
    options: dict[str, Any] = {}
    made = load_plugin(axis, name)
    with plugin_errors(axis, name, "cannot be called"):
        parameters = inspect.signature(made).parameters.values()
    for parameter in parameters:
        if parameter.name in GIVEN.get(axis, ()) or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in RESERVED[axis]:
            raise plugin_error(axis, name, f"option {parameter.name!r} bears a name that bnexp uses itself: rename it")
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


@contextmanager
def plugin_errors(axis: str, name: str, doing: str) -> Iterator[None]:
    """Whatever a user's code raises inside is the user's to read, in one line that says what it was `doing`."""
    try:
        yield
    except BnexpError:  # says already what is wrong
        raise
    except Exception as error:
        raise plugin_error(axis, name, f"{doing}: {what_happened(error)}") from error


def what_happened(error: BaseException) -> str:
    """`ValueError: its first line`."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def plugin_error(axis: str, name: str, problem: str) -> ConfigError:
    """The one line that says which package misbehaves and how."""
    entry = _entries(axis)[name]
    origin = f" of package {entry.dist.name!r}" if entry.dist is not None else ""
    return ConfigError(LABELS[axis], got=name, hint=f"{entry.value}{origin} {problem}")


@cache  # reading the metadata of all that is installed takes milliseconds, and a grid asks thousands of times
def _entries(axis: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUPS[axis])}
