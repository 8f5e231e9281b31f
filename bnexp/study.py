"""A study: a question declared before its first run, the grid that answers it, and the copy frozen on disk."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from bnexp.errors import ConfigError
from bnexp.identity import canonical_json
from bnexp.metrics import METRICS
from bnexp.section import unknown_key

TIERS = ("small", "medium", "full")
# difference: of the metric, each arm at its own best learning rate; healthy_lr: largest learning rate without failures
SHAPES = ("difference", "healthy_lr")
Direction = Literal["higher", "lower", "same"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


@dataclass(frozen=True)
class Comparison:
    """One claimed effect, judged in every stratum.

    Attributes:
        treatment, control: names of arms.
        shape: what the arms are compared in, one of SHAPES.
        direction: the claimed side: of the treatment, higher or lower than the control; or same.
        margin: the smallest effect that matters: a difference in the study's metric (stored unit), or a ratio above 1
            of healthy learning rates.
    """

    treatment: str
    control: str
    shape: str
    direction: Direction
    margin: float


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
        arms: name -> overrides that make it; all else is equal. The control of a comparison stands first.
        comparisons: what is judged; all of them, in all strata, are one Holm family.
        strata: config keys whose values are reported apart and never pooled.
        metric: what figures and tables show, and differences are of.
    """

    name: str
    number: int
    question: str
    claim: str
    sources: dict[str, str]
    arms: dict[str, dict[str, Any]]
    comparisons: tuple[Comparison, ...]
    strata: tuple[str, ...]
    choose: Choice
    metric: str
    tiers: dict[str, Tier]

    def declaration(self, tier: str) -> dict[str, Any]:
        """What is frozen in study.json: everything but the other tiers."""
        raw = asdict(self)
        raw["tiers"] = {tier: raw["tiers"][tier]}
        return raw

    def overrides(self, tier: str, arm: str) -> dict[str, Any]:
        """Override key -> one value or, for an axis, a tuple of values, in the order to be swept."""
        chosen = self.tiers[tier]
        return {**chosen.fixed, **self.arms[arm], **chosen.axes}

    def num_runs(self, tier: str) -> int:
        """Grid points of a tier, before equal runs are merged."""
        return len(self.arms) * math.prod(map(len, self.tiers[tier].axes.values()))

    def seeds(self, tier: str) -> tuple[int, ...]:
        """The seeds that are reported: all but those that choose."""
        return tuple(seed for seed in self.tiers[tier].axes["seed"] if seed not in self.choose.seeds)

    def rates(self, tier: str) -> tuple[float, ...]:
        """The learning rates that every arm is tried at; empty where the tier has no such axis."""
        return tuple(float(lr) for lr in self.tiers[tier].axes.get("lr", ()))

    def num_strata(self, tier: str) -> int:
        """Combinations of whatever is varied besides arms, learning rates and seeds."""
        return math.prod(len(values) for key, values in self.tiers[tier].axes.items() if key not in ("lr", "seed"))


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
    arms = _arms(raw["arms"], tiers)
    _check_tuning_seeds(raw["choose"]["seeds"], tiers)
    if not isinstance(raw["number"], int) or not isinstance(raw["sources"], Mapping):
        raise ConfigError("study.number", got=raw["number"], hint="expected a whole number, and sources as a mapping")
    return StudySpec(
        name=str(raw["name"]),
        number=int(raw["number"]),
        question=str(raw["question"]),
        claim=str(raw["claim"]),
        sources={str(k): str(v) for k, v in raw["sources"].items()},
        arms=arms,
        comparisons=_comparisons(raw["comparisons"], arms),
        strata=tuple(raw["strata"]),
        choose=Choice(raw["choose"]["factor"], raw["choose"]["metric"], tuple(raw["choose"]["seeds"])),
        metric=str(raw["metric"]),
        tiers=tiers,
    )


def _arms(raw: Any, tiers: Mapping[str, Tier]) -> dict[str, dict[str, Any]]:
    if (
        not isinstance(raw, Mapping)
        or len(raw) < 2
        or not all(isinstance(arm, Mapping) and arm for arm in raw.values())
    ):
        raise ConfigError("study.arms", got=raw, hint="expected two arms at least, each with its overrides")
    arms = {str(name): dict(arm) for name, arm in raw.items()}
    for key in {key for arm in arms.values() for key in arm}:
        for name, tier in tiers.items():
            if key in tier.axes or key in tier.fixed:
                raise ConfigError(f"study.tiers.{name}", got=key, hint="this key is what the arms differ in")
    return arms


def _check_tuning_seeds(raw: Any, tiers: Mapping[str, Tier]) -> None:
    """Seeds that choose have to be run, and some have to be left to report."""
    if not isinstance(raw, Sequence) or not all(isinstance(seed, int) for seed in raw):
        raise ConfigError("study.choose.seeds", got=raw, hint="expected a list of seeds")
    for name, tier in tiers.items():
        if not set(raw) < set(tier.axes["seed"]) or (not raw and len(tier.axes.get("lr", ())) > 1):
            hint = f"expected some but not all of the seeds of tier {name}"
            raise ConfigError("study.choose.seeds", got=raw, hint=hint)


def _comparisons(raw: Any, arms: Mapping[str, Any]) -> tuple[Comparison, ...]:
    if not isinstance(raw, Sequence) or isinstance(raw, str) or not raw:
        raise ConfigError("study.comparisons", got=raw, hint="expected a list of comparisons")
    return tuple(_comparison(f"study.comparisons.{index}", entry, arms) for index, entry in enumerate(raw))


def _comparison(prefix: str, raw: Any, arms: Mapping[str, Any]) -> Comparison:
    _require_keys(prefix, raw, set(Comparison.__dataclass_fields__))
    for key, choices in (("treatment", arms), ("control", arms), ("shape", SHAPES), ("direction", DIRECTIONS)):
        if not isinstance(raw[key], str) or raw[key] not in choices:
            raise ConfigError(f"{prefix}.{key}", got=raw[key], choices=list(choices))
    if raw["treatment"] == raw["control"]:
        raise ConfigError(f"{prefix}.control", got=raw["control"], hint="is the treatment too")
    least, margin = (1 if raw["shape"] == "healthy_lr" else 0), raw["margin"]
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not least < margin < math.inf:
        raise ConfigError(f"{prefix}.margin", got=margin, hint=f"expected a number above {least}")
    return Comparison(**{**raw, "margin": float(margin)})


def _tier(name: str, raw: Any) -> Tier:
    if name not in TIERS:
        raise ConfigError("study.tiers", got=name, choices=TIERS)
    _require_keys(f"study.tiers.{name}", raw, {"fixed", "axes"})
    axes: dict[str, tuple[Any, ...]] = {}
    for key, values in raw["axes"].items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise ConfigError(f"study.tiers.{name}.axes.{key}", got=values, hint="expected a list of values")
        axes[str(key)] = tuple(values)
        if any(value in values[:index] for index, value in enumerate(values)):
            raise ConfigError(f"study.tiers.{name}.axes.{key}", got=values, hint="a value is given twice")
    if not all(isinstance(seed, int) for seed in axes.get("seed", ("",))):
        raise ConfigError(f"study.tiers.{name}.axes.seed", got=raw["axes"].get("seed"), hint="expected a list of seeds")
    return Tier(fixed=dict(raw["fixed"]), axes=axes)


def _require_keys(prefix: str, raw: Any, keys: set[str]) -> None:
    if not isinstance(raw, Mapping):
        raise ConfigError(prefix, got=raw, hint=f"expected the keys {', '.join(sorted(keys))}")
    for key in sorted(set(raw) - keys):
        raise unknown_key(f"{prefix}.{key}", [f"{prefix}.{name}" for name in sorted(keys)])
    for key in sorted(keys - set(raw)):
        raise ConfigError(f"{prefix}.{key}", got=None, hint="this key is missing")
