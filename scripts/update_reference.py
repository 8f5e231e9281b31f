"""Make results/reference/NAME again: the figures and tables that the README shows, from runs of this checkout.

    python scripts/update_reference.py placement lr-range [--results DIR]

Runs that are in the results folder already are not repeated, so an interrupted call goes on where it was. Commit
first: the page says which commit made it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from bnexp.report import make_report
from bnexp.store import Store

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="+", help="declared studies; their small tier is run")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="where the runs lie or will lie")
    options = parser.parse_args()
    for study in options.study:
        command = ["train", "-m", f"study={study}"]
        if options.results != ROOT / "results":
            command.append(f"results={options.results}")
        subprocess.run([sys.executable, "-m", "bnexp", *command], cwd=ROOT, check=True)
        update(Store(options.results), study, ROOT / "results" / "reference" / f"{study}-small")
    return 0


def update(store: Store, study: str, folder: Path) -> None:
    """Replace a reference folder by what the records of a finished study give."""
    result = make_report(store, study)
    frozen = store.study(study)
    assert frozen is not None
    records = list(store.records(frozen["run_ids"]))
    hardware = sorted({f"{r.environment['device']}, torch {r.environment['torch']}, "
                       f"{r.environment['threads']} thread(s) a run" for r in records})  # fmt: skip
    commits = sorted({str(r.environment["git_commit"]) for r in records})
    seconds = sum(sum(record.seconds.values()) for record in records)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "figures").mkdir(parents=True)
    (folder / "tables").mkdir()
    for path in sorted(result.html.parent.glob("figures/*.png")):
        shutil.copy(path, folder / "figures")
    for path in sorted(result.html.parent.glob("tables/*.csv")):
        shutil.copy(path, folder / "tables")
    lines = [
        f"# {study}, small tier",
        "",
        f"Made by bnexp itself: `bnexp train -m study={study} && bnexp report {study}`.",
        "",
        f"- commit: {', '.join(commits)}",
        f"- hardware: {'; '.join(hardware)}",
        f"- runs: {len(records)}, {seconds / 60:.1f} minutes of training and evaluation summed over the runs",
        f"- declaration: {frozen['hash'][:16]}",
        "",
        "```",
        result.table,
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
