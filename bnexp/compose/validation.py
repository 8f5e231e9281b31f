"""Composed plain values -> a RunConfig and an ExecConfig, and the one place where a dotted key is set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bnexp.catalog import read_yaml
from bnexp.choices import choices
from bnexp.compose.choosing import refuse_shadow
from bnexp.config import ExecConfig, RunConfig, exec_config_from_dict, run_config_from_dict
from bnexp.errors import ConfigError
from bnexp.section import unknown_key


def validate_run(raw: Mapping[str, Any]) -> RunConfig:
    """The run of a composed config: what is no part of a run's identity is left out of it, precision taken in."""
    run = {str(key): value for key, value in raw.items() if key not in ("exec", "results", "probes")}
    run["data"] = {key: value for key, value in run["data"].items() if key != "root"}
    try:
        config = run_config_from_dict(run | {"precision": raw["exec"]["precision"]})
    except ConfigError as error:
        if error.key == "precision":
            raise ConfigError("exec.precision", got=error.got, choices=error.choices) from None
        raise
    for axis, name in (("data", config.data.name), ("model", config.model.name), ("norm", config.norm.kind)):
        refuse_shadow(axis, name)
    return config


def validate_exec(raw: Mapping[str, Any]) -> ExecConfig:
    """Where the runs of a composed config are executed."""
    section = {key: value for key, value in raw["exec"].items() if key != "precision"}
    return exec_config_from_dict(
        section | {"data_root": raw["data"].get("root"), "results": raw["results"], "probes": raw["probes"]}
    )


def set_key(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key that must exist already.

    Raises:
        ConfigError: there is no such key, or it stands for several.
    """
    *parents, leaf = key.split(".")
    node: Any = raw
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict) or leaf not in node:
        _refuse_option_of_probe(raw, key, value)
        raise unknown_key(key, [*_leaves(raw), "study", "tier"])
    if isinstance(node[leaf], dict):
        keys = ", ".join(_leaves(node[leaf], f"{key}."))
        hint = f"this is a group of keys; set one of them: {keys}" if keys else "this has no keys to set"
        chosen = "; what is measured is what probes=[...] lists" if parents == ["probes"] else ""
        raise ConfigError(key, got=value, hint=f"{hint}{chosen}")
    node[leaf] = value


def copy_nested(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose keys can be set."""
    return {key: copy_nested(value) if isinstance(value, dict) else value for key, value in raw.items()}


def _refuse_option_of_probe(raw: dict[str, Any], key: str, value: Any) -> None:
    """Raises ConfigError for an option of a probe that is not chosen, or that has none."""
    group, name = [*key.split("."), ""][:2]
    if group != "probes" or name not in choices("probes", None):
        return
    probes = ",".join([*(probe for probe in raw["probes"] if probe != name), name])
    if not read_yaml(choices("probes", None)[name])[name]:
        raise ConfigError(key, got=value, hint=f"this probe has no options; probes=[{probes}] chooses it")
    if name not in raw["probes"]:
        raise ConfigError(key, got=value, hint=f"choose this probe first: probes=[{probes}]")


def _leaves(raw: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in raw.items():
        if isinstance(value, Mapping):
            yield f"{prefix}{key}"
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
