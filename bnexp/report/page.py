"""The page that a reader opens: one HTML file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from bnexp.analysis.frame import UNHEALTHY, Frame
from bnexp.analysis.select import Selection
from bnexp.report.figures import FigureFile
from bnexp.report.tables import Table
from bnexp.sources import title_of
from bnexp.study import StudySpec

ENVIRONMENT_KEYS = ("bnexp", "torch", "python", "device", "threads", "precision", "git_commit")


def render_page(
    name: str,
    *,
    frozen: Mapping[str, Any] | None,
    spec: StudySpec | None,
    frame: Frame,
    selection: Selection,
    tables: Sequence[Table],
    figures: Sequence[FigureFile],
    readings: Sequence[str],
    remarks: Sequence[str],
    figure_folder: Path,
) -> str:
    """The HTML text, with every figure inline."""
    return template("report.html.j2").render(
        name=name,
        frozen=frozen,
        spec=spec,
        tables=tables,
        figures=[(figure, inline_svg(figure_folder / f"{figure.name}.svg", figure.name)) for figure in figures],
        readings=readings,
        ladder=selection.runs["lr"].nunique() > 1,
        remarks=remarks,
        statuses=frame.runs["status"].value_counts().to_dict(),
        unhealthy=[
            (row.run_id, row.status, row.arm, row.stratum, row.lr, row.seed)
            for row in selection.runs[selection.runs["status"].isin(UNHEALTHY)].itertuples()
        ],
        failed=frame.failed,
        missing=frame.missing,
        environments=environments_of(frame),
        run_ids=list(frame.runs["run_id"]),
    )


def template(name: str) -> Template:
    """A page's template; whatever is filled in is escaped."""
    environment = Environment(
        loader=PackageLoader("bnexp.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals["title_of"] = title_of  # macros see no more than this
    return environment.get_template(name)


def inline_svg(path: Path, name: str) -> Markup:
    """The drawing itself, its ids made unique on the page; it is ours, so it is not escaped."""
    text = path.read_text()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="|href="|url\()#', rf"\1#{name}-", text)
    return Markup(text)


def environments_of(frame: Frame) -> list[tuple[str, int]]:
    """Each distinct environment as text, with the number of runs made in it."""
    counts: dict[str, int] = {}
    for environment in frame.runs["environment"]:
        parts = [f"{key} {environment[key]}" for key in ENVIRONMENT_KEYS if environment.get(key) is not None]
        counts[", ".join(parts)] = counts.get(", ".join(parts), 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])
