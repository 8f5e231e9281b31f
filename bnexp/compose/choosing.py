"""The choices of config groups: whether they are there, and where Hydra finds those of packages and users."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from bnexp.catalog import read_yaml, require_mapping
from bnexp.choices import choice_names, choices, config_root, groups, is_ours
from bnexp.compose.arguments import key_of
from bnexp.compose.grammar import Grammar, refuse_probes_as_grid
from bnexp.errors import ConfigError
from bnexp.plugins import GROUPS as PLUGIN_AXES
from bnexp.plugins import plugin_error, plugin_names, plugin_options

# what stands between the names in `[gradients,shift]`, `rms,batch` and `choice(rms,batch)`
BETWEEN_NAMES = re.compile(r"[\s,()\[\]{}'\":]+")


def check_choice(group: str, value: str, config_dir: Path | None, grammar: Grammar) -> None:
    """Raises ConfigError where a group has no such choice; of probes, several may be chosen at once."""
    found = choice_names(group, config_dir)
    wanted = grammar.value(group, value) if value.startswith("[") else [value]
    for name in wanted:
        if name not in found:
            hint = "several are a list, probes=[gradients,shift], and none of them probes=[]"
            raise ConfigError(group, got=name, choices=found, hint=hint if group == "probes" else "")
        refuse_shadow(group, name)
        path = choices(group, config_dir).get(name)
        if path is not None and not is_ours(group, name):
            require_mapping(read_yaml(path), path)
    if value.startswith("[") and group != "probes":
        raise ConfigError(group, got=value, hint=f"one at a time, or a grid: -m {group}={','.join(map(str, wanted))}")


def check_plain_choices(overrides: Sequence[str], config_dir: Path | None) -> None:
    """`check_choice` for what Hydra will compose itself; what is no plain name or list is left to it."""
    known, grammar = groups(config_dir), Grammar()
    for key, _, value in (o.partition("=") for o in overrides):
        if key == "probes":
            refuse_probes_as_grid(value)
        if key in known and not re.search(r"[(*$'\"]", value):
            for name in [value] if value.startswith("[") else value.split(","):
                check_choice(key, name.strip(), config_dir, grammar)


def refuse_shadow(axis: str, name: str) -> None:
    """Raises ConfigError where a package adds a choice of the name of one of ours: which of them was meant?"""
    if axis in PLUGIN_AXES and name in plugin_names(axis) and is_ours(axis, name):
        raise plugin_error(axis, name, f"has the name of bnexp's own {axis}={name}: rename that entry point")


def write_plugin_choices(folder: Path, overrides: Sequence[str]) -> None:
    """Write the YAML files of those choices of installed packages that the overrides name."""
    for axis in PLUGIN_AXES:
        values = [override.partition("=")[2] for override in overrides if key_of(override) == axis]
        words = {word for value in values for word in BETWEEN_NAMES.split(value)}
        for name in sorted(words.intersection(plugin_names(axis))):
            if not is_ours(axis, name):  # which validation refuses
                _write_plugin_choice(folder, axis, name)


def search_path(config_dir: Path | None, folder: Path) -> str:
    """The override that tells Hydra where else to look: the user's folder, and that of packages' choices."""
    found = [*([] if config_dir is None else [config_dir]), folder]
    return f"hydra.searchpath=[{','.join(f'file://{path}' for path in found)}]"


def _write_plugin_choice(folder: Path, axis: str, name: str) -> None:
    """The YAML file that a norm, model or data set of an installed package would have here."""
    base = {"norm": "layer", "model": "cnn", "data": "mnist"}[axis]
    section = yaml.safe_load((config_root() / axis / f"{base}.yaml").read_text())
    if axis == "norm":
        section = {key: section[key] for key in ("placement", "where")} | {"kind": name}
    else:
        section |= {"name": name}
    if axis != "data":
        section |= plugin_options(axis, name)
    (folder / axis).mkdir(exist_ok=True)
    (folder / axis / f"{name}.yaml").write_text(yaml.safe_dump(section))
