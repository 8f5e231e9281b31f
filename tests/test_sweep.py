"""Sweeps as a user meets them: skipped, killed, resumed, failed, over one or two workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_studies import tier, write_study

from bnexp.cli import main
from bnexp.compose import request_from_argv
from bnexp.frozen import changed_keys
from bnexp.planned import make_plan, resolve_runs
from bnexp.runner import execute, train
from bnexp.store import Store
from bnexp.study import declaration_hash

Bnexp = Callable[..., subprocess.CompletedProcess[str]]
TINY = ("data.train_limit=400", "batch_size=32", "epochs=4", "model.width=8")  # enough to learn
TIMES = ("train_seconds", "cpu_seconds", "images_per_second")


def histories(results: Path) -> dict[str, list[dict[str, float]]]:
    store = Store(results)
    return {
        run_id: [{k: v for k, v in row.items() if k not in TIMES} for row in store.history(run_id)]
        for run_id in store.run_ids()
    }


def test_histories_are_bitwise_the_same_with_one_or_two_workers(bnexp: Bnexp, tmp_path: Path) -> None:
    grid = ("-m", "norm=none,batch", "seed=0,1,2", "data.augment=crop_flip", *TINY)
    for name, options in (
        ("serial", ["exec.executor=serial"]), ("one", ["exec.slots=1"]), ("two", ["exec.slots=2"]),
    ):  # fmt: skip
        done = bnexp("train", *grid, f"results={name}", *options)
        assert done.returncode == 0, done.stderr
    assert len(histories(tmp_path / "one")) == 6
    assert histories(tmp_path / "serial") == histories(tmp_path / "one") == histories(tmp_path / "two")


def test_a_finished_run_is_never_repeated(bnexp: Bnexp, tmp_path: Path) -> None:
    grid = ("train", "-m", "seed=0,1", *TINY)
    assert bnexp(*grid).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/runs/*/record.json")}
    again = bnexp("train", "-m", "seed=0,1,2", *TINY)
    assert "2 were done before, now 1 finished" in again.stdout
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/runs/*/record.json")}
    assert len(after) == 3
    assert before.items() <= after.items()


def test_kill_nine_on_the_parent_and_the_same_command_finishes_it(tmp_path: Path) -> None:
    # the grid of the issue: 2 norms × 2 placements × 3 learning rates × 2 batch sizes × 3 seeds
    grid = ["-m", "norm=group,batch", "norm.placement=before,after", "lr=0.01,0.05,0.1", "batch_size=32,64",
            "seed=range(3)", "data.train_limit=400", "epochs=3", "model.width=8",
            "exec.checkpoint_seconds=0"]  # fmt: skip
    command = [sys.executable, "-m", "bnexp", "train", *grid]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    records = lambda: sorted(tmp_path.glob("results/runs/*/record.json"))  # noqa: E731
    deadline = time.monotonic() + 120
    while len(records()) < 30 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = {path: (path.stat().st_mtime_ns, path.read_text()) for path in records()}
    assert 30 <= len(killed) < 72

    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    after = {path: (path.stat().st_mtime_ns, path.read_text()) for path in records()}
    assert len(after) == 72
    # nothing that had a record was touched, but for those that the orphaned workers were just writing
    assert killed.items() <= after.items()
    assert all(json.loads(text)["status"] != "failed" for _, text in after.values())
    assert not list(tmp_path.glob("results/runs/*/checkpoint"))
    for run_id, rows in histories(tmp_path / "results").items():
        assert [row["epoch"] for row in rows] == [1, 2, 3], run_id


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bnexp", "train", "-m", "seed=0,1", "epochs=5000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    workers: list[int] = []
    while len(workers) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = [int(pid) for pid in children.read_text().split()] if children.exists() else workers
    assert workers, "no worker started"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in workers)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def train_and_kill_a_worker(folder: Path, executor: str) -> tuple[list[str], int, str, str]:
    """The command, and its exit status and output after one of its two workers was killed in the middle."""
    command = [sys.executable, "-m", "bnexp", "train", "-m", "seed=0,1,2,3", "epochs=200", "exec.slots=2",
               "data.train_limit=200", f"exec.executor={executor}"]  # fmt: skip
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.1)
        if list(folder.glob("results/runs/*/history.jsonl")):
            os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
            break
    out, err = process.communicate(timeout=300)
    return command, process.returncode, out, err


def test_a_killed_worker_costs_one_run_and_is_retried(tmp_path: Path) -> None:
    command, returncode, out, err = train_and_kill_a_worker(tmp_path, "process")
    assert returncode == 1
    assert "1 failed, 3 finished" in out
    assert "SIGKILL" in err
    assert "seed=" in err
    assert "error.txt" in err
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert "1 to retry" in again.stdout or "1 to resume" in again.stdout
    assert "3 were done before, now 1 finished" in again.stdout


def test_runs_of_a_killed_stack_are_tried_one_by_one(tmp_path: Path) -> None:
    _, returncode, out, _ = train_and_kill_a_worker(tmp_path, "stacked")
    assert returncode == 0
    assert "now 4 finished" in out
    assert sorted(record.exec.get("stack") or 0 for record in Store(tmp_path / "results").records(None)) == [0, 0, 2, 2]


def test_a_crashing_run_does_not_stop_the_others_and_leaves_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bnexp.engine import execute as execution

    real = execution.train_run.in_steps

    def breaks_for_seed_one(config, *args, **kwargs):  # type: ignore[no-untyped-def]
        if config.seed == 1:
            raise ZeroDivisionError("a bug\nwith two lines")
        return real(config, *args, **kwargs)

    monkeypatch.setattr(execution.train_run, "in_steps", breaks_for_seed_one)
    argv = ["-m", "seed=0,1,2", f"results={tmp_path}", "exec.executor=serial", *TINY]
    assert train(request_from_argv(argv)) == 1
    captured = capsys.readouterr()
    assert "failed: seed=1: ZeroDivisionError: a bug" in captured.err
    (error_file,) = tmp_path.glob("runs/*/error.txt")
    assert str(error_file) in captured.err
    assert "breaks_for_seed_one" in error_file.read_text()
    assert sorted(record.status for record in Store(tmp_path).records()) == ["failed", "finished", "finished"]
    monkeypatch.setattr(execution.train_run, "in_steps", real)
    assert train(request_from_argv(argv)) == 0
    assert not list(tmp_path.glob("runs/*/error.txt"))


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path: Path, bnexp: Bnexp) -> None:
    from bnexp.identity import run_id

    request = request_from_argv(["exec.precision=fp32", *TINY])
    ((name, _),) = resolve_runs(request.configs, request.exec, {})
    assert name == run_id(request.configs[0])
    with Store(tmp_path / "results").lock(name, timeout_seconds=0) as held:
        assert held
        done = bnexp("train", "exec.precision=fp32", *TINY)
        assert done.returncode == 1
    assert "another process is training it" in done.stdout
    assert Store(tmp_path / "results").record(name) is None


def test_plan_and_status_tell_the_truth(bnexp: Bnexp) -> None:
    grid = ("-m", "norm=none,batch", "norm.placement=before,after", "seed=0,1", *TINY)
    before = json.loads(bnexp("plan", "--json", *grid).stdout)
    assert (before["cells"], before["runs"], before["done"], before["todo"]) == (3, 6, 0, 6)
    assert before["minutes"] > 0
    assert "0 runs: none yet" in bnexp("status").stdout
    assert bnexp("train", *grid, "exec.slots=1").returncode == 0
    after = json.loads(bnexp("plan", "--json", "-m", "norm=none,batch", "seed=range(5)", *TINY).stdout)
    assert (after["runs"], after["done"], after["todo"]) == (10, 4, 6)
    runs = json.loads(bnexp("status", "--json").stdout)["runs"]
    assert len(runs) == 6
    assert {run["status"] for run in runs} == {"finished"}
    for run in runs:
        assert {"test_accuracy", "test_loss", "val_accuracy", "val_loss", "train_accuracy", "train_loss"} <= set(
            run["final"]
        )
        assert 0 <= run["final"]["test_accuracy"] <= 1


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line in this process, which starts no others: an empty folder, with studies of one's own in own/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BNEXP_RESULTS", raising=False)
    (tmp_path / "own").mkdir()

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        words = [argv[0], "--config-dir", "own", "-m", "exec.executor=serial", *argv[1:]]
        status, shown = main(words), capsys.readouterr()
        return subprocess.CompletedProcess(words, status, shown.out, shown.err)

    return run


def frozen(tmp_path: Path, key: str) -> dict[str, Any]:
    return json.loads((tmp_path / "results" / "studies" / key / "study.json").read_text())


def test_a_study_is_frozen_with_its_arms_and_planned_with_its_power(here: Bnexp, tmp_path: Path) -> None:
    arms = {"none": {"norm": "none"}, "batch": {"norm": "batch"}, "either": {"norm": "batch"}}
    write_study(tmp_path / "own", "mine", arms=arms)
    assert here("train", "study=mine", "seed=0").returncode == 0
    (path,) = tmp_path.glob("results/studies/mine-exploratory-*/study.json")
    exploratory = json.loads(path.read_text())
    assert exploratory["exploratory"] is True
    assert len(exploratory["run_ids"]) == 2
    assert exploratory["overrides"] == ["seed=0"]

    assert here("train", "study=mine").returncode == 0
    study = frozen(tmp_path, "mine")
    assert study["exploratory"] is False
    assert "fork_of" not in study
    assert study["hash"] == declaration_hash(study["declaration"])
    arms_run = study["arms"]
    assert list(arms_run) == ["none", "batch", "either"]
    assert len(arms_run["none"]) == len(arms_run["batch"]) == 6
    assert arms_run["batch"] == arms_run["either"]  # runs of two arms count in both
    assert not set(arms_run["none"]) & set(arms_run["batch"])
    plan = json.loads(here("plan", "--json", "study=mine").stdout)
    assert plan["done"] == 12
    assert plan["studies"] == [{"name": "mine", "runs": 12, "shared": 0}]
    (power,) = plan["power"]
    assert (power["study"], power["treatment"], power["control"], power["stratum"]) == ("mine", "batch", "none", "")
    assert (power["num_pilot"], power["num_pairs"]) == (6, 6)
    assert "power of batch against none, 6 pairs, from a pilot of 6: " in here("plan", "study=mine").stdout
    asked = ("plan", "study=mine", "stop=decided", "--fork")
    assert "6 pairs with looks at 6, from a pilot of 6: at least " in here(*asked).stdout
    assert json.loads(here("plan", "--json", "study=mine", "results=elsewhere").stdout)["power"] is None


def test_a_changed_declaration_is_refused_or_forked(here: Bnexp, tmp_path: Path) -> None:
    write_study(tmp_path / "own", "mine")
    refused = here("train", "study=mine", "--fork")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--fork: 'mine': was not started in 'results': leave out --fork" in refused.stderr
    assert here("train", "study=mine").returncode == 0
    before = frozen(tmp_path, "mine")
    assert "no declaration has changed since it was started" in here("train", "study=mine", "--fork").stderr
    assert "exploratory, which goes by a name of its own" in here("train", "study=mine", "--fork", "seed=0").stderr

    write_study(tmp_path / "own", "mine", claim="It hurts.", tiers={"small": tier(margin=0.5)})
    for command in ("train", "plan"):
        refused = here(command, "study=mine")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        changes = "(claim, comparisons.0.margin, tiers.small.margin changed since)"
        assert f"under another declaration {changes}" in refused.stderr
        assert "a name of its own, or start it anew beside the old one with --fork" in refused.stderr
    forked = here("train", "study=mine", "--fork")
    assert forked.returncode == 0, forked.stderr
    (key,) = [path.name for path in (tmp_path / "results" / "studies").iterdir() if path.name != "mine"]
    study = frozen(tmp_path, key)
    assert key == study["name"] == f"mine-fork-{study['hash'][:6]}"
    assert study["fork_of"] == "mine"
    assert study["changed"] == ["claim", "comparisons.0.margin", "tiers.small.margin"]
    assert study["declaration"]["claim"] == "It hurts."
    assert study["run_ids"] == before["run_ids"]  # the same runs, judged otherwise
    assert f"report: bnexp report {key}" in forked.stdout
    assert frozen(tmp_path, "mine") == before
    assert here("train", "study=mine", "--fork").returncode == 0  # goes on with it

    exploratory = ("train", "study=mine", "seed=0", "lr=0.1,0.2")
    assert here(*exploratory).returncode == 0
    (name,) = [path.name for path in (tmp_path / "results" / "studies").iterdir() if "exploratory" in path.name]
    first = frozen(tmp_path, name)
    write_study(tmp_path / "own", "mine", claim="It does nothing.", tiers={"small": tier(margin=0.5)})
    for command in ("train", "plan"):
        refused = here(command, *exploratory[1:])
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "under another declaration (claim changed since)" in refused.stderr
    assert frozen(tmp_path, name) == first
    assert here(*exploratory, "--fork").returncode == 0
    (key,) = [path.name for path in (tmp_path / "results" / "studies").glob(f"{name}-fork-*")]
    study = frozen(tmp_path, key)
    assert (study["exploratory"], study["fork_of"], study["changed"]) == (True, "mine", ["claim"])
    assert frozen(tmp_path, name) == first

    (tmp_path / "results" / "studies" / "mine" / "study.json").write_text("{}")
    damaged = here("train", "study=mine")
    assert (damaged.returncode, damaged.stderr.count("\n")) == (2, 1)
    assert "is no frozen study: remove it, or use another results folder" in damaged.stderr


@pytest.mark.parametrize("overrides", [(), ("seed=0", "lr=0.1,0.2")])
def test_a_study_with_other_runs_than_it_was_started_with_is_refused(
    here: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    write_study(tmp_path / "own", "mine")
    assert here("train", "study=mine", *overrides).returncode == 0
    (path,) = tmp_path.glob("results/studies/*/study.json")
    before = json.loads(path.read_text())
    assert here("train", "study=mine", *reversed(overrides)).returncode == 0  # the same in another order
    assert set(json.loads(path.read_text())["run_ids"]) == set(before["run_ids"])
    monkeypatch.setattr("bnexp.identity.SCHEMA_VERSION", 10**6)
    for fork in ((), ("--fork",)):
        refused = here("train", "study=mine", *overrides, *fork)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "was started in 'results' with other runs: the data, the precision or a default" in refused.stderr
    assert set(json.loads(path.read_text())["run_ids"]) == set(before["run_ids"])


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ({"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 2]}}, []),
        ({"a": 1, "b": {"c": [1, 2]}}, {"a": 2, "b": {"c": [1, 3]}}, ["a", "b.c.1"]),
        ({"b": {"c": [1, 2]}}, {"b": {"c": [1]}, "d": 0}, ["b.c", "d"]),
        ({"b": {"c": 1}}, {"b": None}, ["b"]),
        ({"a": {"x": 1}}, {"a": {}}, ["a.x"]),
    ],
)
def test_changed_keys_are_dotted(before: dict[str, Any], after: dict[str, Any], changed: list[str]) -> None:
    assert changed_keys(before, after) == changed


def write_two_studies(own: Path) -> None:
    arms = {"none": {"norm": "none"}, "batch": {"norm": "batch"}, "layer": {"norm": "layer"}}
    write_study(own, "one", tiers={"small": tier(probes=["statistics"])})
    write_study(own, "two", arms=arms, tiers={"small": tier(**{"probes": ["shift"], "probes.shift.every": 2})})


def check_probes(store: Store) -> None:
    """Each run has what both studies want of it; of shift, the options that study two declares."""
    for record in store.records():
        shared = record.config["norm"]["kind"] != "layer"
        assert record.status != "failed"
        assert record.exec["probes"] == {"gradients": {"every": 100}, "shift": {"every": 2}} | (
            {"statistics": {}} if shared else {}
        )


def test_studies_share_their_runs_and_each_finds_its_probes(here: Bnexp, tmp_path: Path) -> None:
    write_two_studies(tmp_path / "own")
    probes = "probes=[shift,gradients]"
    plan = json.loads(here("plan", "--json", "study=one,two", probes).stdout)
    assert (plan["runs"], plan["cells"], plan["todo"]) == (18, 3, 18)
    assert plan["studies"] == [{"name": "one", "runs": 12, "shared": 12}, {"name": "two", "runs": 18, "shared": 12}]
    done = here("train", "study=one,two", probes)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("18 runs (12 of 30 grid points are the same runs): 0 done, ")
    assert lines[1:3] == ["  one  12 runs, 12 shared with others", "  two  18 runs, 12 shared with others"]
    assert sum("one: norm=" in line for line in lines) == 12
    assert sum("two: norm=layer" in line for line in lines) == 6
    assert lines[-1] == "report: bnexp report"
    store = Store(tmp_path / "results")
    check_probes(store)
    one, two = frozen(tmp_path, "one"), frozen(tmp_path, "two")
    assert set(one["run_ids"]) < set(two["run_ids"]) == set(store.run_ids())
    assert (list(one["arms"]), list(two["arms"])) == (["none", "batch"], ["none", "batch", "layer"])
    for name, count in (("one", 12), ("two", 18), ("one,two", 18)):
        again = here("train", f"study={name}")
        assert f"{count} runs: {count} were done before, now nothing left to train" in again.stdout


def test_workers_measure_of_each_run_what_is_wanted_of_it(bnexp: Bnexp, tmp_path: Path) -> None:
    write_two_studies(tmp_path / "own")
    done = bnexp("train", "--config-dir", "own", "-m", "study=one,two", "probes=[gradients]", "exec.slots=2")
    assert done.returncode == 0, done.stderr
    store = Store(tmp_path / "results")
    check_probes(store)
    for run_id in store.run_ids():
        measured = {row["probe"] for row in store.probes(run_id)}
        assert measured == set(store.record(run_id).exec["probes"])  # type: ignore[union-attr]


def test_every_study_is_checked_before_the_first_run(here: Bnexp, tmp_path: Path) -> None:
    own, store = tmp_path / "own", Store(tmp_path / "results")
    other = {"small": tier(**{"data.train_limit": 120})}
    write_study(own, "late", tiers=other)
    assert here("train", "study=late").returncode == 0
    runs = store.run_ids()
    write_study(own, "late", claim="Another.", tiers=other)
    write_study(own, "early")
    assert "study: 'late': was started" in here("train", "study=early,late").stderr
    assert (store.study_names(), store.run_ids()) == (["late"], runs)

    for every in (1, 2):
        probes = {"probes": ["shift"], "probes.shift.every": every}
        write_study(own, f"every{every}", tiers={"small": tier(**probes)})
    refused = here("train", "study=early,every1,every2")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "studies every1 (every=1) and every2 (every=2) share runs and want it with different" in refused.stderr
    assert (store.study_names(), store.run_ids()) == (["late"], runs)


def test_studies_that_lack_the_tier_are_named(here: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_own(group: str, folder: Path) -> dict[str, Path]:
        return {path.stem: path for path in sorted((folder / group).glob("*.yaml"))}

    monkeypatch.setattr("bnexp.compose.studies.choices", only_own)
    write_study(tmp_path / "own", "both", tiers={"small": tier(), "medium": tier(epochs=2)})
    write_study(tmp_path / "own", "little")
    shown = here("plan", "study=all", "tier=medium").stdout
    assert shown.startswith("12 runs in 2 cells: ")
    assert "  left out, without tier medium: little\n" in shown


def test_a_part_of_a_plan_can_be_executed(tmp_path: Path) -> None:
    write_study(tmp_path, "mine")
    argv = ["--config-dir", str(tmp_path), "-m", "study=mine", f"results={tmp_path}", "exec.executor=serial"]
    plan = make_plan(request_from_argv(argv))
    first = [run for run in plan.todo if run.config.seed < 2]
    assert set(execute(plan, first, executor="serial")) == {run.run_id for run in first}
    again = make_plan(request_from_argv(argv))
    assert [run.run_id for run in again.todo] == [run.run_id for run in plan.runs if run.config.seed >= 2]


def test_weights_are_read_once_to_measure_a_trained_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnexp.engine import execute as execution

    argv = [f"results={tmp_path}", "epochs=1", "data.train_limit=100", "exec.threads=1"]
    assert train(request_from_argv(argv)) == 0
    reads = []
    real = execution.load_weights
    monkeypatch.setattr(execution, "load_weights", lambda path: (reads.append(path), real(path))[1])
    assert train(request_from_argv([*argv, "probes=[statistics]"])) == 0
    assert len(reads) == 1
