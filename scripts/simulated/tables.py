"""What the simulations share: ladders, the bound of a simulated share, and CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, object]
NOISES = ("gaussian", "skewed", "growing", "failing")
SEEDS = (6, 10, 13)
MARGIN = 1.0  # points


def as_ladder(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split())


def arms_of(ladder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """True means of control and treatment at each rate; one ladder stands for both arms."""
    control, _, treatment = ladder.partition(" | ")
    return as_ladder(control), as_ladder(treatment or control)


def upper_bound(share: float, num: int, confidence: float = 0.95) -> float:
    """The exact (Clopper & Pearson 1934) one-sided upper bound of a share that was found in `num` simulations."""
    from scipy.stats import beta

    hits = round(share * num)
    return 1.0 if hits >= num else float(beta.ppf(confidence, hits + 1, num - hits))


def share(hits: NDArray[np.bool_]) -> float:
    return round(float(hits.mean()), 4)


def write_rows(path: Path, rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Write rows one by one, so that what is done can be read while the rest is simulated."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(columns), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row)
            file.flush()
    part.replace(path)


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="") as file:
        yield from csv.DictReader(file)
