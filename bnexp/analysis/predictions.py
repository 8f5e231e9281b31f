"""Which run was right about which test image."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnexp.records import Predictions
from bnexp.store import Store

NO_SPLIT = "data.augment"  # the one key of `data` that leaves the images of each split as they are


class HasPredictions(Protocol):
    """A `Store`, or a `CachedPredictions` of one."""

    def predictions(self, run_id: str) -> Predictions | None:
        """What a run predicted on test; None where it did not leave that."""
        ...


class CachedPredictions:
    """The predictions of a results folder; each file is read once, at its first use."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[str, Predictions | None] = {}

    def predictions(self, run_id: str) -> Predictions | None:
        """As `Store.predictions`."""
        if run_id not in self._read:
            self._read[run_id] = self._store.predictions(run_id)
        return self._read[run_id]


def data_keys(runs: pd.DataFrame) -> dict[str, Hashable]:
    """Run id -> what decides its train and test images: runs of one key were asked about the same ones.

    Args:
        runs: as in `Frame.runs`.
    """
    keys = [key for key in runs.columns if key.startswith("data.") and key != NO_SPLIT]
    found: dict[str, Hashable] = {}
    for row in runs[["run_id", "seed", *keys]].to_dict("records"):
        values = tuple((key, row[key]) for key in keys if not pd.isna(row[key]))
        per_seed = dict(values).get("data.split") == "per_seed"
        found[row["run_id"]] = (values, row["seed"] if per_seed else None)
    return found


def correct_matrix(
    store: HasPredictions, run_ids: Sequence[str], failed: Collection[str], data_of: Mapping[str, Hashable]
) -> tuple[NDArray[np.int32], NDArray[np.float64]] | None:
    """Test images, (M,) ascending, and what each run scored on each, (len(run_ids), M).

    A score is 1 where the run was right, 0 where it was wrong, and nan where it was not asked about that image, as
    where each seed draws its own split. So the mean of a row without its nans is the run's test accuracy.

    Args:
        store: a `CachedPredictions` where several matrices are made of the same runs.
        failed: the runs that diverged or collapsed: they always answer the largest class of the training images, which
            scores `chance_test_accuracy`.
        data_of: as `data_keys` has it, of these runs and of others that can lend their images: a diverged run left no
            predictions, and takes labels and images from a run of the same data.

    Returns:
        None where a run's predictions are missing, or a diverged run has no other to take its images from.
    """
    images: list[NDArray[np.int32]] = []
    scores: list[NDArray[np.bool_]] = []
    for run_id in run_ids:
        own = store.predictions(run_id)
        if run_id in failed:
            own = own or _of_same_data(store, run_id, data_of)
        if own is None:
            return None
        images.append(own.image)
        scores.append(own.label == (own.chance_class if run_id in failed else own.predicted))
    asked = np.unique(np.concatenate(images)) if images else np.empty(0, np.int32)
    matrix = np.full((len(run_ids), len(asked)), np.nan)
    for row, image, score in zip(matrix, images, scores, strict=True):
        row[np.searchsorted(asked, image)] = score
    return asked, matrix


def _of_same_data(store: HasPredictions, run_id: str, data_of: Mapping[str, Hashable]) -> Predictions | None:
    """The predictions of the first run that was asked about the same images."""
    for other, key in data_of.items():
        if other != run_id and key == data_of[run_id]:
            found = store.predictions(other)
            if found is not None:
                return found
    return None
