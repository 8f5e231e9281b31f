"""Records as data frames, and the one rule by which a run without a result is scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bnexp.records import RunRecord
from bnexp.store import Store

UNHEALTHY = ("diverged", "collapsed")
WORST = -1e9  # the vote of a run that has no value to vote with


@dataclass(frozen=True)
class Frame:
    """The runs of a report.

    Attributes:
        runs: a row for each run that ended and can be scored: run_id, cell_id, status, dotted config keys, final
            metrics, train_seconds, num_params, `environment`, a dict, `timed`, what its seconds depend on, and
            core_share, how much of them it had a core for; in_flight, runs that its GPU may have had at once.
        failed: crashed runs: never scored, always named.
        missing: planned runs without a record.
    """

    runs: pd.DataFrame
    failed: tuple[RunRecord, ...]
    missing: tuple[str, ...]


def load_frame(store: Store, run_ids: Sequence[str] | None) -> Frame:
    """Read these runs, or all in the results folder, each record once."""
    wanted = store.run_ids() if run_ids is None else list(dict.fromkeys(run_ids))
    rows, failed, missing = [], [], []
    for run_id in wanted:
        record = store.record(run_id)
        if record is None:
            missing.append(run_id)
        elif record.status == "failed":
            failed.append(record)
        else:
            rows.append(_row(record))
    return Frame(pd.DataFrame(rows), tuple(failed), tuple(missing))


def load_history(store: Store, run_ids: Sequence[str]) -> pd.DataFrame:
    """Tidy epochs: run_id beside the columns of history.jsonl."""
    return pd.DataFrame([{"run_id": run_id, **row} for run_id in run_ids for row in store.history(run_id)])


def load_probes(
    store: Store,
    run_ids: Sequence[str],
    probe: str | None = None,
    quantities: Sequence[str] = (),
    *,
    reduce: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """Tidy measurements: run_id beside the columns of probes.jsonl; a null value is nan. Empty where there are none.

    A run may hold tens of thousands of rows: one is read at a time, and no more is kept than asked for.

    Args:
        probe, quantities: the rows to keep; all where None or empty.
        reduce: from the rows of one run to those to keep of it.
    """
    kept = []
    for run_id in run_ids:
        rows = [row for row in store.probes(run_id, probe) if not quantities or row["quantity"] in quantities]
        if rows:
            table = pd.DataFrame(rows).assign(run_id=run_id)
            table["value"] = table["value"].astype("float64")
            kept.append(reduce(table) if reduce else table)
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()


def config_keys(runs: pd.DataFrame) -> list[str]:
    """The columns that are config keys, in the order of the config."""
    known = {"lr", "batch_size", "epochs", "seed", "precision"}
    return [column for column in runs.columns if "." in column or column in known]


def score(runs: pd.DataFrame, metric: str) -> pd.Series:
    """A run's value of a metric in its stored unit; a column of `with_measures` is taken as it is.

    A run that failed, be it diverged or collapsed, scores the accuracy of always answering the largest class. It is
    never dropped. The losses of a diverged one stay missing, for no number stands for them.
    """
    values = runs[metric].astype("float64")
    chance = f"chance_{metric}"
    return values.mask(runs["status"].isin(UNHEALTHY), runs[chance].astype("float64")) if chance in runs else values


def _row(record: RunRecord) -> dict[str, Any]:
    return {
        "run_id": record.run_id,
        "cell_id": record.cell_id,
        "status": record.status,
        **_flatten(record.config),
        **record.final,
        "num_params": record.num_params,
        "environment": record.environment,
        "timed": _timed(record),
        "core_share": _core_share(record),
        "in_flight": record.exec.get("in_flight", 1),
    }


def _timed(record: RunRecord) -> str:
    """What a run's seconds depend on besides the run."""
    told = [f"{name} {record.environment.get(name)}" for name in ("device", "threads")]
    told.append(f"{record.exec.get('stack', 1)} side by side")
    return ", ".join([*told, "steps as a graph"] if record.exec.get("captured") else told)


def _core_share(record: RunRecord) -> float:
    """The share of its training in which a run of one thread on a CPU had a core; nan for others, and where unknown."""
    seconds, on_cpu = record.seconds, str(record.environment.get("device")).startswith("cpu")
    known = on_cpu and record.environment.get("threads") == 1 and seconds.get("train") and seconds.get("cpu")
    return seconds["cpu"] / seconds["train"] if known else math.nan


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value) if isinstance(value, list) else value
    return flat
