"""A study: a question declared before its first run, the grid that answers it, and the copy frozen on disk."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bnexp.comparison import IN_NUMBERS, TIMED_MEASURES, Comparison, Direction, parse_comparison
from bnexp.errors import ConfigError
from bnexp.identity import canonical_json
from bnexp.metrics import METRICS, PROBE_OF
from bnexp.section import unknown_key

TIERS = ("small", "medium", "full")
MIN_SEEDS = 6  # five pairs cannot reach p < 0.05 two-sided by signs or ranks
INIT = "model.init"
POOR_INITS = ("default", "normal")  # of weights whose scale knows nothing of the layer, or of the activation
NOT_AN_ARMS_OWN = ("lr", "seed", "epochs", "data", "data.split_seed", "exec.precision", "probes")
__all__ = ["TIERS", "Choice", "Comparison", "Direction", "StudySpec", "Tier", "declaration_hash", "study_from_dict"]


@dataclass(frozen=True)
class Choice:
    """Each arm picks its own best value of `factor`, by the mean of a validation metric over all of its seeds."""

    factor: str
    metric: str


@dataclass(frozen=True)
class Tier:
    """One size of a study.

    Attributes:
        fixed: overrides that all runs share, probes among them.
        axes: what is swept.
        widen: learning rates to add to the ladder, outward from both of its ends, while an arm's best rate is at one.
        margin: the smallest difference in accuracy that matters on these data, a fraction.
        target: the accuracy that an epochs_to_target and its like have to reach, or at least to be matched at.
    """

    fixed: dict[str, Any]
    axes: dict[str, tuple[Any, ...]]
    margin: float | None = None
    target: float | None = None
    widen: tuple[float, ...] = ()


@dataclass(frozen=True)
class StudySpec:
    """The declaration of a study.

    Attributes:
        claim: what is claimed, in a few words.
        known: what the literature has found, with its source.
        sources: text file name -> what that text says, for the side that the comparisons claim.
        against: the same of texts that say the opposite.
        arms: name -> overrides that make it; all else is equal. The control of a comparison stands first.
        comparisons: what is judged, the primary one first; claims and premises, in all strata, are one Holm family.
        strata: config keys whose values are reported apart and never pooled; those that a comparison goes over too.
        metric: what figures and tables show, and comparisons are in unless they say otherwise.
    """

    name: str
    number: int
    question: str
    claim: str
    known: str
    sources: dict[str, str]
    against: dict[str, str]
    arms: dict[str, dict[str, Any]]
    comparisons: tuple[Comparison, ...]
    strata: tuple[str, ...]
    choose: Choice
    metric: str
    tiers: dict[str, Tier]

    @property
    def compares_times(self) -> bool:
        """Whether it compares seconds, which depend on what else is computed meanwhile."""
        return any(comparison.measure in TIMED_MEASURES for comparison in self.comparisons)

    def at(self, tier: str) -> StudySpec:
        """The study at one tier alone, with every margin and target settled."""
        own = self.tiers[tier]
        settled = tuple(
            c.resolved(metric=self.metric, margin=own.margin, target=own.target, levels=own.axes.get(c.over or "", ()))
            for c in self.comparisons
        )
        return replace(self, comparisons=settled, tiers={tier: own})

    def declaration(self, tier: str) -> dict[str, Any]:
        """What is frozen in study.json: everything but the other tiers."""
        return asdict(self.at(tier))

    def overrides(self, tier: str, arm: str) -> dict[str, Any]:
        """Override key -> one value or, for an axis, a tuple of values, in the order to be swept."""
        chosen = self.tiers[tier]
        return {**chosen.fixed, **self.arms[arm], **chosen.axes}

    def num_runs(self, tier: str) -> int:
        """Grid points of a tier, before equal runs are merged."""
        return len(self.arms) * math.prod(map(len, self.tiers[tier].axes.values()))

    def seeds(self, tier: str) -> tuple[int, ...]:
        """The seeds of a tier, each of which chooses learning rates and is reported."""
        return tuple(self.tiers[tier].axes["seed"])

    def rates(self, tier: str) -> tuple[float, ...]:
        """The learning rates that every arm is tried at; empty where the tier has no such axis."""
        return tuple(float(lr) for lr in self.tiers[tier].axes.get("lr", ()))

    def num_verdicts(self, tier: str) -> int:
        """Comparisons over the strata that each is judged in: what the study comes to."""
        return sum(
            num_strata(self.tiers[tier].axes, c, bare=any(self._is_bare(tier, arm) for arm in c.arms))[0]
            for c in self.comparisons
        )

    def _is_bare(self, tier: str, arm: str) -> bool:
        return self.overrides(tier, arm).get("norm") == "none"


def num_strata(axes: Mapping[str, Sequence[Any]], comparison: Comparison, *, bare: bool) -> tuple[int, int]:
    """Declared strata that a comparison is judged in, and those that are but readings of them with a poor init.

    Args:
        axes: what is swept; learning rates and seeds are no strata.
        bare: one of its arms has no norm, so that a poor init makes a strawman of it.
    """
    whole = math.prod(len(values) for key, values in axes.items() if key not in ("lr", "seed", comparison.over))
    inits = axes.get(INIT, ()) if bare and comparison.over != INIT else ()
    poor = sum(init in POOR_INITS for init in inits)
    if poor in (0, len(inits)):  # without an init that suits nothing is there to be read otherwise
        return whole, 0
    return whole - whole * poor // len(inits), whole * poor // len(inits)


def declaration_hash(declaration: Mapping[str, Any]) -> str:
    """SHA-256 of a declaration in canonical JSON."""
    return hashlib.sha256(canonical_json(declaration).encode()).hexdigest()


def study_from_dict(raw: Mapping[str, Any]) -> StudySpec:
    """Validate the plain content of a study file, or of the frozen declaration.

    Raises:
        ConfigError: a key that is unknown, missing or of the wrong kind.
    """
    _require_keys("study", raw, set(StudySpec.__dataclass_fields__))
    if isinstance(raw["number"], bool) or not isinstance(raw["number"], int):
        raise ConfigError("study.number", got=raw["number"], hint="expected a whole number")
    for key in ("name", "question", "claim", "known"):
        if not isinstance(raw[key], str) or not raw[key].strip():
            raise ConfigError(f"study.{key}", got=raw[key], hint="expected a text")
    choose = _choice(raw["choose"])
    if raw["metric"] not in list(METRICS):
        raise ConfigError("study.metric", got=raw["metric"], choices=sorted(METRICS))
    tiers = _tiers(raw["tiers"])
    arms = _arms(raw["arms"], tiers)
    strata = _strata(raw["strata"], tiers)
    _check_seeds(tiers)
    spec = StudySpec(
        **{key: raw[key] for key in ("name", "number", "question", "claim", "known", "metric")},
        sources=_texts("sources", raw["sources"]),
        against=_texts("against", raw["against"]),
        arms=arms,
        comparisons=_comparisons(raw["comparisons"], arms, str(raw["metric"]), strata),
        strata=strata,
        choose=choose,
        tiers=tiers,
    )
    for tier in spec.tiers:
        _check_tier(spec, tier)
    return spec


def _choice(raw: Any) -> Choice:
    # studies that were frozen before every seed chose and was reported name tuning seeds: they are seeds like others
    _require_keys("study.choose", raw, {"factor", "metric"}, optional={"seeds"})
    if raw["factor"] != "lr":
        raise ConfigError("study.choose.factor", got=raw["factor"], hint="only lr is chosen")
    if raw["metric"] not in list(METRICS):
        raise ConfigError("study.choose.metric", got=raw["metric"], choices=sorted(METRICS))
    if METRICS[raw["metric"]].split == "test":
        raise ConfigError("study.choose.metric", got=raw["metric"], hint="choosing never looks at test")
    return Choice(raw["factor"], raw["metric"])


def _texts(key: str, raw: Any) -> dict[str, str]:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"study.{key}", got=raw, hint="expected text file: what it says")
    for name, words in raw.items():
        if not isinstance(words, str) or not words.strip():
            raise ConfigError(f"study.{key}.{name}", got=words, hint="expected a text")
    return {str(name): words for name, words in raw.items()}


def _arms(raw: Any, tiers: Mapping[str, Tier]) -> dict[str, dict[str, Any]]:
    if not isinstance(raw, Mapping) or not raw or not all(isinstance(arm, Mapping) and arm for arm in raw.values()):
        raise ConfigError("study.arms", got=raw, hint="expected arms, each with its overrides")
    for name in raw:
        if not isinstance(name, str):
            raise ConfigError("study.arms", got=name, hint="expected a name; quote it where it is a number")
    arms = {name: dict(arm) for name, arm in raw.items()}
    for key in dict.fromkeys(key for arm in arms.values() for key in arm):
        if key in NOT_AN_ARMS_OWN:
            raise ConfigError("study.arms", got=key, hint="this has to be the same for all arms")
        for name, tier in tiers.items():
            if key in tier.axes or key in tier.fixed:
                raise ConfigError(f"study.tiers.{name}", got=key, hint="this key is what the arms differ in")
    return arms


def _strata(raw: Any, tiers: Mapping[str, Tier]) -> tuple[str, ...]:
    if not isinstance(raw, Sequence) or isinstance(raw, str) or not all(isinstance(key, str) for key in raw):
        raise ConfigError("study.strata", got=raw, hint="expected a list of keys")
    swept = {key for tier in tiers.values() for key in tier.axes if key not in ("lr", "seed")}
    known = {*raw, *(key.removesuffix(".name") for key in raw)}
    for key in sorted(swept - known):
        raise ConfigError("study.strata", got=list(raw), hint=f"{key} is swept, so it has to be a stratum")
    return tuple(raw)


def _are_seeds(raw: Any) -> bool:
    listed = isinstance(raw, Sequence) and not isinstance(raw, str)
    return listed and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in raw)


def _check_seeds(tiers: Mapping[str, Tier]) -> None:
    """Enough seeds to decide anything."""
    for name, tier in tiers.items():
        if len(tier.axes["seed"]) < MIN_SEEDS:
            hint = f"a verdict needs {MIN_SEEDS} seeds at least"
            raise ConfigError(f"study.tiers.{name}.axes.seed", got=list(tier.axes["seed"]), hint=hint)


def _comparisons(raw: Any, arms: Mapping[str, Any], metric: str, strata: Sequence[str]) -> tuple[Comparison, ...]:
    if not isinstance(raw, Sequence) or isinstance(raw, str) or not raw:
        raise ConfigError("study.comparisons", got=raw, hint="expected a list of comparisons")
    found: list[Comparison] = []
    for index, entry in enumerate(raw):
        where = f"study.comparisons.{index}"
        comparison = parse_comparison(where, entry, arms=arms, metric=metric, strata=strata)
        if comparison in found:
            raise ConfigError(where, got=entry, hint=f"is comparison {found.index(comparison)} too")
        first = found[0] if found else comparison
        if comparison is first and comparison.role != "claim":
            raise ConfigError(f"{where}.role", got=comparison.role, hint="the first comparison is the primary claim")
        if comparison.role == "premise" and comparison.over != first.over:
            raise ConfigError(f"{where}.role", got="premise", hint="a premise goes over the same as the primary claim")
        found.append(comparison)
    _check_premises(found)
    return tuple(found)


def _check_premises(comparisons: Sequence[Comparison]) -> None:
    """Every claim has the strata of the premises; of these, learning rates are none."""
    over = [comparison.over for comparison in comparisons if comparison.role == "premise"]
    for index, comparison in enumerate(comparisons):
        others = [key for key in over if {key, comparison.over} - {None, "lr"} and key != comparison.over]
        if comparison.role == "claim" and others:
            hint = f"a claim goes over the same as the premises, which go over {others[0] or 'nothing'}"
            raise ConfigError(f"study.comparisons.{index}.over", got=comparison.over, hint=hint)


def _check_tier(spec: StudySpec, tier: str) -> None:
    """What its comparisons need is there: margins, targets, probes, levels."""
    own = spec.tiers[tier]
    probes = own.fixed.get("probes", [])
    if not isinstance(probes, Sequence) or isinstance(probes, str):
        raise ConfigError(f"study.tiers.{tier}.fixed.probes", got=probes, hint="expected a list of probes")
    for index, comparison in enumerate(spec.at(tier).comparisons):
        where = f"study.comparisons.{index}"
        for key, value in (("margin", comparison.margin), ("target", comparison.target)):
            needed = key == "margin" or comparison.has_target
            if needed and value is None:
                raise ConfigError(f"{where}.{key}", got=None, hint=f"neither here nor in tier {tier}")
        for name, _ in comparison.measures():
            if PROBE_OF.get(name, "") not in ("", *probes):
                hint = f"is measured by the probe {PROBE_OF[name]}, which tier {tier} does not have among its probes"
                raise ConfigError(f"{where}.measure", got=name, hint=hint)
        _check_levels(where, comparison, tier, own.axes)


def _check_levels(where: str, comparison: Comparison, tier: str, axes: Mapping[str, Sequence[Any]]) -> None:
    """What a comparison goes over is swept, in numbers where it reckons with them, and is more than it searches."""
    over = comparison.over
    levels = axes.get(over, ()) if over is not None else ()
    if over is not None and len(levels) < 2:
        hint = f"tier {tier} has no axis of two levels at least for it"
        raise ConfigError(f"{where}.over", got=over, hint=hint)
    for level in levels if comparison.shape in IN_NUMBERS else ():
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < math.inf:
            hint = f"tier {tier} has the level {level!r}, and the shape {comparison.shape} needs numbers above 0"
            raise ConfigError(f"{where}.over", got=over, hint=hint)
    settings = max(1, len(axes.get("lr", ()))) * max(1, len(levels))
    if comparison.budget is not None and comparison.budget >= settings:
        hint = f"tier {tier} has {settings} settings in all, and a small search tries fewer"
        raise ConfigError(f"{where}.budget", got=comparison.budget, hint=hint)


def _tiers(raw: Any) -> dict[str, Tier]:
    if not isinstance(raw, Mapping) or not raw:
        raise ConfigError("study.tiers", got=raw, choices=TIERS)
    return {name: _tier(name, tier) for name, tier in raw.items()}


def _tier(name: str, raw: Any) -> Tier:
    if name not in TIERS:
        raise ConfigError("study.tiers", got=name, choices=TIERS)
    prefix = f"study.tiers.{name}"
    _require_keys(prefix, raw, {"fixed", "axes"}, optional={"margin", "target", "widen"})
    axes: dict[str, tuple[Any, ...]] = {}
    for key in ("fixed", "axes"):
        if not isinstance(raw[key], Mapping):
            raise ConfigError(f"{prefix}.{key}", got=raw[key], hint="expected a mapping of keys")
    for key, values in raw["axes"].items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise ConfigError(f"{prefix}.axes.{key}", got=values, hint="expected a list of values")
        axes[str(key)] = tuple(values)
        if any(value in values[:index] for index, value in enumerate(values)):
            raise ConfigError(f"{prefix}.axes.{key}", got=values, hint="a value is given twice")
    if not _are_seeds(axes.get("seed")):
        raise ConfigError(f"{prefix}.axes.seed", got=raw["axes"].get("seed"), hint="expected a list of seeds")
    for key in ("margin", "target"):
        value = raw.get(key)
        if value is not None and (not isinstance(value, int | float) or not 0 < value < 1):
            raise ConfigError(f"{prefix}.{key}", got=value, hint="expected a fraction between 0 and 1")
    widen = _widening(prefix, raw.get("widen", ()), axes.get("lr", ()))
    return Tier(fixed=dict(raw["fixed"]), axes=axes, margin=raw.get("margin"), target=raw.get("target"), widen=widen)


def _widening(prefix: str, raw: Any, ladder: Sequence[Any]) -> tuple[float, ...]:
    """The rates that a ladder may be widened by, ascending; each lies beyond an end of it."""
    listed = isinstance(raw, Sequence) and not isinstance(raw, str)
    rates = list(raw) if listed else []
    if not listed or any(
        isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < math.inf for lr in rates
    ):
        raise ConfigError(f"{prefix}.widen", got=raw, hint="expected a list of learning rates, all above 0")
    if rates and len(ladder) < 2:
        raise ConfigError(f"{prefix}.widen", got=raw, hint="there is no ladder of learning rates to widen: axes.lr")
    for lr in rates:
        if min(ladder) <= lr <= max(ladder) or rates.count(lr) > 1:
            hint = f"each of these lies beyond the ladder of {min(ladder):g} to {max(ladder):g}, and is given once"
            raise ConfigError(f"{prefix}.widen", got=lr, hint=hint)
    return tuple(sorted(float(lr) for lr in rates))


def _require_keys(prefix: str, raw: Any, keys: set[str], *, optional: Collection[str] = ()) -> None:
    if not isinstance(raw, Mapping):
        raise ConfigError(prefix, got=raw, hint=f"expected the keys {', '.join(sorted(keys))}")
    for key in sorted(set(raw) - keys - set(optional)):
        raise unknown_key(f"{prefix}.{key}", [f"{prefix}.{name}" for name in sorted({*keys, *optional})])
    for key in sorted(keys - set(raw)):
        raise ConfigError(f"{prefix}.{key}", got=None, hint="this key is missing")
