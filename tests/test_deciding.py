"""`stop=decided`: rounds of seeds on tiny studies of the embedded digits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bnexp.cli import main
from bnexp.config import RunConfig
from bnexp.engine import execute as execution
from bnexp.store import Store
from tests.small_studies import tier, write_study

SEEDS = {"seed": list(range(8))}


def train(folder: Path, name: str, *overrides: str) -> int:
    return main(["train", "-m", "--config-dir", str(folder), f"study={name}", "stop=decided",
                 f"results={folder / 'results'}", "exec.executor=serial", *overrides])  # fmt: skip


def seeds_run(folder: Path) -> list[int]:
    return sorted({record.config["seed"] for record in Store(folder / "results").records(None)})


def test_study_stops_at_the_first_look_that_decides_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # gradients clipped to nothing leave a network as it was drawn
    write_study(tmp_path, "clear", arms={"poor": {"optim.clip_norm": 1e-9}, "good": {"optim.clip_norm": 5.0}},
                comparisons=[{"treatment": "good", "control": "poor", "shape": "difference", "direction": "higher"}],
                tiers={"small": tier(axes=SEEDS, lr=0.1, epochs=3, **{"data.train_limit": 400})})  # fmt: skip
    assert train(tmp_path, "clear") == 0
    out = capsys.readouterr().out
    assert "clear-decided: look 1 of 2, 6 seeds: 1 of 1 decided; no more seeds are needed" in out
    assert "4 not needed" in out
    assert seeds_run(tmp_path) == [0, 1, 2, 3, 4, 5]
    frozen = Store(tmp_path / "results").study("clear-decided")
    assert frozen is not None
    assert (frozen["looks"], frozen["spending"]) == ([6, 8], {"alpha": 0.05, "rho": 1.0})
    assert train(tmp_path, "clear") == 0  # judged again, nothing is run
    assert "look 1 of 2" in capsys.readouterr().out
    assert main(["report", "clear-decided", "--results", str(tmp_path / "results")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Ended at look 1 of 2, 6 seeds. An effect that ends a study early tends to look larger" in told
    assert "effect [interval that decided]" in told
    assert "without a record" not in told
    assert seeds_run(tmp_path) == [0, 1, 2, 3, 4, 5]


def test_undecided_study_takes_in_every_seed_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_open_study(tmp_path)
    assert train(tmp_path, "open") == 0
    out = capsys.readouterr().out
    assert "look 1 of 2, 6 seeds: 0 of 1 decided" in out
    assert "look 2 of 2, 8 seeds: 0 of 1 decided; that was the last look" in out
    assert seeds_run(tmp_path) == list(range(8))


def write_open_study(folder: Path) -> None:
    """Rounding is all that parts its arms: nothing to find, and a margin too small to call it negligible."""
    arms = {"a": {"norm.eps": 1.0e-5}, "b": {"norm.eps": 1.01e-5}}
    comparison = {"treatment": "b", "control": "a", "shape": "difference", "direction": "higher"}
    write_study(folder, "open", arms=arms, comparisons=[comparison | {"measure": "val_loss", "margin": 1e-12}],
                tiers={"small": tier(axes=SEEDS, lr=0.1, epochs=4, **{"data.train_limit": 800})})  # fmt: skip


def test_a_crash_at_a_look_ends_the_sequence_until_the_run_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_open_study(tmp_path)
    real = execution.train_run.in_steps

    def crashing(config: RunConfig, *arguments: Any, **options: Any) -> Any:
        if config.seed == 7:
            raise RuntimeError("out of luck")
        return real(config, *arguments, **options)

    monkeypatch.setattr(execution.train_run, "in_steps", crashing)
    assert train(tmp_path, "open") == 1
    out = capsys.readouterr().out
    assert "look 1 of 2, 6 seeds: 0 of 1 decided" in out
    assert "open-decided: runs are missing for look 2; the same command tries again" in out
    assert main(["report", "open-decided", "--results", str(tmp_path / "results")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "So far: look 1 of 2, 6 seeds. Look 2 is not complete: 14 of 16 runs." in told
    assert "untested" not in told
    monkeypatch.undo()
    assert train(tmp_path, "open") == 0
    assert "look 2 of 2, 8 seeds: 0 of 1 decided; that was the last look" in capsys.readouterr().out


def test_looks_of_a_started_study_never_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_open_study(tmp_path)
    assert train(tmp_path, "open") == 0
    capsys.readouterr()
    store = Store(tmp_path / "results")
    before = store.study("open-decided")
    monkeypatch.setattr("bnexp.frozen.default_looks", lambda num: (7, num))
    monkeypatch.setattr("bnexp.analysis.sequential.RHO", 3.0)
    assert train(tmp_path, "open") == 0
    assert "look 2 of 2, 8 seeds" in capsys.readouterr().out
    after = store.study("open-decided")
    assert before is not None
    assert after == {**before, "attempts": after["attempts"]}  # the second command's is new
    store.study_path("open-decided").unlink()  # started anew
    assert train(tmp_path, "open") == 0
    assert "look 2 of 2, 8 seeds" in capsys.readouterr().out
    fresh = store.study("open-decided")
    assert fresh is not None
    assert (fresh["looks"], fresh["spending"]) == ([7, 8], {"alpha": 0.05, "rho": 3.0})


@pytest.mark.parametrize("decided_first", [True, False])
def test_a_second_test_of_the_same_claim_is_refused_or_set_apart(
    decided_first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path, "both", tiers={"small": tier(axes=SEEDS)})
    store = Store(tmp_path / "results")

    def ask(command: str, *, decided: bool, options: Sequence[str] = ()) -> int:
        words = ["stop=decided"] if decided else []
        return main([command, "-m", "--config-dir", str(tmp_path), "study=both", f"results={store.root}",
                     "exec.executor=serial", *words, *options])  # fmt: skip

    assert ask("train", decided=decided_first) == 0
    (first,) = store.study_names()
    assert ask("train", decided=decided_first) == 0  # the same again goes on
    for command in ("train", "plan"):
        capsys.readouterr()
        assert ask(command, decided=not decided_first) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert f"{'with' if decided_first else 'without'} stop=decided, and judging its claim a second time" in told
        assert f"bnexp report {first}, or use another results folder, or set this one apart with --fork" in told
    assert store.study_names() == [first]
    for _ in range(2):  # and goes on
        assert ask("train", decided=not decided_first, options=["--fork"]) == 0
    (other,) = set(store.study_names()) - {first}
    assert other.startswith("both-fork-" if decided_first else "both-decided-fork-")
    frozen = store.study(other)
    assert frozen is not None
    assert (frozen["fork_of"], frozen["changed"], "looks" in frozen) == ("both", ["stop"], not decided_first)
    assert main(["report", other, "--results", str(store.root)]) == 0


def test_a_study_of_both_kinds_in_a_folder_of_old_goes_on(tmp_path: Path) -> None:
    write_study(tmp_path, "both", tiers={"small": tier(axes=SEEDS)})
    assert train(tmp_path, "both") == 0
    store = Store(tmp_path / "results")
    decided = store.study("both-decided")
    assert decided is not None
    store.write_study("both", {**{key: decided[key] for key in decided if key != "looks"}, "name": "both"})
    assert train(tmp_path, "both") == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-m", "study=placement", "stop=now"], "stop: 'now' is not one of decided"),
        (["stop=decided"], "stop: 'decided': it is a study that is decided: add study=NAME and -m"),
        (["-m", "study=placement", "stop=decided", "lr=0.1"], "lr=0.1 makes this study exploratory"),
    ],
)
def test_stop_that_means_nothing_is_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words]) == 2
    assert told in capsys.readouterr().err
