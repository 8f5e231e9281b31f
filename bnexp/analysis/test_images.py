"""What the runs of a report scored on each test image, read when it is asked for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from bnexp.analysis.frame import UNHEALTHY
from bnexp.analysis.predictions import CachedPredictions, correct_matrix, data_keys
from bnexp.analysis.significance import Array
from bnexp.store import Store


@dataclass(frozen=True)
class TestImages:
    """The test images of a report.

    Attributes:
        per_seed: each seed drew its own split, so that runs of two seeds were asked about different images.
    """

    store: CachedPredictions
    failed: frozenset[str]
    data_of: Mapping[str, Hashable]
    per_seed: bool
    _read: dict[tuple[str, ...], Array | None] = field(default_factory=dict)

    @property
    def overlap(self) -> float:
        """`test / train` images where every seed draws its own split; 0 where all seeds share one."""
        if not self.per_seed:
            return 0.0
        kept = (self.store.predictions(run_id) for run_id in self.data_of)
        return next((len(own.predicted) / own.num_train for own in kept if own is not None), 0.0)

    def scores(self, run_ids: Sequence[str]) -> Array | None:
        """(runs, images) 1 where a run was right and 0 where it was wrong; None where any prediction is missing."""
        key = tuple(run_ids)
        if key not in self._read:
            found = correct_matrix(self.store, run_ids, self.failed, self.data_of)
            self._read[key] = None if found is None else found[1]
        return self._read[key]


def images_of(runs: pd.DataFrame, store: Store) -> TestImages:
    """The test images of these runs; `Frame.runs`."""
    failed = frozenset(runs.loc[runs["status"].isin(UNHEALTHY), "run_id"])
    per_seed = "data.split" in runs and bool((runs["data.split"] == "per_seed").any())
    return TestImages(CachedPredictions(store), failed, data_keys(runs), per_seed)
