"""Overrides -> validated runs.

A grid is composed once for each combination of config groups and then varied by value, which takes a fraction of a
millisecond a run where Hydra takes fifty; what Hydra composed once serves every arm and study.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from bnexp.choices import config_root, groups
from bnexp.compose.choosing import check_choice, search_path, write_plugin_choices
from bnexp.compose.grammar import Grammar, one_line_errors
from bnexp.compose.validation import copy_nested, set_key, validate_exec, validate_run
from bnexp.config import ExecConfig, RunConfig
from bnexp.errors import ConfigError


@dataclass(frozen=True)
class Grid:
    """The runs of some overrides, in sweep order, and the keys that were swept."""

    configs: tuple[RunConfig, ...]
    exec: ExecConfig
    swept: tuple[str, ...]


@contextmanager
def composer(config_dir: Path | None, *, multirun: bool) -> Iterator[Composer]:
    """A composer for as long as Hydra is set up; what Hydra raises in it is a ConfigError.

    Args:
        multirun: whether keys may have several values.
    """
    with (
        one_line_errors(),
        tempfile.TemporaryDirectory(prefix="bnexp-") as folder,
        initialize_config_dir(str(config_root()), version_base="1.3"),
    ):
        yield Composer(config_dir, Path(folder), multirun=multirun)


class Composer:
    """Composes grids, and remembers what Hydra made of each combination of config groups.

    Args:
        folder: where choices of installed packages are written, for Hydra to find.
    """

    def __init__(self, config_dir: Path | None, folder: Path, *, multirun: bool) -> None:
        self._config_dir, self._folder, self._multirun = config_dir, folder, multirun
        self._groups = groups(config_dir)
        self._grammar = Grammar()
        self._bases: dict[tuple[str, ...], dict[str, Any]] = {}
        self._checked: set[tuple[str, str]] = set()

    def grid(self, overrides: Sequence[str]) -> Grid:
        """Every run of a grid.

        Raises:
            ConfigError: anything in the overrides that cannot be used.
        """
        split = self._grammar.split(overrides, multirun=self._multirun)
        self._check_choices(split.items())
        values = self._values(split.items())
        fixed = [f"{key}={value}" for key, value in split.plain.items() if key in self._groups]
        bases: dict[tuple[str, ...], dict[str, Any]] = {}
        execs: list[ExecConfig] = []
        configs: list[RunConfig] = []
        for point in itertools.product(*(values.get(key, texts) for key, texts in split.axes.items())):
            chosen = dict(zip(split.axes, point, strict=True))
            picked = tuple(f"{key}={value}" for key, value in chosen.items() if key in self._groups)
            if picked not in bases:
                bases[picked] = copy_nested(self._base((*fixed, *picked)))
                for key in (key for key in split.plain if key in values):
                    set_key(bases[picked], key, values[key][0])
            raw = copy_nested(bases[picked])
            for key, value in chosen.items():
                if key in values:
                    set_key(raw, key, value)
            configs.append(validate_run(raw))
            execs += [validate_exec(raw)] if len(execs) < len(bases) else []
        return Grid(tuple(configs), agreed(execs), tuple(split.axes))

    def probes(self, overrides: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        """Probe -> its options, of the overrides that choose and set them."""
        split = self._grammar.split(overrides, multirun=self._multirun)
        self._check_choices(split.items())
        raw = copy_nested(self._base(tuple(f"{key}={value}" for key, value in split.plain.items() if key == "probes")))
        for key, (value,) in self._values(split.items()).items():
            set_key(raw, key, value)
        return validate_exec(raw).probes

    def _check_choices(self, items: Iterable[tuple[str, Sequence[str]]]) -> None:
        for pair in ((key, value) for key, values in items if key in self._groups for value in values):
            if pair not in self._checked:
                check_choice(*pair, self._config_dir, self._grammar)
                self._checked.add(pair)

    def _values(self, items: Iterable[tuple[str, Sequence[str]]]) -> dict[str, list[Any]]:
        """Key -> typed values of whatever is no choice of a group."""
        return {k: [self._grammar.value(k, text) for text in texts] for k, texts in items if k not in self._groups}

    def _base(self, chosen: tuple[str, ...]) -> dict[str, Any]:
        """What Hydra composes for these choices of groups."""
        if chosen not in self._bases:
            write_plugin_choices(self._folder, chosen)
            composed = hydra_compose("train", overrides=[search_path(self._config_dir, self._folder), *chosen])
            container = OmegaConf.to_container(composed, resolve=True)
            assert isinstance(container, dict)
            self._bases[chosen] = {str(key): value for key, value in container.items()}
        return self._bases[chosen]


def agreed(execs: Sequence[ExecConfig]) -> ExecConfig:
    """The one way to execute all of these; embedded data sets have no folder, so that others' stands.

    Raises:
        ConfigError: they do not agree.
    """
    roots = list(dict.fromkeys(config.data_root for config in execs if config.data_root is not None))
    if len(roots) > 1:
        raise ConfigError("data.root", got=" and ".join(map(str, roots)), hint="one folder for all runs: set data.root")
    settled = replace(execs[0], data_root=roots[0] if roots else None)
    for name in (field.name for field in fields(ExecConfig) if field.name not in ("data_root", "probes")):
        found = list(dict.fromkeys(getattr(config, name) for config in execs))
        if len(found) > 1:
            key = name if name == "results" else f"exec.{name}"
            hint = f"studies fix it in different ways: set {key} for all of them"
            raise ConfigError(key, got=" and ".join(map(str, found)), hint=hint)
    return settled
