"""The report from synthetic records: numbers made again independently, and nothing dropped."""

from __future__ import annotations

import copy
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricate import (
    CHANCE,
    PLACEMENT,
    grid,
    noise,
    placement_outcome,
    write_all,
    write_run,
    write_study,
)
from scipy import stats as scipy_stats

from bnexp.analysis.effects import own_best_effects
from bnexp.config import RunConfig, run_config_from_dict
from bnexp.errors import ConfigError, StoreError
from bnexp.identity import run_id
from bnexp.report import ReportResult, evaluate, make_report, summarize
from bnexp.report.style import title
from bnexp.report.words import reading
from bnexp.store import Store

SMALL = ("norm.placement=before,after", "model.depth=8", "lr=0.03,0.3", "seed=range(4)")


def tables_of(store: Store, study: str | None) -> dict[str, pd.DataFrame]:
    """name -> what its CSV file holds, but for what writing and reading may do to it."""
    return {table.name: table.exact for table in evaluate(store, study).tables}


def printed(store: Store, study: str | None) -> str:
    """What the command line prints, in one line."""
    return " ".join(summarize(evaluate(store, study)).split())


def test_table_numbers_are_those_of_an_independent_computation(placement_report: ReportResult) -> None:
    configs = grid(*PLACEMENT)
    table = pd.read_csv(placement_report.html.parent / "tables" / "verdicts.csv").set_index("stratum")
    seeds = range(8)  # each of which chooses and is reported
    for model, activation in itertools.product(("cnn", "resnet"), ("relu", "tanh")):

        def score(placement: str, lr: float, seed: int, model: str = model, activation: str = activation) -> float:
            (config,) = [c for c in configs if (c.model.name, c.model.activation, c.norm.placement, c.lr, c.seed)
                         == (model, activation, placement, lr, seed)]  # fmt: skip
            status, accuracy = placement_outcome(config)
            return CHANCE if status == "diverged" else accuracy

        scores = {
            (placement, lr): np.array([score(placement, lr, seed) for seed in seeds])
            for placement in ("before", "after")
            for lr in (0.03, 0.3)
        }
        best = {p: max((0.03, 0.3), key=lambda lr, p=p: scores[p, lr].mean()) for p in ("before", "after")}
        differences = scores["after", best["after"]] - scores["before", best["before"]]
        row = table.loc[f"{model}, {activation}"]
        assert (row["n"], row["rates"]) == (8, f"after {best['after']:g}, before {best['before']:g}")
        assert row["mean"] == pytest.approx(differences.mean())
        # 0.3 is better by two points: where no run failed it is chosen in every resample, and no other rate is covered
        if model == "cnn":
            plain, deciding = (
                scipy_stats.ttest_1samp(differences, 0).confidence_interval(c) for c in (0.95, row["level"])
            )
            # within 0.01 points: what the choice flatters is found by resampling
            assert (row["low_95"], row["high_95"]) == pytest.approx((plain.low, plain.high), abs=1e-4)
            assert (row["low"], row["high"]) == pytest.approx((deciding.low, deciding.high), abs=1e-4)
            assert 0.95 < row["level"] <= 1 - 0.05 / 4
            assert (row["same_choice"], row["covers"]) == (1.0, "new seeds, on this test set")


def test_a_diverged_run_counts_and_is_named(placement_report: ReportResult) -> None:
    configs = grid(*PLACEMENT)
    arms = pd.read_csv(placement_report.html.parent / "tables" / "arms.csv")
    row = arms[(arms["stratum"] == "resnet, relu") & (arms["arm"] == "after")].iloc[0]
    assert (row["n"], row["diverged"], row["finished"]) == (8, 1, 7)
    cell = ("resnet", "relu", "after", 0.3)
    values = [
        placement_outcome(c)[1] for c in configs if (c.model.name, c.model.activation, c.norm.placement, c.lr) == cell
    ]
    assert min(values) == CHANCE
    assert row["test_accuracy"] == pytest.approx(np.mean(values))
    assert "1 diverged" in placement_report.table
    diverged = [run_id(c) for c in configs if placement_outcome(c)[0] == "diverged"]
    html = placement_report.html.read_text()
    assert len(diverged) == 4
    assert all(name in html for name in diverged)


def test_readings_follow_the_numbers_both_ways(placement_report: ReportResult) -> None:
    text = " ".join(placement_report.table.split())
    assert re.search(
        r"cnn, relu: supported\. after − before, test accuracy: \+[23]\.\d\d points \[.*margin, on the claimed",
        text,
    )
    assert re.search(
        r"cnn, tanh: contradicted\. after − before, test accuracy: −[12]\.\d\d points \[.*on the opposite side", text
    )


@pytest.mark.parametrize(
    ("shift", "spread", "expected"),
    [
        (0.03, 0.001, "the interval excludes 0; after is higher, on average by at least the margin of 1"),
        (-0.03, 0.001, "the interval excludes 0; before is higher, on average by at least the margin of 1"),
        (0.012, 0.008, "the interval includes 0 and reaches beyond the margin of ±1: undecided"),
        (0.0, 0.001, "the interval includes 0, and all of it lies within the margin of ±1"),
    ],
)
def test_reading_says_what_the_interval_says(tmp_path: Path, shift: float, spread: float, expected: str) -> None:
    store = Store(tmp_path)
    configs = grid("norm.placement=before,after", "seed=range(8)", "model.depth=8")
    jitter = (0, 0, 2.0, -2.0, 1.5, -1.5, 3.0, -3.0)

    def outcome(config: RunConfig) -> tuple[str, float]:
        after = config.norm.placement == "after"
        return "finished", 0.8 + (shift + spread * jitter[config.seed]) * after

    write_all(store, configs, outcome)
    write_study(store, configs)
    selection = evaluate(store, "placement").selection
    (effect,) = own_best_effects(selection)
    assert expected in reading(effect, selection)


def test_same_records_give_the_same_bytes(placement: Store, placement_report: ReportResult, tmp_path: Path) -> None:
    first, second = placement_report.html.parent, make_report(placement, "placement", out=tmp_path / "b").html.parent
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) >= 5 * 3 + 3 * 3 + 1 - 3
    for path in files:
        assert (first / path).read_bytes() == (second / path).read_bytes(), path


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, ReportResult]:
    """A study that was changed on the command line; of its runs three runs crashed and one is missing."""
    store, configs = Store(tmp_path_factory.mktemp("troubled")), grid(*SMALL)
    write_all(store, configs, placement_outcome)
    write_study(store, configs, exploratory=True)
    for config in configs[:3]:
        write_run(store, config, "failed", 0.5)
    (store.run_dir(run_id(configs[-1])) / "record.json").unlink()
    return store, make_report(store, "placement")


def test_page_is_self_contained_and_escapes_what_it_shows(troubled: tuple[Store, ReportResult]) -> None:
    html = troubled[1].html.read_text()
    urls = set(re.findall(r"""(?:src|href)=["']?(?!#)([^"' >]+)""", html))
    assert not urls, urls
    assert "@import" not in html
    assert "<script" not in html
    assert "<b>boom</b>" not in html
    assert "&lt;b&gt;boom" in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert html.count("<svg") >= 4


def test_crashed_missing_and_exploratory_are_said(troubled: tuple[Store, ReportResult]) -> None:
    _, result = troubled
    assert "3 runs crashed" in result.table
    assert "1 planned run without a record" in result.table
    html = result.html.read_text()
    assert "Exploratory." in html
    verdicts = pd.read_csv(result.html.parent / "tables" / "verdicts.csv")["verdict"]
    assert verdicts.str.startswith("exploratory: ").all()
    assert run_id(grid(*SMALL)[-1]) in html
    assert pd.read_csv(result.html.parent / "tables" / "verdicts.csv")["incomplete"].notna().any()


def test_an_arm_that_lacks_seeds_at_every_rate_has_no_verdict(own_placement: Store) -> None:
    for config in grid(*PLACEMENT):
        if config.seed < 2 and config.model.name == "cnn" and config.norm.placement == "after":
            (own_placement.run_dir(run_id(config)) / "record.json").unlink()
    text = printed(own_placement, "placement")
    for activation in ("relu", "tanh"):
        assert f"cnn, {activation}: untested. after − before, test accuracy: runs are missing (seed 0: no after" in text


def test_ad_hoc_grid_compares_with_no_norm_and_draws_what_varies(tmp_path: Path) -> None:
    store = Store(tmp_path)
    configs = grid("norm=none,batch", "norm.placement=before,after", "lr=0.01,0.1,1", "batch_size=32,64", "seed=0,1,2")

    def outcome(config: RunConfig) -> tuple[str, float]:
        if config.norm.kind == "none" and config.lr == 1:
            return "diverged", CHANCE
        return "finished", 0.8 + 0.05 * (config.norm.kind == "batch") + noise(config)

    write_all(store, configs, outcome)
    result = make_report(store, None)
    folder = result.html.parent
    names = {path.stem for path in folder.glob("figures/*.png")}
    assert names == {"differences", "final", "learning-rate", "batch-size", "lr-batch-size", "curves"}
    assert {path.suffix for path in folder.glob("figures/*")} == {".png", ".svg", ".pdf", ".md"}
    captions = (folder / "figures" / "captions.md").read_text()
    assert all(f"## {name}\n" in captions for name in names)
    table = pd.read_csv(folder / "tables" / "differences.csv")
    assert set(table["control"]) == {"no norm"}
    assert set(table["treatment"]) == {"batch, before", "batch, after"}
    limits = pd.read_csv(folder / "tables" / "largest-healthy-lr.csv").set_index(["arm", "stratum"])
    assert limits.loc[("no norm", "batch size 32"), "largest_healthy_lr"] == 0.1
    assert limits.loc[("batch, after", "batch size 64"), "largest_healthy_lr"] == 1
    assert "the best mean on validation over all seeds" in " ".join(result.table.split())
    assert "under six" in result.table
    latex = (folder / "tables" / "arms.tex").read_text()
    assert latex.count("\\\\\n") == len(pd.read_csv(folder / "tables" / "arms.csv")) + 1
    assert "\\toprule" in latex


def test_ladder_of_learning_rates_says_how_far_each_arm_goes(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def outcome(config: RunConfig) -> tuple[str, float]:
        healthy = config.lr < (1 if config.norm.kind == "none" else 10)
        return ("finished", 0.9) if healthy else ("diverged", CHANCE)

    write_all(store, grid("norm=none,batch", "lr=0.01,0.1,1,10,100", "seed=0,1"), outcome)
    text = printed(store, None)
    assert "largest learning rate with at least 80 % healthy runs is 1 for batch and 0.1 for no norm." in text


def test_one_run_alone_and_all_diverged_still_make_a_report(tmp_path: Path) -> None:
    one = Store(tmp_path / "one")
    write_all(one, grid("seed=0"), lambda _: ("finished", 0.9))
    assert "90.00" in make_report(one, None).table
    sick = Store(tmp_path / "sick")
    write_all(sick, grid("norm=none,batch", "seed=0,1"), lambda _: ("diverged", CHANCE))
    result = make_report(sick, None)
    assert "2 diverged" in result.table
    assert (result.html.parent / "figures" / "final.png").exists()


def test_report_replaces_its_own_files_only(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    write_all(store, grid("norm=none,batch", "seed=0,1"), lambda c: ("finished", 0.9 + noise(c)))
    out = tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "batch-size.png").write_text("of an earlier report that had batch sizes")
    for mine in ("notes.txt", "figures/my-diagram.pdf"):  # --out may well be the folder of a paper
        (out / mine).write_text("mine")
    make_report(store, None, out=out)
    assert not (out / "figures" / "batch-size.png").exists()
    assert (out / "figures" / "final.png").exists()
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "figures" / "my-diagram.pdf").read_text() == "mine"


def test_report_refusals(placement: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run has ended yet"):
        make_report(Store(tmp_path), None)
    with pytest.raises(ConfigError, match="did you mean 'placement'"):
        make_report(placement, "placment")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        make_report(placement, "placement", out=tmp_path / "file" / "x")


def test_keys_that_differ_with_the_arm_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for config in grid("norm=none,batch", "seed=0,1"):
        raw = copy.deepcopy(config.to_dict())
        raw["optim"]["weight_decay"] = 0.1 if config.norm.kind == "none" else 0.0
        write_run(store, run_config_from_dict(json.loads(json.dumps(raw))), "finished", 0.9)
    assert "differ in optim.weight_decay too" in printed(store, None)


def test_arms_of_other_axes_when_the_norm_does_not_vary(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_all(store, grid("model.activation=relu,tanh", "seed=0,1"), lambda c: ("finished", 0.9 + noise(c)))
    assert set(tables_of(store, None)["arms"]["arm"]) == {"relu", "tanh"}


def test_arms_pair_only_where_the_factor_alone_differs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    configs = grid("norm=batch,group", "norm.placement=before,after", "model.depth=8", "seed=range(8)")
    write_all(store, configs, lambda c: ("finished", 0.9 + noise(c)))
    write_study(store, configs, exploratory=True)
    table = tables_of(store, "placement")["verdicts"]
    assert set(zip(table["control"], table["treatment"], strict=True)) == {("before", "after")}
    assert set(table["stratum"]) == {"batch", "group"}


def test_a_stratum_without_the_control_still_compares_what_it_has(tmp_path: Path) -> None:
    store = Store(tmp_path)
    both = grid("norm=batch", "norm.placement=before,after", "model.depth=8", "seed=0,1,2")
    bare = grid("norm=none,batch", "model.depth=4", "seed=0,1,2")
    write_all(store, both + bare, lambda c: ("finished", 0.9 + noise(c)))
    table = tables_of(store, None)["differences"]
    pairs = {row.stratum: (row.control, row.treatment) for row in table.itertuples()}
    assert pairs == {"depth 4": ("no norm", "batch, before"), "depth 8": ("batch, after", "batch, before")}


def test_an_arm_is_not_given_the_smallest_rate_where_seeds_are_missing(own_placement: Store) -> None:
    for config in grid(*PLACEMENT):
        of = (config.model.name, config.model.activation, config.norm.placement)
        if of == ("cnn", "relu", "after") and config.seed < 2:
            shutil.rmtree(own_placement.run_dir(run_id(config)))
    numbers = evaluate(own_placement, "placement")
    (arms,) = [table.exact.set_index(["stratum", "arm"]) for table in numbers.tables if table.name == "arms"]
    assert arms.loc[("cnn, relu", "after"), "lr"] == 0.3  # two points better than 0.03


def test_a_search_cut_short_is_named(own_placement: Store) -> None:
    (lost,) = [c for c in grid(*PLACEMENT) if (c.model.name, c.model.activation, c.norm.placement, c.lr, c.seed)
               == ("cnn", "relu", "after", 0.3, 1)]  # fmt: skip
    assert "The search was not the same" not in printed(own_placement, "placement")
    (own_placement.run_dir(run_id(lost)) / "record.json").unlink()
    text = printed(own_placement, "placement")
    assert "or not with all of its seeds: after (cnn, relu) at 0.3. The search was not the same" in text


def test_a_study_half_done_keeps_its_arms(tmp_path: Path) -> None:
    store, configs = Store(tmp_path), grid(*PLACEMENT)
    write_all(store, [c for c in configs if c.norm.placement == "before"], placement_outcome)
    write_study(store, configs)
    arms = tables_of(store, "placement")["arms"]
    assert set(arms["arm"]) == {"before"}
    assert set(arms["stratum"]) == {"cnn, relu", "cnn, tanh", "resnet, relu", "resnet, tanh"}


def test_a_reading_names_the_runs_at_chance_behind_it(placement_report: ReportResult) -> None:
    text = " ".join(placement_report.table.split())
    assert text.count("Diverged or collapsed: 1 of after, 0 of before, scored at chance") == 2
    table = pd.read_csv(placement_report.html.parent / "tables" / "verdicts.csv").set_index("stratum")
    assert table.loc["resnet, relu", "failed_seeds"] == 5
    assert table.loc[["cnn, relu", "cnn, tanh"], "failed_seeds"].isna().all()


def test_the_printed_summary_fits_a_hundred_columns(tmp_path: Path) -> None:
    store = Store(tmp_path)
    configs = grid("norm=none,batch", "norm.placement=before,after", "model.depth=4,6",
                   "model.activation=relu,leaky_relu",
                   "data.augment=none,crop_flip", "lr=0.01,0.1", "seed=0,1")  # fmt: skip
    write_all(store, configs, lambda c: ("collapsed" if c.seed else "finished", 0.9 + noise(c)))
    table = summarize(evaluate(store, None))
    assert max(map(len, table.splitlines())) <= 100
    assert "batch, before" in table


def test_values_that_round_alike_are_told_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_all(
        store, grid("norm=none,batch", "data.train_limit=1234567,1234568", "seed=0,1"), lambda _: ("finished", 0.9)
    )
    arms = tables_of(store, None)["arms"]
    assert set(arms["stratum"]) == {"train limit 1234567", "train limit 1234568"}


def test_a_frozen_study_without_its_command_still_reports(tmp_path: Path) -> None:
    store, configs = Store(tmp_path), grid("norm.placement=before,after", "model.depth=8", "seed=range(8)")
    write_all(store, configs, placement_outcome)
    write_study(store, configs)
    frozen = store.study("placement")
    assert frozen is not None
    del frozen["command"]
    store.write_study("placement", frozen)
    assert "bnexp report placement" in make_report(store, "placement").html.read_text()


def test_a_lost_history_is_not_drawn_as_chance(own_placement: Store) -> None:
    import matplotlib.figure

    from bnexp.report.figures import draw_curves

    for config in grid(*PLACEMENT):
        if config.seed == 3 and placement_outcome(config)[0] == "finished":
            (own_placement.run_dir(run_id(config)) / "history.jsonl").unlink()
    selection = evaluate(own_placement, "placement").selection
    drawn = draw_curves(selection, own_placement)
    assert drawn is not None
    figure: matplotlib.figure.Figure = drawn[0]
    (panel,) = [axis for axis in figure.axes if axis.get_title() == "cnn, relu"]
    lowest = min(float(np.min(line.get_ydata()[-1])) for line in panel.lines)  # type: ignore[index]
    assert lowest > 85


def test_a_long_title_is_broken_and_a_short_one_is_not() -> None:
    assert title("cnn, relu") == "cnn, relu"
    assert title("cnn, relu", "", "after 10 updates") == "cnn, relu\nafter 10 updates"
    long = title("per_step, gamma init 0.1, initial noise 0.1")
    assert max(map(len, long.split("\n"))) <= 28
    assert long.replace("\n", " ") == "per_step, gamma init 0.1, initial noise 0.1"
