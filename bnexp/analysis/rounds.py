"""A study that adds seeds in rounds: judged at each planned look in turn, until all is decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from bnexp.analysis.claims import ClaimVerdict, Declared, judge_comparisons, under_premises
from bnexp.analysis.select import Selection
from bnexp.analysis.sequential import Look, settle, should_stop
from bnexp.analysis.verdicts import Verdict
from bnexp.records import RunRecord
from bnexp.store import Store
from bnexp.study import StudySpec, Tier


class Rounds(NamedTuple):
    """How far a study has come.

    Attributes:
        claims: each as at the look that decided it, or else at the last one.
        number: of the last look that was judged, 0 where there is none: looks[number] comes next.
        stop: no more seeds are to be added.
    """

    claims: list[ClaimVerdict]
    number: int
    stop: bool


class LookRuns(NamedTuple):
    """The runs that a look takes in, those of earlier looks included: how many are there, and how many it needs."""

    there: int
    needed: int

    @property
    def complete(self) -> bool:
        return self.there == self.needed


def count_runs(
    store: Store,
    run_ids: Sequence[str],
    study: StudySpec,
    declared: Declared,
    looks: Sequence[Look],
    further: Sequence[Collection[str]] = (),
) -> list[LookRuns]:
    """Of each look, the runs that are there: ended without a crash, with all that the study measures of them.

    Args:
        run_ids: all that the study declares.
        study: at one tier.
        further: of each look, the runs that it takes in because the ladder was widened: `InForce.further`.
    """
    (tier,) = study.tiers.values()
    each = len(run_ids) // len(tier.axes["seed"])  # the grid has every seed everywhere
    records = (store.record(run_id) for run_id in run_ids)
    there = Counter(record.config["seed"] for record in records if record is not None and _has_ended(record, tier))
    taken_in = [set(declared.seeds[: look.num_pairs]) for look in looks]
    counts = [LookRuns(sum(there[seed] for seed in seeds), each * len(seeds)) for seeds in taken_in]
    if not further:
        return counts
    ended = {run_id for run_id in set().union(*further) if _is_there(store, run_id, tier)}
    return [
        LookRuns(count.there + len(ended & set(added)), count.needed + len(added))
        for count, added in zip(counts, further, strict=True)
    ]


def judge_rounds(
    selection: Selection,
    study: StudySpec,
    declared: Declared,
    looks: Sequence[Look],
    runs: Sequence[LookRuns],
    left_out: Sequence[Collection[str]] = (),
) -> Rounds:
    """The verdicts after all looks that have all their runs, each at its own alpha; the first decision stands.

    Every look is judged from the first seeds alone, whatever else has been run, so that judging again at any later
    time gives the same: these seeds choose its learning rates, from the ladder as these seeds widened it. A look that
    lacks runs, be it that they crashed, ends the sequence: until they are there the look before it stands, and
    before the first one nothing is decided. After a look that stops the study nothing is looked at, even where it has
    been run.

    Premises are applied to what the looks have settled: one that an earlier look supported is not asked again.

    Args:
        study: at one tier.
        declared: with all reported seeds, in their order.
        looks: as `plan_looks` has them, over numbers of reported seeds.
        runs: of each look, as `count_runs` has them.
        left_out: of each look, the ids of runs that later looks added by widening the ladder: `InForce.left_out`.

    Raises:
        ValueError: a look at more seeds than are declared.
        StoreError: two runs of one arm and stratum share a learning rate and a seed.
    """
    if not looks or looks[-1].num_pairs > len(declared.seeds):
        raise ValueError(f"looks at up to {looks[-1].num_pairs if looks else 0} of {len(declared.seeds)} seeds")
    compared: list[ClaimVerdict] = []  # whatever the premises say
    claims: list[ClaimVerdict] = []
    for look, own, without in zip(looks, runs, left_out or [()] * len(looks), strict=True):
        if not own.complete:
            first = [] if claims else judge_look(selection, study, declared, look, left_out=without)
            claims = claims or [_open(claim) for claim in under_premises(first)]
            return Rounds(claims, look.number - 1, stop=False)
        compared = _settle(compared, judge_look(selection, study, declared, look, left_out=without))
        claims = _settle(claims, under_premises(compared))
        if should_stop(look, _by_place(claims)):
            return Rounds(claims, look.number, stop=True)
    raise AssertionError("the last look stops")


def judge_look(
    selection: Selection, study: StudySpec, declared: Declared, look: Look, *, left_out: Collection[str] = ()
) -> list[ClaimVerdict]:
    """The verdicts at one look by itself, from the seeds that it takes in and whatever the premises say.

    Args:
        left_out: ids of runs that the look does not take in although it has their seeds.
    """
    later = declared.seeds[look.num_pairs :]
    runs = selection.runs
    taken_in = selection.of_runs(runs[~(runs["seed"].isin(later) | runs["run_id"].isin(left_out))])
    seeds = replace(declared, seeds=declared.seeds[: look.num_pairs])
    claims = judge_comparisons(taken_in, study, declared=seeds, alpha=look.alpha)
    return [_at_look(claim, look.number) for claim in claims]


def _settle(earlier: Sequence[ClaimVerdict], now: Sequence[ClaimVerdict]) -> list[ClaimVerdict]:
    settled = settle(_by_place(earlier), _by_place(now))
    return [earlier[i] if earlier and settled[str(i)] is earlier[i].verdict else claim for i, claim in enumerate(now)]


def _by_place(claims: Sequence[ClaimVerdict]) -> dict[str, Verdict]:
    """Comparisons and strata do not change between looks, so their places name them."""
    return {str(i): claim.verdict for i, claim in enumerate(claims)}


def _at_look(claim: ClaimVerdict, number: int) -> ClaimVerdict:
    return replace(claim, look=number, other_inits=tuple(_at_look(other, number) for other in claim.other_inits))


def _open(claim: ClaimVerdict) -> ClaimVerdict:
    """A claim before the first look is complete: untested, whatever the runs that are there would say."""
    if claim.verdict.outcome == "untested":
        return claim
    verdict = Verdict("untested", "runs of the first look are missing", None, claim.verdict.num_pairs)
    return replace(claim, verdict=verdict, readings={}, other_inits=())


def _is_there(store: Store, run_id: str, tier: Tier) -> bool:
    record = store.record(run_id)
    return record is not None and _has_ended(record, tier)


def _has_ended(record: RunRecord, tier: Tier) -> bool:
    measured: Mapping[str, Mapping[str, Any]] = record.exec.get("probes", {})
    options = [(*key.split(".")[1:], value) for key, value in tier.fixed.items() if key.startswith("probes.")]
    return (
        record.status != "failed"
        and measured.keys() >= set(tier.fixed.get("probes", ()))
        and all(measured.get(probe, {}).get(option) == value for probe, option, value in options)
    )
