"""What was changed after it was written is named, and gives no verdict; other tries of a comparison are counted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabricate import freeze, grid, placement_outcome, write_all, write_study

from bnexp.config import RunConfig
from bnexp.folders import remember_folder
from bnexp.identity import run_id
from bnexp.report import Numbers, evaluate, make_report, summarize
from bnexp.report.audit import make_audit
from bnexp.report.judged import judge_started
from bnexp.store import Store
from bnexp.study import StudySpec, study_from_dict

GRID = ("norm.placement=before,after", "model.depth=8", "model.activation=relu", "seed=range(8)")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store, configs = Store(tmp_path_factory.mktemp("honest")), grid(*GRID)
    write_all(store, configs, placement_outcome)
    write_study(store, configs)
    return store


@pytest.fixture
def store(template: Store, tmp_path: Path) -> Store:
    """Sixteen runs, a study of them that is supported, and their ledger."""
    shutil.copytree(template.root, tmp_path / "results")
    return Store(tmp_path / "results")


def configs() -> list[RunConfig]:
    return grid(*GRID)


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=1) + "\n")


def edit_study(store: Store, change: Any) -> None:
    edit(store.study_path("placement"), change)


def raise_accuracy(record: dict[str, Any]) -> None:
    record["final"]["test_accuracy"] += 0.05


def told(numbers: Numbers) -> str:
    return " ".join(summarize(numbers).split()).replace(" Note: ", "\n")


def outcomes(numbers: Numbers) -> set[str]:
    assert numbers.claims is not None
    return {claim.outcome for claim in numbers.claims}


def spec_of(store: Store) -> StudySpec:
    frozen = store.study("placement")
    assert frozen is not None
    return study_from_dict(frozen["declaration"])


def start(store: Store, key: str, spec: StudySpec, **more: Any) -> None:
    """Start a study over the same runs."""
    arms = {arm: [c for c in configs() if c.norm.placement == arm] for arm in ("before", "after")}
    freeze(store, key, spec, arms, **more)


def with_margin(spec: StudySpec, margin: float) -> StudySpec:
    comparisons = tuple(replace(comparison, margin=margin) for comparison in spec.comparisons)
    return replace(spec, name="placement-copy", comparisons=comparisons)


def test_what_nobody_touched_is_judged_and_nothing_is_said(store: Store) -> None:
    numbers = evaluate(store, "placement")
    assert outcomes(numbers) == {"supported"}
    assert not judge_started(store, "placement").integrity.sentences
    assert not any("ledger" in remark or "Altered" in remark for remark in numbers.remarks)
    # a probe that is measured later writes the record anew
    record = store.record(run_id(configs()[0]))
    assert record is not None
    store.write_record(replace(record, exec={"probes": {"cost": {}}}))
    assert not judge_started(store, "placement").integrity.sentences


def test_a_changed_record_is_named_and_no_verdict_is_given(store: Store) -> None:
    changed = run_id(configs()[3])
    edit(store.run_dir(changed) / "record.json", raise_accuracy)
    numbers = evaluate(store, "placement")
    assert numbers.remarks[0] == (
        "Altered: files of 1 run were changed, added or removed after they were written: "
        f"{changed}; no verdict is given."
    )
    assert outcomes(numbers) == {"invalid"}
    assert numbers.claims is not None
    for claim in numbers.claims:
        assert (claim.verdict.effect, claim.readings) == (None, {})
        assert claim.verdict.reason == "files of its runs were changed after they were written"
    assert numbers.remarks[0] in told(numbers)
    assert numbers.remarks[0] in make_report(store, "placement").html.read_text()
    assert evaluate(store, None).remarks[0] == numbers.remarks[0]


def test_many_changed_records_are_counted_and_the_audit_says_so(store: Store) -> None:
    changed = [run_id(config) for config in configs() if config.norm.placement == "after"]
    for name in changed:
        edit(store.run_dir(name) / "record.json", lambda record: record.update(status="failed", error="made up"))
    # a record whose error was added is left out of every number, and still named
    integrity = judge_started(store, "placement").integrity
    assert set(integrity.altered_runs) == set(changed)
    assert integrity.sentences[0].startswith(
        "Altered: files of 8 runs were changed, added or removed after they were written: "
    )
    assert integrity.sentences[0].endswith(", …; no verdict is given.")
    audit = make_audit(store, declared={"placement": spec_of(store)})
    assert "Note: Altered: files of 8 runs were changed" in audit.table
    assert "placement: invalid" in audit.table


@pytest.mark.parametrize("file", ["history.jsonl", "probes.jsonl"])
def test_other_files_that_are_read_count_as_well(file: str, store: Store) -> None:
    name = run_id(configs()[0])
    if file == "probes.jsonl":
        store.write_probes(name, [])
        record = store.record(name)
        assert record is not None
        store.write_record(record)
    with (store.run_dir(name) / file).open("a") as handle:
        handle.write("\n")
    assert judge_started(store, "placement").integrity.altered_runs == (name,)


def test_a_run_that_is_being_written_is_not_accused(store: Store) -> None:
    name = run_id(configs()[0])
    edit(store.run_dir(name) / "record.json", raise_accuracy)
    with store.lock(name, timeout_seconds=0) as held:
        assert held
        assert judge_started(store, "placement").integrity.altered_runs == ()


def test_removed_and_unknown_records_are_counted(store: Store) -> None:
    gone, unknown = (run_id(config) for config in configs()[:2])
    (store.run_dir(gone) / "record.json").unlink()
    ledger = store.root / "ledger.jsonl"
    ledger.write_text("".join(line for line in ledger.read_text().splitlines(keepends=True) if unknown not in line))
    integrity = judge_started(store, "placement").integrity
    assert not integrity.altered
    assert integrity.sentences == [
        f"1 run record was removed after the run had ended: {gone}.",
        "1 run record is not in the ledger: it cannot be checked for changes.",
    ]


def swap_arms(frozen: dict[str, Any]) -> None:
    arms = frozen["arms"]
    arms["before"], arms["after"] = arms["after"], arms["before"]


def test_swapped_arms_give_no_verdict(store: Store) -> None:
    edit_study(store, swap_arms)
    numbers = evaluate(store, "placement")
    assert outcomes(numbers) == {"invalid"}
    assert numbers.remarks[0].startswith("Altered: study.json was changed after it was frozen: its declaration, its")
    assert "lists runs under the wrong arm, by the runs' own configs: after, before;" in numbers.remarks[1]


def test_swapped_arms_are_seen_without_a_ledger_too(store: Store) -> None:
    (store.root / "ledger.jsonl").unlink()
    edit_study(store, swap_arms)
    numbers = evaluate(store, "placement")
    assert outcomes(numbers) == {"invalid"}
    assert "lists runs under the wrong arm" in numbers.remarks[0]


def test_a_flipped_exploratory_gives_no_verdict(store: Store) -> None:
    write_study(store, configs(), exploratory=True)
    assert outcomes(evaluate(store, "placement")) == {"exploratory: supported"}
    edit_study(store, lambda frozen: frozen.update(exploratory=False))
    integrity = judge_started(store, "placement").integrity
    assert (integrity.altered_runs, integrity.altered_declaration) == ((), True)
    assert outcomes(evaluate(store, "placement")) == {"invalid"}


def test_a_folder_without_a_ledger_is_read_with_a_note(store: Store) -> None:
    (store.root / "ledger.jsonl").unlink()
    numbers = evaluate(store, "placement")
    assert outcomes(numbers) == {"supported"}
    assert numbers.remarks[0] == "This results folder has no ledger: run records cannot be checked for changes."
    edit_study(store, lambda frozen: frozen.update(started={"time": "then"}, attempts=[]))
    told = evaluate(store, "placement").remarks[0]
    assert told == "The ledger, ledger.jsonl, is gone: run records cannot be checked for changes."


def test_a_ledger_without_the_study_is_said(store: Store) -> None:
    ledger = store.root / "ledger.jsonl"
    rows = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(row for row in rows if '"event": "study"' not in row))
    (told,) = judge_started(store, "placement").integrity.sentences
    assert told == "The ledger does not have this study: its declaration cannot be checked for changes."


def test_copies_forks_tiers_and_other_folders_are_tries_of_one_comparison(store: Store, tmp_path: Path) -> None:
    spec = spec_of(store)
    start(store, "placement-copy", with_margin(spec, 0.005))
    start(store, "placement-medium", replace(spec, tiers={"medium": spec.tiers["small"]}), tier="medium")
    other = Store(tmp_path / "elsewhere")
    start(other, "placement", spec)
    remember_folder(store.root)
    remember_folder(other.root)
    (sentence,) = judge_started(store, "placement").integrity.sentences
    assert sentence == (
        "The same comparison was also started as placement-copy (margin 0.5 points), placement-medium (another tier), "
        "and once in another results folder: 4 tries in all; a verdict picked among them errs more often than 5 %."
    )
    copy = evaluate(store, "placement-copy")
    assert "also started as placement (margin 1 point), placement-medium (another tier), and once" in copy.remarks[0]
    assert outcomes(copy) == {"supported"}  # said, not forbidden
    start(store, "placement-fork-abc", spec, fork_of="placement", changed=["claim"])
    assert "placement-fork-abc (a fork)" in judge_started(store, "placement").integrity.sentences[0]
    shutil.rmtree(other.root)
    assert "4 tries in all" in judge_started(store, "placement").integrity.sentences[0]


def test_a_copied_folder_is_no_try_of_its_own(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.root, tmp_path / "copy")
    remember_folder(store.root)
    remember_folder(tmp_path / "copy")
    assert not judge_started(store, "placement").integrity.others
    assert not judge_started(Store(tmp_path / "copy"), "placement").integrity.others


def test_a_study_that_was_deleted_and_started_anew_counts_twice(store: Store) -> None:
    spec = spec_of(store)
    shutil.rmtree(store.study_path("placement").parent)
    start(store, "placement", replace(with_margin(spec, 0.002), name="placement"))
    (sentence,) = judge_started(store, "placement").integrity.sentences
    assert "also started as an earlier placement (margin 1 point): 2 tries in all" in sentence


def test_another_question_is_no_try(store: Store) -> None:
    spec = spec_of(store)
    turned = tuple(replace(c, treatment=c.control, control=c.treatment) for c in spec.comparisons)
    start(store, "turned", replace(spec, name="turned", comparisons=turned))
    assert not judge_started(store, "placement").integrity.others


def test_commands_at_several_commits_are_said(store: Store) -> None:
    frozen = store.study("placement")
    assert frozen is not None
    for commit in ("abc", "abc", "def-dirty"):
        store.write_study("placement", frozen, attempt={"time": "now", "commit": commit, "command": "bnexp train"})
    (told,) = judge_started(store, "placement").integrity.sentences
    assert told == "It was trained by 3 commands at 2 commits of bnexp: abc, def-dirty."


@pytest.mark.parametrize(
    "content", ["{", "[]", "[1]", "{}", '{"declaration": {"comparisons": [1]}}', '{"declaration": 1}']
)
def test_a_damaged_study_is_no_trouble_to_its_neighbours(content: str, store: Store) -> None:
    path = store.study_path("damaged")
    path.parent.mkdir()
    path.write_text(content)
    assert not judge_started(store, "placement").integrity.sentences
