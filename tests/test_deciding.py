"""`stop=decided`: rounds of seeds on tiny studies of the embedded digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bnexp.cli import main
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
    assert frozen["looks"] == [6, 8]
    assert train(tmp_path, "clear") == 0  # judged again, nothing is run
    assert "look 1 of 2" in capsys.readouterr().out
    assert main(["report", "clear-decided", "--results", str(tmp_path / "results")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Ended at look 1 of 2, 6 seeds. An effect that ends a study early tends to look larger" in told
    assert "effect [at its look's level]" in told
    assert "without a record" not in told
    assert seeds_run(tmp_path) == [0, 1, 2, 3, 4, 5]


def test_undecided_study_takes_in_every_seed_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # rounding is all that parts these arms: no difference to find, and a margin too small to call it negligible
    arms = {"a": {"norm.eps": 1.0e-5}, "b": {"norm.eps": 1.01e-5}}
    write_study(tmp_path, "open", arms=arms,
                comparisons=[{"treatment": "b", "control": "a", "shape": "difference", "direction": "higher",
                              "measure": "val_loss", "margin": 1e-12}],
                tiers={"small": tier(axes=SEEDS, lr=0.1, epochs=4, **{"data.train_limit": 800})})  # fmt: skip
    assert train(tmp_path, "open") == 0
    out = capsys.readouterr().out
    assert "look 1 of 2, 6 seeds: 0 of 1 decided" in out
    assert "look 2 of 2, 8 seeds: 0 of 1 decided; that was the last look" in out
    assert seeds_run(tmp_path) == list(range(8))


def test_rounds_lie_apart_from_the_study_without_them(tmp_path: Path) -> None:
    write_study(tmp_path, "both", tiers={"small": tier(axes=SEEDS)})
    results = f"results={tmp_path / 'results'}"
    assert main(["train", "-m", "--config-dir", str(tmp_path), "study=both", results, "exec.executor=serial"]) == 0
    assert train(tmp_path, "both") == 0
    store = Store(tmp_path / "results")
    assert store.study_names() == ["both", "both-decided"]
    assert "looks" not in json.loads(store.study_path("both").read_text())


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
