"""The baseline gate: where a comparison is no fair one, and where it only reads a fair one otherwise."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bnexp.analysis.frame import score
from bnexp.analysis.select import Selection
from bnexp.comparison import TIMED_MEASURES, Comparison
from bnexp.study import INIT, POOR_INITS

# of their seconds in which an arm's runs have a core, in the mean: of 234 runs with nothing beside them the median was
# 0.995 and the least 0.947
LEAST_SHARE = 0.95
Key = tuple[Comparison, str]  # a comparison, and the stratum without what it goes over


def gate_of(selection: Selection, comparison: Comparison, group: str) -> str:
    """Why this is no fair comparison, in a phrase; empty where it is one.

    The arm without a norm must start from initial values that suit its layers. That its search was as wide as the
    others' is checked where it is judged: a rate that it lacks leaves it untested. Times are compared of runs that were
    timed alike alone.
    """
    return untimed(selection, comparison, group) or strawman(selection, comparison, group)


def untimed(selection: Selection, comparison: Comparison, group: str) -> str:
    """Says so where times are compared of runs that were not timed alike, or that waited for other work."""
    if comparison.measure not in TIMED_MEASURES:
        return ""
    reported, strata = selection.reporting(), selection.groups(comparison.over).get(group, [])
    here = reported[reported["arm"].isin(comparison.arms) & reported["stratum"].isin(strata)]
    ways = sorted(here["timed"].unique())
    if len(ways) > 1:
        return f"its runs were not timed alike: {' and '.join(ways)}"
    if here["in_flight"].max() > 1:
        return (
            f"up to {here['in_flight'].max()} runs or stacks had its GPU at once, and times say nothing: in a results "
            "folder of its own, and without exec.executor, its runs have it to themselves"
        )
    shares = here.groupby("arm")["core_share"].mean()
    if shares.min() < LEAST_SHARE:
        return (
            f"its runs had a core for {100 * shares.min():.0f} % of their seconds ({shares.idxmin()}): they waited for "
            "other work, and times say nothing"
        )
    return ""


def strawman(selection: Selection, comparison: Comparison, group: str) -> str:
    """Says so where an arm without a norm starts from a poor init, unless the inits are what is compared."""
    if comparison.over == INIT:
        return ""
    strata, runs = selection.groups(comparison.over).get(group, []), selection.runs
    for arm in bare_arms(selection, comparison):
        here = runs[(runs["arm"] == arm) & runs["stratum"].isin(strata)]
        # what has not run yet starts as its stratum says
        inits = {str(init) for init in here[INIT]} | {str(selection.places[name].get(INIT)) for name in strata}
        poor = sorted(inits & set(POOR_INITS))
        if poor:
            return f"{arm} starts from the init {poor[0]}, which does not suit a network without a norm"
    return ""


def untrained(selection: Selection, comparison: Comparison, group: str) -> str:
    """Says so where an arm is at no level as accurate, in the mean over its seeds, as the least that is declared.

    Where a level is good that is near the pair's best, only the control has to be: it is what must not be a strawman.
    A treatment that is good nowhere then speaks against itself, while near its own best it says nothing.
    """
    if comparison.least is None:
        return ""
    strata, runs = selection.groups(comparison.over).get(group, []), selection.reporting()
    for arm in comparison.arms if comparison.best != "pair" else (comparison.control,):
        here = runs[(runs["arm"] == arm) & runs["stratum"].isin(strata)]
        best = score(here, str(comparison.measure)).groupby(here["stratum"]).mean().max()
        if best < comparison.least:
            return (
                f"{arm} is {100 * best:.1f} % accurate at its best {comparison.over}, less than the "
                f"{100 * comparison.least:g} % of a trained network, so that it says nothing of {comparison.over}"
            )
    return ""


def bare_arms(selection: Selection, comparison: Comparison) -> list[str]:
    """The arms of a comparison that have no norm."""
    bare = set(selection.runs.loc[selection.runs["norm.kind"] == "none", "arm"])
    return [arm for arm in comparison.arms if arm in bare]


def init_readings(
    selection: Selection, keys: Sequence[Key], declared_inits: Collection[object] = ()
) -> dict[Key, Key | None]:
    """What is judged from a poor init -> the same judged from one that suits, of which it is but a reading.

    The two differ in the init alone, and He's comes first. None: nothing has run from any declared init that suits.
    What has no such counterpart is not in it, and is invalid by its gate.
    """
    unfair = {key for key in keys if strawman(selection, *key)}
    fair: dict[tuple[object, ...], list[Key]] = {}
    for key in keys:
        if key not in unfair:
            fair.setdefault(_but_for_init(selection, key), []).append(key)
    found: dict[Key, Key | None] = {}
    for key in keys:
        hosts = fair.get(_but_for_init(selection, key), [])
        if key in unfair and hosts:
            found[key] = min(hosts, key=lambda host: init_of(selection, host) != "he")
        elif key in unfair and set(declared_inits) - set(POOR_INITS):
            found[key] = None
    return found


def init_of(selection: Selection, key: Key) -> str:
    """The init of a stratum; empty where inits are no strata."""
    return str(_place(selection, key).get(INIT, ""))


def _but_for_init(selection: Selection, key: Key) -> tuple[object, ...]:
    place = _place(selection, key)
    return (key[0], *sorted((name, str(value)) for name, value in place.items() if name not in (key[0].over, INIT)))


def _place(selection: Selection, key: Key) -> dict[str, object]:
    comparison, group = key
    strata = selection.groups(comparison.over).get(group, [])
    return selection.places.get(strata[0], {}) if strata else {}
