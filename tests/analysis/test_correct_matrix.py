"""Which run was right about which image, with runs that failed and splits that differ from seed to seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bnexp.analysis.predictions import CachedPredictions, correct_matrix, data_keys
from bnexp.records import Predictions
from bnexp.store import Store

NAN = np.nan


def write(store: Store, name: str, predicted: list[int], label: list[int], image: list[int] | None = None) -> None:
    store.run_dir(name).mkdir(parents=True)
    places = range(len(label)) if image is None else image
    arrays = (np.array(predicted, np.uint8), np.array(label, np.uint8), np.array(places, np.int32))
    store.write_predictions(name, Predictions(*arrays, chance_class=2, num_train=100))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two runs on four images; a third on two of a pool."""
    store = Store(tmp_path)
    write(store, "a", [0, 1, 2, 2], [0, 1, 1, 2])
    write(store, "b", [1, 1, 1, 1], [0, 1, 1, 2])
    write(store, "c", [2, 0], [2, 2], image=[1, 7])
    return store


def test_a_row_is_right_or_wrong_about_each_image(store: Store) -> None:
    found = correct_matrix(store, ["b", "a"], (), {})
    assert found is not None
    images, matrix = found
    assert images.tolist() == [0, 1, 2, 3]
    assert images.dtype == np.int32
    assert matrix.dtype == np.float64
    assert matrix.tolist() == [[0, 1, 1, 0], [1, 1, 0, 1]]


def test_images_that_a_run_was_not_asked_about_are_nan(store: Store) -> None:
    found = correct_matrix(store, ["a", "c"], (), {})
    assert found is not None
    images, matrix = found
    assert images.tolist() == [0, 1, 2, 3, 7]
    np.testing.assert_array_equal(matrix, [[1, 1, 0, 1, NAN], [NAN, 1, NAN, NAN, 0]])


def test_a_failed_run_answers_the_largest_training_class(store: Store) -> None:
    data_of = {"diverged": "own", "c": "other", "b": "own", "a": "own", "lost": "seed 2", "c2": "other"}
    found = correct_matrix(store, ["a", "diverged", "b", "c2"], {"diverged", "b", "c2"}, data_of)
    assert found is not None
    _, matrix = found
    np.testing.assert_array_equal(
        matrix, [[1, 1, 0, 1, NAN], [0, 0, 0, 1, NAN], [0, 0, 0, 1, NAN], [NAN, 1, NAN, NAN, 1]]
    )
    assert correct_matrix(store, ["a", "lost"], {"lost"}, data_of) is None


def test_missing_predictions_are_none(store: Store) -> None:
    assert correct_matrix(store, ["a", "unknown"], (), {"unknown": 1, "a": 1}) is None


def test_no_runs_have_no_images(store: Store) -> None:
    found = correct_matrix(store, [], (), {})
    assert found is not None
    assert (found[0].shape, found[1].shape) == ((0,), (0, 0))


def test_a_cache_reads_each_file_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[str] = Counter()
    read = store.predictions

    def counted(run_id: str) -> Predictions | None:
        reads[run_id] += 1
        return read(run_id)

    monkeypatch.setattr(store, "predictions", counted)
    cache = CachedPredictions(store)
    data_of = dict.fromkeys("abcdx", "same")
    for _ in range(2):
        assert correct_matrix(cache, ["a", "b", "d", "x"], {"d", "x"}, data_of) is not None
        assert correct_matrix(cache, ["a", "unknown"], (), data_of) is None
    assert reads == {"a": 1, "b": 1, "d": 1, "x": 1, "unknown": 1}


def test_runs_share_data_unless_their_split_does_not() -> None:
    def row(run_id: str, seed: int, **data: object) -> dict[str, object]:
        keys = {"name": "digits", "train_limit": None, "augment": "none"} | data
        return {"run_id": run_id, "seed": seed, "lr": 0.1, **{f"data.{key}": value for key, value in keys.items()}}

    rows = [
        row("fixed 0", 0), row("fixed 1", 1, augment="crop"), row("fixed limit", 0, train_limit=100),
        row("own 0", 0, split="per_seed"), row("own 0 too", 0, split="per_seed", augment="flip"),
        row("own 1", 1, split="per_seed"),
    ]  # fmt: skip
    keys = data_keys(pd.DataFrame(rows))
    assert keys["fixed 0"] == keys["fixed 1"]
    assert keys["own 0"] == keys["own 0 too"]
    assert len(set(keys.values())) == 4
    assert data_keys(pd.DataFrame(rows[:2])) == {"fixed 0": keys["fixed 0"], "fixed 1": keys["fixed 0"]}
