"""`bnexp status` and `bnexp studies`: what lies on disk, and what is declared."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bnexp.errors import ConfigError
from bnexp.records import RunRecord
from bnexp.sources import title_of
from bnexp.store import Store

WATCH_SECONDS = 2.0
MOST_FAILURES = 10


def main(argv: list[str]) -> int:
    """`bnexp status`."""
    parser = argparse.ArgumentParser("bnexp status", description="The runs on disk and how they fare.")
    parser.add_argument("study", nargs="?", help="one study's runs; without it, every run in the results folder")
    parser.add_argument("--results", type=Path, default=Path(os.environ.get("BNEXP_RESULTS", "results")))
    parser.add_argument("--json", action="store_true", help="one JSON document: the records without their histories")
    parser.add_argument("--watch", action="store_true", help="print again every two seconds")
    options = parser.parse_args(argv)
    store = Store(options.results)
    while True:
        run_ids = _run_ids(store, options.study)
        if options.json:
            print(json.dumps({"runs": [record.to_dict() for record in store.records(run_ids)]}), flush=True)
        else:
            print(_summary(store, run_ids), flush=True)
        if not options.watch:
            return 0
        time.sleep(WATCH_SECONDS)


def print_studies(argv: list[str]) -> int:
    """`bnexp studies`."""
    parser = argparse.ArgumentParser("bnexp studies", description="The declared studies.")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--config-dir", type=Path, help="a folder of your own with study/*.yaml")
    options = parser.parse_args(argv)
    from bnexp.catalog import list_studies

    rows: list[dict[str, Any]] = [
        {
            "name": spec.name,
            "number": spec.number,
            "claim": spec.claim,
            "sources": sorted(spec.sources),
            "against": sorted(spec.against),
            "tiers": list(spec.tiers),
            "num_runs": {name: spec.num_runs(name) for name in spec.tiers},
            "verdict": None,
        }
        for spec in list_studies(options.config_dir).values()
    ]
    if options.json:
        print(json.dumps({"studies": rows}))
        return 0
    for row in rows:
        runs = ", ".join(f"{tier} {count} runs" for tier, count in row["num_runs"].items())
        print(f"{row['name']:12} {row['claim']}\n{'':12} claim {row['number']}; {runs}")
        for key, words in (("sources", "says so"), ("against", "says the opposite")):
            if row[key]:
                print(f"{'':12} {words}: {', '.join(map(title_of, row[key]))}")
    print("\nrun one: bnexp train -m study=NAME [tier=TIER]")
    return 0


def _run_ids(store: Store, study: str | None) -> list[str]:
    if study is None:
        return store.run_ids()
    frozen = store.study(study)
    if frozen is None:
        names = store.study_names()
        raise ConfigError(
            "study", got=study, choices=names, hint="" if names else f"no study was started in {store.root}"
        )
    if "widening" not in frozen:
        return list(frozen["run_ids"])
    from bnexp.analysis.widening import runs_in_force  # it needs pandas

    return runs_in_force(store, frozen).run_ids


def _summary(store: Store, run_ids: list[str]) -> str:
    counts: Counter[str] = Counter()
    failures: list[RunRecord] = []
    for run_id in run_ids:
        record = store.record(run_id)
        if record is not None:
            counts[record.status] += 1
            if record.status == "failed":
                failures.append(record)
        else:
            counts[_unfinished(store, run_id)] += 1
    told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none yet"
    lines = [f"{store.root}: {len(run_ids)} runs: {told}"]
    for record in failures[:MOST_FAILURES]:
        lines.append(f"  failed {record.run_id}: {record.error}  (traceback: {store.error_path(record.run_id)})")
    if len(failures) > MOST_FAILURES:
        lines.append(f"  ... and {len(failures) - MOST_FAILURES} more failed runs")
    return "\n".join(lines)


def _unfinished(store: Store, run_id: str) -> str:
    if store.is_locked(run_id):
        return "training"
    return "interrupted" if store.run_dir(run_id).is_dir() else "not started"
