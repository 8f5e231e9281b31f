"""Make docs/studies.md again from configs/study.

    python scripts/update_docs.py           write it
    python scripts/update_docs.py --check   exit 1 where it is not what the files say

Everything on the page comes from the declarations, so that it can't say what they don't.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnexp.catalog import list_studies
from bnexp.report.effect_words import claimed, compared
from bnexp.sources import TITLES, title_of
from bnexp.study import StudySpec, Tier

PAGE = Path(__file__).resolve().parents[1] / "docs" / "studies.md"
DATA = {
    "digits": "embedded digits",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "folder": "a CIFAR-10 image folder",
}
INTRO = """\
<!-- made from configs/study by scripts/update_docs.py: change a study there, not here -->
# The {count} studies

Five texts explain batch norm, and they make the claims below. Each claim is a study, declared in
`configs/study/NAME.yaml`: what is compared, which direction the texts claim, and the smallest effect that would matter.
`bnexp train -m study=NAME` runs the small tier and `bnexp report NAME` judges it. `study=all` runs all studies, and
trains runs that several of them declare only once.

- An *arm* is one side of a comparison. Each arm uses its own best learning rate: the mean validation accuracy over all
  of its seeds chooses it. All arms try the same *ladder* of rates.
- If the best rate of an arm is at an end of the ladder, the ladder is continued there by the rates under *more where
  needed*, for all arms of that stratum alike. The tables count the runs without these rates.
- A *stratum* is one setting, such as one network or one activation. It is judged apart from the others. All claims and
  premises of a study, in all strata, are corrected together (Holm). The first comparison is the primary one.
- A *premise* has to hold, or the study's claims are invalid. *Context* is judged, but is no part of the claim.
- *Supported* means that the whole interval lies on the side of the texts under *the texts*, beyond the margin;
  *contradicted*, on the opposite side. *Direction only* is added where the interval excludes 0 but not the margin.
  *Negligible*: it lies inside the margin. If the texts contradict one another, those of the other side are under
  *against*.
- Direction, margin and number of seeds were declared before the first run, except for what CHANGELOG.md discloses.
  Nobody changes a study until it agrees with a text.
"""


def main() -> None:
    """Write the page, or say that it is out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    page = page_of(list_studies())
    if parser.parse_args().check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
            raise SystemExit(f"{PAGE} is out of date: python scripts/update_docs.py")
        return
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page, encoding="utf-8")


def page_of(studies: Mapping[str, StudySpec]) -> str:
    """The page, in Markdown, the studies in the order of their numbers."""
    ordered = sorted(studies.values(), key=lambda spec: spec.number)
    rows = [
        f"| {spec.number} | [{spec.name}](#{anchor(spec)}) | {spec.claim} | {_texts(spec)} | {spec.num_runs('small')} |"
        for spec in ordered
    ]
    head = ["| # | study | claim | texts for it : against | runs, small tier |", "|---|---|---|---|---|"]
    parts = [
        INTRO.format(count=len(ordered)),
        "\n".join([*head, *rows]) + "\n",
        *(section_of(spec) for spec in ordered),
    ]
    return "\n".join(parts)


def anchor(spec: StudySpec) -> str:
    """Where a Markdown reader finds the heading of its section."""
    return f"{spec.number}-{spec.name}"


def section_of(spec: StudySpec) -> str:
    """One study, from its heading to its commands."""
    lines = [f"## {spec.number} {spec.name}", "", f"**{spec.claim}** {spec.question}", "", "The texts:", ""]
    lines += [f"- {title_of(stem)}: “{quote}”" for stem, quote in spec.sources.items()]
    if spec.against:
        lines += ["", "Against:", "", *(f"- {title_of(stem)}: “{quote}”" for stem, quote in spec.against.items())]
    lines += ["", f"What is known: {' '.join(spec.known.split())}", "", "| arm | what it is |", "|---|---|"]
    lines += [f"| {name} | {_settings(overrides)} |" for name, overrides in spec.arms.items()]
    lines += ["", "Judged, the primary comparison first:", ""]
    lines += [f"{number}. {words}" for number, words in enumerate(comparisons_of(spec), start=1)]
    if spec.strata:
        lines += ["", f"Reported apart: {', '.join(f'`{key}`' for key in spec.strata)}."]
    lines += [
        "",
        "| tier | data | runs | verdicts | learning rates | more where needed | seeds | fixed | swept |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_tier_row(spec, name, tier) for name, tier in spec.tiers.items()]
    lines += ["", "```bash", *(_command(spec, name, tier) for name, tier in spec.tiers.items()), "```", ""]
    return "\n".join(lines)


def comparisons_of(spec: StudySpec) -> list[str]:
    """A sentence for each comparison: what is compared and which side is claimed, by tier where tiers differ."""
    settled = {tier: spec.at(tier).comparisons for tier in spec.tiers}
    sentences = []
    for index in range(len(spec.comparisons)):
        said: dict[str, dict[str, list[str]]] = {}  # what is compared -> what is claimed -> in which tiers
        for tier, comparisons in settled.items():
            claims = said.setdefault(compared(comparisons[index]), {})
            claims.setdefault(claimed(comparisons[index]), []).append(tier)
        alike = len(said) == 1 == len(next(iter(said.values())))
        sentence = "; ".join(_sentence(what, claims, tiers=not alike) for what, claims in said.items())
        least, own = spec.comparisons[index].least, spec.comparisons[index].best != "pair"
        which = "an arm" if own else f"the control ({spec.comparisons[index].control})"
        sentence += "" if least is None else f"; invalid where {which} is not {100 * least:g} % accurate at any level"
        sentences.append(sentence)
    return sentences


def _sentence(what: str, claims: Mapping[str, Sequence[str]], *, tiers: bool) -> str:
    return f"{what}: " + "; ".join(
        f"{claim} ({', '.join(names)})" if tiers else claim for claim, names in claims.items()
    )


def _texts(spec: StudySpec) -> str:
    """How many of the texts say so, and how many the opposite."""
    return f"{len(spec.sources)} : {len(spec.against)}" if spec.against else f"{len(spec.sources)} of {len(TITLES)}"


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={value}`" for key, value in values.items())


def _values(values: Sequence[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _tier_row(spec: StudySpec, name: str, tier: Tier) -> str:
    """The grid of a tier; `data` and `probes` speak for themselves."""
    fixed = {key: value for key, value in tier.fixed.items() if key not in ("data", "probes")}
    fixed |= {"probes": "[" + ",".join(tier.fixed["probes"]) + "]"} if "probes" in tier.fixed else {}
    swept = {key: _values(values) for key, values in tier.axes.items() if key not in ("lr", "seed")}
    cells = [
        name,
        DATA[tier.fixed["data"]],
        f"{spec.num_runs(name):,}",
        str(spec.num_verdicts(name)),
        _values(spec.rates(name)),
        _values(tier.widen) or "none",
        str(len(spec.seeds(name))),
        _settings(fixed),
        "; ".join(f"`{key}`: {values}" for key, values in swept.items()) or "nothing else",
    ]
    return f"| {' | '.join(cells)} |"


def _command(spec: StudySpec, name: str, tier: Tier) -> str:
    words = ["bnexp train -m", f"study={spec.name}"]
    words += [] if name == "small" else [f"tier={name}"]
    words += ["data.root=DIR"] if tier.fixed["data"] == "folder" else []
    return " ".join(words)


if __name__ == "__main__":
    main()
