"""The results folder survives crashes, strangers and two writers."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from pathlib import Path

import pytest

from bnexp.errors import StoreError
from bnexp.records import RunRecord
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
