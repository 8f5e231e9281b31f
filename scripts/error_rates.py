"""Measure how often verdicts err and find, and make results/reference/verdict-error-rates again.

    python scripts/error_rates.py [PART ...] [--scale 0.1]

Parts: pipeline, limits, sums, procedures, measures, images, splits, fixed-rate, and page, which writes README.md from
the tables on disk; without a part, all of them. Every table is written row by row into NAME.csv.part and renamed when
it is whole. Commit first: the page says which commit made it. All parts together take about 25 minutes on one CPU core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from simulated.fixed_rate import write_fixed_rate
from simulated.images import write_images
from simulated.limits import write_limits
from simulated.measures import write_measures
from simulated.page import write_page
from simulated.pipeline import FAMILY, write_pipeline
from simulated.procedures import write_procedures
from simulated.splits import write_splits
from simulated.sums import write_sums

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "reference" / "verdict-error-rates"
# part -> what writes it, and how many simulated studies a cell
PARTS: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "pipeline": (write_pipeline, 2_000 * FAMILY),
    "limits": (write_limits, 6_000),
    "sums": (write_sums, 6_000),
    "procedures": (write_procedures, 6_000),
    "measures": (write_measures, 6_000),
    "images": (write_images, 4_000),
    "splits": (write_splits, 1_500),
    "fixed-rate": (write_fixed_rate, 10_000),
}
PAGE = "page"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join([*PARTS, PAGE])} (default: all)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="simulate that many times as many studies (default: 1)"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the tables go")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - {*PARTS, PAGE}
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    wanted = arguments.parts or [*PARTS, PAGE]
    for name, (write, num) in PARTS.items():
        if name in wanted:
            write(arguments.folder, max(FAMILY, round(num * arguments.scale / FAMILY) * FAMILY))
    if PAGE in wanted:
        write_page(arguments.folder, ROOT)


if __name__ == "__main__":
    main()
