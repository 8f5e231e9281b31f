"""argv -> validated RunConfigs. The only module that imports Hydra.

A grid is composed once for each combination of config groups and then varied by value, which takes about a
millisecond a run where Hydra's own sweep takes a hundred. A launcher or sweeper of the user's choice
(`hydra/launcher=joblib`), `--help`, `--cfg` and shell completion go through Hydra itself.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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

from bnexp.choices import choice_names, choices, config_root, groups, is_ours, split_config_dir
from bnexp.config import ExecConfig, RunConfig, exec_config_from_dict, run_config_from_dict
from bnexp.errors import ConfigError
from bnexp.plugins import GROUPS as PLUGIN_AXES
from bnexp.plugins import plugin_error, plugin_names, plugin_options
from bnexp.request import Request, StudyRequest
from bnexp.section import unknown_key
from bnexp.study import TIERS, StudySpec, study_from_dict

PLUGIN_GROUPS = ("hydra/launcher", "hydra/sweeper")
# Overrides that say where a run runs, and not what a study is.
NOT_PART_OF_A_STUDY = ("exec", "results", "data.root", "probes")
# what stands between the names in `[gradients,shift]`, `rms,batch` and `choice(rms,batch)`
BETWEEN_NAMES = re.compile(r"[\s,()\[\]{}'\":]+")


@dataclass
class _Argv:
    """The command line, taken apart."""

    overrides: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)  # those that Hydra answers itself
    multirun: bool = False
    config_dir: Path | None = None


def request_from_argv(argv: Sequence[str]) -> Request:
    """Compose and validate every run that the arguments of `train` or `plan` ask for.

    Raises:
        ConfigError: anything the user wrote that cannot be used.
    """
    parsed = _parse_argv(argv)
    grids, study = _expand_study(parsed)
    configs: list[RunConfig] = []
    arms: list[str] = []
    swept: dict[str, None] = dict.fromkeys(key for arm in study.spec.arms.values() for key in arm) if study else {}
    for arm, overrides in grids.items():
        plain, axes = _split_overrides(overrides, parsed)
        with _one_line_errors():
            composed, exec_config = _compose_grid(plain, axes, parsed.config_dir)
        configs += composed
        arms += [arm] * len(composed) if study else []
        swept |= dict.fromkeys(axes)
    return Request(tuple(configs), exec_config, study, tuple(swept), parsed.multirun, tuple(argv), tuple(arms))


def wants_hydra(argv: Sequence[str]) -> bool:
    """Whether Hydra itself must handle these arguments: its own flags, a launcher, or a sweeper."""
    parsed = _parse_argv(argv)
    return bool(parsed.flags) or any(o.partition("=")[0] in PLUGIN_GROUPS for o in parsed.overrides)


def run_under_hydra(argv: Sequence[str], task: Callable[[RunConfig, ExecConfig], float | None]) -> None:
    """Hand the command line to Hydra; each job that it starts calls `task`, whose value an optimizing sweeper reads."""
    parsed = _parse_argv(argv)
    plugins = [o for o in parsed.overrides if o.partition("=")[0] in PLUGIN_GROUPS]
    grids, study = _expand_study(parsed)
    overrides = next(iter(grids.values()))  # of a study, what its first arm is
    if study is not None and plugins:
        hint = "a study is frozen and executed by bnexp itself: leave out the launcher or sweeper"
        raise ConfigError("study", got=study.spec.name, hint=hint)
    with _one_line_errors():
        _check_plain_choices(overrides, parsed.config_dir)

    def job(raw: DictConfig) -> float | None:
        return task(*_validate(raw))

    flags = [*parsed.flags, *(["--multirun"] if parsed.multirun else [])]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come back to us, who say them in one line
    with _one_line_errors(), _search_path(parsed.config_dir, overrides) as search:
        sys.argv = ["bnexp train", *flags, *overrides, search]
        hydra_main(config_path=str(config_root()), config_name="train", version_base="1.3")(job)()


def complete(argument: str) -> None:
    """Answer a shell that asks at a TAB, `query=bash`, or print the script that makes it ask, `install=bash`."""
    task, _, shell = argument.partition("=")
    if task != "query":
        _ask_hydra_to_complete(argument)
        return
    words = os.environ.get("COMP_LINE", "").split(" ")[2:]
    with suppress(Exception):  # whatever is wrong with a half-typed line, a TAB says nothing
        config_dir, before = split_config_dir(words[:-1])
        given = [stripped for word in before if "=" in (stripped := word.strip("'\"")) and not stripped.startswith("-")]
        word = words[-1].lstrip("'\"")
        found = _complete_choice(word, given, config_dir)
        if found is not None:
            print(("\n" if shell == "fish" else " ").join(found))
        elif not word.startswith("-"):
            chosen = _last_choices(given, config_dir)
            with _search_path(config_dir, chosen) as search:
                os.environ["COMP_LINE"] = " ".join(["bnexp", *chosen, search, word])
                _ask_hydra_to_complete(argument)


def _complete_choice(word: str, given: Sequence[str], config_dir: Path | None) -> list[str] | None:
    """`GROUP=PARTIAL`, also within a list or a grid, with every choice that fits; None for any other word."""
    group, is_value, value = word.partition("=")
    if not is_value or group not in (*groups(config_dir), "study", "tier"):
        return None
    cut = max(value.rfind(mark) for mark in "[,(") + 1
    named = dict(o.partition("=")[::2] for o in given)
    if group != "tier":
        names = choice_names(group, config_dir)
    elif "study" in named:
        names = list(_load_study(choices("study", config_dir)[named["study"]]).tiers)
    else:
        names = list(TIERS)
    taken = BETWEEN_NAMES.split(value[:cut])
    return [f"{group}={value[:cut]}{name}" for name in names if name.startswith(value[cut:]) and name not in taken]


def _last_choices(given: Sequence[str], config_dir: Path | None) -> list[str]:
    """What decides which keys there are: the choice of each group, of several in a grid the last."""
    known = groups(config_dir)
    pairs = [o.partition("=")[::2] for o in given]
    pairs = [(key, value) for key, value in pairs if key in known and "(" not in value]
    return [f"{key}={value if value.startswith('[') else value.rpartition(',')[2]}" for key, value in pairs]


def _ask_hydra_to_complete(argument: str) -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # it would print what it raises
    sys.argv = ["bnexp", "-sc", argument]
    hydra_main(config_path=str(config_root()), config_name="train", version_base="1.3")(lambda config: None)()


def list_studies(config_dir: Path | None = None) -> dict[str, StudySpec]:
    """Every declared study by name, the user's own from `config_dir` included."""
    return {name: _load_study(path) for name, path in choices("study", config_dir).items()}


# --- argv


def _parse_argv(argv: Sequence[str]) -> _Argv:
    config_dir, words = split_config_dir(argv)
    parsed = _Argv(config_dir=config_dir)
    rest = iter(words)
    for word in rest:
        if word in ("-m", "--multirun"):
            parsed.multirun = True
        elif word in ("--cfg", "-c", "--package", "-p"):
            parsed.flags += [word, *itertools.islice(rest, 1)]
        elif word in ("--info", "-i"):
            parsed.flags.append(word)
            parsed.flags += list(itertools.islice(rest, 1))
        elif word in ("--hydra-help", "--resolve"):
            parsed.flags.append(word)
        elif word.startswith("-"):
            known = ("-m", "--multirun", "--config-dir", "--cfg", "--info", "--resolve", "--help")
            raise ConfigError("option", got=word, choices=known)
        elif "=" not in word:
            raise ConfigError("argument", got=word, hint="expected KEY=VALUE, such as norm=batch or lr=0.1")
        else:
            parsed.overrides.append(word)
    return parsed


def _expand_study(parsed: _Argv) -> tuple[dict[str, list[str]], StudyRequest | None]:
    """Arm -> overrides: `study=NAME tier=TIER` stands for what the study declares, the user's own taking precedence.

    Without a study there is one arm, without a name.
    """
    named = {key: value for key, _, value in (o.partition("=") for o in parsed.overrides) if key in ("study", "tier")}
    own = [o for o in parsed.overrides if o.partition("=")[0] not in ("study", "tier")]
    if "study" not in named:
        if "tier" in named:
            raise ConfigError("tier", got=named["tier"], hint="a tier belongs to a study: add study=NAME and -m")
        return {"": own}, None
    name, tier = named["study"], named.get("tier", "small")
    if "," in name:
        hint = f"one study at a time: bnexp train -m study={name.split(',')[0]}"
        raise ConfigError("study", got=name, hint=hint)
    found = choices("study", parsed.config_dir)
    if name not in found:
        raise ConfigError("study", got=name, choices=found)
    spec = _load_study(found[name])
    if tier not in spec.tiers:
        raise ConfigError("tier", got=tier, choices=[t for t in TIERS if t in spec.tiers], hint=f"tiers of {name}")
    if not parsed.multirun:
        raise ConfigError(
            "study", got=name, hint=f"a study is a grid of runs; ask for it with -m: bnexp train -m study={name}"
        )
    own_keys = {key: value for key, _, value in (o.partition("=") for o in own)}
    for key in sorted(set(own_keys) & {key for arm in spec.arms.values() for key in arm}):
        raise ConfigError(
            key, got=own_keys[key], hint=f"this is what the arms of {name} differ in; without study= it is yours"
        )
    grids = {
        arm: [f"{k}={_as_override(v)}" for k, v in spec.overrides(tier, arm).items() if k not in own_keys] + own
        for arm in spec.arms
    }
    changes = tuple(o for o in own if not _is_outside_study(o.partition("=")[0]))
    return grids, StudyRequest(spec, tier, changes)


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
        if key == "probes":
            _refuse_probes_as_grid(text.partition("=")[2])
        if _is_outside_study(key):
            raise ConfigError(
                key, got=text.partition("=")[2], hint="where runs are executed cannot be an axis of a grid"
            )
        if not parsed.multirun:
            raise ConfigError(
                key, got=text.partition("=")[2], hint=f"several values are a grid; add -m: bnexp train -m {text}"
            )
        try:
            axes[key] = [str(value) for value in override.sweep_string_iterator()]
        except HydraException as error:
            hint = f"a grid needs a list, choice(...) or range(...): {_first_line(error)}"
            raise ConfigError(key, got=text.partition("=")[2], hint=hint) from error
    return plain, axes


def _refuse_probes_as_grid(value: str) -> None:
    """The spelling that everybody tries first: probes=gradients,shift."""
    if re.fullmatch(r"\w+(,\w+)+", value):
        raise ConfigError("probes", got=value, hint=f"several probes are a list: probes=[{value}]")


# --- composing


def _compose_grid(
    plain: dict[str, str], axes: dict[str, list[str]], config_dir: Path | None
) -> tuple[list[RunConfig], ExecConfig]:
    known = groups(config_dir)
    for key in (key for key in (*plain, *axes) if key in known):
        for value in [plain[key]] if key in plain else axes[key]:
            _check_choice(key, value, config_dir)
    fixed = [f"{key}={value}" for key, value in plain.items() if key in known]
    chosen_groups = [*fixed, *(f"{key}={','.join(value)}" for key, value in axes.items() if key in known)]
    values = {key: [_parse_value(key, value)] for key, value in plain.items() if key not in known}
    values |= {key: [_parse_value(key, value) for value in v] for key, v in axes.items() if key not in known}
    bases: dict[tuple[str, ...], dict[str, Any]] = {}
    configs: list[RunConfig] = []
    exec_config: ExecConfig | None = None
    with (
        _search_path(config_dir, chosen_groups) as search,
        initialize_config_dir(str(config_root()), version_base="1.3"),
    ):
        for point in itertools.product(*(axes[key] if key in known else values[key] for key in axes)):
            chosen = dict(zip(axes, point, strict=True))
            picked = tuple(f"{key}={value}" for key, value in chosen.items() if key in known)
            if picked not in bases:
                composed = hydra_compose("train", overrides=[search, *fixed, *picked])
                container = OmegaConf.to_container(composed, resolve=True)
                assert isinstance(container, dict)
                bases[picked] = {str(key): value for key, value in container.items()}
                for key, (value,) in ((k, v) for k, v in values.items() if k not in axes):
                    _set(bases[picked], key, value)
            raw = _copy(bases[picked])
            for key, value in chosen.items():
                if key not in known:
                    _set(raw, key, value)
            config, exec_config = _validate(raw)
            configs.append(config)
    assert exec_config is not None  # a product of non-empty axes has at least one point
    return configs, exec_config


def _check_plain_choices(overrides: Sequence[str], config_dir: Path | None) -> None:
    """`_check_choice` for what Hydra will compose itself; what is no plain name or list is left to it."""
    known = groups(config_dir)
    for key, _, value in (o.partition("=") for o in overrides):
        if key == "probes":
            _refuse_probes_as_grid(value)
        if key in known and not re.search(r"[(*$'\"]", value):
            for name in [value] if value.startswith("[") else value.split(","):
                _check_choice(key, name.strip(), config_dir)


def _check_choice(group: str, value: str, config_dir: Path | None) -> None:
    """Raises ConfigError where a group has no such choice; of probes, several may be chosen at once."""
    found = choice_names(group, config_dir)
    wanted = _parse_value(group, value) if value.startswith("[") else [value]
    for name in wanted:
        if name not in found:
            hint = "several are a list, probes=[gradients,shift], and none of them probes=[]"
            raise ConfigError(group, got=name, choices=found, hint=hint if group == "probes" else "")
        _refuse_shadow(group, name)
        path = choices(group, config_dir).get(name)
        if path is not None and not is_ours(group, name):
            _require_mapping(_read_yaml(path), path)
    if value.startswith("[") and group != "probes":
        raise ConfigError(group, got=value, hint=f"one at a time, or a grid: -m {group}={','.join(map(str, wanted))}")


@contextmanager
def _search_path(config_dir: Path | None, overrides: Sequence[str]) -> Iterator[str]:
    """The override that tells Hydra where else to look: the user's folder, and choices that packages add."""
    found = [] if config_dir is None else [config_dir]
    with tempfile.TemporaryDirectory(prefix="bnexp-") as folder:
        for axis in PLUGIN_AXES:
            values = [value for key, _, value in (o.partition("=") for o in overrides) if key == axis]
            words = {word for value in values for word in BETWEEN_NAMES.split(value)}
            for name in sorted(words.intersection(plugin_names(axis))):
                if not is_ours(axis, name):  # which `_validate` refuses
                    _write_plugin_choice(Path(folder), axis, name)
        yield f"hydra.searchpath=[{','.join(f'file://{path}' for path in (*found, folder))}]"


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


def _validate(raw: DictConfig | dict[str, Any]) -> tuple[RunConfig, ExecConfig]:
    """Move what is no part of a run's identity out of it, and precision into it; then check all of it."""
    plain = OmegaConf.to_container(raw, resolve=True) if isinstance(raw, DictConfig) else raw
    assert isinstance(plain, dict)
    run = {str(key): value for key, value in plain.items() if key not in ("exec", "results", "probes")}
    execution = dict(plain["exec"])
    data = dict(run["data"])
    execution |= {"data_root": data.pop("root", None), "results": plain["results"], "probes": plain["probes"]}
    try:
        run |= {"data": data, "precision": execution.pop("precision")}
        config = run_config_from_dict(run)
        for axis, name in (("data", config.data.name), ("model", config.model.name), ("norm", config.norm.kind)):
            _refuse_shadow(axis, name)
        return config, exec_config_from_dict(execution)
    except ConfigError as error:
        if error.key == "precision":
            raise ConfigError("exec.precision", got=error.got, choices=error.choices) from None
        raise


def _refuse_shadow(axis: str, name: str) -> None:
    """Raises ConfigError where a package adds a choice of the name of one of ours: which of them was meant?"""
    if axis in PLUGIN_AXES and name in plugin_names(axis) and is_ours(axis, name):
        raise plugin_error(axis, name, f"has the name of bnexp's own {axis}={name}: rename that entry point")


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key that must exist already."""
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


def _refuse_option_of_probe(raw: dict[str, Any], key: str, value: Any) -> None:
    """Raises ConfigError for an option of a probe that is not chosen, or that has none."""
    group, name = [*key.split("."), ""][:2]
    if group != "probes" or name not in choices("probes", None):
        return
    probes = ",".join([*(probe for probe in raw["probes"] if probe != name), name])
    if not _read_yaml(choices("probes", None)[name])[name]:
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


def _copy(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in raw.items()}


def _parse_value(key: str, text: str) -> Any:
    """The typed value of `KEY=text`, by Hydra's grammar: 1e-3 is a number, [1,2] a list, null None."""
    value = OverridesParser.create().parse_override(f"{key}={text}").value()
    plain = OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)
    assert isinstance(plain, dict)
    return plain["value"]


# --- files


def _load_study(path: Path) -> StudySpec:
    raw = _read_yaml(path)
    _require_mapping(raw, path)
    return study_from_dict(raw)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise _yaml_error(error, path) from error


def _require_mapping(raw: Any, path: Path) -> None:
    if raw is not None and not isinstance(raw, Mapping):
        raise ConfigError("YAML", got=str(path), hint=f"expected a mapping of keys, KEY: VALUE; it holds {raw!r}")


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
