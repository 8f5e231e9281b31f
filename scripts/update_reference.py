"""Make results/reference/NAME again: figures and tables from runs of this checkout.

    python scripts/update_reference.py audit-small [--results DIR]
    python scripts/update_reference.py ioffe-mnist recurrent-mnist --mnist DIR
    python scripts/update_reference.py santurkar-cifar --cifar DIR
    python scripts/update_reference.py audit-medium --mnist DIR --cifar DIR

Runs that are in the results folder already are not repeated, so an interrupted call goes on where it was. Commit
first: the page says which commit made it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bnexp.report import make_report
from bnexp.report.audit import make_audit
from bnexp.store import Store

ROOT = Path(__file__).resolve().parents[1]
AUDIT_TABLE = Path("tables", "audit.md")
VERDICTS = "verdicts"  # the end of the names of an audit's main figures


@dataclass(frozen=True)
class Recipe:
    """What one reference is made of.

    Attributes:
        title: what a reader of its page is told first.
        commands: arguments of `bnexp`; $MNIST and $CIFAR stand for folders of the user's.
        audit: it is the audit over all the studies that were run, not a report of the runs.
    """

    title: str
    commands: tuple[str, ...]
    audit: bool = False


IOFFE = (
    "data=mnist data.root=$MNIST model=mlp model.depth=3 model.width=100 model.activation=sigmoid model.init=normal "
    "batch_size=60 epochs=56 schedule=constant optim.momentum=0 optim.weight_decay=0 "
    "probes=[activations,gradients] probes.activations.every=500 probes.gradients.every=5000"
)
SANTURKAR = (
    "data=folder data.root=$CIFAR data.image_size=32 data.train_limit=10000 model.depth=6 model.width=16 epochs=6 "
    "exec.precision=fp32 probes=[shift,landscape,statistics] probes.shift.every=50 probes.landscape.every=50"
)
RECURRENT = (
    "data=mnist data.root=$MNIST model=lstm model.width=100 batch_size=256 epochs=4 optim=rmsprop optim.clip_norm=1 "
    "lr=0.005"
)
MEDIUM = (
    ("placement,lr-range,small-batch,depth", "$MNIST"),
    ("shift-cause", "$CIFAR"),
)
RECIPES = {
    "audit-small": Recipe(
        "The audit: all 26 declared studies, small tier, on the embedded digits. What it says holds for these 8×8 "
        "digits and these small networks. Verdicts are what the declared rule made of the runs. In the figures a "
        "circle is one seed, the diamond and the bar are the mean and the interval that decided, grey is smaller "
        "than the declared margin, blue is where the claim holds. The flip maps are on the page that `bnexp report` "
        "makes. The runs of `cost` were made again after the others, by the same command, for other work had been "
        "beside them and it compares seconds.",
        ("train -m study=all tier=small",),
        audit=True,
    ),
    "audit-medium": Recipe(
        "The audit, medium tier, of five studies: placement, lr-range, small-batch and depth on MNIST, shift-cause on "
        "a CIFAR-10 image folder (JPEG copies, not comparable with published numbers). Trainings are short, four to "
        "six epochs of some thousand images: no arm is done learning then, and deep nets without a norm had not begun "
        "to. The other studies were not run.",
        tuple(f"train -m study={names} tier=medium data.root={root} exec.executor=stacked" for names, root in MEDIUM),
        audit=True,
    ),
    "ioffe-mnist": Recipe(
        "Ioffe & Szegedy 2015, section 4.1 and figure 1: three sigmoid layers of 100 units on MNIST, batch 60, plain "
        "SGD, 50,400 updates. The paper names no learning rate: each arm has its own best of four. Accuracies and one "
        "unit's activation over time.",
        (f"train -m {IOFFE} norm=none,batch lr=0.1,0.3,1,3 seed=range(3)",),
    ),
    "santurkar-cifar": Recipe(
        "Santurkar et al. 2018, figures 1, 2 and 4: no norm, batch norm and batch norm with noise behind it, on 10,000 "
        "images of CIFAR-10 (JPEG copies). Do accuracies follow the shift of the gradients, or the smoothness of the "
        "loss? The noise is there in training alone, so that running statistics are those of noisy inputs: the "
        "noisy arm's accuracy is the one with precise statistics, in the last table and figure.",
        (f"train -m {SANTURKAR} norm=none,batch,noisy_batch lr=0.03,0.1 seed=range(3)",),
    ),
    "recurrent-mnist": Recipe(
        "LSTM and LSTM with batch norm per time step (Cooijmans et al. 2016) on MNIST read row by row, at one learning "
        "rate for all: whether each trains, not which is better. The first rows of a digit are blank in nearly every "
        "image, so that states hardly vary there, and batch norm divides by next to nothing: without the paper's noise "
        "on the first state, evaluation with running statistics fails. The other arms change one thing each too: gamma "
        "starting at 1 in place of 0.1, and running statistics shared over the steps.",
        (
            f"train -m {RECURRENT} norm=none seed=range(3)",
            f"train -m {RECURRENT} norm=batch model.initial_noise=0.1,0 seed=range(3)",
            f"train -m {RECURRENT} norm=batch model.gamma_init=1.0 seed=range(3)",
            f"train -m {RECURRENT} norm=batch model.step_statistics=shared seed=range(3)",
        ),
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="+", choices=RECIPES, help="which references to make")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="where the runs lie or will lie")
    parser.add_argument("--mnist", help="the folder with MNIST/raw, as data.root has it")
    parser.add_argument("--cifar", help="the folder of CIFAR-10 as images, with train/ and test/")
    options = parser.parse_args()
    folders = {"$MNIST": options.mnist, "$CIFAR": options.cifar}
    for name in options.name:
        recipe = RECIPES[name]
        results = options.results / name
        for command in recipe.commands:
            needed = next((name for name, folder in folders.items() if name in command and folder is None), None)
            if needed is not None:
                parser.error(f"{name} needs --{needed.removeprefix('$').lower()}")
            for variable, folder in folders.items():
                command = command.replace(variable, str(folder))
            arguments = [*command.split(), f"results={results}"]
            subprocess.run([sys.executable, "-m", "bnexp", *arguments], cwd=ROOT, check=True)
        update(Store(results), recipe, ROOT / "results" / "reference" / name)
    return 0


def update(store: Store, recipe: Recipe, folder: Path) -> None:
    """Replace a reference folder by what the records of a finished sweep give."""
    result = make_audit(store) if recipe.audit else make_report(store, None)
    figures = [figure for figure in result.figures if not recipe.audit or figure.name.endswith(VERDICTS)]
    records = list(store.records(None))
    hardware = sorted({f"{r.environment['device']}, torch {r.environment['torch']}, "
                       f"{r.environment['threads']} thread(s) a run" for r in records})  # fmt: skip
    commits = sorted({str(r.environment["git_commit"]) for r in records})
    seconds = sum(record.seconds.get(name, 0.0) for record in records for name in ("train", "eval", "probes"))
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "figures").mkdir(parents=True)
    (folder / "tables").mkdir()
    for figure in figures:
        shutil.copy(result.html.parent / "figures" / f"{figure.name}.png", folder / "figures")
    for path in sorted(result.html.parent.glob("tables/*.csv")):
        shutil.copy(path, folder / "tables")
    commands = [f"bnexp {command}" for command in recipe.commands]
    lines = [
        f"# {folder.name}",
        "",
        recipe.title,
        "",
        "```bash",
        *commands,
        "bnexp report",
        "```",
        "",
        f"- commit: {', '.join(commits)}",
        f"- hardware: {'; '.join(hardware)}",
        f"- runs: {len(records)}, {seconds / 60:.1f} minutes of training, evaluation and probes summed over the runs",
        "",
        *(
            ["```", result.table, "```"]
            if not recipe.audit
            else [(result.html.parent / AUDIT_TABLE).read_text().rstrip()]
        ),
    ]
    measured = result.html.parent / "tables" / "probes.md"
    lines += ["", measured.read_text().rstrip()] if measured.exists() else []
    for figure in figures:
        lines += ["", f"![{figure.title}](figures/{figure.name}.png)"]
        lines += [] if recipe.audit else ["", figure.caption]
    lines.append("")
    (folder / "README.md").write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
