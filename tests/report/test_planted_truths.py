"""Studies whose truth is known, from records on disk through `bnexp report`: what its table and words say of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricate import CHANCE, grid, write_run, write_study

from bnexp import cli
from bnexp.analysis.claims import ClaimVerdict
from bnexp.config import RunConfig
from bnexp.identity import run_id
from bnexp.report import evaluate, figures
from bnexp.store import Store

MARGIN = 0.01  # of the placement study at its small tier
RATES = (0.03, 0.3)
NOISES = range(4)  # of the truths that are judged several times
Ended = tuple[str, float]
Change = Callable[[RunConfig, Ended], Ended | None]


def keep(_: RunConfig, ended: Ended) -> Ended:
    return ended


def accuracy(config: RunConfig, effects: dict[str, float], sd: float, draw: int) -> float:
    """After is better by the effect in each stratum; 0.3 is better than 0.03 by two points; seeds are a pair."""
    after = config.norm.placement == "after"
    key = [draw, config.seed, int(config.lr * 100), int(config.model.activation == "relu")]
    shared = np.random.default_rng(key[:2]).normal()
    own = np.random.default_rng([*key, int(after)]).normal()
    effect = effects[config.model.activation] * after
    return float(0.85 + effect + 0.02 * (config.lr == 0.3) + 0.01 * shared + sd / np.sqrt(2) * own)


def plant(
    root: Path,
    effects: dict[str, float],
    *,
    sd: float = 0.002,
    draw: int = 0,
    num_seeds: int = 8,
    change: Change = keep,
    images: int | None = None,
) -> Store:
    """A study on disk: placement, in one stratum for each activation.

    Args:
        effects: activation -> the true effect.
        sd: of the difference of two runs of a seed.
        draw: which noise.
        change: what a run ended as instead; None: it has no record.
    """
    store = Store(root)
    activations = ",".join(effects)
    configs = grid("norm.placement=before,after", "model=cnn", "model.depth=8", f"model.activation={activations}",
                   f"lr={','.join(f'{lr:g}' for lr in RATES)}", f"seed=range({num_seeds})")  # fmt: skip
    for config in configs:
        ended = change(config, ("finished", accuracy(config, effects, sd, draw)))
        if ended is not None:
            write_run(store, config, *ended, images=images)
    write_study(store, configs)
    return store


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The table of verdicts by stratum, and what `bnexp report placement` printed; without figures."""
    monkeypatch.setattr("bnexp.report.draw_figures", lambda *_: [])

    def run(store: Store) -> tuple[pd.DataFrame, str]:
        assert cli.main(["report", "placement", "--results", str(store.root)]) == 0
        table = pd.read_csv(store.report_dir("placement") / "tables" / "verdicts.csv")
        table["stratum"] = table["stratum"].astype(object).fillna("")
        return table.set_index("stratum"), " ".join(capsys.readouterr().out.split())

    return run


@pytest.mark.parametrize("draw", NOISES)
@pytest.mark.parametrize("sd", [0.002, 0.02])
def test_no_effect_is_never_supported_and_never_contradicted(tmp_path: Path, report: Any, draw: int, sd: float) -> None:
    table, printed = report(plant(tmp_path, {"relu": 0.0, "tanh": 0.0}, sd=sd, draw=draw))
    expected = "negligible" if sd < 0.01 else "inconclusive"
    assert table["verdict"].tolist() == [expected, expected]
    assert ((table["low"] < 0) & (table["high"] > 0)).all() or sd < 0.01
    assert "supported." not in printed
    assert "contradicted." not in printed
    told = {"negligible": "too small to matter", "inconclusive": "a new study"}[expected]
    assert told in printed


@pytest.mark.parametrize("draw", NOISES)
def test_an_effect_of_the_margin_has_a_direction_and_no_size(tmp_path: Path, report: Any, draw: int) -> None:
    table, printed = report(plant(tmp_path, {"relu": MARGIN}, draw=draw))
    (row,) = table.to_dict("records")
    assert row["verdict"] == "supported, direction only"
    assert (row["p_direction"] <= 0.05, row["p_size"] > 0.05, row["p_equivalence"] > 0.05) == (True, True, True)
    assert 0 < row["low"] < MARGIN < row["high"]
    assert "the interval excludes 0 on the claimed side; whether the effect reaches the margin is open" in printed


@pytest.mark.parametrize("draw", NOISES)
@pytest.mark.parametrize(("margins", "verdict"), [(2, "supported"), (3, "supported"), (-3, "contradicted")])
def test_a_large_effect_is_found_with_its_size(
    tmp_path: Path, report: Any, draw: int, margins: int, verdict: str
) -> None:
    table, printed = report(plant(tmp_path, {"relu": margins * MARGIN}, draw=draw))
    (row,) = table.to_dict("records")
    assert row["verdict"] == verdict
    assert row["low"] < margins * MARGIN < row["high"]
    assert min(abs(row["low"]), abs(row["high"])) > MARGIN
    assert f"{verdict}. after − before, test accuracy: {100 * row['mean']:+.2f} points".replace("-", "−") in printed
    side = "claimed" if margins > 0 else "opposite"
    assert f"beyond the margin, on the {side} side" in printed
    assert "for new seeds" not in printed  # there are no predictions
    assert "on this test set and this split" in printed


def test_an_effect_in_one_stratum_alone_is_found_there_alone(tmp_path: Path, report: Any) -> None:
    table, printed = report(plant(tmp_path, {"relu": 0.03, "tanh": 0.0, "sigmoid": 0.0}))
    assert table["verdict"].to_dict() == {"relu": "supported", "tanh": "negligible", "sigmoid": "negligible"}
    # Holm: three statements on size are asked, and the first that is rejected is at 5 % / 3
    assert table.loc["relu", "level"] == pytest.approx(1 - 0.05 / 3)
    assert "relu: supported. after − before" in printed
    assert "tanh: negligible. after − before" in printed
    plain = table.loc["relu", "high_95"] - table.loc["relu", "low_95"]
    assert table.loc["relu", "high"] - table.loc["relu", "low"] > plain


def fail(seeds: tuple[int, ...], status: str, config: RunConfig, ended: Ended) -> Ended:
    failed = config.norm.placement == "after" and config.seed in seeds
    return (status, CHANCE) if failed else ended


@pytest.mark.parametrize("status", ["diverged", "collapsed"])
def test_one_seed_that_failed_is_in_the_number_and_decides_nothing(tmp_path: Path, report: Any, status: str) -> None:
    table, printed = report(plant(tmp_path, {"relu": 0.03}, change=partial(fail, (3,), status)))
    (row,) = table.to_dict("records")
    assert row["verdict"] == "inconclusive"
    assert row["mean"] < 0 < 0.02 < row["healthy_mean"]
    assert str(row["failed_seeds"]) == "3"
    assert "Diverged or collapsed: 1 of after, 0 of before, scored at chance." in printed
    assert "Among the 7 seeds without a failed run: +" in printed
    assert "no verdict rests on it" in printed


def test_half_of_an_arm_that_failed_does_not_support_that_arm(tmp_path: Path, report: Any) -> None:
    table, printed = report(plant(tmp_path, {"relu": 0.03}, change=partial(fail, (0, 2, 4, 6), "diverged")))
    (row,) = table.to_dict("records")
    assert row["mean"] < -0.3
    assert row["verdict"] in ("inconclusive", "contradicted, direction only", "contradicted")
    assert "Diverged or collapsed: 4 of after, 0 of before" in printed


def test_an_arm_that_always_fails_is_contradicted_with_the_smallest_p_that_signs_allow(
    tmp_path: Path, report: Any
) -> None:
    table, printed = report(plant(tmp_path, {"relu": 0.03}, change=partial(fail, tuple(range(8)), "diverged")))
    (row,) = table.to_dict("records")
    assert row["verdict"] == "contradicted"
    assert row["p_size"] >= 2 * 0.5**8  # the sign-flip test has to agree
    assert "Diverged or collapsed: 8 of after, 0 of before" in printed


@pytest.mark.parametrize("lr", RATES)
def test_missing_seeds_make_untested_whatever_rate_they_lack(tmp_path: Path, report: Any, lr: float) -> None:
    def lose(config: RunConfig, ended: Ended) -> Ended | None:
        return None if (config.norm.placement, config.lr, config.seed) == ("after", lr, 2) else ended

    table, printed = report(plant(tmp_path, {"relu": 0.03}, change=lose))
    (row,) = table.to_dict("records")
    assert row["verdict"] == "untested"
    assert pd.isna([row[key] for key in ("mean", "low", "high", "p", "p_size", "rates")]).all()
    assert "untested. after − before, test accuracy: runs are missing (" in printed
    assert "after: not every rate has been run with every seed" in printed
    assert "1 planned run without a record yet" in printed


def test_a_rate_that_other_seeds_would_have_chosen_is_covered(tmp_path: Path, report: Any) -> None:
    """Before's rates are alike on average and far apart by seed: which is chosen is luck."""

    def vague(config: RunConfig, ended: Ended) -> Ended:
        if config.norm.placement != "before":
            return ended
        sign = 1 if (config.seed % 2 == 0) == (config.lr == 0.3) else -1
        return "finished", 0.86 + 0.02 * sign + 0.001 * (config.lr == 0.3) + 0.0005 * config.seed

    sure, vague_store = (
        plant(tmp_path / "sure", {"relu": 0.03}),
        plant(tmp_path / "vague", {"relu": 0.03}, change=vague),
    )
    (firm,), (loose,) = (report(store)[0].to_dict("records") for store in (sure, vague_store))
    assert (firm["same_choice"], firm["plausible_rates"]) == (1.0, "after 0.3; before 0.3")
    assert loose["plausible_rates"] == "after 0.3; before 0.03/0.3"
    assert 0.3 < loose["same_choice"] < 0.95
    _, printed = report(vague_store)
    assert "Learning rates chosen: after 0.3, before 0.3; the same in" in printed
    assert "Validation cannot tell apart before 0.03/0.3." in printed
    # the same numbers at the chosen rates alone would be narrower on the lower side
    values = evaluate(vague_store, "placement")
    claim = _claim(values.claims)
    differences = np.array(list(claim.values.values()))
    from scipy.stats import t as student

    half = student.ppf(0.975, 7) * differences.std(ddof=1) / np.sqrt(8)
    assert loose["low_95"] <= differences.mean() - half + 1e-9
    assert loose["high_95"] - loose["low_95"] > 2 * half


def _claim(claims: list[ClaimVerdict] | None) -> ClaimVerdict:
    assert claims is not None
    (claim,) = claims
    return claim


def test_images_make_the_interval_wider_and_one_run_without_them_does_not(tmp_path: Path, report: Any) -> None:
    stores = {name: plant(tmp_path / name, {"relu": 0.03}, images=1000) for name in ("with", "lacking")}
    lost = next(c for c in grid("norm.placement=after", "model.depth=8", "lr=0.3", "seed=3"))
    stores["lacking"].predictions_path(run_id(lost)).unlink()
    stores["without"] = plant(tmp_path / "without", {"relu": 0.03}, images=1000)
    for path in stores["without"].root.rglob("predictions.npz"):
        path.unlink()
    told = {name: report(store) for name, store in stores.items()}
    rows = {name: table.to_dict("records")[0] for name, (table, _) in told.items()}
    width = {name: row["high_95"] - row["low_95"] for name, row in rows.items()}
    assert width["with"] > 1.5 * width["without"]
    assert width["lacking"] == pytest.approx(width["without"])
    assert len({round(row["mean"], 12) for row in rows.values()}) == 1
    assert rows["with"]["covers"] == "new seeds and images"
    assert rows["with"]["sd_of_mean_images"] > rows["with"]["sd_of_mean_seeds"]
    for name in ("lacking", "without"):
        assert rows[name]["covers"] == "new seeds, on this test set"
        assert pd.isna(rows[name]["sd_of_mean_images"])
        assert "on this test set and this split of the data. They say nothing about other images." in told[name][1]
        assert "new test images like these" not in told[name][1]
    assert "The intervals of the verdicts are for new seeds and new test images like these" in told["with"][1]
    assert "on this test set" not in told["with"][1]


def test_more_seeds_do_not_make_up_for_few_images(tmp_path: Path, report: Any) -> None:
    """With 200 images the interval stays wider than what is left to the margin, however many seeds there are."""
    few, printed = report(plant(tmp_path / "few", {"relu": 0.02}, images=200))
    (row,) = few.to_dict("records")
    assert row["verdict"] == "inconclusive"
    assert 1.96 * row["sd_of_mean_images"] > row["mean"] - MARGIN
    assert "not even a new study of 1,000 seeds, on as many test images, would settle it" in printed
    seeds_alone = report(plant(tmp_path / "alone", {"relu": 0.03}, sd=0.02))[1]
    assert re.search(r"a new study of about \d+ seeds would settle it as supported", seeds_alone)


def test_images_that_one_stratum_lacks_are_said_by_count(tmp_path: Path, report: Any) -> None:
    store = plant(tmp_path, {"relu": 0.03, "tanh": 0.03}, images=1000)
    for config in grid("norm.placement=after", "model.depth=8", "model.activation=tanh", "lr=0.3", "seed=3"):
        store.predictions_path(run_id(config)).unlink()
    table, printed = report(store)
    assert table["covers"].to_dict() == {"relu": "new seeds and images", "tanh": "new seeds, on this test set"}
    assert "In 1 of 2 comparisons the interval is for new seeds and new test images like these." in printed
    assert "In the others it shows how much seeds vary, on this test set" in printed


def test_a_diverged_run_has_no_predictions_and_does_not_hide_those_of_others(tmp_path: Path, report: Any) -> None:
    store = plant(tmp_path, {"relu": 0.03}, images=1000, change=partial(fail, (3,), "diverged"))
    table, _ = report(store)
    (row,) = table.to_dict("records")
    assert (row["covers"], row["verdict"]) == ("new seeds and images", "inconclusive")


def test_every_figure_of_a_study_says_how_it_is_read(tmp_path: Path) -> None:
    numbers = evaluate(plant(tmp_path, {"relu": 0.03}, images=200), "placement")
    assert numbers.claims is not None
    for name, _, draw in figures.CLAIM_FIGURES:
        drawn = draw(numbers.claims, numbers.selection)
        assert drawn is not None, name
        assert len(drawn[1]) > 100
