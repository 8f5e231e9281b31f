"""A real A/A: train one arm many times, call it two names, judge; makes results/reference/same-arm-twice again.

    python scripts/same_arm_twice.py [--results DIR] [--seeds 60]

Two questions. Of real runs of one arm at every learning rate, split at random into two arms, how often does the whole
procedure call them different, choice of the rate included? And what does the declared study of one arm under two names
end in? Commit first: the page says which commit made it. Some ten minutes on two CPU cores that do nothing else; runs
that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from simulated.earlier import judge_earlier, num_tuning, plain_t
from simulated.markdown import percent, whole

from bnexp.analysis.choice import Term, chosen_rates
from bnexp.analysis.frame import UNHEALTHY, load_frame, score
from bnexp.analysis.rule import Rule
from bnexp.analysis.worlds import Judged, TunedStudies, judge_studies
from bnexp.report import make_report
from bnexp.store import Store

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "reference" / "same-arm-twice"
# the small tier of the study `placement`, and three of its cells
BASE = "data=digits norm=batch model.depth=8 model.width=8 batch_size=64 epochs=8 exec.precision=fp32"
CELLS = {
    "cnn, relu, before": "model=cnn model.activation=relu norm.placement=before",
    "resnet, relu, before": "model=resnet model.activation=relu norm.placement=before",
    "cnn, tanh, after": "model=cnn model.activation=tanh norm.placement=after",
}
RATES = (0.03, 0.1, 0.3, 1.0)
FIRST_SEED = 1_000  # fresh: no study declares these
NUM_SEEDS = (6, 10)
NUM_STUDIES = 4_000
RULE = Rule("higher", 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "same-arm-twice", help="where runs lie")
    parser.add_argument("--seeds", type=int, default=60, help="runs of each arm at each rate (default: 60)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the page goes")
    arguments = parser.parse_args()
    results, seeds = arguments.results, range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    rows = []
    for name, overrides in CELLS.items():
        folder = results / name.replace(", ", "-")
        bnexp("train", "-m", *BASE.split(), *overrides.split(), f"lr={','.join(map(str, RATES))}",
              f"seed=range({seeds.start},{seeds.stop})", f"results={folder}")  # fmt: skip
        arm = arm_of(load_frame(Store(folder), None).runs)
        rows += [rates_of(name, arm, num) for num in NUM_SEEDS if 2 * num <= len(seeds)]
    study = results / "study"
    bnexp("train", "-m", "--config-dir", str(ROOT / "scripts" / "same_arm_twice"), "study=same-arm-twice",
          f"results={study}")  # fmt: skip
    report = make_report(Store(study), "same-arm-twice")
    write(pd.DataFrame(rows), report.table, Store(study), arguments.folder, len(seeds))


def bnexp(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "bnexp", *arguments], cwd=ROOT, check=True)


def arm_of(runs: pd.DataFrame) -> Term:
    """All runs of an arm: one row, seeds by rates."""
    columns = runs[["seed", "lr"]].assign(
        vote=score(runs, "val_accuracy"),
        score=score(runs, "test_accuracy"),
        failed=runs["status"].isin(UNHEALTHY),
    )
    votes, scores, failed = (
        columns.pivot(index="seed", columns="lr", values=name).to_numpy() for name in ("vote", "score", "failed")
    )
    if np.isnan(votes.astype(float)).any():
        raise SystemExit("some runs are missing")
    return Term(1.0, votes.astype(float)[None], scores.astype(float)[None], failed.astype(bool)[None])


def drawn(arm: Term, num: int, weight: float, seeds: np.ndarray) -> Term:
    """An arm of `num` of these seeds in each study; (studies, seeds)."""
    kept = seeds[:, :num]
    return Term(weight, arm.votes[0][kept], arm.scores[0][kept], arm.failed[0][kept])


def rates_of(cell: str, arm: Term, num: int) -> dict[str, object]:
    """How often two arms of `num` seeds each, drawn from one, are called different."""
    rng = np.random.default_rng(num)
    order = np.array([rng.permutation(arm.votes.shape[1]) for _ in range(NUM_STUDIES)])
    studies = TunedStudies(drawn(arm, num, -1.0, order), drawn(arm, num, 1.0, order[:, num:]))
    ours, before = judge_studies(studies, RULE)[0], judge_earlier(studies, RULE)[0]
    # at six seeds the earlier rule had four left, and decided nothing by rule
    chosen = [chosen_rates(term.votes) for term in (studies.control, studies.treatment)]
    return {
        "cell": cell,
        "num_runs": arm.votes.shape[1] * arm.votes.shape[2],
        "num_failed": int(arm.failed.sum()),
        "num_seeds": num,
        "num_studies": NUM_STUDIES,
        "other_rates_chosen": _share(chosen[0] != chosen[1]),
        "called_different": _share(ours.direction <= RULE.alpha),
        "coverage": _coverage(ours),
        "called_negligible": _share(ours.equivalence <= RULE.alpha),
        "before_called_different": _share(before.direction <= RULE.alpha),
        "before_t_excludes_zero": _share(plain_t(studies, RULE).direction <= RULE.alpha),
        "before_coverage": _coverage(before),
    }


def _share(hits: np.ndarray) -> float:
    return round(float(hits.mean()), 4)


def _coverage(judged: Judged) -> float:
    return _share((judged.low <= 0) & (judged.high >= 0))


def write(rates: pd.DataFrame, table: str, store: Store, folder: Path, num_seeds: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rates.to_csv(folder / "rates.csv", index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    environment = next(iter(store.records(None))).environment
    rows = rates.to_dict("records")
    lines = [
        "# The same arm twice, on real runs",
        "",
        "Made by bnexp itself: `python scripts/same_arm_twice.py`.",
        "",
        f"- commit: {environment['git_commit']}",
        f"- hardware: {environment['device']}, torch {environment['torch']}, 1 thread a run",
        f"- {num_seeds} runs of each arm at each of {len(RATES)} learning rates, on the embedded digits, with the "
        "settings of the small tier of the study `placement`",
        f"- {NUM_STUDIES:,} studies a row. Each draws two arms of that many seeds from the same runs, no run "
        "twice. Each arm chooses its own learning rate. Nothing differs, so every called difference is an error",
        "",
        "| one arm, called two names | failed runs | seeds | the two chose different rates | called different "
        "(5 % allowed) | 95 % intervals that hold 0 | before: called different | before: t interval excludes 0 |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {row['cell']} | {row['num_failed']} of {row['num_runs']} | {row['num_seeds']} | "
            f"{whole(row['other_rates_chosen'])} | {percent(row['called_different'])} | {percent(row['coverage'])} | "
            f"{percent(row['before_called_different'])} | {percent(row['before_t_excludes_zero'])} |"
            for row in rows
        ),
        "",
        f"Before: {num_tuning(10)} seeds chose the rate ({num_tuning(6)} of six), and a t interval compared the others "
        "there. A difference also had to reach the margin of 1 point. With six seeds four were left, too few for that "
        "rule: the row says what its interval would have shown. The studies of a row share their runs, so its rates "
        "move more than those of as many independent studies. The intervals here are over seeds alone. Those of a "
        "report also cover test images, which widens them.",
        "",
        "A user would declare a study (scripts/same_arm_twice/study/same-arm-twice.yaml). This one compares batch norm "
        "with batch norm. Their eps differs in the sixth digit, or the two would be the same runs:",
        "",
        "```",
        table,
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
