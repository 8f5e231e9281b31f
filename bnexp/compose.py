"""argv -> validated RunConfigs. The only module that imports Hydra.

A grid is composed once for each combination of config groups and then varied by value, which takes about a
millisecond a run where Hydra's own sweep takes a hundred. A launcher or sweeper of the user's choice
(`hydra/launcher=joblib`), `--help`, `--cfg` and shell completion go through Hydra itself.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra import main as hydra_main
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnexp.config import ExecConfig, RunConfig, exec_config_from_dict, run_config_from_dict, unknown_key
from bnexp.errors import ConfigError
from bnexp.request import Request, StudyRequest
from bnexp.study import TIERS, StudySpec, study_from_dict

PLUGIN_GROUPS = ("hydra/launcher", "hydra/sweeper")
# Overrides that say where a run runs, and not what a study is.
NOT_PART_OF_A_STUDY = ("exec", "results", "data.root")


@dataclass
class _Argv:
    """The command line, taken apart."""

    overrides: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)  # those that Hydra answers itself
    multirun: bool = False
    config_dir: Path | None = None


def config_root() -> Path:
    """The folder of the project's own YAML files: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise ConfigError("configs", got=str(package), hint="the installed package lacks its YAML files: install it again")


def request_from_argv(argv: Sequence[str]) -> Request:
    """Compose and validate every run that the arguments of `train` or `plan` ask for.

    Raises:
        ConfigError: anything the user wrote that cannot be used.
    """
    parsed = _parse_argv(argv)
    overrides, study = _expand_study(parsed)
    plain, axes = _split_overrides(overrides, parsed)
    with _one_line_errors():
        configs, exec_config = _compose_grid(plain, axes, parsed.config_dir)
    return Request(tuple(configs), exec_config, study, tuple(axes), parsed.multirun, tuple(argv))


def wants_hydra(argv: Sequence[str]) -> bool:
    """Whether Hydra itself must handle these arguments: its own flags, a launcher, or a sweeper."""
    parsed = _parse_argv(argv)
    return bool(parsed.flags) or any(o.partition("=")[0] in PLUGIN_GROUPS for o in parsed.overrides)


def run_under_hydra(argv: Sequence[str], task: Callable[[RunConfig, ExecConfig], float | None]) -> None:
    """Hand the command line to Hydra; each job that it starts calls `task`, whose value an optimizing sweeper reads."""
    parsed = _parse_argv(argv)
    plugins = [o for o in parsed.overrides if o.partition("=")[0] in PLUGIN_GROUPS]
    overrides, study = _expand_study(parsed)
    if study is not None and plugins:
        hint = "a study is frozen and executed by bnexp itself: leave out the launcher or sweeper"
        raise ConfigError("study", got=study.spec.name, hint=hint)

    def job(raw: DictConfig) -> float | None:
        return task(*_validate(raw))

    flags = [*parsed.flags, *(["--multirun"] if parsed.multirun else [])]
    if parsed.config_dir is not None:
        flags += ["--config-dir", str(parsed.config_dir)]
    sys.argv = ["bnexp train", *flags, *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come back to us, who say them in one line
    with _one_line_errors():
        hydra_main(config_path=str(config_root()), config_name="train", version_base="1.3")(job)()


def list_studies(config_dir: Path | None = None) -> dict[str, StudySpec]:
    """Every declared study by name, the user's own from `config_dir` included."""
    return {name: _load_study(path) for name, path in _choices("study", config_dir).items()}


# --- argv


def _parse_argv(argv: Sequence[str]) -> _Argv:
    parsed = _Argv()
    rest = iter(argv)
    for word in rest:
        if word in ("-m", "--multirun"):
            parsed.multirun = True
        elif word in ("-cd", "--config-dir") or word.startswith("--config-dir="):
            value = word.partition("=")[2] or next(rest, None)
            parsed.config_dir = None if value is None else Path(value).absolute()
            if parsed.config_dir is None or not parsed.config_dir.is_dir():
                raise ConfigError("--config-dir", got=value, hint="not a folder")
        elif word in ("--cfg", "-c", "--package", "-p"):
            parsed.flags += [word, *itertools.islice(rest, 1)]
        elif word in ("--info", "-i"):
            parsed.flags.append(word)
            parsed.flags += list(itertools.islice(rest, 1))
        elif word in ("--help", "-h", "--hydra-help", "--resolve"):
            parsed.flags.append(word)
        elif word.startswith("-"):
            known = ("-m", "--multirun", "--config-dir", "--cfg", "--info", "--resolve", "--help")
            raise ConfigError("option", got=word, choices=known)
        elif "=" not in word:
            raise ConfigError("argument", got=word, hint="expected KEY=VALUE, such as norm=batch or lr=0.1")
        else:
            parsed.overrides.append(word)
    return parsed


def _expand_study(parsed: _Argv) -> tuple[list[str], StudyRequest | None]:
    """Replace `study=NAME tier=TIER` by the overrides that the study declares, the user's own taking precedence."""
    named = {key: value for key, _, value in (o.partition("=") for o in parsed.overrides) if key in ("study", "tier")}
    own = [o for o in parsed.overrides if o.partition("=")[0] not in ("study", "tier")]
    if "study" not in named:
        if "tier" in named:
            raise ConfigError("tier", got=named["tier"], hint="a tier belongs to a study: add study=NAME and -m")
        return own, None
    name, tier = named["study"], named.get("tier", "small")
    if "," in name:
        hint = f"one study at a time: bnexp train -m study={name.split(',')[0]}"
        raise ConfigError("study", got=name, hint=hint)
    choices = _choices("study", parsed.config_dir)
    if name not in choices:
        raise ConfigError("study", got=name, choices=choices)
    spec = _load_study(choices[name])
    if tier not in spec.tiers:
        raise ConfigError("tier", got=tier, choices=[t for t in TIERS if t in spec.tiers], hint=f"tiers of {name}")
    if not parsed.multirun:
        raise ConfigError(
            "study", got=name, hint=f"a study is a grid of runs; ask for it with -m: bnexp train -m study={name}"
        )
    own_keys = {o.partition("=")[0] for o in own}
    declared = {k: v for k, v in spec.overrides(tier).items() if k not in own_keys}
    changes = tuple(o for o in own if not _is_outside_study(o.partition("=")[0]))
    expanded = [f"{key}={_as_override(value)}" for key, value in declared.items()]
    return [*expanded, *own], StudyRequest(spec, tier, changes)


def _is_outside_study(key: str) -> bool:
    if key == "exec.precision":
        return False
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in NOT_PART_OF_A_STUDY)


def _as_override(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_as_override(v) for v in value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return "[" + ",".join(_as_override(v) for v in value) + "]"
    return str(value)


def _split_overrides(overrides: list[str], parsed: _Argv) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Key -> value for those with one value, key -> values for the axes of the grid."""
    plain: dict[str, str] = {}
    axes: dict[str, list[str]] = {}
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise ConfigError("argument", got=text, hint=_first_line(error)) from error
        key = override.key_or_group
        if override.is_add() or override.is_delete() or override.package is not None:
            raise ConfigError("argument", got=text, hint="keys are set, not added or deleted: write KEY=VALUE")
        if key in plain or key in axes:
            raise ConfigError(key, got=text, hint="this key is given twice")
        if not override.is_sweep_override():
            plain[key] = text.partition("=")[2]
            continue
        if not parsed.multirun:
            raise ConfigError(
                key, got=text.partition("=")[2], hint=f"several values are a grid; add -m: bnexp train -m {text}"
            )
        if _is_outside_study(key):
            raise ConfigError(
                key, got=text.partition("=")[2], hint="where runs are executed cannot be an axis of a grid"
            )
        try:
            axes[key] = [str(value) for value in override.sweep_string_iterator()]
        except HydraException as error:
            hint = f"a grid needs a list, choice(...) or range(...): {_first_line(error)}"
            raise ConfigError(key, got=text.partition("=")[2], hint=hint) from error
    return plain, axes


# --- composing


def _compose_grid(
    plain: dict[str, str], axes: dict[str, list[str]], config_dir: Path | None
) -> tuple[list[RunConfig], ExecConfig]:
    groups = _groups(config_dir)
    group_keys = [key for key in (*plain, *axes) if key in groups]
    for key in group_keys:
        choices = _choices(key, config_dir)
        for value in [plain[key]] if key in plain else axes[key]:
            if value not in choices:
                raise ConfigError(key, got=value, choices=choices)
    fixed = [f"{key}={value}" for key, value in plain.items() if key in groups]
    search = [] if config_dir is None else [f"hydra.searchpath=[file://{config_dir}]"]
    values = {key: [_parse_value(key, value)] for key, value in plain.items() if key not in groups}
    values |= {key: [_parse_value(key, value) for value in v] for key, v in axes.items() if key not in groups}
    bases: dict[tuple[str, ...], dict[str, Any]] = {}
    configs: list[RunConfig] = []
    exec_config: ExecConfig | None = None
    with initialize_config_dir(str(config_root()), version_base="1.3", job_name="bnexp"):
        for point in itertools.product(*(axes[key] if key in groups else values[key] for key in axes)):
            chosen = dict(zip(axes, point, strict=True))
            picked = tuple(f"{key}={value}" for key, value in chosen.items() if key in groups)
            if picked not in bases:
                composed = hydra_compose("train", overrides=[*search, *fixed, *picked])
                container = OmegaConf.to_container(composed, resolve=True)
                assert isinstance(container, dict)
                bases[picked] = {str(key): value for key, value in container.items()}
                for key, (value,) in ((k, v) for k, v in values.items() if k not in axes):
                    _set(bases[picked], key, value)
            raw = _copy(bases[picked])
            for key, value in chosen.items():
                if key not in groups:
                    _set(raw, key, value)
            config, exec_config = _validate(raw)
            configs.append(config)
    assert exec_config is not None  # a product of non-empty axes has at least one point
    return configs, exec_config


def _validate(raw: DictConfig | dict[str, Any]) -> tuple[RunConfig, ExecConfig]:
    """Move what is no part of a run's identity out of it, and precision into it; then check all of it."""
    plain = OmegaConf.to_container(raw, resolve=True) if isinstance(raw, DictConfig) else raw
    assert isinstance(plain, dict)
    run = {str(key): value for key, value in plain.items() if key not in ("exec", "results")}
    execution = dict(plain["exec"])
    data = dict(run["data"])
    execution |= {"data_root": data.pop("root", None), "results": plain["results"]}
    try:
        run |= {"data": data, "precision": execution.pop("precision")}
        return run_config_from_dict(run), exec_config_from_dict(execution)
    except ConfigError as error:
        if error.key == "precision":
            raise ConfigError("exec.precision", got=error.got, choices=error.choices) from None
        raise


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key that must exist already."""
    *parents, leaf = key.split(".")
    node: Any = raw
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict) or leaf not in node:
        raise unknown_key(key, [*_leaves(raw), "study", "tier"])
    if isinstance(node[leaf], dict):
        raise ConfigError(key, got=value, choices=_choices(key, None))
    node[leaf] = value


def _leaves(raw: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in raw.items():
        if isinstance(value, Mapping):
            yield f"{prefix}{key}"
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _copy(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in raw.items()}


def _parse_value(key: str, text: str) -> Any:
    """The typed value of `KEY=text`, by Hydra's grammar: 1e-3 is a number, [1,2] a list, null None."""
    value = OverridesParser.create().parse_override(f"{key}={text}").value()
    plain = OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)
    assert isinstance(plain, dict)
    return plain["value"]


# --- files


def _groups(config_dir: Path | None) -> set[str]:
    roots = [config_root(), *([] if config_dir is None else [config_dir])]
    return {path.name for root in roots for path in root.iterdir() if path.is_dir()} - {"study"}


def _choices(group: str, config_dir: Path | None) -> dict[str, Path]:
    """Choice -> its YAML file; the project's own come first, as in Hydra's search path."""
    roots = [*([] if config_dir is None else [config_dir]), config_root()]
    found = {path.stem: path for root in roots for path in sorted((root / group).glob("*.yaml"))}
    return dict(sorted(found.items()))


def _load_study(path: Path) -> StudySpec:
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise _yaml_error(error, path) from error
    return study_from_dict(raw)


class _one_line_errors:
    """Turns what Hydra, OmegaConf and YAML raise over the user's input into one ConfigError."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, yaml.YAMLError):
            raise _yaml_error(error, None) from error
        if isinstance(error, HydraException | OmegaConfBaseException):
            cause = error.__cause__
            if isinstance(cause, yaml.YAMLError):
                raise _yaml_error(cause, None) from error
            raise ConfigError("config", got=_first_line(error), hint="Hydra could not compose this") from error


def _yaml_error(error: yaml.YAMLError, path: Path | None) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    where = str(path) if path is not None else str(getattr(mark, "name", "a YAML file"))
    line = "" if mark is None else f" line {mark.line + 1}"
    problem = getattr(error, "problem", None) or _first_line(error)
    return ConfigError("YAML", got=f"{where}{line}", hint=f"syntax error: {problem}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
