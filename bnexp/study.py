"""A study: a question declared before its first run, the grid that answers it, and the copy frozen on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bnexp.errors import ConfigError
from bnexp.identity import canonical_json
from bnexp.metrics import METRICS
from bnexp.section import unknown_key

TIERS = ("small", "medium", "full")


@dataclass(frozen=True)
class Comparison:
    """Two values of one config key, held against each other: the effect is treatment − control.

    Attributes:
        factor: the dotted config key, such as `norm.placement`.
    """

    factor: str
    control: Any
    treatment: Any


@dataclass(frozen=True)
class Choice:
    """Each arm picks its own best value of `factor`, by the mean of a validation metric over the tuning seeds.

    Attributes:
        seeds: tuning seeds; they choose and are never reported.
    """

    factor: str
    metric: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Tier:
    """One size of a study: overrides that all runs share, and axes that are swept."""

    fixed: dict[str, Any]
    axes: dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class StudySpec:
    """The declaration of a study.

    Attributes:
        claim: what is claimed, in a few words.
        sources: text file name -> what that text says, contradicting ones too.
        strata: config keys whose values are reported apart and never pooled.
        margin: the smallest difference in `metric` (stored unit) that matters.
    """

    name: str
    number: int
    question: str
    claim: str
    sources: dict[str, str]
    comparison: Comparison
    strata: tuple[str, ...]
    choose: Choice
    metric: str
    margin: float
    tiers: dict[str, Tier]

    def declaration(self, tier: str) -> dict[str, Any]:
        """What is frozen in study.json: everything but the other tiers."""
        raw = asdict(self)
        raw["tiers"] = {tier: raw["tiers"][tier]}
        return raw

    def overrides(self, tier: str) -> dict[str, Any]:
        """Override key -> one value or, for an axis, a tuple of values, in the order to be swept."""
        chosen = self.tiers[tier]
        return {**chosen.fixed, **chosen.axes}


def declaration_hash(declaration: Mapping[str, Any]) -> str:
    """SHA-256 of a declaration in canonical JSON."""
    return hashlib.sha256(canonical_json(declaration).encode()).hexdigest()


def study_from_dict(raw: Mapping[str, Any]) -> StudySpec:
    """Validate the plain content of a study file, or of the frozen declaration.

    Raises:
        ConfigError: a key that is unknown, missing or of the wrong kind.
    """
    keys = set(StudySpec.__dataclass_fields__)
    _require_keys("study", raw, keys)
    _require_keys("study.comparison", raw["comparison"], {"factor", "control", "treatment"})
    _require_keys("study.choose", raw["choose"], {"factor", "metric", "seeds"})
    for key, metric in (("study.metric", raw["metric"]), ("study.choose.metric", raw["choose"]["metric"])):
        if metric not in METRICS:
            raise ConfigError(key, got=metric, choices=sorted(METRICS))
    if METRICS[raw["choose"]["metric"]].split == "test":
        raise ConfigError("study.choose.metric", got=raw["choose"]["metric"], hint="choosing never looks at test")
    tiers = {name: _tier(name, tier) for name, tier in raw["tiers"].items()}
    if not tiers:
        raise ConfigError("study.tiers", got={}, choices=TIERS)
    if raw["choose"]["factor"] != "lr":
        raise ConfigError("study.choose.factor", got=raw["choose"]["factor"], hint="only lr is chosen, so far")
    if isinstance(raw["margin"], bool) or not isinstance(raw["margin"], int | float) or not raw["margin"] > 0:
        raise ConfigError(
            "study.margin", got=raw["margin"], hint="expected a number above 0, in the metric's stored unit"
        )
    if not isinstance(raw["number"], int) or not isinstance(raw["sources"], Mapping):
        raise ConfigError("study.number", got=raw["number"], hint="expected a whole number, and sources as a mapping")
    return StudySpec(
        name=str(raw["name"]),
        number=int(raw["number"]),
        question=str(raw["question"]),
        claim=str(raw["claim"]),
        sources={str(k): str(v) for k, v in raw["sources"].items()},
        comparison=Comparison(**raw["comparison"]),
        strata=tuple(raw["strata"]),
        choose=Choice(raw["choose"]["factor"], raw["choose"]["metric"], tuple(raw["choose"]["seeds"])),
        metric=str(raw["metric"]),
        margin=float(raw["margin"]),
        tiers=tiers,
    )


def _tier(name: str, raw: Any) -> Tier:
    if name not in TIERS:
        raise ConfigError("study.tiers", got=name, choices=TIERS)
    _require_keys(f"study.tiers.{name}", raw, {"fixed", "axes"})
    axes: dict[str, tuple[Any, ...]] = {}
    for key, values in raw["axes"].items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise ConfigError(f"study.tiers.{name}.axes.{key}", got=values, hint="expected a list of values")
        axes[str(key)] = tuple(values)
    return Tier(fixed=dict(raw["fixed"]), axes=axes)


def _require_keys(prefix: str, raw: Any, keys: set[str]) -> None:
    if not isinstance(raw, Mapping):
        raise ConfigError(prefix, got=raw, hint=f"expected the keys {', '.join(sorted(keys))}")
    for key in sorted(set(raw) - keys):
        raise unknown_key(f"{prefix}.{key}", [f"{prefix}.{name}" for name in sorted(keys)])
    for key in sorted(keys - set(raw)):
        raise ConfigError(f"{prefix}.{key}", got=None, hint="this key is missing")
