"""Whether training runs side by side shifts their results; makes results/reference/stacked-against-alone again.

    python scripts/stacked_against_alone.py [--results DIR] [--seeds 600]

Every run is trained twice under one run id: in a stack and in a process of its own. The two differ by rounding alone,
which a few hundred updates make as large as another seed would; the question is whether the difference has a mean.
Commit first: the page says which commit made it. Some ten minutes on two CPU cores; runs that are there already are not
repeated.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from bnexp.store import Store

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "reference" / "stacked-against-alone"
BASE = "norm=batch model.depth=8 model.width=8 batch_size=64 epochs=8 lr=0.1 exec.precision=fp32"
NETWORKS = ("cnn", "resnet")
EXECUTORS = ("stacked", "process")
BOUND = 0.1  # points: a mean difference that no verdict at a margin of one point would notice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "stacked-against-alone")
    parser.add_argument("--seeds", type=int, default=600)
    options = parser.parse_args()
    rows = []
    for network in NETWORKS:
        scores = {executor: train(network, executor, options.results, options.seeds) for executor in EXECUTORS}
        rows.append(row_of(network, *(scores[executor] for executor in EXECUTORS)))
    write(pd.DataFrame(rows), Store(options.results / "process"))


def train(network: str, executor: str, results: Path, num_seeds: int) -> pd.Series:
    """Test accuracy in percent by run id."""
    folder = results / executor
    arguments = [*BASE.split(), f"model={network}", f"seed=range({num_seeds})", f"exec.executor={executor}"]
    subprocess.run(
        [sys.executable, "-m", "bnexp", "train", "-m", *arguments, f"results={folder}"], cwd=ROOT, check=True
    )
    found = {
        record.run_id: 100 * float(record.final["test_accuracy"] or 0)
        for record in Store(folder).records()
        if record.config["model"]["name"] == network
    }
    return pd.Series(found)


def row_of(network: str, stacked: pd.Series, alone: pd.Series) -> dict[str, object]:
    """The mean of stacked − alone over run ids, and two one-sided t tests that it lies within ±0.1 points."""
    difference = (stacked - alone).dropna().to_numpy()
    below = ttest_1samp(difference, BOUND, alternative="less").pvalue
    above = ttest_1samp(difference, -BOUND, alternative="greater").pvalue
    interval = ttest_1samp(difference, 0).confidence_interval(0.90)
    return {
        "model": network,
        "runs": len(difference),
        "differ": int((difference != 0).sum()),
        "sd_of_difference": difference.std(ddof=1),
        "sd_over_seeds": alone.std(ddof=1),
        "mean_difference": difference.mean(),
        "low_90": interval.low,
        "high_90": interval.high,
        "p_within_bound": max(below, above),
    }


def write(rows: pd.DataFrame, store: Store) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    rounded = rows.round(
        {name: 4 for name in rows.columns if rows[name].dtype == np.float64 and name != "p_within_bound"}
    )
    rounded.to_csv(FOLDER / "differences.csv", index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    environment = next(iter(store.records())).environment
    lines = [
        "# Side by side against one by one",
        "",
        "Made by bnexp itself: `python scripts/stacked_against_alone.py`.",
        "",
        f"- commit: {environment['git_commit']}",
        f"- hardware: {environment['device']}, torch {environment['torch']}, 1 thread a run",
        f"- every run: `{BASE}`, on the embedded digits, in a stack and in a process of its own, paired by run id",
        "",
        "| network | runs | accuracies that differ | SD of the difference | SD over seeds | mean difference [90 %] | "
        f"p of the two one-sided tests within ±{BOUND} points |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.model} | {row.runs} | {row.differ} | {row.sd_of_difference:.2f} points | "
            f"{row.sd_over_seeds:.2f} points | {row.mean_difference:+.3f} [{row.low_90:+.3f}, {row.high_90:+.3f}] | "
            f"{row.p_within_bound:.2g} |"
            for row in rows.itertuples()
        ),
        "",
        "A run in a stack does the same arithmetic as alone, but sums in another order. Training amplifies rounding "
        "until a single accuracy can differ as much as between two seeds. What matters for a comparison is the mean of "
        f"that difference: where both one-sided tests reject, it lies within ±{BOUND} points, whether or not its "
        "interval holds 0.",
        "",
    ]
    (FOLDER / "README.md").write_text("\n".join(lines).replace("-0.", "−0."))


if __name__ == "__main__":
    main()
