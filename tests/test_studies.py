"""The declared studies: every file loads, can be composed and built, quotes its texts and is fair to its baseline."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from bnexp.catalog import list_studies, load_study
from bnexp.choices import config_root
from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.engine.build import build_network
from bnexp.errors import ConfigError
from bnexp.identity import run_id
from bnexp.metrics import PROBE_OF
from bnexp.request import Part
from bnexp.sources import TITLES

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ROOT.parent / "shared" / "sources"
STUDIES = list_studies()
TIERS = [(name, tier) for name, spec in STUDIES.items() for tier in spec.tiers]
# the claims in the order of their table
NAMES = [
    "shift", "shift-cause", "convergence", "cost", "lr-range", "init", "gradients", "depth", "regularizer", "noise",
    "dropout", "accuracy", "complexity", "robustness", "placement", "affine", "moments", "small-batch", "large-batch",
    "small-data", "inference", "recurrent", "timestep", "alternatives", "anywhere", "tuning",
]  # fmt: skip
# data -> channels, side and classes of its images
IMAGES = {"digits": (1, 8, 10), "mnist": (1, 28, 10), "cifar10": (3, 32, 10), "folder": (3, 32, 10)}
each_study = pytest.mark.parametrize("name", NAMES)
each_tier = pytest.mark.parametrize(("name", "tier"), TIERS)


@cache
def composed(name: str) -> Part:
    """The small tier at one of its seeds: the others differ in nothing else."""
    seed = STUDIES[name].seeds("small")[0]
    (part,) = request_from_argv(["-m", f"study={name}", f"seed={seed}"]).parts
    return part


def ids(name: str) -> set[str]:
    return {run_id(config) for config in composed(name).configs}


def require_buildable(configs: Iterable[RunConfig], data: str) -> None:
    channels, side, classes = IMAGES[data]
    for config in {(config.model, config.norm, config.optim): config for config in configs}.values():
        with torch.device("meta"):
            build_network(config, in_channels=channels, image_size=side, num_classes=classes)


def test_studies_are_the_claims_each_under_its_number() -> None:
    assert {spec.number: name for name, spec in STUDIES.items()} == dict(enumerate(NAMES, start=1))


@each_study
def test_study_has_three_tiers(name: str) -> None:
    assert list(STUDIES[name].tiers) == ["small", "medium", "full"]


@each_study
def test_study_opens_with_its_claim_and_the_command_and_runs_of_each_tier(name: str) -> None:
    spec = STUDIES[name]
    first, *lines = (config_root() / "study" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert first.startswith(f"# Claim {spec.number}: ")
    commands = [line for line in lines if line.startswith("#   bnexp train -m ")]
    for tier, line in zip(spec.tiers, commands, strict=True):
        assert f"study={name} " in line
        assert ("tier=" in line) == (tier != "small")
        assert ("data.root=" in line) == (spec.tiers[tier].fixed["data"] == "folder")
        counted = re.search(r"([\d,]+) runs", line)
        assert counted is not None
        assert int(counted[1].replace(",", "")) == spec.num_runs(tier)


@pytest.mark.skipif(not TEXTS.is_dir(), reason="the source texts are not beside this checkout")
@each_study
def test_quotes_are_in_the_texts_word_for_word(name: str) -> None:
    quotes = [*STUDIES[name].sources.items(), *STUDIES[name].against.items()]
    assert STUDIES[name].sources
    assert {stem for stem, _ in quotes} <= set(TITLES)
    for stem, quote in quotes:
        assert len(quote.split()) >= 4
        assert quote in (TEXTS / f"{stem}.txt").read_text(encoding="utf-8")


@each_study
def test_small_tier_composes_into_the_runs_it_declares_and_every_network_is_built(name: str) -> None:
    spec = STUDIES[name]
    assert len(ids(name)) == spec.num_runs("small") / len(spec.tiers["small"].axes["seed"])
    require_buildable(composed(name).configs, spec.tiers["small"].fixed["data"])


@pytest.mark.parametrize(("name", "tier"), [(name, tier) for name, tier in TIERS if tier != "small"])
def test_larger_tiers_compose_and_their_networks_are_built(name: str, tier: str) -> None:
    spec = STUDIES[name]
    values = spec.overrides(tier, list(spec.arms)[-1]) | {"seed": 3}  # composing all arms would take a minute
    request = request_from_argv(["-m", *(f"{key}={word(value)}" for key, value in values.items())])
    strata = math.prod(len(axis) for key, axis in spec.tiers[tier].axes.items() if key != "seed")
    assert len(request.configs) == strata
    require_buildable(request.configs, spec.tiers[tier].fixed["data"])


def word(value: object) -> str:
    """A value of a declaration as the command line has it: several are an axis, a list is one value."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"[{','.join(value)}]" if isinstance(value, list) else str(value)


@each_study
def test_arms_without_a_norm_start_from_an_init_that_suits_them(name: str) -> None:
    bare = [config for config in composed(name).configs if config.norm.kind == "none"]
    inits = {config.model.init for config in bare}
    if bare and bare[0].model.name == "lstm":
        assert inits == {"orthogonal"}  # He's is for relu; this is the usual one of its gates
    elif "model.init" in STUDIES[name].tiers["small"].axes:
        assert "he" in inits
    else:
        assert inits <= {"he"}
    for tier in STUDIES[name].tiers.values():
        assert "model.init" not in tier.fixed
        assert "he" in tier.axes.get("model.init", ["he"])
    assert not any("model.init" in arm for arm in STUDIES[name].arms.values())


@each_study
def test_every_arm_has_the_same_ladder_in_every_stratum(name: str) -> None:
    part, spec = composed(name), STUDIES[name]
    tried: dict[str, list[float]] = {arm: [] for arm in spec.arms}
    for arm, config in zip(part.arms, part.configs, strict=True):
        tried[arm].append(config.lr)
    num_strata = math.prod(len(v) for key, v in spec.tiers["small"].axes.items() if key not in ("lr", "seed"))
    for rates in tried.values():
        assert sorted(rates) == sorted(spec.rates("small") * num_strata)
    for tier in spec.tiers:
        assert len(spec.rates(tier)) >= 3


@each_tier
def test_seeds_are_enough_and_choose_on_validation(name: str, tier: str) -> None:
    spec = STUDIES[name]
    assert len(spec.seeds(tier)) >= 10  # six pairs, in a family of two, cannot reach p < .05 by signs
    assert spec.choose.metric == "val_accuracy"


@each_tier
def test_every_ladder_that_a_rate_is_chosen_from_can_be_widened_by_two_rungs_of_its_own_ratio(
    name: str, tier: str
) -> None:
    rates, widen = STUDIES[name].rates(tier), STUDIES[name].tiers[tier].widen
    if name in ("lr-range", "tuning"):  # all rates are compared, or are what is searched
        assert widen == ()
        return
    assert len(widen) == 4
    whole = [*widen[:2], *rates, *widen[2:]]
    assert whole == sorted(whole)
    ratio = (rates[-1] / rates[0]) ** (1 / (len(rates) - 1))
    assert [upper / lower for lower, upper in pairwise(whole)] == pytest.approx([ratio] * (len(whole) - 1), rel=0.1)


@each_tier
def test_margin_in_accuracy_is_that_of_the_data(name: str, tier: str) -> None:
    own = STUDIES[name].tiers[tier]
    expected = 0.003 if tier == "full" else 0.02 if own.fixed["data"] == "folder" else 0.01
    assert own.margin == expected


@each_study
def test_precision_is_fixed_so_that_machines_agree(name: str) -> None:
    precisions = [tier.fixed["exec.precision"] for tier in STUDIES[name].tiers.values()]
    assert precisions[:2] == ["fp32", "fp32"]
    assert precisions[2] in ("fp32", "bf16")


@pytest.mark.parametrize("name", ["shift", "gradients", "robustness", "inference", "moments", "small-batch"])
def test_study_without_the_probe_that_it_is_judged_by_is_refused(name: str, tmp_path: Path) -> None:
    raw = yaml.safe_load((config_root() / "study" / f"{name}.yaml").read_text())
    read = {measure for c in STUDIES[name].at("small").comparisons for measure, _ in c.measures()}
    measured = {PROBE_OF[measure] for measure in read & set(PROBE_OF)}
    assert measured
    assert measured <= set(raw["tiers"]["small"]["fixed"].pop("probes"))
    raw["tiers"]["small"]["fixed"] = {k: v for k, v in raw["tiers"]["small"]["fixed"].items() if "probes" not in k}
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    with pytest.raises(ConfigError, match="is measured by the probe"):
        load_study(tmp_path / f"{name}.yaml")


@pytest.mark.parametrize(
    ("whole", "parts"),
    [("lr-range", ["convergence", "cost", "shift", "moments"]), ("depth", ["gradients"])],
)
def test_studies_of_one_grid_share_their_runs(whole: str, parts: list[str]) -> None:
    for name in parts:
        assert ids(name) <= ids(whole)


def test_init_at_gain_1_is_the_lr_range() -> None:
    assert len(ids("init") & ids("lr-range")) == 2 * 3  # two arms, three rates


def test_tuning_at_the_default_weight_decay_is_the_lr_range() -> None:
    assert len(ids("tuning") & ids("lr-range")) == 2 * 6  # two arms, six rates


def test_few_examples_are_the_same_runs_in_three_studies() -> None:
    assert len(ids("dropout") & ids("noise")) == 3  # batch at its three rates
    assert len(ids("dropout") & ids("small-data")) == 2 * 3  # and no norm


def test_docs_are_what_the_files_say() -> None:
    path = ROOT / "scripts" / "update_docs.py"
    spec = importlib.util.spec_from_file_location("update_docs", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    assert written == script.page_of(STUDIES), "python scripts/update_docs.py"
    for name in NAMES:
        assert f"](#{script.anchor(STUDIES[name])})" in written
