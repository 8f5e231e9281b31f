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

import pytest

from bnexp.store import Store

Bnexp = Callable[..., subprocess.CompletedProcess[str]]
TINY = ("data.train_limit=400", "batch_size=32", "epochs=4", "model.width=8")  # enough to learn
TIMES = ("train_seconds", "images_per_second")


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


def test_a_killed_worker_costs_one_run_and_is_retried(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bnexp", "train", "-m", "seed=0,1,2,3", "epochs=200", "exec.slots=2",
               "data.train_limit=200"]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.1)
        if list(tmp_path.glob("results/runs/*/history.jsonl")):
            os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
            break
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "1 failed, 3 finished" in out
    assert "SIGKILL" in err
    assert "seed=" in err
    assert "error.txt" in err
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert "1 to retry" in again.stdout or "1 to resume" in again.stdout
    assert "3 were done before, now 1 finished" in again.stdout


def test_a_crashing_run_does_not_stop_the_others_and_leaves_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bnexp.compose import request_from_argv
    from bnexp.engine import execute
    from bnexp.runner import train

    real = execute.train_run

    def breaks_for_seed_one(config, *args, **kwargs):  # type: ignore[no-untyped-def]
        if config.seed == 1:
            raise ZeroDivisionError("a bug\nwith two lines")
        return real(config, *args, **kwargs)

    monkeypatch.setattr(execute, "train_run", breaks_for_seed_one)
    argv = ["-m", "seed=0,1,2", f"results={tmp_path}", "exec.executor=serial", *TINY]
    assert train(request_from_argv(argv)) == 1
    captured = capsys.readouterr()
    assert "failed: seed=1: ZeroDivisionError: a bug" in captured.err
    (error_file,) = tmp_path.glob("runs/*/error.txt")
    assert str(error_file) in captured.err
    assert "breaks_for_seed_one" in error_file.read_text()
    assert sorted(record.status for record in Store(tmp_path).records()) == ["failed", "finished", "finished"]
    monkeypatch.setattr(execute, "train_run", real)
    assert train(request_from_argv(argv)) == 0
    assert not list(tmp_path.glob("runs/*/error.txt"))


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path: Path, bnexp: Bnexp) -> None:
    from bnexp.compose import request_from_argv
    from bnexp.identity import run_id
    from bnexp.runner import resolve_runs

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


def test_a_study_is_frozen_and_a_changed_declaration_is_refused(bnexp: Bnexp, tmp_path: Path) -> None:
    grid = ("train", "-m", "study=placement", "seed=0", "model=cnn", "model.activation=relu", "lr=0.1", "epochs=1")
    assert bnexp(*grid, "data.train_limit=100").returncode == 0
    (path,) = tmp_path.glob("results/studies/placement-exploratory-*/study.json")
    frozen = json.loads(path.read_text())
    assert frozen["exploratory"] is True
    assert len(frozen["run_ids"]) == 2
    assert "seed=0" in frozen["overrides"]

    own = tmp_path / "own" / "study"
    own.mkdir(parents=True)
    text = "\n".join(
        ["name: mine", "number: 15", "question: q", "claim: c", "sources: {a: b}",
         "arms: {none: {norm: none}, batch: {norm: batch}, either: {norm: batch}}", "comparisons:",
         "  - {treatment: batch, control: none, shape: difference, direction: higher, margin: MARGIN}", "strata: []",
         "choose: {factor: lr, metric: val_accuracy, seeds: [0]}", "metric: test_accuracy", "tiers:",
         "  small:", "    fixed: {epochs: 1, data.train_limit: 100}", "    axes: {seed: [0, 1, 2]}"]
    )  # fmt: skip
    (own / "mine.yaml").write_text(text.replace("MARGIN", "0.01"))
    argv = ("train", "--config-dir", "own", "-m", "study=mine")
    assert bnexp(*argv).returncode == 0
    arms = json.loads((tmp_path / "results/studies/mine/study.json").read_text())["arms"]
    assert list(arms) == ["none", "batch", "either"]
    assert len(arms["none"]) == len(arms["batch"]) == 3
    assert arms["batch"] == arms["either"]  # runs of two arms count in both
    assert not set(arms["none"]) & set(arms["batch"])
    plan = json.loads(bnexp("plan", "--json", *argv[1:]).stdout)
    assert plan["done"] == 6
    (power,) = plan["power"]
    assert (power["treatment"], power["control"], power["stratum"]) == ("batch", "none", "")
    assert (power["num_pilot"], power["num_pairs"], power["to_find"]) == (2, 2, 0)  # under six nothing is decided
    told = bnexp("plan", *argv[1:]).stdout
    assert "power of batch against none, 2 pairs, from a pilot of 2: 0 % to find twice the margin" in told
    assert json.loads(bnexp("plan", "--json", *argv[1:], "results=elsewhere").stdout)["power"] is None
    (own / "mine.yaml").write_text(text.replace("MARGIN", "0.5"))
    refused = bnexp(*argv)
    assert refused.returncode == 2
    assert "under another declaration" in refused.stderr
    assert refused.stderr.count("\n") == 1
