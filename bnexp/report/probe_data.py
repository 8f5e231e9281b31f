"""What the probe figures show: rows of one probe, read, thinned out and arranged as (x, runs)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bnexp.analysis.frame import load_probes
from bnexp.analysis.select import Selection
from bnexp.report.words import count
from bnexp.store import Store


@dataclass(frozen=True)
class Measured:
    """What a figure shows of the rows of one probe, each arm at its own best learning rate.

    Attributes:
        rows: with the columns arm and stratum.
        cells: (arm, stratum, quantity) -> its rows.
        arms: all arms of the report; an arm's place in it decides its look.
        strata: those shown; others have no rows, or no room.
        runs: the runs of these strata, measured or not.
        diverged: the ids of those that diverged.
        note: for the caption, where strata had no room.
    """

    rows: pd.DataFrame
    cells: dict[tuple[str, str, str], pd.DataFrame]
    arms: tuple[str, ...]
    strata: tuple[str, ...]
    runs: pd.DataFrame
    diverged: frozenset[str]
    note: str

    def measured_arms(self) -> list[str]:
        """The arms with rows, in the order of the report."""
        with_rows = set(self.rows["arm"])
        return [arm for arm in self.arms if arm in with_rows]

    def arm_cells(self, stratum: str, quantity: str) -> list[tuple[str, pd.DataFrame]]:
        """The arms that were measured here, in their order, each with its rows."""
        cells = ((arm, self.cells.get((arm, stratum, quantity))) for arm in self.arms)
        return [(arm, cell) for arm, cell in cells if cell is not None]

    def quantities(self, *wanted: str) -> list[str]:
        """Those of these that were measured."""
        return [name for name in wanted if name in set(self.rows["quantity"])]

    def of_run(self, column: str) -> dict[str, Any]:
        """run_id -> what the column of `runs` has for it."""
        return dict(zip(self.runs["run_id"], self.runs[column], strict=True))

    def only_step(self) -> int | None:
        """The step of all rows, where there is one alone: nothing runs over time then."""
        steps = self.rows["step"].unique()
        return int(steps[0]) if len(steps) == 1 else None

    def ends(self) -> tuple[bool, ...]:
        """For each panel whether it shows the last step: one panel where only one step was measured."""
        return (False, True) if self.only_step() is None else (True,)

    def num_seeds(self) -> str:
        """`n = 6 seeds`: those that did not diverge."""
        rows = self._healthy_rows().dropna(subset=["value"])
        counts = sorted(set(rows.groupby(["arm", "stratum"])["run_id"].nunique())) or [0]
        return f"n = {count(counts[0], 'seed')}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]} seeds"

    def line_words(self, *, over_steps: bool = False, logarithmic: str | None = None) -> str:
        """What the lines of a figure are, for its caption.

        Args:
            logarithmic: the quantity on a log scale, where a zero has no place.
        """
        words = [f"Line: mean over seeds; band: from the lowest to the highest seed ({self.num_seeds()})."]
        if self._healthy_rows()["value"].isna().any():
            words.append("A gap: a seed had no finite value there.")
        if logarithmic and (self.rows.loc[self.rows["quantity"] == logarithmic, "value"] == 0).any():
            words.append("A line or band that drops out of the panel: exactly 0.")
        if over_steps and self.only_step() is not None:
            words.append("Measured at one step alone, arms side by side: `every` of the probe says how often.")
        drawn = len(self.diverged & set(self.rows["run_id"]))
        if drawn:
            end = ", × where it was last measured" if over_steps else ""
            words.append(f"Thin, in no mean: {count(drawn, 'run')} that diverged{end}.")
        return " ".join(words) + self.collapsed_words() + self.lost_words()

    def collapsed_words(self) -> str:
        """For the caption: the means hold runs that train nothing, and what is dead has small gradients."""
        collapsed = self.runs.loc[self.runs["status"] == "collapsed", "run_id"]
        number = len(set(collapsed) & set(self.rows["run_id"]))
        return f" In the means: {count(number, 'run')} that collapsed." if number else ""

    def lost_words(self) -> str:
        """For the caption: runs that diverged and have no rows of this probe."""
        number = len(self.diverged - set(self.rows["run_id"]))
        return f" {count(number, 'run')} diverged and left nothing to measure." if number else ""

    def _healthy_rows(self) -> pd.DataFrame:
        return self.rows[~self.rows["run_id"].isin(self.diverged)]


def load_measured(
    selection: Selection,
    store: Store,
    probe: str,
    quantities: Sequence[str],
    *,
    most: int,
    reduce: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> Measured | None:
    """The rows of the first `most` strata that have any; a stratum without room is not even read."""
    reporting = selection.reporting()
    kept: list[pd.DataFrame] = []
    strata: list[str] = []
    unread = len(selection.strata)
    for stratum in selection.strata:
        unread -= 1
        runs = reporting[reporting["stratum"] == stratum]
        rows = load_probes(store, list(runs["run_id"]), probe, quantities, reduce=reduce)
        if len(rows) and rows["value"].notna().any():
            strata.append(stratum)
            kept.append(rows.merge(runs[["run_id", "arm", "stratum"]], on="run_id"))
        if len(strata) == most:
            break
    if not kept:
        return None
    rows = pd.concat(kept, ignore_index=True)
    runs = reporting[reporting["stratum"].isin(strata)]
    return Measured(
        rows=rows,
        cells={(str(a), str(s), str(q)): cell for (a, s, q), cell in rows.groupby(["arm", "stratum", "quantity"])},
        arms=selection.arms,
        strata=tuple(strata),
        runs=runs,
        diverged=frozenset(runs.loc[runs["status"] == "diverged", "run_id"]),
        note=f" Shown: {most} of {len(selection.strata)} strata; tables/probes.csv has all." if unread else "",
    )


def keep_ends(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one run, the first and the last measured step."""
    return rows[rows["step"].isin((rows["step"].min(), rows["step"].max()))]


def keep_last_layer(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one run, the layer next to the output."""
    return rows[rows["layer"] == _layers(rows)[-1]]


def keep_three_layers(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one run the first, middle and last layer, with its `place`: arms need not share the names of layers."""
    layers = _layers(rows)
    places = {layers[len(layers) // 2]: "middle"} | {layers[-1]: "last"} | {layers[0]: "first"}
    placed = rows.assign(place=rows["layer"].map(places))
    return placed[placed["place"].notna()]


def keep_middle_layer(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one run the middle layer, as its `place` says too."""
    layers = _layers(rows)
    return rows[rows["layer"] == layers[len(layers) // 2]].assign(place="middle")


def mean_over_layers(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one run the mean over layers at each step; null where one is null."""
    means: pd.DataFrame = _strict_mean(rows, ["run_id", "step", "quantity"]).reset_index()
    return means


def at_end(cell: pd.DataFrame, *, last: bool) -> pd.DataFrame:
    """The rows at an arm's first or last step; a run that diverged before the last has none there."""
    step: int = cell["step"].max() if last else cell["step"].min()
    return cell[cell["step"] == step]


def pivoted(cell: pd.DataFrame, index: str, columns: str = "run_id") -> pd.DataFrame:
    """(index, runs): what a run lacks is nan, so that nothing is made up."""
    unique = cell.drop_duplicates([index, columns], keep="last")
    return unique.pivot(index=index, columns=columns, values="value")


def by_layer(cell: pd.DataFrame) -> pd.DataFrame:
    """(layers in forward order from 1, runs)."""
    table = pivoted(cell, "layer").reindex(_layers(cell))
    table.index = pd.RangeIndex(1, len(table) + 1)
    return table


def by_severity(cell: pd.DataFrame, corruptions: Sequence[str]) -> pd.DataFrame:
    """(severity, runs): mean over the corruptions; severity 0 is the test set as it is."""
    here = cell[cell["corruption"].isin(["none", *corruptions])]
    table: pd.DataFrame = _strict_mean(here, ["severity", "run_id"]).unstack("run_id")
    return table


def one_seed_each(found: Measured) -> tuple[dict[tuple[str, str], pd.DataFrame], list[int]]:
    """(stratum, arm) -> (steps, quantities) of one seed, and the seeds used.

    In each stratum it is the seed that most arms have and that was measured longest, of these the smallest.
    """
    tables: dict[tuple[str, str], pd.DataFrame] = {}
    used = set()
    rows = found.rows.assign(seed=found.rows["run_id"].map(found.of_run("seed"))).dropna(subset=["value"])
    for stratum, here in rows.groupby("stratum", sort=False):
        seeds = here.groupby("seed").agg(arms=("arm", "nunique"), rows=("value", "size")).reset_index()
        best = seeds.sort_values(["arms", "rows", "seed"], ascending=[False, False, True])["seed"].iloc[0]
        for arm, cell in here[here["seed"] == best].groupby("arm", sort=False):
            tables[str(stratum), str(arm)] = pivoted(cell, "step", "quantity")
            used.add(int(best))
    return tables, sorted(used)


def _layers(rows: pd.DataFrame) -> list[str]:
    """The names of layers as the rows have them: in forward order."""
    return list(dict.fromkeys(rows["layer"]))


def _strict_mean(rows: pd.DataFrame, keys: list[str]) -> Any:
    """The mean of each group; null where one of its values is null."""
    groups = rows.groupby(keys, sort=False)["value"]
    return groups.mean().where(groups.count() == groups.size())
