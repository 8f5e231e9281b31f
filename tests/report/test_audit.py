"""The audit over a folder with several studies: a row for each claim, and never a crash."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricate import freeze, grid, noise, write_all, write_run
from markupsafe import escape

from bnexp.analysis.sequential import plan_looks
from bnexp.config import RunConfig
from bnexp.identity import run_id
from bnexp.report import ReportResult
from bnexp.report.audit import make_audit
from bnexp.report.audit_data import Entry, ReadOnce, collect
from bnexp.report.audit_page import HOW_TO_READ
from bnexp.report.audit_words import (
    ErrorRate,
    error_rate,
    error_rate_words,
    gates,
    label,
    meaning,
    primary_effect,
    verdict_word,
)
from bnexp.report.words import at_ladder_ends
from bnexp.sources import TITLES
from bnexp.store import Store
from bnexp.study import StudySpec, study_from_dict

ARMS = {"no norm": {"norm": "none"}, "batch": {"norm": "batch"}, "group": {"norm": "group"}}
RUNS = ("model.activation=relu,tanh", "lr=0.03,0.3", "seed=range(8)")
EFFECTS = {("batch", "relu"): 0.03, ("batch", "tanh"): -0.03, ("group", "relu"): 0.03, ("group", "tanh"): 0.03}
OWN, OTHER = "“Role and Importance”", "“Meaning for Businesses”"  # the texts of all studies here
Change = Callable[[Path], None]


def study(name: str, number: int, treatment: str, **changes: Any) -> StudySpec:
    axes = {"model.activation": ["relu", "tanh"], "lr": [0.03, 0.3], "seed": list(range(8))}
    tier = {"fixed": {}, "axes": axes, "margin": 0.01}
    return study_from_dict({
        "name": name, "number": number, "question": f"Does {treatment} help?", "claim": f"{treatment} <b>helps</b>.",
        "known": "Somebody 2020.", "sources": {"000_38d31ce5589bc0f3": "it helps"},
        "against": {"003_b90cbfe2d783082f": "it does not"},
        "arms": {arm: ARMS[arm] for arm in ("no norm", treatment)},
        "comparisons": [{"treatment": treatment, "control": "no norm", "shape": "difference", "direction": "higher"}],
        "strata": ["model.activation"], "choose": {"factor": "lr", "metric": "val_accuracy", "seeds": [0, 1]},
        "metric": "test_accuracy", "tiers": {"small": tier, "medium": tier}, **changes,
    })  # fmt: skip


DECLARED = {spec.name: spec for spec in (study("groups", 2, "group"), study("batches", 1, "batch"),
                                         study("later", 3, "batch"))}  # fmt: skip


def configs_of(arm: str) -> list[RunConfig]:
    return grid(f"norm={ARMS[arm]['norm']}", *RUNS)


def outcome(config: RunConfig) -> tuple[str, float]:
    effect = EFFECTS.get((config.norm.kind, config.model.activation), 0.0)
    own = np.random.default_rng([config.seed, len(config.norm.kind), len(config.model.activation)]).normal()
    return "finished", 0.9 + effect + 0.02 * (config.lr == 0.3) + noise(config) + 0.002 * own


def start(store: Store, spec: StudySpec, *, key: str | None = None, tier: str = "small", **more: Any) -> None:
    freeze(store, key or spec.name, spec, {arm: configs_of(arm) for arm in spec.arms}, tier=tier, **more)


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two of three declared studies, started; to be read, not written."""
    store = Store(tmp_path_factory.mktemp("studies"))
    for arm in ARMS:
        write_all(store, configs_of(arm), outcome)
    start(store, DECLARED["batches"])
    start(store, DECLARED["groups"])
    return store


@pytest.fixture(scope="session")
def audit(studies: Store) -> ReportResult:
    return make_audit(studies, declared=DECLARED)


@pytest.fixture
def own(studies: Store, tmp_path: Path) -> Store:
    """A copy to spoil."""
    for part in ("runs", "studies"):
        shutil.copytree(studies.root / part, tmp_path / part)
    return Store(tmp_path)


def table_of(result: ReportResult, name: str = "audit") -> pd.DataFrame:
    return pd.read_csv(result.html.parent / "tables" / f"{name}.csv")


def rows_of(store: Store) -> dict[str, Entry]:
    return {entry.key: entry for entry in collect(store, DECLARED).entries}


def test_a_row_for_each_declared_study_by_number(audit: ReportResult) -> None:
    table = table_of(audit)
    assert table["study"].tolist() == ["batches", "groups", "later"]
    assert table["verdict"].tolist() == ["mixed: 1 supported; 1 contradicted", "supported", "not started"]
    assert table["sources"].tolist() == ["000_38d31ce5589bc0f3"] * 3
    assert table["n"].astype(str).tolist()[:2] == ["8", "8"]
    assert table.loc[0, "effect"] == f"relu: {_interval('batches', 'relu', audit)}; tanh: " + _interval(
        "batches", "tanh", audit
    )
    assert table["runs"].tolist() == [64, 64, 0]
    shown = (audit.html.parent / "tables" / "audit.md").read_text()
    assert "| Role and Importance; against: Meaning for Businesses |" in shown
    assert (audit.html.parent / "tables" / "audit.tex").exists()


def _interval(name: str, stratum: str, audit: ReportResult) -> str:
    """As shown, from the numbers of every comparison and stratum."""
    verdicts = table_of(audit, "verdicts").set_index(["study", "stratum"])
    mean, low, high = (f"{100 * verdicts.loc[(name, stratum), key]:+.2f}" for key in ("mean", "low", "high"))
    level = f"{100 * verdicts.loc[(name, stratum), 'level']:.1f}".removesuffix(".0")
    return f"{mean} points [{low}, {high}] at {level} %".replace("-", "−")


def test_verdicts_and_flips_of_all_studies_are_in_one_file_each(audit: ReportResult) -> None:
    verdicts = table_of(audit, "verdicts")
    assert verdicts[["study", "stratum", "verdict"]].to_numpy().tolist() == [
        ["batches", "relu", "supported"], ["batches", "tanh", "contradicted"],
        ["groups", "relu", "supported"], ["groups", "tanh", "supported"],
    ]  # fmt: skip
    assert verdicts.loc[0, "mean"] == pytest.approx(0.03, abs=0.005)
    flips = table_of(audit, "flips")
    assert set(flips["value"].astype(float)) == {0.03, 0.3}
    assert set(flips["answer"]) == {"survives"}


def test_the_page_has_a_section_a_study_and_needs_nothing_else(audit: ReportResult) -> None:
    html = audit.html.read_text()
    assert not re.findall(r"""(?:src|href)=["']?(?!#)([^"' >]+)""", html)
    assert "<script" not in html
    assert "<b>helps</b>" not in html
    for name in ("batches", "groups"):
        assert f'<section class="study" id="{name}">' in html
        assert f'href="#{name}-figure"' in html
        assert html.count(f'id="{name}-figure"') == 1
    assert '<section class="study" id="later">' not in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert html.count("<svg") == 4
    names = {path.name for path in (audit.html.parent / "figures").iterdir()}
    drawn = {f"{name}-{kind}.{suffix}" for name in ("batches", "groups") for kind in ("verdicts", "flip-map")
             for suffix in ("png", "svg")}  # fmt: skip
    assert names == {*drawn, "captions.md"}
    for said in ("time to market", "it does not", "Somebody 2020.", "bnexp report batches", "64 runs with bnexp 0.1.0",
                 f"{OWN} (<code>000_38d31ce5589bc0f3</code>)", "No declared run is missing"):  # fmt: skip
        assert said in html, said


def test_what_a_verdict_means_for_which_text(studies: Store) -> None:
    rows = rows_of(studies)
    assert meaning(rows["groups"]) == [
        f"On these data and networks the claim holds, as {OWN} says, and not the opposite, as {OTHER} says."
    ]
    assert meaning(rows["batches"]) == [
        f"In 1 of 2 strata (relu) the claim holds, as {OWN} says, and not the opposite, as {OTHER} says.",
        f"In 1 of 2 strata (tanh) the opposite holds: this speaks against {OWN} and for {OTHER}.",
    ]
    assert gates(rows["batches"]) == [
        "relu: holds at all 2 shared learning rates", "tanh: holds at all 2 shared learning rates"
    ]  # fmt: skip
    assert (label("004_8bfcc196da360525"), label("paper")) == ("Study Guide", "paper")
    assert len(set(TITLES.values())) == len(TITLES) == 5
    assert all(len(title) <= 24 for title in TITLES.values())  # of a table cell


def test_a_loss_contradicts_a_claim_that_nothing_is_lost(own: Store) -> None:
    claim = {"treatment": "batch", "control": "no norm", "shape": "difference", "direction": "not lower"}
    harmless = study("harmless", 4, "batch", comparisons=[claim])
    start(own, harmless)
    (row,) = (entry for entry in collect(own, DECLARED | {"harmless": harmless}).entries if entry.key == "harmless")
    assert meaning(row) == [
        f"In 1 of 2 strata (relu) the claim holds, as {OWN} says, and not the opposite, as {OTHER} says.",
        f"In 1 of 2 strata (tanh) it is lower by an amount that matters: this speaks against {OWN} and for {OTHER}.",
    ]


def test_a_poor_init_is_read_beside_the_verdict_and_is_none(own: Store) -> None:
    axes = {"model.init": ["he", "default"], "lr": [0.03, 0.3], "seed": list(range(8))}
    tiers = {"small": {"fixed": {}, "axes": axes, "margin": 0.01}}
    inits = study("inits", 4, "batch", strata=["model.init"], tiers=tiers)
    effects = {"he": 0.03, "default": -0.03}
    arms = {arm: grid(f"norm={ARMS[arm]['norm']}", "model.init=he,default", *RUNS[1:]) for arm in ("no norm", "batch")}
    for arm, configs in arms.items():
        for config in configs:
            gain = effects[config.model.init] if arm == "batch" else 0.0
            own_noise = np.random.default_rng([config.seed, len(arm)]).normal()
            write_run(own, config, "finished", 0.9 + gain + 0.02 * (config.lr == 0.3) + 0.002 * own_noise)
    freeze(own, "inits", inits, arms)
    result = make_audit(own, declared={"inits": inits})
    (row,) = [row for row in table_of(result).to_dict("records") if row["study"] == "inits"]
    assert (row["verdict"], row["primary"]) == ("supported", "supported")
    assert row["otherwise"] == "he: holds at all 2 shared learning rates; flips to contradicted with init default"
    assert row["effect"].startswith("he: +3")
    assert "default" not in row["effect"]
    assert "1 supported" in result.table
    verdicts = table_of(result, "verdicts").set_index("study").loc["inits"]
    assert verdicts[["stratum", "verdict"]].to_numpy().tolist() == [
        ["he", "supported"], ["default", "reading: contradicted"]
    ]  # fmt: skip
    assert verdicts["mean"].tolist() == pytest.approx([0.03, -0.03], abs=0.004)
    flips = table_of(result, "flips").set_index("study").loc["inits"]
    assert flips[["stratum", "kind", "value", "read", "answer"]].astype(str).to_numpy().tolist() == [
        ["he", "learning rate", "0.03", "supported", "survives"],
        ["he", "learning rate", "0.3", "supported", "survives"],
        ["he", "init", "default", "contradicted", "flips"],
        ["default", "learning rate", "0.03", "contradicted", "flips"],
        ["default", "learning rate", "0.3", "contradicted", "flips"],
    ]
    html = result.html.read_text()
    assert "no verdict of its own; it reverses the verdict." in html


def test_a_best_rate_at_an_end_of_its_ladder_is_said(studies: Store, audit: ReportResult) -> None:
    rates = ["no norm (relu) at 0.3", "no norm (tanh) at 0.3", "batch (relu) at 0.3", "batch (tanh) at 0.3"]
    told = table_of(audit).loc[0, "at_ladder_ends"].split("; ")
    assert sorted(told) == sorted(rates)
    html = audit.html.read_text()
    words = f"The best learning rate was the smallest or largest tried: {'; '.join(told[:3])} and 1 more. A wider"
    section = html.partition('id="batches"')[2].partition("</section>")[0]
    assert section.count(words) == 1
    assert section.count("0.3 (end of the ladder)") == 4
    entry = rows_of(studies)["batches"]
    assert entry.judged is not None
    selection, (claim,) = entry.judged.selection, entry.spec.comparisons
    for other in (replace(claim, over="lr", shape="reach"), replace(claim, shape="search"),
                  replace(claim, role="context")):  # fmt: skip
        assert at_ladder_ends(selection, replace(entry.spec, comparisons=(other,))) == []
    alone = replace(claim, control="batch")
    assert len(at_ladder_ends(selection, replace(entry.spec, comparisons=(alone,)))) == 2
    middle = replace(selection, runs=selection.runs.replace({"lr": {0.03: 1.0}}))
    assert len(at_ladder_ends(middle, None)) == 4  # the smallest is an end too
    both = pd.concat([selection.runs, middle.runs])
    assert at_ladder_ends(replace(selection, runs=both), None) == []


def test_the_summary_names_every_study_and_its_verdict(audit: ReportResult) -> None:
    assert "the first comparison of each: 1 supported; 1 mixed; 1 not started" in audit.table
    assert " 1 batches: mixed: 1 supported; 1 contradicted\n   batch − no norm, test accuracy: relu: +" in audit.table
    assert " 3 later: not started" in audit.table
    assert max(map(len, audit.table.splitlines())) <= 100


def test_how_the_page_reads_a_verdict_is_said_once_and_in_no_section(studies: Store, audit: ReportResult) -> None:
    html = audit.html.read_text()
    front, *sections = html.split('<section class="study"')
    assert len(sections) == 2
    for words in HOW_TO_READ:
        assert escape(words)[1:] in front
        for sentence in words.split(". "):
            assert all(str(escape(sentence)) not in section for section in sections), sentence
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert captions == []  # nothing is left to say of these figures
    captioned = (audit.html.parent / "figures" / "captions.md").read_text()
    assert captioned.count(HOW_TO_READ[0]) == captioned.count(HOW_TO_READ[1]) == 2  # a file of its own has to say it


def test_outcomes_with_a_comma_have_a_badge_of_their_own(own: Store) -> None:
    weak = study("weak", 4, "batch")
    axes = {"model.activation": ["relu", "tanh"], "lr": [0.03, 0.3], "seed": list(range(8))}
    weak = replace(weak, tiers={"small": replace(weak.tiers["small"], axes=axes, margin=0.031)})
    weak = replace(weak, comparisons=tuple(replace(c, margin=0.031) for c in weak.comparisons))
    start(own, weak)
    result = make_audit(own, declared={"weak": weak})
    row = table_of(result).set_index("study").loc["weak"]
    assert row["verdict"] == "mixed: 1 supported, direction only; 1 contradicted, direction only"
    html = result.html.read_text()
    for side in ("supported", "contradicted"):
        assert f'1 <span class="outcome {side}-direction-only">{side}, direction only</span>' in html
        assert f".{side}-direction-only {{" in html  # the style sheet knows it
    assert "<dt>" in html
    assert ">direction only</span></dt>" in html
    assert "whether it is large enough to matter is open" in html


@pytest.mark.parametrize(
    ("num", "expected", "at_least_one"), [(26, 1.3, 0.7365), (1, 0.05, 0.05), (2, 0.1, 0.0975)]
)  # 1 − 0.95^26 = 0.7365
def test_the_error_rate_of_many_studies(num: int, expected: float, at_least_one: float) -> None:
    rate = ErrorRate(num, 40, 30)
    assert rate.expected == pytest.approx(expected)
    assert rate.at_least_one == pytest.approx(at_least_one, abs=1e-4)
    words = " ".join(error_rate_words(rate))
    assert ("30 of 40 verdicts would stand if all" in words) == (num > 1)
    if num == 26:
        assert "up to 1.3 of them" in words
        assert "up to 74 %" in words


def test_verdicts_that_stand_over_all_studies_are_counted_by_hand(studies: Store, audit: ReportResult) -> None:
    entries = list(rows_of(studies).values())
    rate = error_rate(entries)
    assert (rate.num_studies, rate.num_decided, rate.num_standing) == (2, 4, 4)

    def with_size(p: float, **changes: Any) -> Entry:
        entry = entries[0]
        first, second = entry.claims
        assert first.verdict.effect is not None
        effect = replace(first.verdict.effect, p_size=p)
        weak = replace(first, verdict=replace(first.verdict, effect=effect), **changes)
        return replace(entry, judged=_with(entry, [weak, second]))

    assert error_rate([with_size(0.0249), entries[1]]).num_standing == 4
    assert error_rate([with_size(0.0251), entries[1]]).num_standing == 3  # 2 · 0.0251 is above 0.05
    assert error_rate([with_size(0.0251)]).num_standing == 2  # a single study is corrected already
    look = with_size(0.0249, look=1)
    assert look.judged is not None
    looks = plan_looks((6, 8))  # of which the first has 6/8 of 5 %
    early = replace(look, judged=replace(look.judged, looks=looks))
    assert error_rate([early, entries[1]]).num_standing == 3  # 2 · 0.0249 is above 0.0375
    context = with_size(0.01, comparison=replace(entries[0].claims[0].comparison, role="context"))
    assert error_rate([context, entries[1]]).num_decided == 3
    words = error_rate_words(rate)
    assert "4 of 4 verdicts would stand if all 2 studies were one family" in words[1]
    printed = " ".join(audit.table.split())
    assert all(line in printed for line in words)
    assert f"{words[0]} {words[1]}" in audit.html.read_text()


def _rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def _other_margin(root: Path) -> None:
    path = root / "studies" / "batches" / "study.json"
    _rewrite(path, lambda raw: raw["declaration"]["comparisons"][0].update(margin=0.5))


def _old_schema(root: Path) -> None:
    _rewrite(root / "studies" / "batches" / "study.json", lambda raw: raw["declaration"].pop("known"))


def _half_a_file(root: Path) -> None:
    (root / "studies" / "batches" / "study.json").write_text('{"name": ')


def _no_arms(root: Path) -> None:
    _rewrite(root / "studies" / "batches" / "study.json", lambda raw: raw.pop("arms"))


def _twice(root: Path) -> None:
    """Every run of an arm stands in it twice: a seed has two results."""
    _rewrite(
        root / "studies" / "batches" / "study.json", lambda raw: raw["arms"].update(batch=2 * raw["arms"]["batch"])
    )


def _nothing(root: Path) -> None:
    shutil.rmtree(root / "runs")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_other_margin, "was changed after it was frozen"),
        (_old_schema, "study.known"),
        (_half_a_file, "not a JSON document"),
        (_no_arms, "lacks arms"),
        (_twice, "twice"),
        (_nothing, "no run has ended yet"),
    ],
)
def test_a_study_that_cannot_be_judged_is_a_row_that_says_why(own: Store, spoil: Change, why: str) -> None:
    spoil(own.root)
    rows = rows_of(own)
    assert why in rows["batches"].problem
    assert rows["batches"].claims == []
    assert rows["groups"].claims or spoil is _nothing
    result = make_audit(own, declared=DECLARED)
    table = table_of(result).set_index("study")
    assert str(table.loc["batches", "verdict"]).startswith("cannot be judged: ")
    assert table.loc["batches", "effect"] == "—"
    assert "cannot be judged" in result.html.read_text()


def test_a_missing_and_a_crashed_run_give_no_number_but_a_line(own: Store) -> None:
    lost, broken = [c for c in configs_of("batch") if (c.model.activation, c.lr, c.seed) in
                    (("relu", 0.3, 4), ("relu", 0.3, 5))]  # fmt: skip
    shutil.rmtree(own.run_dir(run_id(lost)))
    write_run(own, broken, "failed", 0.5)
    result = make_audit(own, declared=DECLARED)
    table = table_of(result).set_index("study")
    assert table.loc["batches", "verdict"] == "mixed: 1 untested; 1 contradicted"
    assert str(table.loc["batches", "effect"]).startswith("relu: —; tanh: −")
    verdicts = table_of(result, "verdicts").set_index(["study", "stratum"])
    assert pd.isna(verdicts.loc[("batches", "relu"), "mean"])
    html = result.html.read_text()
    assert "1 run crashed: in no number" in html
    assert "1 declared run without a record" in html
    assert f"nothing can be said about {OWN} and {OTHER}: runs are missing" in html


def test_exploratory_and_forked_studies_are_named_and_in_no_row(own: Store) -> None:
    start(own, DECLARED["batches"], key="batches-exploratory-abc", overrides=["seed=0,1"])
    start(own, DECLARED["batches"], key="batches-fork-abc", fork_of="batches", changed=["comparisons.0.margin"])
    result = make_audit(own, declared=DECLARED)
    assert table_of(result)["study"].tolist() == ["batches", "groups", "later"]
    for said in ("batches-exploratory-abc is in no row", "seed=0,1", "batches-fork-abc is in no row"):
        assert said in " ".join(result.table.split())
    html = result.html.read_text()
    assert "a fork of batches under another declaration: comparisons.0.margin" in html


def test_another_tier_has_rows_and_sections_of_its_own(own: Store) -> None:
    start(own, DECLARED["groups"], key="groups-medium", tier="medium")
    result = make_audit(own, declared=DECLARED)
    table = table_of(result)
    assert table[["tier", "study"]].to_numpy().tolist() == [
        ["small", "batches"], ["small", "groups"], ["small", "later"], ["medium", "groups"]
    ]  # fmt: skip
    html = result.html.read_text()
    assert 'id="groups-medium"' in html
    assert "The claims, tier medium" in html
    shutil.rmtree(own.root / "studies" / "batches")
    shutil.rmtree(own.root / "studies" / "groups")
    assert {entry.tier for entry in collect(own, DECLARED).entries} == {"medium"}


def test_a_study_of_ones_own_stands_behind_the_declared_ones(own: Store) -> None:
    mine = study("mine", 0, "group")
    start(own, mine)
    result = make_audit(own, declared=DECLARED)
    assert table_of(result)["study"].tolist() == ["batches", "groups", "later", "mine"]
    html = result.html.read_text()
    assert "(a study of your own)" in html
    assert "<strong>3 claims,</strong>" in html


def test_a_file_that_declares_something_else_by_now_is_said(own: Store) -> None:
    changed = {**DECLARED, "groups": study("groups", 2, "group", claim="Something else.")}
    (entry,) = [entry for entry in collect(own, changed).entries if entry.key == "groups"]
    assert entry.changed
    assert verdict_word(entry.claims) == "supported"
    assert not rows_of(own)["groups"].changed


def test_every_record_is_read_once_however_many_studies_share_it(
    studies: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    whole = Store.record

    def counting(self: Store, name: str) -> Any:
        read.append(name)
        return whole(self, name)

    monkeypatch.setattr(Store, "record", counting)
    collect(studies, DECLARED)
    assert len(read) == len(set(read)) == 96  # 32 of each arm, those of no norm in both studies
    reader = ReadOnce(studies)
    assert reader.history(read[0]) is reader.history(read[0])


def test_many_strata_show_a_range_and_never_a_pool(studies: Store) -> None:
    entry = rows_of(studies)["batches"]
    assert entry.judged is not None
    one, two = entry.claims
    many = Entry(entry.key, entry.tier, entry.spec, judged=_with(entry, [one, two, one, two]))
    low, high = (f"{100 * claim.verdict.effect.plain.mean:+.2f}" for claim in (two, one) if claim.verdict.effect)
    assert primary_effect(many) == [f"from {low} to {high} points over 4 strata".replace("-", "−")]
    assert gates(many) == ["flips in none of 4 strata, holds in every analysis in 4"]


def _with(entry: Entry, claims: list[Any]) -> Any:
    assert entry.judged is not None
    return replace(entry.judged, claims=claims)


def test_report_without_a_study_is_the_audit_where_one_was_started(
    studies: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bnexp import cli
    from bnexp.report import audit as module

    monkeypatch.setattr(module, "list_studies", lambda: DECLARED)
    assert cli.main(["report", "--results", str(studies.root), "--out", str(tmp_path / "a")]) == 0
    assert "1 supported; 1 mixed; 1 not started" in capsys.readouterr().out
    assert cli.main(["report", "--runs", "--results", str(studies.root), "--out", str(tmp_path / "b")]) == 0
    assert "Every run in the results folder" in capsys.readouterr().out
    assert cli.main(["report", "batches", "--runs", "--results", str(studies.root)]) == 2
    shutil.copytree(studies.root / "runs", tmp_path / "loose" / "runs")
    assert cli.main(["report", "--results", str(tmp_path / "loose")]) == 0
    assert "Every run in the results folder" in capsys.readouterr().out
