"""From the runs of a study to the verdict on each of its comparisons, in each stratum."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal, TypeVar

import pandas as pd

from bnexp.analysis import verdicts
from bnexp.analysis.contrasts import Contrast
from bnexp.analysis.frame import Frame, load_frame
from bnexp.analysis.gates import Key, bare_arms, gate_of, init_of, init_readings, untimed, untrained
from bnexp.analysis.measures import with_measures
from bnexp.analysis.rule import ALPHA, Rule
from bnexp.analysis.select import Selection, level_of, select
from bnexp.analysis.shapes import View
from bnexp.analysis.test_images import images_of
from bnexp.analysis.tuned import contrast_at_rate, contrast_with_choice
from bnexp.analysis.verdicts import DECIDED, Outcome, Verdict, judge_family
from bnexp.comparison import Comparison
from bnexp.metrics import metric_of
from bnexp.store import Store
from bnexp.study import INIT, StudySpec, num_strata

Name = TypeVar("Name")
THESE_IMAGES = "these test images"
STATISTICS = ("precise", "batch")  # what a trained network can be evaluated with besides its running statistics


@dataclass(frozen=True)
class Reading:
    """Another way to read a comparison: one rate for both arms, other statistics, these images alone, a poor init."""

    kind: Literal["learning rate", "statistics", "images", "init"]
    value: float | str


@dataclass(frozen=True)
class ClaimVerdict:
    """What one comparison of a study comes to in one stratum.

    Attributes:
        stratum: without what the comparison goes over.
        verdict: each arm at its own best learning rate, or over all of them where that is what is compared.
        readings: the same read otherwise. Each kind of reading, over all strata, is a family of its own, so that
            nobody picks the one that pleases. No learning rates where there is but one or all are compared. Inits are
            those that make a strawman of an arm without a norm.
        values: the per-seed numbers behind the verdict: logarithms where a factor is judged.
        failed: seeds with a failed or censored run behind their number.
        contrast: all that the verdict was made of; None where nothing has run.
        exploratory: the study was changed, so this is no verdict on its claim.
        look: the number of the look at the data that it comes from; None where there was but one.
        other_inits: what the readings of the kind init are in full, each itself read otherwise.
        reading_of: of such a reading, the verdict that it reads otherwise: this is no verdict on the claim.
    """

    comparison: Comparison
    stratum: str
    verdict: Verdict
    readings: dict[Reading, Verdict] = field(default_factory=dict)
    values: Mapping[int, float] = field(default_factory=dict)
    failed: frozenset[int] = frozenset()
    contrast: Contrast | None = field(default=None, compare=False)
    exploratory: bool = False
    look: int | None = None
    other_inits: tuple[ClaimVerdict, ...] = ()
    reading_of: Verdict | None = None

    @property
    def outcome(self) -> str:
        """`supported`; `exploratory: supported` and `reading: supported` where this is no verdict on the claim."""
        what = "exploratory: " * self.exploratory + "reading: " * (self.reading_of is not None)
        return f"{what}{self.verdict.outcome}"

    @property
    def same_lr(self) -> dict[float, Verdict]:
        """Learning rate -> the verdict with both arms at that rate."""
        return {float(r.value): verdict for r, verdict in self.readings.items() if r.kind == "learning rate"}


@dataclass(frozen=True)
class Declared:
    """What a study declares to run in each arm and stratum; what lacks of it makes a comparison untested.

    Attributes:
        seeds: each of which is run at every rate.
        rates: of the ladder; none: nothing is chosen.
        axes: whatever else is swept -> its values.
    """

    seeds: tuple[int, ...]
    rates: tuple[float, ...] = ()
    axes: dict[str, tuple[object, ...]] = field(default_factory=dict)

    def num_strata(self, comparison: Comparison, selection: Selection) -> tuple[int, int]:
        """`study.num_strata`: with those of which nothing has run yet."""
        return num_strata(self.axes, comparison, bare=bool(bare_arms(selection, comparison)))


def declared_of(study: StudySpec, tier: str) -> Declared:
    axes = {key: values for key, values in study.tiers[tier].axes.items() if key not in ("lr", "seed")}
    return Declared(study.seeds(tier), study.rates(tier), axes)


def load_study(
    store: Store, study: StudySpec, run_ids: Sequence[str], arms: Mapping[str, Sequence[str]] | None
) -> tuple[Frame, Selection | None]:
    """The runs of a study with every measure that its comparisons read, sorted; no selection where none has ended.

    Args:
        study: at one tier.
        arms: as frozen: the run ids of each.
    """
    frame = load_frame(store, run_ids)
    if frame.runs.empty:
        return frame, None
    wanted = dict.fromkeys(pair for comparison in study.comparisons for pair in comparison.measures())
    if any("statistics" in tier.fixed.get("probes", ()) for tier in study.tiers.values()):
        wanted |= {(f"accuracy_{statistics}", None): None for statistics in STATISTICS}
    frame = replace(frame, runs=with_measures(frame.runs, store, list(wanted)))
    return frame, replace(select(frame.runs, study, arms), images=images_of(frame.runs, store))


def judge_study(
    selection: Selection, study: StudySpec, *, declared: Declared | None, alpha: float = ALPHA
) -> list[ClaimVerdict]:
    """The verdicts, by comparison and stratum: claims are drawn only where the premises hold.

    Args and errors are those of `judge_comparisons`.
    """
    return under_premises(judge_comparisons(selection, study, declared=declared, alpha=alpha))


def judge_comparisons(
    selection: Selection, study: StudySpec, *, declared: Declared | None, alpha: float = ALPHA
) -> list[ClaimVerdict]:
    """The verdicts whatever the premises say, by comparison and stratum, all of them one Holm family.

    A stratum whose init makes a strawman of an arm without a norm has none: it is a reading of the stratum that differs
    in the init alone.

    Args:
        study: at one tier.
        declared: None for an exploratory study, which keeps to no declaration.
        alpha: of the family; less than 0.05 where there are several looks at the data.

    Raises:
        StoreError: two runs of one arm and stratum share a learning rate and a seed.
    """
    keys = [(comparison, group) for comparison in study.comparisons for group in selection.groups(comparison.over)]
    hosts = init_readings(selection, keys, declared.axes.get(INIT, ()) if declared else ())
    keys = [key for key in keys if hosts.get(key, key) is not None]
    view = view_of(selection, declared)
    absent = _absent(study.comparisons, keys, hosts, selection, declared)
    contrasts = [_checked(view, *key, declared) for key in keys]
    gates = [
        (untimed if key in hosts else gate_of)(selection, *key)
        # what is missing may be what an arm is good at
        or ("" if contrast.missing else untrained(selection, *key))
        for key, contrast in zip(keys, contrasts, strict=True)
    ]

    def judge(readings: Sequence[Mapping[Name, Contrast]]) -> list[dict[Name, Verdict]]:
        return _judge_families(readings, keys, gates, hosts, absent, alpha)

    judged = judge([{None: contrast} for contrast in contrasts])
    readings = [judge([kind(view, *key) for key in keys]) for kind in (_at_same_rates, _under_statistics)]
    crossed = [contrast.crossed is not None for contrast in contrasts]
    pairs = zip(keys, crossed, strict=True)
    readings.append(judge([_on_these_images(view, *key) if known else {} for key, known in pairs]))
    found = {
        key: ClaimVerdict(
            *key,
            judged[i][None],
            {reading: verdict for kind in readings for reading, verdict in kind[i].items()},
            contrasts[i].values,
            contrasts[i].failed,
            contrasts[i],
            exploratory=declared is None,
        )
        for i, key in enumerate(keys)
    }
    return [
        *(_with_inits(found, key, hosts, selection) for key in keys if key not in hosts),
        *(_not_run(comparison, number) for (comparison, read), number in absent.items() if number and not read),
    ]


def with_other_inits(claims: Sequence[ClaimVerdict]) -> list[ClaimVerdict]:
    """Each verdict, followed by its readings with other inits: all that has a row of its own."""
    return [row for claim in claims for row in (claim, *claim.other_inits)]


def under_premises(claims: Sequence[ClaimVerdict]) -> list[ClaimVerdict]:
    """A claim is drawn from its comparison only where the study's premises hold in the same stratum.

    Args:
        claims: as `judge_comparisons` has them, whatever the look that each comes from.
    """
    premises = [row for row in with_other_inits(claims) if row.comparison.role == "premise"]
    return [_guarded(claim, premises) if claim.comparison.role == "claim" else claim for claim in claims]


def _guarded(claim: ClaimVerdict, premises: Sequence[ClaimVerdict]) -> ClaimVerdict:
    verdict = _on_premises(claim, premises)
    others = tuple(
        replace(other, verdict=_on_premises(other, premises), reading_of=verdict) for other in claim.other_inits
    )
    inits = [reading for reading in claim.readings if reading.kind == "init"]
    read = dict(zip(inits, (other.verdict for other in others), strict=True))
    return replace(claim, verdict=verdict, readings=claim.readings | read, other_inits=others)


def _on_premises(claim: ClaimVerdict, premises: Sequence[ClaimVerdict]) -> Verdict:
    verdict = claim.verdict
    for premise in premises:
        outcome, on = premise.verdict.outcome, premise.comparison
        holds = outcome == "supported" or premise.stratum != claim.stratum
        if holds or verdict.outcome in ("untested", "invalid"):
            continue
        what = f"{on.treatment} against {on.control} in {metric_of(str(on.measure)).label}"
        # a direction alone leaves open whether the premise will hold, as no verdict at all does
        word: Outcome = (
            "invalid" if outcome in (*DECIDED, "invalid") else "untested" if outcome == "untested" else "inconclusive"
        )
        reason = f"its premise is {outcome}: {what}"
        verdict = replace(verdict, outcome=word, reason=reason, effect=None, needed=None)
    return verdict


def _with_inits(
    found: Mapping[Key, ClaimVerdict], key: Key, hosts: Mapping[Key, Key | None], selection: Selection
) -> ClaimVerdict:
    own = found[key]
    others = {init_of(selection, other): found[other] for other, host in hosts.items() if host == key}
    return replace(
        own,
        readings=own.readings | {Reading("init", init): other.verdict for init, other in others.items()},
        other_inits=tuple(replace(other, reading_of=own.verdict) for other in others.values()),
    )


def _judge_families(
    readings: Sequence[Mapping[Name, Contrast]],
    keys: Sequence[Key],
    gates: Sequence[str],
    hosts: Collection[Key],
    absent: Mapping[tuple[Comparison, bool], int],
    alpha: float,
) -> list[dict[Name, Verdict]]:
    """The verdicts on one kind of reading, a family over all comparisons and strata, in the order of the keys.

    Args:
        readings: of each comparison and stratum.
        hosts: those of the keys that only read others with a poor init, a family apart.
        absent: comparison, and whether they only read -> strata of which nothing has run, which will be read in as many
            ways as those that have.
    """
    ways: dict[Comparison, int] = {}
    for reading, (comparison, _) in zip(readings, keys, strict=True):
        ways[comparison] = max(ways.get(comparison, 0), len(reading))
    found: list[dict[Name, Verdict]] = [{} for _ in keys]
    # neither context nor readings with a poor init must make the claims harder, nor be judged more lightly
    for on_trial, read in product((True, False), repeat=2):
        members = [
            (index, name)
            for index, reading in enumerate(readings)
            for name in reading
            if (keys[index][0].role != "context", keys[index] in hosts) == (on_trial, read)
        ]
        unrun = sum(
            number * ways.get(comparison, 0)
            for (comparison, reads), number in absent.items()
            if (comparison.role != "context", reads) == (on_trial, read)
        )
        judged = judge_family(
            {
                str(number): verdicts.Comparison(readings[index][name], rule_of(keys[index][0], alpha), gates[index])
                for number, (index, name) in enumerate(members)
            },
            family_size=max(1, len(members) + unrun),
        )
        for number, (index, name) in enumerate(members):
            found[index][name] = judged[str(number)]
    return found


def view_of(selection: Selection, declared: Declared | None) -> View:
    """Each arm at its own best learning rate."""
    overlap = 0.0 if selection.images is None else selection.images.overlap
    if declared is None:
        return View(selection, selection.reporting(), selection.runs, None, {}, (), overlap)
    own = selection.runs["seed"].isin(declared.seeds)
    if not own.all():  # seeds that nobody declared are left out of the choice too
        selection = replace(selection, best_lr=selection.best_lr | selection.of_runs(selection.runs[own]).best_lr)
    levels = {key: tuple(level_of(value) for value in values) for key, values in declared.axes.items()}
    return View(selection, selection.reporting(), selection.runs, declared.seeds, levels, declared.rates, overlap)


def rule_of(comparison: Comparison, alpha: float = ALPHA) -> Rule:
    """A factor is judged on its logarithm: to base 10 where it is a reach, the natural one where it is a ratio."""
    assert comparison.margin is not None
    scale = {"reach": math.log10, "ratio": math.log}.get(comparison.shape, float)
    return Rule(direction=comparison.direction, margin=scale(comparison.margin), alpha=alpha)


def _checked(view: View, comparison: Comparison, group: str, declared: Declared | None) -> Contrast:
    """The numbers at own best rates; missing where a rate was not chosen as declared."""
    contrast = contrast_with_choice(view, comparison, group)
    if comparison.over == "lr" or comparison.shape == "search":
        return contrast
    # a rate that was not chosen as declared is a search that was not the same for both arms
    untuned = tuple(
        f"{name}: not every rate has been run with every seed"
        for name in comparison.arms
        if any(_untuned(view.selection, name, s, declared) for s in view.strata(comparison, group).values())
    )
    return replace(contrast, missing=(*contrast.missing, *untuned))


def _untuned(selection: Selection, name: str, stratum: str, declared: Declared | None) -> bool:
    if declared is None:
        return (name, stratum) in selection.gaps
    if len(declared.rates) < 2:
        return False
    cell = selection.cell(selection.runs, name, stratum)
    tried = {(float(lr), int(seed)) for lr, seed in zip(cell["lr"], cell["seed"], strict=True)}
    # of no arm must a rate be missing: others may lack it too, and the runs alone would not show it
    return not {(lr, seed) for lr in declared.rates for seed in declared.seeds} <= tried


def _absent(
    comparisons: Sequence[Comparison],
    keys: Sequence[Key],
    hosts: Collection[Key],
    selection: Selection,
    declared: Declared | None,
) -> dict[tuple[Comparison, bool], int]:
    """Declared strata of a comparison of which nothing has run, and whether they only read; they keep their places."""
    if declared is None:
        return {}
    return {
        (comparison, read): max(0, num - sum(key[0] == comparison and (key in hosts) == read for key in keys))
        for comparison in comparisons
        for read, num in zip((False, True), declared.num_strata(comparison, selection), strict=True)
    }


def _not_run(comparison: Comparison, number: int) -> ClaimVerdict:
    stratum = f"{number} more strat{'um' if number == 1 else 'a'}"
    return ClaimVerdict(comparison, stratum, Verdict("untested", "nothing has run yet", None, 0))


def _at_same_rates(view: View, comparison: Comparison, group: str) -> dict[Reading, Contrast]:
    """The contrast with all arms at each learning rate of the ladder."""
    if comparison.over == "lr" or comparison.shape == "search":
        return {}
    rates = sorted({float(lr) for lr in _here(view.ladder, view, comparison, group)["lr"]} | set(view.rates))
    if len(rates) < 2:
        return {}
    return {Reading("learning rate", lr): contrast_at_rate(view, comparison, group, lr) for lr in rates}


def _under_statistics(view: View, comparison: Comparison, group: str) -> dict[Reading, Contrast]:
    """The contrast of test accuracies under other statistics than the running ones, where any were measured."""
    blind = comparison.shape in ("reach", "span") and comparison.within is None  # these look at no accuracy
    if comparison.measure != "test_accuracy" or comparison.control_measure or comparison.shape == "search" or blind:
        return {}
    here = _here(view.runs, view, comparison, group)
    measures = {statistics: f"accuracy_{statistics}" for statistics in STATISTICS}
    return {
        Reading("statistics", statistics): contrast_with_choice(view, replace(comparison, measure=measure), group)
        for statistics, measure in measures.items()
        if measure in here and here[measure].notna().any()
    }


def _on_these_images(view: View, comparison: Comparison, group: str) -> dict[Reading, Contrast]:
    """The contrast for new seeds alone, where the verdict is for new test images too."""
    alone = replace(view, selection=replace(view.selection, images=None))
    return {Reading("images", THESE_IMAGES): contrast_with_choice(alone, comparison, group)}


def _here(runs: pd.DataFrame, view: View, comparison: Comparison, group: str) -> pd.DataFrame:
    """The runs that a comparison looks at."""
    strata = view.strata(comparison, group).values()
    return runs[runs["stratum"].isin(strata) & runs["arm"].isin(comparison.arms)]
