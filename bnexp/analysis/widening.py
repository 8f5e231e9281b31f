"""The ladder of learning rates widens by itself, so that no arm is judged at an end of what happened to be tried.

In each stratum, after the declared ladder has run: where an arm is best at the smallest or the largest rate, the next
rate outward on that side that the study declares in `widen` is run as well, for all arms and seeds. This is repeated
until no arm is best at an end, or its best rate was added and is unhealthy, or no declared rate is left on that side.
An arm that is healthy at no rate at all goes on, for a smaller rate may save it.

Nothing is remembered but the runs: the same records give the same ladder, however often training was interrupted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from bnexp.analysis.frame import UNHEALTHY, WORST, load_frame, score
from bnexp.analysis.stats import HEALTHY_SHARE, VOTE_DECIMALS
from bnexp.metrics import METRICS
from bnexp.store import Store

Side = Literal["smallest", "largest"]
Ids = Mapping[str, Mapping[float, Sequence[str]]]  # arm -> learning rate -> run ids, one a seed in the study's order


@dataclass(frozen=True)
class Ladder:
    """The learning rates of one stratum of a study, and the runs at each.

    Attributes:
        stratum: its values of what the study sweeps, in words; empty where a study has but one stratum.
        declared: the runs at the rates of `axes.lr`.
        further: the runs at the rates of `widen`; the same arms.
    """

    stratum: str
    declared: Ids
    further: Ids

    @property
    def declared_ids(self) -> list[str]:
        return [name for rungs in self.declared.values() for names in rungs.values() for name in names]

    @property
    def further_ids(self) -> list[str]:
        return [name for rungs in self.further.values() for names in rungs.values() for name in names]

    def ids_at(self, lr: float) -> list[str]:
        """The runs of all arms at a rate that may be added."""
        return [name for rungs in self.further.values() for name in rungs[lr]]


class Tried(NamedTuple):
    """What a run says of its learning rate: its value of the choosing metric, more being better, and its health."""

    vote: float
    healthy: bool


@dataclass(frozen=True)
class Rung:
    """A rate that was added to a ladder, and why.

    Attributes:
        reasons: arm -> the rate that was its best, at the end of the ladder as it was then.
    """

    lr: float
    side: Side
    reasons: Mapping[str, float]


@dataclass(frozen=True)
class ArmEnd:
    """Where the best rate of an arm stands on its ladder.

    Attributes:
        best: the rate with the best mean.
        side: the end of the ladder that the best rate is at; None where rates on both sides of it were run.
        proven: the next rate outward from the arm's best healthy rate was run, and is unhealthy for this arm.
    """

    best: float
    side: Side | None
    proven: bool

    @property
    def at_bound(self) -> bool:
        """A better rate may lie beyond the rates that the study declares."""
        return self.side is not None and not self.proven


@dataclass(frozen=True)
class Widened:
    """What the rule has made of one ladder.

    Attributes:
        rates: those in force, ascending.
        rungs: those of them that were added, in their order.
        settled: every run of the rates in force is there, and the rule asks for no more.
        ends: arm -> where its best rate stands; empty where the ladder is not settled.
    """

    ladder: Ladder
    rates: tuple[float, ...]
    rungs: tuple[Rung, ...] = ()
    settled: bool = False
    ends: Mapping[str, ArmEnd] = field(default_factory=dict)

    @property
    def added(self) -> tuple[float, ...]:
        return tuple(rung.lr for rung in self.rungs)


@dataclass(frozen=True)
class InForce:
    """The runs that a study counts: those it declares, and those of the rates that its ladders were widened by.

    Attributes:
        run_ids, arms: as in study.json, with the added runs behind the declared ones.
        rounds: of each look, or once where a study has none: its ladders. Each look judges from its own seeds alone
            which rates to add; what an earlier look has added stays.
        further: of each look, the added runs that it takes in.
    """

    run_ids: list[str]
    arms: dict[str, list[str]]
    rounds: tuple[tuple[Widened, ...], ...] = ()
    further: tuple[frozenset[str], ...] = ()

    def ladders(self, number: int = -1) -> tuple[Widened, ...]:
        """The ladders as of a look, by its index; none where the study does not widen."""
        return self.rounds[number] if self.rounds else ()

    def left_out(self) -> list[frozenset[str]]:
        """Of each look, runs in force that it does not take in, because a later look has added their rate."""
        return [frozenset().union(*self.further) - taken_in for taken_in in self.further]

    def unsettled_ids(self) -> frozenset[str]:
        """The declared runs of strata whose ladder is not settled: at best rates, no verdict holds there yet."""
        return frozenset(
            name for widened in self.ladders() if not widened.settled for name in widened.ladder.declared_ids
        )


def runs_in_force(store: Store, frozen: Mapping[str, Any]) -> InForce:
    """Which runs of a started study count, from study.json and the records that are there.

    Args:
        frozen: study.json; one without `widening` has the declared runs in force.
    """
    declared, arms = list(frozen["run_ids"]), {arm: list(ids) for arm, ids in frozen["arms"].items()}
    ladders = ladders_of(frozen)
    if not ladders:
        return InForce(declared, arms)
    names = {name for ladder in ladders for name in (*ladder.declared_ids, *ladder.further_ids)}
    runs = load_frame(store, sorted(names)).runs
    metric = frozen["declaration"]["choose"]["metric"]
    tried = {} if runs.empty else dict(zip(runs["run_id"], results_of(runs, metric), strict=True))
    num_seeds = len(frozen["declaration"]["tiers"][frozen["tier"]]["axes"]["seed"])
    looks = frozen.get("looks") or [num_seeds]
    rounds = _rounds(ladders, tried, looks)
    for widened in rounds[-1]:
        for arm, rungs in widened.ladder.further.items():
            arms[arm] += [name for lr in widened.added for name in rungs[lr] if name not in arms[arm]]
    further = tuple(_further(own, num) for own, num in zip(rounds, looks, strict=True))
    return InForce(
        list(dict.fromkeys([*declared, *(name for ids in arms.values() for name in ids)])), arms, tuple(rounds), further
    )


def results_of(runs: pd.DataFrame, metric: str) -> list[Tried]:
    """What each run says of its learning rate.

    Args:
        runs: `Frame.runs`, not empty.
        metric: that a study chooses rates by.
    """
    sign = 1.0 if METRICS[metric].direction == "higher" else -1.0
    # a run without this metric, having diverged, must lose the vote and not be left out of it
    votes = (sign * score(runs, metric)).fillna(WORST)
    healthy = ~runs["status"].isin(UNHEALTHY)
    return [Tried(float(vote), bool(sound)) for vote, sound in zip(votes, healthy, strict=True)]


def widen(ladder: Ladder, tried: Mapping[str, Tried], *, num_seeds: int, before: Widened | None = None) -> Widened:
    """Add rates to the ladder of one stratum as far as the runs that are there ask for it.

    Args:
        tried: run id -> its result; a run that is not there, or crashed, has none.
        num_seeds: the first so many seeds are judged from.
        before: the ladder as it was with fewer seeds: what was added stays.
    """
    rungs = list(before.rungs) if before else []
    further = sorted({lr for own in ladder.further.values() for lr in own})
    while True:
        rates = tuple(sorted({*next(iter(ladder.declared.values())), *(rung.lr for rung in rungs)}))
        results = {arm: _results(ladder, arm, rates, tried, num_seeds) for arm in ladder.declared}
        if any(run is None for own in results.values() for runs in own.values() for run in runs):
            return Widened(ladder, rates, tuple(rungs))
        added = [rung.lr for rung in rungs]
        ends = {arm: arm_end({lr: [run for run in runs if run] for lr, runs in own.items()}, added)
                for arm, own in results.items()}  # fmt: skip
        wanted: dict[float, dict[str, float]] = {}
        sides: dict[float, Side] = {}
        for arm, end in ends.items():
            following = _outward(rates, further, end.side)
            if end.at_bound and end.side is not None and following is not None:
                wanted.setdefault(following, {})[arm] = end.best
                sides[following] = end.side
        if not wanted:
            return Widened(ladder, rates, tuple(rungs), settled=True, ends=ends)
        rungs += [Rung(lr, sides[lr], reasons) for lr, reasons in sorted(wanted.items())]


def arm_end(runs: Mapping[float, Sequence[Tried]], added: Collection[float] = ()) -> ArmEnd:
    """Where the best rate of an arm stands.

    Args:
        runs: learning rate -> its runs, one a seed; two rates at least.
        added: those of the rates that were not on the declared ladder.
    """
    best = best_rate({lr: [run.vote for run in own] for lr, own in runs.items()})
    rates, health = sorted(runs), {lr: is_healthy(own) for lr, own in runs.items()}
    index = rates.index(best)
    side: Side | None = "smallest" if index == 0 else "largest" if index == len(rates) - 1 else None
    if side is not None:
        # an added rate that is best and unhealthy is an end, unless the arm has not been healthy anywhere yet
        return ArmEnd(best, side, proven=best in added and not health[best] and any(health.values()))
    beside = rates[index - 1], rates[index + 1]
    return ArmEnd(best, None, proven=health[best] and not all(health[lr] for lr in beside))


def best_rate(votes: Mapping[float, Sequence[float]]) -> float:
    """The learning rate with the largest mean; of equal ones, the smallest."""
    means = {lr: round(float(np.mean(own)), VOTE_DECIMALS) for lr, own in sorted(votes.items())}
    return max(means, key=lambda lr: means[lr])  # max keeps the first of equals


def is_healthy(runs: Sequence[Tried]) -> bool:
    """Whether at least 80 % of an arm's runs at one learning rate are healthy."""
    return float(np.mean([run.healthy for run in runs])) >= HEALTHY_SHARE


def ladders_of(frozen: Mapping[str, Any]) -> tuple[Ladder, ...]:
    """The ladders of study.json; none where the study does not widen."""

    def ids(raw: Mapping[str, Mapping[str, Sequence[str]]]) -> Ids:
        return {arm: {float(lr): tuple(names) for lr, names in rungs.items()} for arm, rungs in raw.items()}

    return tuple(
        Ladder(entry["stratum"], ids(entry["declared"]), ids(entry["further"])) for entry in frozen.get("widening", ())
    )


def frozen_ladders(ladders: Sequence[Ladder]) -> list[dict[str, Any]]:
    """What study.json says of ladders: `ladders_of` reads it."""

    def plain(ids: Ids) -> dict[str, dict[str, list[str]]]:
        return {arm: {f"{lr!r}": list(names) for lr, names in rungs.items()} for arm, rungs in ids.items()}

    return [
        {"stratum": ladder.stratum, "declared": plain(ladder.declared), "further": plain(ladder.further)}
        for ladder in ladders
    ]


def _rounds(ladders: Sequence[Ladder], tried: Mapping[str, Tried], looks: Sequence[int]) -> list[tuple[Widened, ...]]:
    """The ladders at each look; a look after one that lacks runs has what is known by then."""
    rounds: list[tuple[Widened, ...]] = []
    for num_seeds in looks:
        before = rounds[-1] if rounds else None
        if before is not None and not all(widened.settled for widened in before):
            rounds.append(before)
            continue
        earlier = before or [None] * len(ladders)
        pairs = zip(ladders, earlier, strict=True)
        rounds.append(tuple(widen(ladder, tried, num_seeds=num_seeds, before=was) for ladder, was in pairs))
    return rounds


def _further(ladders: Sequence[Widened], num_seeds: int) -> frozenset[str]:
    """The runs of added rates, of the first seeds."""
    return frozenset(
        name
        for widened in ladders
        for rungs in widened.ladder.further.values()
        for lr in widened.added
        for name in rungs[lr][:num_seeds]
    )


def _results(
    ladder: Ladder, arm: str, rates: Sequence[float], tried: Mapping[str, Tried], num_seeds: int
) -> dict[float, list[Tried | None]]:
    runs = {**ladder.declared[arm], **ladder.further[arm]}
    return {lr: [tried.get(name) for name in runs[lr][:num_seeds]] for lr in rates}


def _outward(rates: Sequence[float], further: Sequence[float], side: Side | None) -> float | None:
    """The next rate beyond an end of the ladder; None where there is none."""
    if side == "smallest":
        return max((lr for lr in further if lr < rates[0]), default=None)
    return min((lr for lr in further if lr > rates[-1]), default=None)
