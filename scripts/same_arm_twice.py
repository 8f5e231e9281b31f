"""A real A/A: train one arm many times, call it two names, judge; makes results/reference/same-arm-twice again.

    python scripts/same_arm_twice.py [--results DIR]

Two questions. Of real runs split at random into two arms, how often does the rule call them different? And what does
the declared study of one arm under two names end in? Commit first: the page says which commit made it. Some five
minutes on two CPU cores; runs that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from bnexp.analysis.frame import UNHEALTHY, load_frame, score
from bnexp.analysis.rule import Rule, decide, weigh
from bnexp.report import make_report
from bnexp.store import Store

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "reference" / "same-arm-twice"
BASE = "model.depth=4 model.width=8 batch_size=64 epochs=10 exec.precision=fp32"
SEEDS = 120
PAIRS = (6, 10, 30)
NUM_STUDIES = 2_000
MARGIN = 0.0001  # nearly none: a large margin forgives what the test got wrong
# the second leaves some runs at chance: an arm on the edge of what it stands
ARMS = {"batch norm at its best rate": "norm=batch lr=0.316", "no norm on the edge": "norm=none lr=0.8"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "same-arm-twice", help="where runs lie")
    results = parser.parse_args().results
    rows = []
    for name, overrides in ARMS.items():
        folder = results / name.replace(" ", "-")
        bnexp("train", "-m", *BASE.split(), *overrides.split(), f"seed=range({SEEDS})", f"results={folder}")
        runs = load_frame(Store(folder), None).runs
        failed = runs["status"].isin(UNHEALTHY).to_numpy()
        rows += [rate(name, score(runs, "test_accuracy").to_numpy(), failed, num) for num in PAIRS]
    study = results / "study"
    bnexp("train", "-m", "--config-dir", str(ROOT / "scripts" / "same_arm_twice"), "study=same-arm-twice",
          f"results={study}")  # fmt: skip
    report = make_report(Store(study), "same-arm-twice")
    write(pd.DataFrame(rows), report.table, Store(study))


def bnexp(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "bnexp", *arguments], cwd=ROOT, check=True)


def rate(arm: str, scores: np.ndarray, failed: np.ndarray, num_pairs: int) -> dict[str, object]:
    """How often two arms of `num_pairs` runs each, drawn from one, are called different."""
    rng = np.random.default_rng(0)
    drawn = np.array([rng.choice(len(scores), 2 * num_pairs, replace=False) for _ in range(NUM_STUDIES)])
    one, other = drawn[:, :num_pairs], drawn[:, num_pairs:]
    flags = (failed[one] | failed[other]).any(axis=1)
    rule = Rule("higher", MARGIN)
    outcomes = decide(weigh(scores[one] - scores[other], rule, failed=flags), rule, num_pairs=num_pairs)
    different = float(np.isin(outcomes, ("supported", "contradicted")).mean())
    return {"arm": arm, "runs": len(scores), "failed": int(failed.sum()), "num_pairs": num_pairs,
            "studies": NUM_STUDIES, "called_different": round(different, 4)}  # fmt: skip


def write(rates: pd.DataFrame, table: str, store: Store) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    rates.to_csv(FOLDER / "rates.csv", index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    records = list(store.records(None))
    environment = records[0].environment
    lines = [
        "# The same arm twice, on real runs",
        "",
        "Made by bnexp itself: `python scripts/same_arm_twice.py`.",
        "",
        f"- commit: {environment['git_commit']}",
        f"- hardware: {environment['device']}, torch {environment['torch']}, 1 thread a run",
        f"- {SEEDS} runs of each arm on the embedded digits; {NUM_STUDIES:,} studies a row, each of which draws two "
        "arms from the same runs and pairs them at random",
        "",
        "| one arm, called two names | failed runs | pairs | called different (5 % allowed) |",
        "|---|---|---|---|",
        *(
            f"| {arm} | {failed} of {runs} | {pairs} | {100 * called:.1f} % |"
            for arm, runs, failed, pairs, _, called in rates.itertuples(index=False)
        ),
        "",
        "The draws of a row share its runs, so that its rate moves more than as many independent studies would.",
        "",
        "And as a user would do it, a declared study (scripts/same_arm_twice/study/same-arm-twice.yaml) of batch norm "
        "against batch norm, whose eps differs in the sixth digit, or the two would be the same runs:",
        "",
        "```",
        table,
        "```",
        "",
    ]
    (FOLDER / "README.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
