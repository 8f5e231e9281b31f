"""The tables of a report: CSV with stored numbers, Markdown and LaTeX with shown ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bnexp.analysis.effects import Effect, own_best_effects, same_lr_effects
from bnexp.analysis.frame import load_probes
from bnexp.analysis.select import Selection, health_ladders
from bnexp.analysis.stats import Estimate, largest_healthy, mean_interval, unhealthy_rates
from bnexp.metrics import METRICS, Metric
from bnexp.report.words import is_at_ladder_end
from bnexp.store import Store

TABLES = ("verdicts", "flips", "arms", "differences", "differences-same-lr", "largest-healthy-lr", "probes")
PLACES = ("corruption", "severity", "statistics")  # what says where besides the layer, for the probes that need it
END_PROBES = ("statistics", "robustness", "cost")  # measured once, when training is over
PROBES_TITLE = "What probes measured at the end; step time and memory against the same network without norm layers"
Rows = list[dict[str, object]]


@dataclass(frozen=True)
class Table:
    """One table twice: `exact` in stored units for machines, `shown` as text for readers.

    Where `shown` is empty it is a CSV file only.
    """

    name: str
    title: str
    exact: pd.DataFrame
    shown: pd.DataFrame


def make_tables(selection: Selection, store: Store, *, effects: bool = True) -> list[Table]:
    """All tables that the runs support, in reading order.

    Args:
        effects: differences too; not those of a study, whose numbers are in its verdicts, and nowhere else where the
            verdict is that nothing can be said.
    """
    tables = [arms_table(selection)]
    ladder = selection.runs["lr"].nunique() > 1
    own = own_best_effects(selection) if effects else []
    same = same_lr_effects(selection) if effects and ladder else []
    if own:
        title = "Paired differences, each arm at its own best learning rate"
        tables.append(effects_table("differences", title, own, selection))
    if same:
        title = "Paired differences at the same learning rate"
        tables.append(effects_table("differences-same-lr", title, same, selection))
    if ladder:
        tables.append(limits_table(selection))
    probes = probes_table(selection, store)
    return tables if probes is None else [*tables, probes]


def arms_table(selection: Selection) -> Table:
    """A row for each arm and stratum: how its runs ended, its learning rate, and the metric with its interval."""
    metric = METRICS[selection.metric]
    reporting = selection.reporting()
    exact: Rows = []
    shown: Rows = []
    for stratum in selection.strata:
        for arm in selection.arms:
            cell = selection.cell(reporting, arm, stratum)
            if cell.empty:
                continue
            scores = cell["score"].dropna()
            estimate = Estimate(math.nan, math.nan, math.nan, 0)
            if len(scores):
                estimate = mean_interval(scores.tolist(), within=metric.possible)
            counts = {status: int((cell["status"] == status).sum()) for status in ("finished", "diverged", "collapsed")}
            lr = selection.best_lr[arm, stratum]
            end = " (end of the ladder)" if is_at_ladder_end(selection, arm, stratum) else ""
            key = {"stratum": stratum, "arm": arm, "lr": lr, "n": len(cell)}
            exact.append(
                {**key, **counts, metric.name: estimate.mean, "low": estimate.low, "high": estimate.high,
                 "num_params": int(cell["num_params"].iloc[0]), "run_ids": " ".join(cell["run_id"])}
            )  # fmt: skip
            unhealthy = ", ".join(f"{counts[s]} {s}" for s in ("diverged", "collapsed") if counts[s]) or "none"
            shown.append(
                {"stratum": stratum, "arm": arm, "learning rate": f"{lr:g}{end}", "n": str(len(cell)),
                 metric.label: _interval(estimate, metric), "diverged or collapsed": unhealthy}
            )  # fmt: skip
    return table_of(
        "arms",
        "Final results, each arm at its own best learning rate, with 95 % intervals over seeds alone",
        exact,
        shown,
        selection,
    )


def effects_table(name: str, title: str, effects: Sequence[Effect], selection: Selection) -> Table:
    """A row for each comparison: mean, both intervals, spread, what pairing gained, and who had no partner."""
    metric = METRICS[selection.metric]
    exact: Rows = []
    shown: Rows = []
    for effect in effects:
        d = effect.difference
        contrast = f"{effect.treatment} − {effect.control}"
        key = {"stratum": effect.stratum, "treatment": effect.treatment, "control": effect.control}
        lr = {} if effect.lr is None else {"lr": effect.lr}
        shown_lr = {} if effect.lr is None else {"learning rate": f"{effect.lr:g}"}
        exact.append(
            {**key, **lr, "n": d.t.num, "mean": d.t.mean, "low": d.t.low, "high": d.t.high,
             "sd": d.sd, "pairing_gain": d.gain,
             "unpaired_seeds": " ".join(map(str, d.unpaired)),
             "unhealthy_seeds": " ".join(map(str, effect.unhealthy))}
        )  # fmt: skip
        shown.append(
            {"stratum": effect.stratum, "difference": contrast, **shown_lr, "n": str(d.t.num),
             f"mean [95 %] ({_unit(metric)})": _interval(d.t, metric, sign=True),
             "SD": _number(d.sd, metric), "pairing gain": _gain(d.gain),
             "seeds without a partner": " ".join(map(str, d.unpaired)) or "none",
             "seeds diverged or collapsed": " ".join(map(str, effect.unhealthy)) or "none"}
        )  # fmt: skip
    return table_of(name, title, exact, shown, selection)


def limits_table(selection: Selection) -> Table:
    """The largest learning rate at which at least 80 % of an arm's runs neither diverge nor collapse."""
    exact: Rows = []
    shown: Rows = []
    ladders = health_ladders(selection)
    for arm, stratum in ((arm, stratum) for stratum in selection.strata for arm in selection.arms):
        if (arm, stratum) not in ladders:
            continue
        ladder = ladders[arm, stratum]
        limit, tried = largest_healthy(ladder), sorted(ladder)
        holes = [lr for lr in unhealthy_rates(ladder) if limit is not None and lr < limit]
        below = " ".join(f"{lr:g}" for lr in holes)
        key = {"stratum": stratum, "arm": arm}
        exact.append({**key, "largest_healthy_lr": limit, "unhealthy_below": below,
                      "smallest_tried": tried[0], "largest_tried": tried[-1]})  # fmt: skip
        more = " or more (end of the ladder)" if limit == tried[-1] else ""
        text = "none of those tried" if limit is None else f"{limit:g}{more}"
        shown.append({**key, "largest healthy learning rate": text, "unhealthy below it": below or "none",
                      "tried": f"{tried[0]:g} to {tried[-1]:g}"})  # fmt: skip
    return table_of(
        "largest-healthy-lr", "Largest learning rate with at least 80 % healthy runs", exact, shown, selection
    )


def probes_table(selection: Selection, store: Store) -> Table | None:
    """Every quantity of every probe at its last step, mean over seeds; shown is what the probes at the end measured.

    A run that diverged is in no mean, and `n` says so: what it measured last is not the end of training.
    """
    runs = selection.reporting()
    rows = load_probes(store, list(runs.loc[runs["status"] != "diverged", "run_id"]), reduce=_last_steps)
    if rows.empty:
        return None
    rows = rows.merge(runs[["run_id", "arm", "stratum"]], on="run_id")
    last = rows.groupby(["stratum", "arm", "probe"])["step"].transform("max")
    keys = ["stratum", "arm", "probe", "step", "layer", "quantity", *(place for place in PLACES if place in rows)]
    groups = rows[rows["step"] == last].groupby(keys, sort=False, dropna=False)["value"]
    exact = groups.agg(n="count", mean="mean", low="min", high="max").reset_index()
    order = np.lexsort((exact["arm"].map(selection.arms.index), exact["stratum"].map(selection.strata.index)))
    exact = exact.iloc[order].reset_index(drop=True)
    shown: Rows = []
    for (stratum, arm), cell in exact.groupby(["stratum", "arm"], sort=False):
        words = _probe_words(cell)
        measured = cell.loc[cell["probe"].isin(END_PROBES), "n"].max()
        if words:
            of = len(selection.cell(runs, str(arm), str(stratum)))
            shown.append({"stratum": stratum, "arm": arm, "n": f"{measured} of {of}", **words})
    frame = pd.DataFrame(shown).fillna("—")
    return Table("probes", PROBES_TITLE, exact, _without_empty_stratum(frame, selection) if shown else frame)


def write_tables(tables: Sequence[Table], folder: Path) -> None:
    """tables/NAME.{csv,md,tex}."""
    for table in tables:
        table.exact.to_csv(folder / f"{table.name}.csv", index=False, lineterminator="\n")
        if table.shown.empty:
            continue
        (folder / f"{table.name}.md").write_text(markdown(table.shown))
        (folder / f"{table.name}.tex").write_text(latex(table))


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table."""
    lines = [list(frame.columns), ["---"] * frame.shape[1], *frame.to_numpy().tolist()]
    return "".join("| " + " | ".join(str(word).replace("|", "\\|") for word in line) + " |\n" for line in lines)


def latex(table: Table) -> str:
    """A booktabs table."""
    columns = " & ".join(_tex(str(column)) for column in table.shown.columns)
    rows = "".join(" & ".join(_tex(str(word)) for word in row) + " \\\\\n" for row in table.shown.to_numpy().tolist())
    return (
        "% needs \\usepackage{booktabs}\n\\begin{table}\n\\centering\n"
        f"\\caption{{{_tex(table.title)}}}\n\\begin{{tabular}}{{{'l' * table.shown.shape[1]}}}\n\\toprule\n"
        f"{columns} \\\\\n\\midrule\n{rows}\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def table_of(name: str, title: str, exact: Rows, shown: Rows, selection: Selection) -> Table:
    """A table from its rows, without the stratum where there is but one."""
    return Table(name, title, pd.DataFrame(exact), _without_empty_stratum(pd.DataFrame(shown), selection))


def _without_empty_stratum(shown: pd.DataFrame, selection: Selection) -> pd.DataFrame:
    return shown.drop(columns="stratum") if selection.strata == ("",) else shown


def _last_steps(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one run, the last step of each of its probes."""
    return rows[rows["step"] == rows.groupby("probe")["step"].transform("max")]


def _probe_words(cell: pd.DataFrame) -> dict[str, str]:
    """What a reader wants of one arm's probes: accuracies by statistics, the mean drop under corruption, the cost."""
    metric = METRICS["test_accuracy"]
    words: dict[str, str] = {}
    accuracy = cell[cell["quantity"] == "test_accuracy"]
    kinds = accuracy[accuracy["probe"] == "statistics"]
    for row in kinds.to_dict("records"):
        words[f"accuracy, {row['statistics']} statistics (%)"] = _number(row["mean"], metric)
    robust = accuracy[accuracy["probe"] == "robustness"]
    for statistics in dict.fromkeys(robust["statistics"]) if len(robust) else ():
        here = robust[robust["statistics"] == statistics]
        clean = here.loc[here["corruption"] == "none", "mean"].mean()
        corrupted = here.loc[~here["corruption"].isin(["none", "fgsm"]), "mean"].mean()
        words[f"mean drop under corruption, {statistics} statistics (points)"] = _number(clean - corrupted, metric)
    cost = cell[cell["probe"] == "cost"].set_index("quantity")["mean"]
    if "step_ratio" in cost:
        words["time of a step"] = _gain(cost["step_ratio"])
    if {"saved_mib", "saved_mib_without_norm"} <= set(cost.index) and cost["saved_mib_without_norm"] > 0:
        words["saved memory"] = _gain(cost["saved_mib"] / cost["saved_mib_without_norm"])
    return words


def _unit(metric: Metric) -> str:
    return "points" if metric.unit == "fraction" else metric.shown_unit


def _number(value: float, metric: Metric, *, sign: bool = False) -> str:
    if not math.isfinite(value):
        return "—"
    text = f"{value * metric.scale:{'+' if sign else ''}.{metric.digits}f}"
    return text.replace("-", "−")


def _bounds(estimate: Estimate, metric: Metric) -> str:
    if not math.isfinite(estimate.low):
        return "—"
    return f"[{_number(estimate.low, metric)}, {_number(estimate.high, metric)}]"


def _interval(estimate: Estimate, metric: Metric, *, sign: bool = False) -> str:
    bounds = _bounds(estimate, metric)
    return _number(estimate.mean, metric, sign=sign) + ("" if bounds == "—" else f" {bounds}")


def _gain(value: float) -> str:
    return f"{value:.1f}×" if math.isfinite(value) else "—"


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$",
    "−": "$-$", "×": r"$\times$", "—": "---", "±": r"$\pm$", "≥": r"$\geq$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(TEX.get(letter, letter) for letter in text)
