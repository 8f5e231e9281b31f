"""The results folder survives crashes, strangers and two writers."""

from __future__ import annotations

import io
import multiprocessing as mp
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from bnexp.errors import StoreError
from bnexp.records import Predictions, RunRecord
from bnexp.store import Store, write_atomic


def make_record(run_id: str = "ab", status: str = "finished") -> RunRecord:
    return RunRecord(run_id, "cell", status, {"seed": 0}, {}, {"test_accuracy": 0.5}, {"train": 1.0})  # type: ignore[arg-type]


def test_record_round_trips(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.record("ab") is None
    store.write_record(make_record())
    assert store.record("ab") == make_record()
    assert list(store.records()) == [make_record()]


def test_write_atomic_leaves_the_old_file_when_the_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1, "run_id": "x", "nonsense": 2}', '{"version": 99}'])
def test_a_broken_record_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    store.run_dir("ab").mkdir(parents=True)
    (store.run_dir("ab") / "record.json").write_text(text)
    with pytest.raises(StoreError, match=r"record\.json"):
        store.record("ab")


def test_history_passes_over_a_half_written_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_config("ab", {})
    store.append_history("ab", {"epoch": 1})
    with (store.run_dir("ab") / "history.jsonl").open("a") as file:
        file.write('{"epoch": 2, "tra')
    assert store.history("ab") == [{"epoch": 1}]


def test_results_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(StoreError, match="results: cannot write to"):
        Store(tmp_path / "results").require_writable()


def _hold(root: Path, ready: object) -> None:
    with Store(root).lock("ab", timeout_seconds=0):
        ready.set()  # type: ignore[attr-defined]
        signal.pause()


def test_lock_is_seen_by_others_and_freed_by_a_kill(tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    store = Store(tmp_path)
    assert store.is_locked("ab")
    with store.lock("ab", timeout_seconds=0.2) as held:
        assert not held
    process.kill()
    process.join()
    assert not store.is_locked("ab")
    with store.lock("ab", timeout_seconds=0.2) as held:
        assert held


def predictions_of(num: int = 3) -> Predictions:
    return Predictions(np.arange(num, dtype=np.uint8), np.zeros(num, np.uint8), np.arange(num, dtype=np.int32), 7, 100)


def test_predictions_round_trip(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.predictions("ab") is None
    store.run_dir("ab").mkdir(parents=True)
    store.write_predictions("ab", predictions_of())
    found = store.predictions("ab")
    assert found is not None
    assert (found.predicted.tolist(), found.label.tolist(), found.image.tolist()) == ([0, 1, 2], [0, 0, 0], [0, 1, 2])
    assert (found.predicted.dtype, found.label.dtype, found.image.dtype) == (np.uint8, np.uint8, np.int32)
    assert found.chance_class == 7


def test_broken_predictions_are_named_in_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.run_dir("ab").mkdir(parents=True)
    store.write_predictions("ab", predictions_of(1000))
    path = store.predictions_path("ab")
    whole = path.read_bytes()
    middle = len(whole) // 4
    torn = whole[:middle] + bytes(64) + whole[middle + 64 :]
    contents = {"empty": b"", "text": b"not an archive", "half": whole[: len(whole) // 2], "torn": torn}
    plain, pickled, fewer, uneven = (io.BytesIO() for _ in range(4))
    np.save(plain, np.arange(3))
    np.savez(pickled, predicted=np.array([object()]), label=0, image=0, chance_class=0)
    np.savez(fewer, predicted=np.arange(3))
    np.savez(uneven, predicted=np.arange(3), label=np.arange(2), image=np.arange(3), chance_class=0)
    buffers = {"plain": plain, "pickled": pickled, "fewer": fewer, "uneven": uneven}
    contents |= {name: buffer.getvalue() for name, buffer in buffers.items()}
    for name, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"predictions\.npz: not a run's predictions") as error:
            store.predictions("ab")
        assert "\n" not in str(error.value), name
