"""`study=NAME tier=TIER` stands for what the study declares; here it becomes the overrides of each of its arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnexp.catalog import EVERY_STUDY, load_study
from bnexp.choices import choices
from bnexp.comparison import Comparison
from bnexp.compose.arguments import Arguments, key_of
from bnexp.errors import ConfigError
from bnexp.request import StudyRequest
from bnexp.study import TIERS, StudySpec, Tier

OF_STUDIES = ("study", "tier", "stop")
STOPS = ("decided",)
# Overrides that say where a run runs and what is measured beside it, and not what a study is.
NOT_PART_OF_A_STUDY = ("exec", "results", "data.root", "probes")
DECLARED = frozenset(
    key for kind in (StudySpec, Tier, Comparison) for key in kind.__dataclass_fields__
)  # what a study alone has: no key of a run is called so


@dataclass(frozen=True)
class Asked:
    """A study, or a grid without one, as overrides that are not composed yet.

    Attributes:
        arms: arm -> overrides, those of probes left out; without a study one arm, without a name.
        probes: the overrides that choose and set the probes which the study declares.
    """

    study: StudyRequest | None
    arms: dict[str, list[str]]
    probes: tuple[str, ...] = ()


def asked_for(arguments: Arguments) -> tuple[list[Asked], tuple[str, ...]]:
    """What is asked for, the user's own overrides taking precedence, and the studies that lack the tier.

    Raises:
        ConfigError: no such study or tier, or an override of what the studies have declared.
    """
    given = [key_of(o) for o in arguments.overrides if key_of(o) in OF_STUDIES]
    for key in given:
        if given.count(key) > 1:
            raise ConfigError(key, got=given, hint="this key is given twice; several studies are study=A,B")
    named = dict(o.partition("=")[::2] for o in arguments.overrides if key_of(o) in OF_STUDIES)
    own = [o for o in arguments.overrides if key_of(o) not in OF_STUDIES]
    if named.get("stop", STOPS[0]) not in STOPS:
        raise ConfigError("stop", got=named["stop"], choices=STOPS)
    if "study" not in named:
        if "stop" in named:
            raise ConfigError("stop", got=named["stop"], hint="it is a study that is decided: add study=NAME and -m")
        if "tier" in named:
            raise ConfigError("tier", got=named["tier"], hint="a tier belongs to a study: add study=NAME and -m")
        if arguments.fork:
            raise ConfigError("--fork", got="", hint="it is a study that is forked: add study=NAME and -m")
        return [Asked(None, {"": [o for o in own if not _is_of_probes(key_of(o))]})], ()
    tier = named.get("tier", "small")
    specs, lacking = _find_studies(named["study"], tier, arguments.config_dir)
    if not arguments.multirun:
        hint = f"a study is a grid of runs; ask for it with -m: bnexp train -m study={named['study']}"
        raise ConfigError("study", got=named["study"], hint=hint)
    for override in own:
        _check_override(override, specs, tier)
    changes = tuple(o for o in own if not is_outside_study(key_of(o)))
    if changes and "stop" in named:
        hint = (
            f"{changes[0]} makes this study exploratory, which ends in no verdict on its claim: leave out one of them"
        )
        raise ConfigError("stop", got=named["stop"], hint=hint)
    return [_ask(StudyRequest(spec, tier, changes, "stop" in named), own) for spec in specs], lacking


def is_outside_study(key: str) -> bool:
    """Whether a key says where runs are executed, or what is measured beside them."""
    if key == "exec.precision":
        return False
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in NOT_PART_OF_A_STUDY)


def own_probes(arguments: Arguments) -> list[str]:
    """The user's own overrides of probes."""
    return [o for o in arguments.overrides if _is_of_probes(key_of(o))]


def _ask(study: StudyRequest, own: Sequence[str]) -> Asked:
    own_keys = {key_of(o) for o in own}
    arms: dict[str, list[str]] = {}
    probes: dict[tuple[str, ...], None] = {}
    for arm in study.spec.arms:
        declared = study.spec.overrides(study.tier, arm, widened=bool(study.further_rates))
        arms[arm] = [_as_override(k, v) for k, v in declared.items() if k not in own_keys and not _is_of_probes(k)]
        arms[arm] += [o for o in own if not _is_of_probes(key_of(o))]
        probes[tuple(_as_override(key, value) for key, value in declared.items() if _is_of_probes(key))] = None
    if len(probes) > 1:
        hint = "the arms have to have the same probes, with the same options"
        raise ConfigError("study.arms", got=study.spec.name, hint=hint)
    return Asked(study, arms, next(iter(probes)))


def _find_studies(names: str, tier: str, config_dir: Path | None) -> tuple[list[StudySpec], tuple[str, ...]]:
    """The studies of `study=NAMES`, and of all studies those that lack the tier."""
    found = choices("study", config_dir)
    if tier not in TIERS:
        raise ConfigError("tier", got=tier, choices=TIERS)
    wanted = list(found) if names == EVERY_STUDY else list(dict.fromkeys(names.split(",")))
    for name in wanted:
        if name not in found:
            raise ConfigError("study", got=name, choices=found, hint=f"all of them: study={EVERY_STUDY}")
    specs = [load_study(found[name]) for name in wanted]
    lacking = tuple(spec.name for spec in specs if tier not in spec.tiers)
    if lacking and names != EVERY_STUDY:
        spec = next(spec for spec in specs if spec.name == lacking[0])
        raise ConfigError("tier", got=tier, choices=[t for t in TIERS if t in spec.tiers], hint=f"tiers of {spec.name}")
    if len(lacking) == len(specs):
        raise ConfigError("tier", got=tier, hint="no study has it")
    return [spec for spec in specs if tier in spec.tiers], lacking


def _check_override(override: str, specs: Sequence[StudySpec], tier: str) -> None:
    """Raises ConfigError for an override of what these studies have declared."""
    key, _, value = override.partition("=")
    who = f"study {specs[0].name}" if len(specs) == 1 else "each study"
    if key.startswith("study.") or key.partition(".")[0] in DECLARED:
        hint = f"{who} declares this, and it is frozen: give the changed study a name of its own, in --config-dir"
        raise ConfigError(key, got=value, hint=hint)
    for spec in specs:
        fixed = spec.tiers[tier].fixed
        probe = ".".join(key.split(".")[:2])
        if _is_of_probes(key) and key != "probes" and probe.partition(".")[2] in fixed.get("probes", ()):
            hint = f"study {spec.name} declares what this probe measures, and it is frozen: leave this out"
            raise ConfigError(key, got=value, hint=hint)
        if len(specs) == 1 and any(key in arm for arm in spec.arms.values()):
            hint = f"this is what the arms of {spec.name} differ in; without study= it is yours"
            raise ConfigError(key, got=value, hint=hint)
    if len(specs) > 1 and not is_outside_study(key):
        hint = (
            "each study has a grid of its own: of several, only exec.* (precision apart), results, data.root and "
            "probes can be set; ask for one study to change its grid"
        )
        raise ConfigError(key, got=value, hint=hint)


def _is_of_probes(key: str) -> bool:
    return key == "probes" or key.startswith("probes.")


def _as_override(key: str, value: Any) -> str:
    return f"{key}={_as_text(value)}"


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_as_text(v) for v in value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return "[" + ",".join(_as_text(v) for v in value) + "]"
    return str(value)
