"""The ledger keeps whole lines whoever writes and whatever crashes, and study.json says who asked when."""

from __future__ import annotations

import hashlib
import json
import multiprocessing as mp
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_studies import tier, write_study

from bnexp.catalog import list_studies
from bnexp.cli import main
from bnexp.errors import StoreError
from bnexp.folders import known_folders, remember_folder, state_folder
from bnexp.ledger import claim_key, read_ledger, read_study_events, study_digest
from bnexp.records import Predictions, RunRecord
from bnexp.store import Store
from bnexp.study import StudySpec

Bnexp = Callable[..., subprocess.CompletedProcess[str]]


def make_record(run_id: str = "ab", accuracy: float = 0.5, status: str = "finished") -> RunRecord:
    return RunRecord(run_id, "cell", status, {"seed": 0}, {}, {"test_accuracy": accuracy}, {"train": 1.0})  # type: ignore[arg-type]


def lines_of(root: Path) -> list[str]:
    return (root / "ledger.jsonl").read_text().splitlines()


def test_a_record_has_a_line_with_its_hash_and_the_last_counts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_record(make_record(accuracy=0.5))
    store.write_history("ab", [{"epoch": 1}])
    store.write_record(make_record(accuracy=0.6))
    assert len(lines_of(tmp_path)) == 2
    event = store.ledger().records["ab"]
    folder = store.run_dir("ab")
    assert event["sha256"] == hashlib.sha256((folder / "record.json").read_bytes()).hexdigest()
    assert event["files"] == {"history.jsonl": hashlib.sha256((folder / "history.jsonl").read_bytes()).hexdigest()}
    assert event["time"].endswith("+00:00")


def test_predictions_added_to_a_run_that_had_ended_vouch_for_themselves_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_record(make_record())
    written = store.ledger().records["ab"]
    (store.run_dir("ab") / "record.json").write_text("{}")  # by other hands
    right = np.zeros(3, np.uint8)
    store.add_predictions("ab", Predictions(right, right, np.arange(3, dtype=np.int32), chance_class=0, num_train=9))
    event = store.ledger().records["ab"]
    assert event["sha256"] == written["sha256"]  # and so the record is still known to be altered
    assert event["files"] == {"predictions.npz": store.digests("ab")["predictions.npz"]}


def test_files_of_a_failed_run_are_not_held_against_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.run_dir("ab").mkdir(parents=True)
    store.write_history("ab", [{"epoch": 1}])
    store.write_record(make_record(status="failed"))
    assert store.ledger().records["ab"]["files"] == {}


def write_many(root: str, process: int) -> None:
    for number in range(200):
        Store(Path(root)).write_record(make_record(f"{process}-{number}"))


def test_four_processes_lose_no_line(tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    processes = [context.Process(target=write_many, args=(str(tmp_path), number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    rows = [json.loads(line) for line in lines_of(tmp_path)]
    assert len(rows) == 800
    assert {row["run_id"] for row in rows} == {f"{process}-{number}" for process in range(4) for number in range(200)}


@pytest.mark.parametrize("kept", [5, 40])
def test_half_a_line_costs_that_line_alone(kept: int, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_record(make_record("first"))
    store.write_record(make_record("second"))
    first, second = lines_of(tmp_path)
    (tmp_path / "ledger.jsonl").write_text(f"{first}\n{second[:kept]}")
    store.write_record(make_record("third"))
    assert set(read_ledger(tmp_path).records) == {"first", "third"}
    assert lines_of(tmp_path)[1] == second[:kept]


def test_a_folder_without_a_ledger_has_none(tmp_path: Path) -> None:
    ledger = Store(tmp_path / "nowhere").ledger()
    assert (ledger.exists, dict(ledger.records), ledger.studies) == (False, {}, ())


def placement(**changes: Any) -> dict[str, Any]:
    return list_studies()["placement"].declaration("small") | changes


def test_a_claim_key_is_of_what_is_asked_alone() -> None:
    declared = list_studies()["placement"]
    raw = declared.declaration("small")
    key = claim_key(raw)
    assert claim_key(declared.declaration("medium")) == key
    assert claim_key(placement(name="copy", claim="Another.", number=99)) == key
    comparisons = [comparison | {"margin": 1e-4} for comparison in raw["comparisons"]]
    assert claim_key(placement(comparisons=comparisons)) == key
    names = {"before": "b", "after": "a"}
    arms = {names[arm]: overrides for arm, overrides in raw["arms"].items()}
    renamed = [{**c, "treatment": names[c["treatment"]], "control": names[c["control"]]} for c in raw["comparisons"]]
    assert claim_key(placement(arms=arms, comparisons=renamed)) == key
    assert claim_key(placement(arms=raw["arms"] | {"more": {"norm": "none"}})) == key  # an arm that nobody looks at
    turned = [{**c, "treatment": c["control"], "control": c["treatment"]} for c in raw["comparisons"]]
    assert claim_key(placement(comparisons=turned)) != key
    assert claim_key(placement(strata=[])) != key


def test_no_two_declared_studies_ask_the_same_and_a_tier_asks_what_the_study_does() -> None:
    keys: dict[str, set[str]] = {}
    specs: dict[str, StudySpec] = list_studies()
    for name, spec in specs.items():
        for each in spec.tiers:
            keys.setdefault(claim_key(spec.declaration(each)), set()).add(name)
    assert all(len(names) == 1 for names in keys.values())
    assert len(keys) == len(specs)


def test_a_digest_is_of_all_that_decides_and_of_no_order() -> None:
    study = {"hash": "h", "declaration": {}, "run_ids": ["a", "b"], "arms": {"x": ["a"], "y": ["b"]},
             "exploratory": False, "overrides": [], "command": "bnexp train"}  # fmt: skip
    digest = study_digest(study)
    same = {**study, "run_ids": ["b", "a"], "command": "another", "attempts": [{}], "started": {}}
    assert study_digest(same) == digest
    for change in ({"arms": {"x": ["b"], "y": ["a"]}}, {"exploratory": True}, {"run_ids": ["a"]}, {"looks": [6]},
                   {"declaration": {"margin": 1}}):  # fmt: skip
        assert study_digest({**study, **change}) != digest


def frozen_study() -> dict[str, Any]:
    raw = json.loads(json.dumps(placement()))
    return {"name": "placement", "tier": "small", "declaration": raw, "hash": "h", "exploratory": False,
            "run_ids": ["a", "b"], "arms": {"before": ["a"], "after": ["b"]}}  # fmt: skip


def test_a_study_changed_by_other_hands_is_not_written_over_but_may_be_restored(tmp_path: Path) -> None:
    store, study = Store(tmp_path), frozen_study()
    store.write_study("placement", study)
    store.write_study("placement", study)
    store.write_study("placement", {**study, "run_ids": ["a", "b", "c"]})  # a ladder that grew
    assert [event["again"] for event in store.ledger().studies] == [False, True]
    path = store.study_path("placement")
    path.write_text(json.dumps({**study, "exploratory": True}))
    with pytest.raises(StoreError, match="was changed after it was frozen"):
        store.write_study("placement", {**study, "run_ids": ["a", "b", "c", "d"]})
    assert json.loads(path.read_text())["exploratory"] is True
    store.write_study("placement", {**study, "run_ids": ["a", "b", "c"]})  # as the ledger has it
    assert json.loads(path.read_text())["exploratory"] is False
    assert len(store.ledger().studies) == 2


def test_train_says_when_and_with_what_a_study_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state_folder: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path / "own", "mine", tiers={"small": tier()})
    argv = ["train", "-m", "--config-dir", "own", "study=mine", "exec.executor=serial"]
    monkeypatch.setattr("bnexp.frozen.git_commit", lambda: "abc-dirty")
    assert main(argv) == 0
    store = Store(tmp_path / "results")
    first = store.study("mine")
    assert first is not None
    started = first["started"]
    assert set(started) == {"time", "commit", "executor", "stacking"}
    assert (started["commit"], started["executor"], started["stacking"]) == ("abc-dirty", "serial", "never")
    assert first["attempts"] == [{**started, "command": first["command"]}]
    assert first["command"].startswith("bnexp train -m --config-dir own study=mine")

    monkeypatch.setattr("bnexp.frozen.git_commit", lambda: "def")
    assert main(argv) == 0
    second = store.study("mine")
    assert second is not None
    assert second == {**first, "attempts": second["attempts"]}
    assert [attempt["commit"] for attempt in second["attempts"]] == ["abc-dirty", "def"]
    ledger = store.ledger()
    assert [event["commit"] for event in ledger.attempts] == ["abc-dirty", "def"]
    (event,) = ledger.studies
    assert (event["name"], event["tier"], event["hash"]) == ("mine", "small", first["hash"])
    assert event["folder"] == (tmp_path / "results").resolve().as_posix()
    assert list(event["margins"].values()) == [0.01]
    assert set(ledger.records) == set(first["run_ids"])
    assert read_study_events(store.root) == [event]
    assert known_folders() == [(tmp_path / "results").resolve()]
    assert len((state_folder / "folders.jsonl").read_text().splitlines()) == 1


def test_a_study_of_an_older_version_goes_on_without_a_start(tmp_path: Path) -> None:
    store, study = Store(tmp_path), frozen_study()
    path = store.study_path("placement")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(study))
    store.write_study("placement", study, attempt={"time": "now", "command": "bnexp train"})
    after = store.study("placement")
    assert after == {**study, "attempts": [{"time": "now", "command": "bnexp train"}]}


def test_folders_that_are_gone_are_passed_over_and_a_state_that_cannot_be_written_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "one"):
        (tmp_path / name).mkdir(exist_ok=True)
        remember_folder(tmp_path / name)
    assert known_folders() == [tmp_path / "one", tmp_path / "two"]
    (tmp_path / "one").rmdir()
    assert known_folders() == [tmp_path / "two"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BNEXP_STATE", str(tmp_path / "file" / "below"))
    remember_folder(tmp_path / "two")
    assert known_folders() == []
    monkeypatch.delenv("BNEXP_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert state_folder() == tmp_path / "state" / "bnexp"
