"""One claimed effect as a study declares it: what is compared, in which measure and shape, and what would matter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from bnexp.errors import ConfigError
from bnexp.metrics import CURVE, MEASURES, METRICS, NEEDS_TARGET, metric_of
from bnexp.section import unknown_key

Direction = Literal["higher", "lower", "same", "not lower"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
Best = Literal["own", "pair"]
BESTS: tuple[Best, ...] = get_args(Best)
Role = Literal["claim", "premise", "context"]
ROLES: tuple[Role, ...] = get_args(Role)

# shape -> the fields that it needs, and those that it may have besides measure, target, direction and margin
SHAPES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "difference": (frozenset({"treatment", "control"}), frozenset({"control_measure"})),
    "ratio": (frozenset({"treatment", "control"}), frozenset({"control_measure"})),
    "matched": (frozenset({"treatment", "control"}), frozenset()),
    "level": (frozenset({"treatment", "reference"}), frozenset()),
    "reach": (frozenset({"treatment", "control", "over"}), frozenset({"within", "best", "least"})),
    "span": (frozenset({"treatment", "control", "over"}), frozenset({"within", "best"})),
    "worst": (frozenset({"treatment", "control", "over"}), frozenset()),
    "slope": (frozenset(), frozenset({"treatment", "control", "over", "levels"})),
    "interaction": (frozenset({"treatment", "control", "against"}), frozenset()),
    "search": (frozenset({"treatment", "control", "budget"}), frozenset({"over"})),
}
TIMED_MEASURES = ("seconds_to_target", "images_per_second", "train_seconds")  # they depend on what runs beside a run
FACTORS = ("ratio", "reach")  # their margin is a factor above 1, judged on a logarithm
IN_NUMBERS = ("reach", "span", "slope")  # they reckon with the levels themselves: numbers above 0
FIELDS = (
    "treatment", "control", "control_measure", "over", "levels", "against", "reference", "within", "best", "least",
    "budget",
)  # fmt: skip
# where a margin in accuracy that a tier declares may stand for a comparison's own
IN_ACCURACY = ("difference", "matched", "level", "worst", "interaction", "search", "slope")


@dataclass(frozen=True)
class Comparison:
    """One claimed effect, judged in every stratum.

    Attributes:
        shape: one of SHAPES.
            difference: treatment − control. ratio: treatment / control. level: treatment − `reference`.
            matched: treatment − control, each where it first reaches the highest train accuracy that both reach.
            reach: the largest level of `over` at which an arm is still good, treatment / control.
            span: decades of `over`, of those tried, at which an arm is good, treatment − control.
            worst: the worst level of `over`, treatment − control.
            slope: per doubling of `over`, of treatment − control or of the treatment alone; or over arms, `levels`.
            interaction: (treatment − control) − (against[0] − against[1]).
            search: what is lost by trying but `budget` settings (learning rates, and levels of `over`) drawn at
            random instead of all of them, treatment − control.
        direction: the claimed side: higher or lower than the control; same: no difference as large as the margin;
            not lower (non-inferiority): not below the control by the margin or more.
        margin: the smallest effect that matters: in the measure's stored unit, per doubling for a slope, in decades
            for a span, a factor above 1 for a ratio or a reach; None: the tier's, for a slope over all of its levels.
        measure: of a run, in metrics; None: the study's metric.
        control_measure: what the control is read in instead.
        target: what an epochs_to_target and its like have to reach, or the least train accuracy to match at; None:
            the tier's.
        over: the config key whose values are the levels.
        levels: arm -> its level, a number above 0, in ascending order.
        role: claim; premise: the study's claims are invalid in a stratum where it is not supported; context: not on
            trial, and so no part of the family.
        within: good is also to be no worse, by more than this, than the best healthy level at the same seed;
            `margin`: the tier's.
        best: whose best level that is: own, or None: the arm's, for how far it goes before it falls off; pair: that of
            both, for how far it goes and is as good as any.
        least: the mean accuracy that the control has at its best level, and the treatment too where the best is its
            own, or it has not been trained and there is nothing to fall off from: the comparison is invalid.
    """

    shape: str
    direction: Direction
    margin: float | None = None
    measure: str | None = None
    target: float | None = None
    treatment: str | None = None
    control: str | None = None
    control_measure: str | None = None
    over: str | None = None
    levels: tuple[tuple[str, float], ...] | None = None
    against: tuple[str, str] | None = None
    reference: float | None = None
    within: float | Literal["margin"] | None = None
    best: Best | None = None
    least: float | None = None
    budget: int | None = None
    role: Role = "claim"

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm that it looks at, the treatment first."""
        named = (self.treatment, self.control, *(self.against or ()), *(arm for arm, _ in self.levels or ()))
        return tuple(dict.fromkeys(arm for arm in named if arm is not None))

    @property
    def has_target(self) -> bool:
        return self.shape == "matched" or any(name in NEEDS_TARGET for name in (self.measure, self.control_measure))

    def measures(self) -> tuple[tuple[str, float | None], ...]:
        """What it reads of a run, each measure with its target; those of `resolved` comparisons."""
        names = (self.measure, self.control_measure, CURVE if self.shape == "matched" else None)
        return tuple((name, self.target if name in NEEDS_TARGET else None) for name in names if name is not None)

    def resolved(
        self, *, metric: str, margin: float | None, target: float | None, levels: Sequence[object] = ()
    ) -> Comparison:
        """With measure, margin and target settled by the study and the tier where it has none of its own.

        Args:
            levels: of what it goes over.
        """
        measure = self.measure or metric
        within = margin if self.within == "margin" else self.within
        if self.shape == "slope" and margin is not None:
            margin /= _doublings([level for _, level in self.levels] if self.levels else levels)
        return replace(
            self,
            measure=measure,
            margin=margin if self.margin is None else self.margin,
            within=within,
            target=(target if self.target is None else self.target) if self.has_target else None,
        )


def _doublings(levels: Sequence[object]) -> float:
    """Between the smallest level and the largest; nan where they are no numbers above 0, which is refused elsewhere."""
    numbers = [float(level) for level in levels if isinstance(level, int | float) and level > 0]
    return math.log2(max(numbers) / min(numbers)) if len(numbers) > 1 else math.nan


def parse_comparison(prefix: str, raw: Any, *, arms: Iterable[str], metric: str, strata: Iterable[str]) -> Comparison:
    """Check one entry of a study's comparisons.

    Args:
        prefix: where it stands, for messages.
        arms, metric, strata: the study's.

    Raises:
        ConfigError: a field that is unknown, missing, out of place or of the wrong kind.
    """
    arms, strata = list(arms), list(strata)
    known = set(Comparison.__dataclass_fields__)
    if not isinstance(raw, Mapping):
        raise ConfigError(prefix, got=raw, hint=f"expected the keys {', '.join(sorted(known))}")
    for key in sorted(set(raw) - known):
        raise unknown_key(f"{prefix}.{key}", [f"{prefix}.{name}" for name in sorted(known)])
    given = {key: value for key, value in raw.items() if value is not None}
    given.setdefault("role", "claim")
    for key, choices in (("shape", list(SHAPES)), ("direction", list(DIRECTIONS)), ("role", list(ROLES))):
        if given.get(key) not in choices:
            raise ConfigError(f"{prefix}.{key}", got=given.get(key), choices=choices)
    _check_fields(prefix, given)
    if given.get("best", "own") not in BESTS:
        raise ConfigError(f"{prefix}.best", got=given["best"], choices=BESTS)
    for key in ("treatment", "control"):
        _check_arm(f"{prefix}.{key}", given.get(key), arms)
    for key in ("measure", "control_measure"):
        if key in given and given[key] not in [*METRICS, *MEASURES]:
            raise ConfigError(f"{prefix}.{key}", got=given[key], choices=[*METRICS, *MEASURES])
    _check_over(prefix, given, strata)
    comparison = Comparison(**{
        **given,
        **{key: float(_number(f"{prefix}.{key}", given[key])) for key in ("target", "reference") if key in given},
        **({"levels": _levels(f"{prefix}.levels", given["levels"], arms)} if "levels" in given else {}),
        **({"against": _against(f"{prefix}.against", given["against"], arms)} if "against" in given else {}),
    })  # fmt: skip
    _check_sides(prefix, comparison, metric)
    _check_numbers(prefix, comparison, metric)
    return comparison


def _check_fields(prefix: str, given: Mapping[str, Any]) -> None:
    """Each shape has the fields that it needs and none that mean nothing to it."""
    shape = given["shape"]
    needed, optional = SHAPES[shape]
    for field in FIELDS:
        if field in given and field not in needed | optional:
            raise ConfigError(f"{prefix}.{field}", got=given[field], hint=f"means nothing to the shape {shape}")
        if field in needed and field not in given:
            raise ConfigError(f"{prefix}.{field}", got=None, hint=f"the shape {shape} needs it")
    of_key = [field in given for field in ("treatment", "over")]
    of_arms = [field not in given for field in ("treatment", "control", "over")]
    if shape == "slope" and not all(of_arms if "levels" in given else of_key):
        hint = "a slope is over a key, of a treatment (minus a control), or over arms: levels={arm: number}"
        raise ConfigError(f"{prefix}.levels", got=given.get("levels"), hint=hint)


def _check_over(prefix: str, given: Mapping[str, Any], strata: Sequence[str]) -> None:
    over = given.get("over")
    if over is not None and over not in ["lr", *strata]:
        hint = "levels are those of lr or of one of the study's strata"
        raise ConfigError(f"{prefix}.over", got=over, choices=["lr", *strata], hint=hint)
    if over == "lr" and given["shape"] not in ("reach", "span"):
        raise ConfigError(
            f"{prefix}.over", got="lr", hint="the learning rate is chosen; only reach and span go over it"
        )


def _check_sides(prefix: str, comparison: Comparison, metric: str) -> None:
    """No arm is compared with itself in the same measure: that is 0 by construction."""
    one, other = comparison.treatment, comparison.control
    measures = comparison.measure or metric, comparison.control_measure or comparison.measure or metric
    if one is not None and one == other and measures[0] == measures[1]:
        raise ConfigError(f"{prefix}.control", got=other, hint="is the treatment too")
    against = comparison.against
    if against is not None and (against[0] == against[1] or set(against) == {one, other}):
        hint = "expected two arms that differ from each other and from the pair before"
        raise ConfigError(f"{prefix}.against", got=list(against), hint=hint)


def _check_arm(key: str, arm: Any, arms: Sequence[str]) -> None:
    if arm is not None and (not isinstance(arm, str) or arm not in arms):
        raise ConfigError(key, got=arm, choices=arms)


def _levels(key: str, raw: Any, arms: Sequence[str]) -> tuple[tuple[str, float], ...]:
    pairs = list(raw.items()) if isinstance(raw, Mapping) else raw
    if not isinstance(pairs, Sequence) or not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs):
        raise ConfigError(key, got=raw, hint="expected arm: number for two arms at least")
    for arm, level in pairs:
        _check_arm(key, arm, arms)
        _number(key, level, above=0)
    found = tuple((str(arm), float(level)) for arm, level in pairs)
    numbers = [level for _, level in found]
    if len(found) < 2 or numbers != sorted(set(numbers)):
        raise ConfigError(key, got=raw, hint="expected two arms at least, their levels in ascending order")
    return found


def _against(key: str, raw: Any, arms: Sequence[str]) -> tuple[str, str]:
    if not isinstance(raw, Sequence) or isinstance(raw, str) or len(raw) != 2:
        raise ConfigError(key, got=raw, hint="expected two arms, [treatment, control]")
    for arm in raw:
        _check_arm(key, arm, arms)
    return str(raw[0]), str(raw[1])


def _check_numbers(prefix: str, comparison: Comparison, metric: str) -> None:
    measure = metric_of(comparison.measure or metric)
    if comparison.margin is not None:
        _number(f"{prefix}.margin", comparison.margin, above=1 if comparison.shape in FACTORS else 0)
    elif comparison.shape not in IN_ACCURACY or measure.unit != "fraction":
        raise ConfigError(f"{prefix}.margin", got=None, hint="a tier's margin is of accuracies: this needs its own")
    if comparison.within not in (None, "margin"):
        _number(f"{prefix}.within", comparison.within, above=0)
    if comparison.least is not None:
        if not 0 < _number(f"{prefix}.least", comparison.least) < 1:
            raise ConfigError(f"{prefix}.least", got=comparison.least, hint="expected a fraction between 0 and 1")
        if comparison.within is None or measure.name not in METRICS or measure.unit != "fraction":
            hint = "is of an accuracy that every run reports, and of a level within some distance of the best"
            raise ConfigError(f"{prefix}.least", got=comparison.least, hint=hint)
    if comparison.target is not None:
        if not comparison.has_target:
            raise ConfigError(f"{prefix}.target", got=comparison.target, hint=f"means nothing to {measure.name}")
        if not 0 < comparison.target < 1:
            raise ConfigError(f"{prefix}.target", got=comparison.target, hint="expected a fraction between 0 and 1")
    budget = comparison.budget
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 1):
        raise ConfigError(f"{prefix}.budget", got=budget, hint="expected a whole number of settings, 1 at least")
    other = comparison.control_measure
    if other is not None and metric_of(other).unit != measure.unit:
        raise ConfigError(
            f"{prefix}.control_measure", got=other, hint=f"is not in {measure.unit}, as {measure.name} is"
        )
    if comparison.shape == "matched" and measure.name != "val_accuracy":
        raise ConfigError(f"{prefix}.measure", got=measure.name, hint="runs are matched in val_accuracy alone")
    if comparison.shape == "search" and measure.name not in METRICS:
        raise ConfigError(f"{prefix}.measure", got=measure.name, hint="a search is scored by what every run reports")


def _number(key: str, value: Any, *, above: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < math.inf:
        hint = "expected a number" if above == -math.inf else f"expected a number above {above:g}"
        raise ConfigError(key, got=value, hint=hint)
    return value
