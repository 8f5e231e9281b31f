"""The schema of a study: what a declaration says, that it comes back unchanged, and every way to get it wrong."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from bnexp.catalog import list_studies
from bnexp.comparison import SHAPES, Comparison
from bnexp.errors import ConfigError
from bnexp.identity import canonical_json
from bnexp.study import StudySpec, declaration_hash, study_from_dict

# one of every shape, as a study may have them side by side
COMPARISONS: dict[str, dict[str, Any]] = {
    "difference": {"treatment": "batch", "control": "none"},
    "ratio": {"treatment": "batch", "control": "none", "measure": "epochs_to_target", "margin": 1.25},
    "matched": {"treatment": "batch", "control": "none", "measure": "val_accuracy"},
    "level": {"treatment": "batch", "reference": 0},
    "reach": {"treatment": "batch", "control": "none", "over": "lr", "margin": 3},
    "span": {"treatment": "batch", "control": "none", "over": "model.depth", "within": 0.02, "margin": 0.5},
    "worst": {"treatment": "batch", "control": "none", "over": "model.depth"},
    "slope": {"levels": {"none": 1, "batch": 2.5, "group": 4}, "margin": 0.01},
    "interaction": {"treatment": "batch", "control": "none", "against": ["group", "none"]},
    "search": {"treatment": "batch", "control": "none", "over": "model.depth", "budget": 4},
}


def comparison(shape: str, **changes: Any) -> dict[str, Any]:
    return {"shape": shape, "direction": "higher", **COMPARISONS[shape], **changes}


def raw(*comparisons: dict[str, Any], **changes: Any) -> dict[str, Any]:
    axes = {"model.depth": [2, 4, 8], "model": ["cnn", "resnet"], "lr": [0.1, 0.3], "seed": list(range(8))}
    tier = {"fixed": {"data": "digits", "probes": ["statistics"]}, "axes": axes, "margin": 0.01, "target": 0.9}
    return copy.deepcopy({
        "name": "own", "number": 3, "question": "q?", "claim": "c.", "known": "k", "sources": {"text": "a quote"},
        "against": {"other": "another"},
        "arms": {"none": {"norm": "none"}, "batch": {"norm": "batch"}, "group": {"norm": "group"}},
        "comparisons": list(comparisons) or [comparison("difference")], "strata": ["model.name", "model.depth"],
        "choose": {"factor": "lr", "metric": "val_accuracy"}, "metric": "test_accuracy",
        "tiers": {"small": tier, "full": tier | {"margin": 0.003, "target": None}},
        **changes,
    })  # fmt: skip


def one_tier(**changes: Any) -> dict[str, Any]:
    """The tiers, with changes to the only one; those of axes are to the axes."""
    tier = raw()["tiers"]["small"]
    axes = {key: values for key, values in (tier["axes"] | changes.pop("axes", {})).items() if values is not None}
    return {"small": {**tier, **changes, "axes": axes}}


def refused(content: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        study_from_dict(content)
    assert "\n" not in str(error.value)
    return str(error.value)


# what it says


def test_margins_targets_and_measures_are_settled_by_the_tier() -> None:
    spec = study_from_dict(raw(*(comparison(shape) for shape in SHAPES), tiers=one_tier()))
    small = {c.shape: c for c in spec.at("small").comparisons}
    assert [small[shape].margin for shape in SHAPES] == [0.01, 1.25, 0.01, 0.01, 3, 0.5, 0.01, 0.01, 0.01, 0.01]
    assert {shape: c.measure for shape, c in small.items() if c.measure != "test_accuracy"} == {
        "ratio": "epochs_to_target", "matched": "val_accuracy",
    }  # fmt: skip
    assert {shape: c.target for shape, c in small.items() if c.target is not None} == {"ratio": 0.9, "matched": 0.9}
    assert [c.margin for c in spec.comparisons][:1] == [None]  # as written
    assert list(spec.at("small").tiers) == ["small"]


def test_a_tier_has_its_own_margin_and_a_comparison_s_own_comes_first() -> None:
    spec = study_from_dict(raw(comparison("difference"), comparison("difference", treatment="group", margin=0.05)))
    assert [c.margin for c in spec.at("full").comparisons] == [0.003, 0.05]
    assert spec.at("full").at("full") == spec.at("full")


def test_arms_and_measures_of_a_comparison() -> None:
    def of(shape: str, **changes: Any) -> Comparison:
        return study_from_dict(raw(comparison(shape, **changes), tiers=one_tier())).at("small").comparisons[0]

    assert of("interaction").arms == ("batch", "none", "group")
    assert of("slope").arms == ("none", "batch", "group")
    assert of("level").arms == ("batch",)
    assert of("ratio").measures() == (("epochs_to_target", 0.9),)
    assert of("ratio", target=0.8).measures() == (("epochs_to_target", 0.8),)
    assert of("matched").measures() == (("val_accuracy", None), ("accuracy_curve", None))
    assert of("matched", target=0.6).target == 0.6
    assert of("difference", control_measure="accuracy_precise").measures() == (
        ("test_accuracy", None), ("accuracy_precise", None),
    )  # fmt: skip


def test_every_seed_is_reported_and_verdicts_are_counted() -> None:
    spec = study_from_dict(raw(*(comparison(shape) for shape in ("difference", "worst", "reach")), tiers=one_tier()))
    assert (spec.seeds("small"), spec.rates("small")) == (tuple(range(8)), (0.1, 0.3))
    assert spec.num_runs("small") == 3 * 3 * 2 * 2 * 8
    assert spec.num_verdicts("small") == 6 + 2 + 6
    assert spec.overrides("small", "batch") == {"data": "digits", "probes": ["statistics"], "norm": "batch",
        "model.depth": (2, 4, 8), "model": ("cnn", "resnet"), "lr": (0.1, 0.3), "seed": tuple(range(8))}  # fmt: skip


# it comes back unchanged


def round_trip(spec: StudySpec, tier: str) -> StudySpec:
    return study_from_dict(json.loads(json.dumps(spec.declaration(tier))))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_frozen_declaration_is_the_study_again(shape: str) -> None:
    spec = study_from_dict(raw(comparison(shape), tiers=one_tier()))
    again = round_trip(spec, "small")
    assert again == spec.at("small")
    assert again.at("small") == again
    assert declaration_hash(again.declaration("small")) == declaration_hash(spec.declaration("small"))
    frozen = json.loads(canonical_json(spec.declaration("small")))  # as it lies on disk, keys sorted
    assert study_from_dict(frozen) == spec.at("small")


def test_every_study_here_comes_back_from_its_frozen_copy() -> None:
    for name, spec in list_studies().items():
        for tier in spec.tiers:
            again = round_trip(spec, tier)
            assert again == spec.at(tier), f"{name}, {tier}"
            assert declaration_hash(again.declaration(tier)) == declaration_hash(spec.declaration(tier))


def test_a_declaration_changes_with_everything_it_declares() -> None:
    def hash_of(content: dict[str, Any]) -> str:
        return declaration_hash(study_from_dict(content).declaration("small"))

    plain = hash_of(raw())
    assert hash_of(raw()) == plain
    tiers = raw()["tiers"]
    tiers["full"]["margin"] = 0.5
    assert hash_of(raw(tiers=tiers)) == plain  # another tier is not what is run
    tiers = raw()["tiers"]
    tiers["small"]["margin"] = 0.02
    changes: list[dict[str, Any]] = [
        {"tiers": tiers}, {"metric": "val_accuracy"}, {"claim": "d."}, {"known": "other"}, {"against": {}},
        {"comparisons": [comparison("difference", margin=0.02)]},
        {"comparisons": [comparison("difference") | {"direction": "same"}]},
        {"arms": raw()["arms"] | {"group": {"norm": "layer"}}}, {"choose": raw()["choose"] | {"metric": "val_loss"}},
        {"tiers": one_tier(axes={"lr": [0.1, 0.4]})}, {"tiers": one_tier(widen=[1.0])},
        {"tiers": one_tier(fixed={"data": "mnist"})},
    ]  # fmt: skip
    hashes = [hash_of(raw(**change)) for change in changes]
    assert len({plain, *hashes}) == len(changes) + 1


# every way to get it wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": "3"}, "study.number: '3': expected a whole number"),
        ({"number": True}, "study.number: True: expected a whole number"),
        ({"name": ""}, "study.name: '': expected a text"),
        ({"question": None}, "study.question: None: expected a text"),
        ({"claim": 3}, "study.claim: 3: expected a text"),
        ({"known": " "}, "study.known: ' ': expected a text"),
        ({"sources": ["text"]}, "study.sources: ['text']: expected text file: what it says"),
        ({"sources": {"text": None}}, "study.sources.text: None: expected a text"),
        ({"against": {"text": ""}}, "study.against.text: '': expected a text"),
        ({"against": None}, "study.against: None: expected text file: what it says"),
        ({"metric": ["test_accuracy"]}, "study.metric: ['test_accuracy'] is not one of "),
        ({"metric": "test_acuracy"}, "(did you mean 'test_accuracy'?)"),
        ({"metric": "shift_l2"}, "study.metric: 'shift_l2' is not one of "),
        ({"arms": {}}, "study.arms: {}: expected arms, each with its overrides"),
        ({"arms": {"none": {}}}, "study.arms: {'none': {}}: expected arms, each with its overrides"),
        ({"arms": {8: {"norm": "none"}}}, "study.arms: 8: expected a name; quote it where it is a number"),
        ({"arms": {"none": {"norm": "none", "lr": 1}}}, "study.arms: 'lr': this has to be the same for all arms"),
        ({"arms": {"none": {"seed": 1}}}, "study.arms: 'seed': this has to be the same for all arms"),
        ({"arms": {"none": {"epochs": 1}}}, "study.arms: 'epochs': this has to be the same for all arms"),
        ({"arms": {"none": {"data": "mnist"}}}, "study.arms: 'data': this has to be the same for all arms"),
        (
            {"arms": {"none": {"model.depth": 3}}},
            "study.tiers.small: 'model.depth': this key is what the arms differ in",
        ),
        ({"strata": "model.name"}, "study.strata: 'model.name': expected a list of keys"),
        ({"strata": [3]}, "study.strata: [3]: expected a list of keys"),
        ({"strata": ["model.name"]}, "study.strata: ['model.name']: model.depth is swept, so it has to be a stratum"),
        ({"choose": None}, "study.choose: None: expected the keys factor, metric"),
        ({"comparisons": []}, "study.comparisons: []: expected a list of comparisons"),
        ({"comparisons": "batch"}, "study.comparisons: 'batch': expected a list of comparisons"),
        ({"comparisons": [3]}, "study.comparisons.0: 3: expected the keys against, best, budget, control, "),
        ({"comparisons": [comparison("difference")] * 2}, "is comparison 0 too"),
        ({"tiers": {}}, "study.tiers: {} is not one of small, medium, full"),
        ({"tiers": {"tiny": {}}}, "study.tiers: 'tiny' is not one of small, medium, full"),
        ({"tiers": {"small": None}}, "study.tiers.small: None: expected the keys axes, fixed"),
        ({"tiers": {"small": {"fixed": {}}}}, "study.tiers.small.axes: None: this key is missing"),
        ({"tiers": one_tier(fixed=[])}, "study.tiers.small.fixed: []: expected a mapping of keys"),
        ({"tiers": one_tier() | {"medium": {"fixed": {}, "axes": 3}}}, "study.tiers.medium.axes: 3: expected a"),
        ({"tiers": one_tier(margin=1)}, "study.tiers.small.margin: 1: expected a fraction between 0 and 1"),
        ({"tiers": one_tier(margin=True)}, "study.tiers.small.margin: True: expected a fraction between 0 and 1"),
        ({"tiers": one_tier(target="0.9")}, "study.tiers.small.target: '0.9': expected a fraction between 0 and 1"),
        ({"tiers": one_tier(fixed={"probes": "shift"})}, "study.tiers.small.fixed.probes: 'shift': expected a list"),
        ({"tiers": one_tier(axes={"lr": 0.1})}, "study.tiers.small.axes.lr: 0.1: expected a list of values"),
        ({"tiers": one_tier(axes={"lr": []})}, "study.tiers.small.axes.lr: []: expected a list of values"),
        ({"tiers": one_tier(axes={"lr": [1, 1.0]})}, "study.tiers.small.axes.lr: [1, 1.0]: a value is given twice"),
        ({"tiers": one_tier(axes={"seed": None})}, "study.tiers.small.axes.seed: None: expected a list of seeds"),
        ({"tiers": one_tier(axes={"seed": ["a"]})}, "study.tiers.small.axes.seed: ['a']: expected a list of seeds"),
        ({"tiers": one_tier(axes={"seed": list(range(5))})}, "[0, 1, 2, 3, 4]: a verdict needs 6 seeds at least"),
        ({"tiers": one_tier(widen=0.03)}, "study.tiers.small.widen: 0.03: expected a list of learning rates, all "),
        ({"tiers": one_tier(widen="0.03")}, "study.tiers.small.widen: '0.03': expected a list of learning rates"),
        ({"tiers": one_tier(widen=["1"])}, "study.tiers.small.widen: ['1']: expected a list of learning rates"),
        ({"tiers": one_tier(widen=[True])}, "study.tiers.small.widen: [True]: expected a list of learning rates"),
        ({"tiers": one_tier(widen=[0, 1])}, "study.tiers.small.widen: [0, 1]: expected a list of learning rates"),
        ({"tiers": one_tier(widen=[float("inf")])}, "study.tiers.small.widen: [inf]: expected a list of learning"),
        ({"tiers": one_tier(widen=[0.2])}, "study.tiers.small.widen: 0.2: each of these lies beyond the ladder of"),
        ({"tiers": one_tier(widen=[1, 0.3])}, "study.tiers.small.widen: 0.3: each of these lies beyond the ladder"),
        ({"tiers": one_tier(widen=[1, 1.0])}, "study.tiers.small.widen: 1: each of these lies beyond the ladder"),
        ({"tiers": one_tier(widen=[1], axes={"lr": [0.1]})}, "study.tiers.small.widen: [1]: there is no ladder of"),
        ({"tiers": one_tier(widen=[1], axes={"lr": None})}, "study.tiers.small.widen: [1]: there is no ladder of"),
        ({"tires": {}}, "study.tires: 'tires': no such key; keys here: "),
    ],
)  # fmt: skip
def test_a_wrong_study_is_one_line_that_names_the_key(change: dict[str, Any], message: str) -> None:
    assert message in refused(raw(**change))


def test_a_study_without_a_key_is_refused_by_its_name() -> None:
    for key in raw():
        content = {name: value for name, value in raw().items() if name != key}
        assert refused(content) == f"study.{key}: None: this key is missing"
    assert refused([]).startswith("study: []: expected the keys against, arms, ")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor": "norm"}, "study.choose.factor: 'norm': only lr is chosen"),
        ({"metric": "test_accuracy"}, "study.choose.metric: 'test_accuracy': choosing never looks at test"),
        ({"metric": "accuracy"}, "study.choose.metric: 'accuracy' is not one of "),
        ({"metric": ["val_accuracy"]}, "study.choose.metric: ['val_accuracy'] is not one of "),
        ({"sedes": [0]}, "study.choose.sedes: 'sedes': no such key; keys here: "),
    ],
)
def test_a_wrong_choice_is_one_line(change: dict[str, Any], message: str) -> None:
    assert message in refused(raw(choose=raw()["choose"] | change))


def test_seeds_that_an_older_declaration_tuned_by_are_seeds_like_others() -> None:
    older = raw(choose=raw()["choose"] | {"seeds": [0, 1]})
    assert study_from_dict(older) == study_from_dict(raw())
    assert study_from_dict(older).seeds("small") == tuple(range(8))


def test_rates_to_widen_by_are_beyond_the_ladder_and_in_order() -> None:
    spec = study_from_dict(raw(tiers=one_tier(widen=[3, 1.0, 0.03, 0.01])))
    assert spec.tiers["small"].widen == (0.01, 0.03, 1.0, 3.0)
    assert spec.rates("small") == (0.1, 0.3)  # they are run where they are needed alone
    assert spec.num_runs("small") == 3 * 3 * 2 * 2 * 8
    assert round_trip(spec, "small") == spec.at("small")
    assert study_from_dict(raw()).tiers["small"].widen == ()


@pytest.mark.parametrize(
    ("shape", "change", "key", "message"),
    [
        ("difference", {"shape": "diference"}, "shape", "'diference' is not one of difference, ratio, matched, "),
        ("difference", {"shape": None}, "shape", "None is not one of "),
        ("difference", {"shape": ["ratio"]}, "shape", "['ratio'] is not one of "),
        ("difference", {"direction": "up"}, "direction", "'up' is not one of higher, lower, same, not lower"),
        ("difference", {"metric": "test_loss"}, "metric", "'metric': no such key; keys here: "),
        ("difference", {"treatment": None}, "treatment", "None: the shape difference needs it"),
        ("difference", {"control": None}, "control", "None: the shape difference needs it"),
        ("difference", {"treatment": "btach"}, "treatment", "'btach' is not one of none, batch, group (did you mean"),
        ("difference", {"treatment": ["batch"]}, "treatment", "['batch'] is not one of none, batch, group"),
        ("difference", {"control": "batch"}, "control", "'batch': is the treatment too"),
        ("difference", {"control": "batch", "control_measure": "test_accuracy"}, "control", "'batch': is the"),
        ("difference", {"measure": "acuracy"}, "measure", "'acuracy' is not one of test_accuracy, "),
        ("difference", {"measure": ["test_accuracy"]}, "measure", "['test_accuracy'] is not one of "),
        ("difference", {"control_measure": "acuracy"}, "control_measure", "'acuracy' is not one of "),
        ("difference", {"control_measure": "test_loss"}, "control_measure", "is not in fraction, as test_accuracy is"),
        ("difference", {"margin": 0}, "margin", "0: expected a number above 0"),
        ("difference", {"margin": -0.1}, "margin", "-0.1: expected a number above 0"),
        ("difference", {"margin": "0.01"}, "margin", "'0.01': expected a number above 0"),
        ("difference", {"margin": True}, "margin", "True: expected a number above 0"),
        ("difference", {"margin": float("nan")}, "margin", "nan: expected a number above 0"),
        ("difference", {"margin": float("inf")}, "margin", "inf: expected a number above 0"),
        ("difference", {"measure": "test_loss"}, "margin", "None: a tier's margin is of accuracies"),
        ("difference", {"measure": "shift_l2", "margin": 1}, "measure", "'shift_l2': is measured by the probe shift"),
        ("difference", {"target": 0.9}, "target", "0.9: means nothing to test_accuracy"),
        ("difference", {"over": "lr"}, "over", "'lr': means nothing to the shape difference"),
        ("difference", {"against": ["group", "none"]}, "against", "means nothing to the shape difference"),
        ("difference", {"reference": 1}, "reference", "1: means nothing to the shape difference"),
        ("difference", {"budget": 2}, "budget", "2: means nothing to the shape difference"),
        ("difference", {"levels": {"none": 1}}, "levels", "means nothing to the shape difference"),
        ("ratio", {"margin": 1}, "margin", "1: expected a number above 1"),
        ("ratio", {"margin": None}, "margin", "None: a tier's margin is of accuracies"),
        ("ratio", {"target": 1.0}, "target", "1.0: expected a fraction between 0 and 1"),
        ("ratio", {"target": "0.9"}, "target", "'0.9': expected a number"),
        ("ratio", {"within": 0.1}, "within", "0.1: means nothing to the shape ratio"),
        ("matched", {"control": None}, "control", "None: the shape matched needs it"),
        ("matched", {"measure": None}, "measure", "'test_accuracy': runs are matched in val_accuracy alone"),
        ("matched", {"measure": "val_loss", "margin": 1}, "measure", "'val_loss': runs are matched in val_accuracy"),
        ("matched", {"target": 1}, "target", "1.0: expected a fraction between 0 and 1"),
        ("level", {"reference": None}, "reference", "None: the shape level needs it"),
        ("level", {"reference": "0"}, "reference", "'0': expected a number"),
        ("level", {"control": "none"}, "control", "'none': means nothing to the shape level"),
        ("reach", {"over": None}, "over", "None: the shape reach needs it"),
        ("reach", {"over": "batch_size"}, "over", "'batch_size' is not one of lr, model.name, model.depth"),
        ("reach", {"over": "model.name"}, "over", "'model.name': tier small has no axis of two levels at least for it"),
        ("reach", {"margin": 0.5}, "margin", "0.5: expected a number above 1"),
        ("reach", {"within": 0}, "within", "0: expected a number above 0"),
        ("reach", {"control_measure": "val_accuracy"}, "control_measure", "means nothing to the shape reach"),
        ("span", {"margin": None}, "margin", "None: a tier's margin is of accuracies"),
        ("span", {"least": 0.5}, "least", "0.5: means nothing to the shape span"),
        ("reach", {"least": 50, "within": 0.1}, "least", "50: expected a fraction between 0 and 1"),
        ("reach", {"least": True, "within": 0.1}, "least", "True: expected a number"),
        ("reach", {"least": 0.5}, "least", "0.5: is of an accuracy that every run reports, and of a level within some"),
        ("reach", {"least": 0.5, "within": 0.1, "measure": "test_loss"}, "least", "0.5: is of an accuracy that every"),
        ("worst", {"over": "lr"}, "over", "'lr': the learning rate is chosen; only reach and span go over it"),
        ("worst", {"within": 0.1}, "within", "0.1: means nothing to the shape worst"),
        ("slope", {"levels": None}, "levels", "None: a slope is over a key, of a treatment (minus a control), or over"),
        ("slope", {"over": "model.depth"}, "levels", "a slope is over a key"),
        ("slope", {"control": "none"}, "levels", "a slope is over a key"),
        ("slope", {"levels": None, "over": "model.depth", "control": "none"}, "levels", "None: a slope is over a key"),
        ("slope", {"levels": None, "over": "lr", "treatment": "batch"}, "over", "'lr': the learning rate is chosen"),
        ("slope", {"levels": {"none": 1}}, "levels", "{'none': 1}: expected two arms at least"),
        ("slope", {"levels": {"none": 2, "batch": 1}}, "levels", "their levels in ascending order"),
        ("slope", {"levels": {"none": 1, "batch": 1}}, "levels", "their levels in ascending order"),
        ("slope", {"levels": {"none": 0, "batch": 1}}, "levels", "0: expected a number above 0"),
        ("slope", {"levels": {"none": 1, "btach": 2}}, "levels", "'btach' is not one of none, batch, group"),
        ("slope", {"levels": 3}, "levels", "3: expected arm: number for two arms at least"),
        ("slope", {"margin": None, "measure": "test_loss"}, "margin", "None: a tier's margin is of accuracies"),
        ("interaction", {"against": None}, "against", "None: the shape interaction needs it"),
        ("interaction", {"against": "group"}, "against", "'group': expected two arms, [treatment, control]"),
        ("interaction", {"against": ["group"]}, "against", "['group']: expected two arms, [treatment, control]"),
        ("interaction", {"against": ["group", "layer"]}, "against", "'layer' is not one of none, batch, group"),
        ("interaction", {"against": ["group", "group"]}, "against", "expected two arms that differ from each other"),
        ("interaction", {"against": ["batch", "none"]}, "against", "and from the pair before"),
        ("interaction", {"against": ["none", "batch"]}, "against", "and from the pair before"),
        ("search", {"budget": None}, "budget", "None: the shape search needs it"),
        ("search", {"budget": 0}, "budget", "0: expected a whole number of settings, 1 at least"),
        ("search", {"budget": 2.0}, "budget", "2.0: expected a whole number of settings, 1 at least"),
        ("search", {"budget": True}, "budget", "True: expected a whole number of settings, 1 at least"),
        ("search", {"budget": 6}, "budget", "6: tier small has 6 settings in all, and a small search tries fewer"),
        ("search", {"budget": 2, "over": None}, "budget", "2: tier small has 2 settings in all"),
        ("search", {"measure": "epochs_to_target", "margin": 1}, "measure", "a search is scored by what every run"),
    ],
)  # fmt: skip
def test_a_wrong_comparison_is_one_line_that_names_the_key(
    shape: str, change: dict[str, Any], key: str, message: str
) -> None:
    text = refused(raw(comparison(shape) | change, tiers=one_tier()))
    assert text.startswith(f"study.comparisons.0.{key}: ")
    assert message in text


def test_a_comparison_is_named_by_its_place() -> None:
    assert refused(raw(comparison("difference"), comparison("reach", margin=1))) == (
        "study.comparisons.1.margin: 1: expected a number above 1"
    )


def test_a_claim_goes_over_the_same_as_the_premises_that_guard_it() -> None:
    premise = comparison("difference", treatment="group", role="premise")
    worst = comparison("worst", role="premise")
    hint = "a claim goes over the same as the premises, which go over"
    entries = (comparison("difference"), premise, comparison("worst"))
    assert refused(raw(*entries, tiers=one_tier())) == f"study.comparisons.2.over: 'model.depth': {hint} nothing"
    entries = (comparison("worst"), comparison("difference"), worst | {"treatment": "group"})
    assert refused(raw(*entries, tiers=one_tier())) == f"study.comparisons.1.over: None: {hint} model.depth"
    # context is on no premise, and strata are never told apart by the learning rate
    beside = (comparison("worst", role="context"), comparison("reach"))
    assert len(study_from_dict(raw(comparison("difference"), premise, *beside, tiers=one_tier())).comparisons) == 4


def test_every_field_is_in_its_place_in_every_shape() -> None:
    """A field that a shape needs is refused where it lacks, and one that means nothing to it where it is given."""
    values = {"treatment": "batch", "control": "none", "control_measure": "val_accuracy", "over": "model.depth",
              "levels": {"none": 1, "batch": 2}, "against": ["group", "none"], "reference": 0.5, "within": 0.1,
              "budget": 1}  # fmt: skip
    for shape, (needed, optional) in SHAPES.items():
        for field in needed:
            assert f"{field}: None: the shape {shape} needs it" in refused(raw(comparison(shape, **{field: None})))
        for field in set(values) - needed - optional:
            assert f"means nothing to the shape {shape}" in refused(raw(comparison(shape, **{field: values[field]})))


def test_a_margin_or_target_that_a_tier_lacks_is_named_with_the_tier() -> None:
    tiers = raw()["tiers"]
    del tiers["full"]["margin"]
    assert refused(raw(tiers=tiers)) == "study.comparisons.0.margin: None: neither here nor in tier full"
    for shape in ("ratio", "matched"):
        assert refused(raw(comparison(shape))) == "study.comparisons.0.target: None: neither here nor in tier full"


@pytest.mark.parametrize("shape", ["reach", "span", "slope"])
@pytest.mark.parametrize("level", [None, "all", 0, -1, True, float("inf")])
def test_shapes_that_reckon_with_levels_need_numbers_above_zero(shape: str, level: object) -> None:
    entry = comparison(shape, levels=None, treatment="batch", control="none", over="model.depth")
    text = refused(raw(entry, tiers=one_tier(axes={"model.depth": [2, 4, level]})))
    assert text == (
        f"study.comparisons.0.over: 'model.depth': tier small has the level {level!r}, and the shape {shape} needs "
        "numbers above 0"
    )
    worst = raw(comparison("worst"), tiers=one_tier(axes={"model.depth": [2, 4, level]}))
    assert study_from_dict(worst).comparisons[0].over == "model.depth"  # the worst of any levels


def test_a_probe_that_a_measure_needs_is_asked_for() -> None:
    entry = comparison("difference", measure="shift_l2", margin=0.1)
    assert study_from_dict(raw(entry, tiers=one_tier(fixed={"probes": ["shift"]}))).comparisons[0].measure == "shift_l2"
    text = refused(raw(entry, tiers=one_tier(fixed={})))
    assert text == (
        "study.comparisons.0.measure: 'shift_l2': is measured by the probe shift, which tier small does not have among "
        "its probes"
    )
