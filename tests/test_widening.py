"""Ladders that widen by themselves, from the command line: trained on the embedded digits, or with results to order."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bnexp.analysis.widening import runs_in_force
from bnexp.cli import main
from bnexp.config import RunConfig
from bnexp.planned import Plan, PlannedRun
from bnexp.records import RunRecord
from bnexp.report.judged import judge_started
from bnexp.report.ladder_words import ladder_notes
from bnexp.store import Store
from tests.report.fabricate import write_run
from tests.small_studies import tier, write_study

SEEDS = list(range(6))
DECLARED = [0.1, 0.3, 1.0]
WIDEN = [0.01, 0.03, 3.0, 10.0]
Outcome = Callable[[RunConfig], tuple[str, float]]


def command(folder: Path, word: str, names: str, *overrides: str) -> int:
    return main([word, "-m", "--config-dir", str(folder), f"study={names}", f"results={folder / 'results'}",
                 "exec.executor=serial", *overrides])  # fmt: skip


def declare(folder: Path, name: str = "wide", *, seeds: Sequence[int] = SEEDS, **changes: Any) -> None:
    """A study of two arms whose ladder may be widened."""
    axes = {**changes.pop("axes", {}), "lr": changes.pop("lr", DECLARED), "seed": list(seeds)}
    own = tier(axes=axes, widen=changes.pop("widen", WIDEN), **changes.pop("fixed", {}))
    strata = [key for key in axes if key not in ("lr", "seed")]
    write_study(folder, name, tiers={"small": own}, strata=strata, **changes)


def peaks(none: float, batch: float) -> Outcome:
    """Each arm is best at a rate of its own; seeds differ a little."""

    def outcome(config: RunConfig) -> tuple[str, float]:
        at = none if config.norm.kind == "none" else batch
        noise = 0.01 * math.sin(7 * config.seed + 100 * config.lr + at)
        return "finished", 0.9 - 0.1 * abs(math.log10(config.lr / at)) + noise

    return outcome


class Executor:
    """Stands for training: writes the record of each run that is asked for.

    Attributes:
        rounds: the rates of each batch of runs.
        crash: which runs crash.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
        self.outcome, self.rounds = outcome, list[list[float]]()
        self.crash: Callable[[RunConfig], bool] = lambda config: False
        self.most: int | None = None  # runs until the command is killed
        monkeypatch.setattr("bnexp.runner.execute", self)

    def __call__(self, plan: Plan, runs: Sequence[PlannedRun], *, executor: str) -> dict[str, RunRecord]:
        self.rounds.append(sorted({run.config.lr for run in runs}))
        records: dict[str, RunRecord] = {}
        for run in runs:
            if self.most is not None and self.most == 0:
                raise KeyboardInterrupt
            self.most = None if self.most is None else self.most - 1
            status, accuracy = ("failed", 0.1) if self.crash(run.config) else self.outcome(run.config)
            write_run(plan.store, run.config, status, accuracy)
            record = plan.store.record(run.run_id)
            assert record is not None
            records[run.run_id] = record
        return records


def rates_run(folder: Path) -> list[float]:
    return sorted({record.config["lr"] for record in Store(folder / "results").records(None)})


def status_counts(folder: Path, capsys: pytest.CaptureFixture[str], name: str = "wide") -> str:
    capsys.readouterr()
    assert main(["status", name, "--results", str(folder / "results")]) == 0
    return capsys.readouterr().out.splitlines()[0].partition(": ")[2]


@pytest.mark.parametrize(
    ("none", "batch", "rounds", "told"),
    [
        (0.3, 1.0, [DECLARED, [3.0]], ["adding rate 3 for both arms: the largest tried, 1, is the best of batch"]),
        (
            0.1,
            0.3,
            [DECLARED, [0.03]],
            ["adding rate 0.03 for both arms: the smallest tried, 0.1, is the best of none"],
        ),
        (
            0.1,
            1.0,
            [DECLARED, [0.03, 3.0]],
            ["adding rate 0.03 for both arms: the smallest", "adding rate 3 for both arms: the largest"],
        ),
        (
            0.3,
            3.0,
            [DECLARED, [3.0], [10.0]],
            ["rate 3 for both arms: the largest tried, 1", "rate 10 for both arms: the largest tried, 3"],
        ),
        (1.0, 1.0, [DECLARED, [3.0]], ["the largest tried, 1, is the best of none, batch"]),
        (0.3, 0.3, [DECLARED], []),
    ],
)
def test_the_ladder_widens_until_no_arm_is_best_at_an_end(
    none: float,
    batch: float,
    rounds: list[list[float]],
    told: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declare(tmp_path)
    executor = Executor(monkeypatch, peaks(none, batch))
    assert command(tmp_path, "train", "wide") == 0
    out = capsys.readouterr().out
    assert executor.rounds == rounds
    assert all(line in out for line in told)
    assert out.count("adding") == sum(map(len, rounds[1:]))
    num = 12 * sum(map(len, rounds))
    assert f"{num} runs" in out
    assert f"{num} finished" in out
    assert status_counts(tmp_path, capsys) == f"{num} runs: {num} finished"
    store = Store(tmp_path / "results")
    frozen = store.study("wide")
    assert frozen is not None
    assert len(frozen["run_ids"]) == 36
    assert command(tmp_path, "train", "wide") == 0  # nothing is left, and nothing is rewritten
    assert executor.rounds == rounds
    again = capsys.readouterr().out
    assert "adding" not in again
    assert f"{num} were done before, now nothing left to train" in again
    again_frozen = store.study("wide")
    assert again_frozen is not None
    assert {**again_frozen, "attempts": frozen["attempts"]} == frozen  # it has one more attempt
    judged = judge_started(store, "wide")
    assert judged.frame.missing == ()
    assert len(judged.frame.runs) == num
    assert judged.selection.best_lr == {("none", ""): none, ("batch", ""): batch}
    assert judged.claims[0].verdict.outcome != "untested"
    assert not any(end.at_bound for end in judged.ladders[0].ends.values())
    assert [note.startswith("Learning rates were added") for note in ladder_notes(judged.ladders)] == [True][
        : len(told)
    ]


def test_the_bound_is_reached_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path, widen=[3.0])
    executor = Executor(monkeypatch, peaks(0.01, 10.0))
    assert command(tmp_path, "train", "wide") == 0
    assert executor.rounds == [DECLARED, [3.0]]
    judged = judge_started(Store(tmp_path / "results"), "wide")
    ends = judged.ladders[0].ends
    assert all(end.at_bound for end in ends.values())
    assert not ends["batch"].proven
    assert ladder_notes(judged.ladders) == [
        "Learning rates were added for all arms where an arm was best at the smallest or largest rate tried: "
        "3, for batch.",
        "Still best at the smallest or largest rate that this study may try: none at 0.1, the smallest; batch at 3, "
        "the largest. A better rate may lie beyond.",
    ]


def test_an_unhealthy_next_rate_ends_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path)

    def outcome(config: RunConfig) -> tuple[str, float]:
        return ("diverged", 0.1) if config.lr > 1 else peaks(0.3, 1.0)(config)

    executor = Executor(monkeypatch, outcome)
    assert command(tmp_path, "train", "wide") == 0
    assert executor.rounds == [DECLARED, [3.0]]
    judged = judge_started(Store(tmp_path / "results"), "wide")
    ends = judged.ladders[0].ends
    assert ends["batch"].proven
    assert not ends["batch"].at_bound


@pytest.mark.parametrize("killed_after", [7, 36, 40, 48, 50])
def test_a_killed_command_goes_on_where_it_was(
    killed_after: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path)
    executor = Executor(monkeypatch, peaks(0.3, 3.0))
    executor.most = killed_after
    assert command(tmp_path, "train", "wide") == 130
    store = Store(tmp_path / "results")
    judged = judge_started(store, "wide")
    in_force = 36 if killed_after < 36 else 48 if killed_after < 48 else 60
    assert len(judged.frame.missing) == in_force - killed_after  # those of the rate that the rule asks for, too
    assert [claim.verdict.outcome for claim in judged.claims] == ["untested"]
    notes = " ".join(ladder_notes(judged.ladders))
    assert "not complete for this study: runs are missing" in notes
    executor.most = None
    assert command(tmp_path, "train", "wide") == 0
    assert len(store.run_ids()) == 60
    judged = judge_started(store, "wide")
    assert (judged.frame.missing, judged.selection.best_lr["batch", ""]) == ((), 3.0)


def test_a_crash_at_an_added_rate_is_told_and_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path)
    executor = Executor(monkeypatch, peaks(0.3, 3.0))
    executor.crash = lambda config: config.lr == 3.0 and config.seed == 2
    assert command(tmp_path, "train", "wide") == 1
    assert executor.rounds == [DECLARED, [3.0]]
    assert (
        "wide: runs are missing, so the ladder is not settled; the same command tries again" in capsys.readouterr().out
    )
    executor.crash = lambda config: False
    assert command(tmp_path, "train", "wide") == 0
    assert executor.rounds[2:] == [[3.0], [10.0]]


def test_strata_widen_apart_and_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path, axes={"model.activation": ["relu", "tanh"], "model.depth": [2, 4]}, fixed={"model": "mlp"})

    def outcome(config: RunConfig) -> tuple[str, float]:
        here = (config.model.activation, config.model.depth) == ("tanh", 4)
        return peaks(0.3, 1.0 if here else 0.3)(config)

    executor = Executor(monkeypatch, outcome)
    assert command(tmp_path, "train", "wide") == 0
    out = capsys.readouterr().out
    assert "wide: tanh, depth 4: adding rate 3 for both arms: the largest tried, 1, is the best of batch" in out
    assert executor.rounds == [DECLARED, [3.0]]
    assert status_counts(tmp_path, capsys) == "156 runs: 156 finished"
    judged = judge_started(Store(tmp_path / "results"), "wide")
    assert {claim.stratum: sorted(claim.same_lr) for claim in judged.claims} == {
        stratum: [*DECLARED, *([3.0] if stratum == "tanh, depth 4" else [])]
        for stratum in ("relu, depth 2", "relu, depth 4", "tanh, depth 2", "tanh, depth 4")
    }
    assert sum(len(widened.ends) for widened in judged.ladders) == 8


def test_two_studies_of_which_one_widens_into_runs_of_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path, "wide")
    declare(tmp_path, "high", lr=[1.0, 3.0, 10.0], widen=[])  # shares 1 as declared, and 3 as what wide adds
    executor = Executor(monkeypatch, peaks(0.3, 1.0))
    assert command(tmp_path, "plan", "wide,high", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["runs"], plan["widening"]) == (60, 24)  # 0.01 and 0.03; 3 and 10 are those of the other
    assert command(tmp_path, "train", "wide,high") == 0
    assert executor.rounds == [[0.1, 0.3, 1.0, 3.0, 10.0]]
    out = capsys.readouterr().out
    assert "adding" not in out  # its runs are there
    assert status_counts(tmp_path, capsys, "wide") == "48 runs: 48 finished"
    assert status_counts(tmp_path, capsys, "high") == "36 runs: 36 finished"


def test_rounds_of_seeds_widen_first_and_then_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path, seeds=range(8))

    def outcome(config: RunConfig) -> tuple[str, float]:  # with the last two seeds, no norm is best at the largest
        late = config.seed >= 6
        status, accuracy = peaks(10.0 if late else 0.3, 0.3 if late else 1.0)(config)
        return status, accuracy + 0.3 * (late and config.norm.kind == "none") * math.log10(config.lr)

    executor = Executor(monkeypatch, outcome)
    assert command(tmp_path, "train", "wide", "stop=decided") == 0
    out = capsys.readouterr().out
    first = judge_rounds_of(tmp_path, 1)
    assert first == ((3.0,), 48)
    lines = [line for line in out.splitlines() if line.startswith("wide-decided")]
    assert lines[0] == "wide-decided: adding rate 3 for both arms: the largest tried, 1, is the best of batch"
    assert "look 1 of 2, 6 seeds" in lines[1]
    assert "look 2 of 2, 8 seeds" in lines[-1]
    assert executor.rounds[:3] == [DECLARED, [3.0], [0.1, 0.3, 1.0, 3.0]]
    assert 10.0 in judge_rounds_of(tmp_path, 2)[0]
    judged = judge_started(Store(tmp_path / "results"), "wide-decided")
    assert (judged.num_looks, judged.decided) == (2, True)
    before = len(executor.rounds)
    assert command(tmp_path, "train", "wide", "stop=decided") == 0
    assert len(executor.rounds) == before
    assert "look 2 of 2" in capsys.readouterr().out


def judge_rounds_of(folder: Path, look: int) -> tuple[tuple[float, ...], int]:
    """The rates that a look has added, and the runs that it takes in."""
    store = Store(folder / "results")
    frozen = store.study("wide-decided")
    assert frozen is not None
    in_force = runs_in_force(store, frozen)
    num = 2 * len(DECLARED) * frozen["looks"][look - 1] + len(in_force.further[look - 1])
    return in_force.ladders(look - 1)[0].added, num


def test_a_look_judges_from_its_own_rates_whatever_later_looks_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    difference = {"treatment": "batch", "control": "none", "shape": "difference", "direction": "higher"}
    comparisons = [{**difference, "margin": 0.01}, {**difference, "margin": 0.0505}]  # clear, and open to the end
    declare(tmp_path, seeds=range(8), comparisons=comparisons)

    def outcome(config: RunConfig) -> tuple[str, float]:
        late, batch = config.seed >= 6, config.norm.kind == "batch"
        if config.lr == 3.0:  # the first seeds are best there by far, and batch norm is the worse
            return "finished", 0.3 if late else 0.95 - 0.1 * batch
        base = 0.1 + 0.8 * (config.lr == 1.0) if late else 0.4 + 0.05 * (config.lr == 0.3)
        return "finished", base + batch * (0.05 + 0.005 * math.sin(9 * config.seed))

    executor = Executor(monkeypatch, outcome)
    executor.crash = lambda config: config.seed >= 6  # so that the second look waits
    assert command(tmp_path, "train", "wide", "stop=decided") == 1
    store = Store(tmp_path / "results")
    before = judge_started(store, "wide-decided").claims
    outcomes = [(claim.verdict.outcome, claim.look) for claim in before]
    assert outcomes == [("supported", 1), ("supported, direction only", 1)]  # whose size is open: it goes on
    executor.crash = lambda config: False
    assert command(tmp_path, "train", "wide", "stop=decided") == 0
    assert judge_rounds_of(tmp_path, 1)[0] == ()
    assert judge_rounds_of(tmp_path, 2)[0] == (3.0, 10.0)
    after = judge_started(store, "wide-decided").claims
    assert [claim.look for claim in after] == [1, 2]
    assert after[0] == before[0]
    assert after[1].values != before[1].values
    capsys.readouterr()


@pytest.mark.parametrize("override", ["lr=0.1,1.0", "epochs=2"])
def test_an_exploratory_study_does_not_widen(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path)
    executor = Executor(monkeypatch, peaks(0.3, 1.0))
    assert command(tmp_path, "train", "wide", override) == 0
    assert len(executor.rounds) == 1
    assert max(executor.rounds[0]) == 1.0
    store = Store(tmp_path / "results")
    (name,) = store.study_names()
    frozen = store.study(name)
    assert frozen is not None
    assert "widening" not in frozen


def test_plan_says_how_many_runs_widening_may_add(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path)
    assert command(tmp_path, "plan", "wide") == 0
    out = capsys.readouterr().out
    assert out.startswith("36 runs in 6 cells")
    assert "widening the ladder may add at most 48 runs (at lr 0.01, 0.03, 3, 10)\n" in out


def test_claims_over_rates_judge_the_ladder_as_declared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {"treatment": "batch", "control": "none"}
    comparisons = [
        {**both, "shape": "difference", "direction": "higher"},
        {**both, "shape": "reach", "over": "lr", "direction": "higher", "margin": 2, "role": "context"},
        {**both, "shape": "search", "direction": "lower", "budget": 2, "role": "context"},
    ]
    declare(tmp_path, comparisons=comparisons)
    Executor(monkeypatch, peaks(0.3, 1.0))
    assert command(tmp_path, "train", "wide") == 0
    capsys.readouterr()
    store = Store(tmp_path / "results")
    widened = judge_started(store, "wide")
    declare(tmp_path, "narrow", comparisons=comparisons, widen=[])
    assert command(tmp_path, "train", "narrow") == 0
    narrow = judge_started(store, "narrow")
    assert [claim.values for claim in widened.claims[1:]] == [claim.values for claim in narrow.claims[1:]]
    assert len(widened.frame.runs) > len(narrow.frame.runs)


def test_a_study_of_rates_alone_has_nothing_to_widen_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reach = {"treatment": "batch", "control": "none", "shape": "reach", "over": "lr", "direction": "higher"}
    declare(tmp_path, comparisons=[{**reach, "margin": 3}])
    assert command(tmp_path, "plan", "wide") == 2
    assert "study.tiers.small.widen" in capsys.readouterr().err


def test_real_training_widens_upward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # at such rates little is learned in three epochs, and more of it is better
    declare(tmp_path, lr=[0.001, 0.03], widen=[0.3, 30.0], fixed={"epochs": 3, "data.train_limit": 400})
    assert command(tmp_path, "train", "wide") == 0
    out = capsys.readouterr().out
    assert "the largest tried, 0.03" in out
    assert "adding rate 0.3 for both arms" in out
    frozen = Store(tmp_path / "results").study("wide")
    assert frozen is not None
    names = set(frozen["run_ids"])
    assert len(names) == 24
    in_force = runs_in_force(Store(tmp_path / "results"), frozen)
    added = set(in_force.run_ids) - names
    records = {record.run_id: record.config["lr"] for record in Store(tmp_path / "results").records(None)}
    assert records.keys() == set(in_force.run_ids)
    assert {records[name] for name in added} >= {0.3}
    assert main(["report", "wide", "--results", str(tmp_path / "results")]) == 0
    assert "without a record" not in capsys.readouterr().out
