"""The declared studies and the other YAML files, read without Hydra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bnexp.choices import choices
from bnexp.errors import ConfigError
from bnexp.study import StudySpec, study_from_dict

EVERY_STUDY = "all"  # `study=all`


def list_studies(config_dir: Path | None = None) -> dict[str, StudySpec]:
    """Every declared study by name, the user's own from `config_dir` included.

    Raises:
        ConfigError: a file that is no study.
    """
    return {name: load_study(path) for name, path in choices("study", config_dir).items()}


def load_study(path: Path) -> StudySpec:
    """The study that a file declares.

    Raises:
        ConfigError: it is not YAML, no valid declaration, or not called what the study is called.
    """
    raw = read_yaml(path)
    require_mapping(raw, path)
    try:
        spec = study_from_dict({} if raw is None else raw)
        if path.stem == EVERY_STUDY:
            raise ConfigError("study.name", got=spec.name, hint="stands for all studies: call it something else")
        if spec.name != path.stem:
            raise ConfigError("study.name", got=spec.name, hint="has to be the name of its file")
    except ConfigError as error:
        raise ConfigError("study", got=path.stem, hint=f"{path}: {error}") from error
    return spec


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: its syntax, with the line.
    """
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise yaml_error(error, path) from error


def require_mapping(raw: Any, path: Path) -> None:
    """Raises ConfigError where the content of a YAML file is no mapping."""
    if raw is not None and not isinstance(raw, Mapping):
        raise ConfigError("YAML", got=str(path), hint=f"expected a mapping of keys, KEY: VALUE; it holds {raw!r}")


def yaml_error(error: yaml.YAMLError, path: Path | None) -> ConfigError:
    """One line for a syntax error: the file, the line and the problem."""
    mark = getattr(error, "problem_mark", None)
    where = str(path) if path is not None else str(getattr(mark, "name", "a YAML file"))
    line = "" if mark is None else f" line {mark.line + 1}"
    problem = getattr(error, "problem", None) or str(error).strip().partition("\n")[0] or type(error).__name__
    return ConfigError("YAML", got=f"{where}{line}", hint=f"syntax error: {problem}")
