"""argv -> RunConfigs: what users type, and what they mistype."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_studies import tier, write_study

from bnexp import options as tables
from bnexp.catalog import EVERY_STUDY, load_study
from bnexp.choices import config_root
from bnexp.compose import request_from_argv, wants_hydra
from bnexp.compose.studies import DECLARED
from bnexp.config import RunConfig
from bnexp.errors import ConfigError
from bnexp.identity import run_id
from bnexp.request import Part


def test_no_argument_is_one_cnn_with_batch_norm_on_digits() -> None:
    request = request_from_argv([])
    (config,) = request.configs
    assert (config.data.name, config.model.name, config.norm.kind, config.seed) == ("digits", "cnn", "batch", 0)


def test_grid_is_the_product_in_order_of_its_axes() -> None:
    request = request_from_argv(
        ["-m", "norm=none,batch", "norm.placement=before,after", "lr=0.1,1e-2", "seed=range(3)"]
    )
    assert len(request.configs) == 24
    assert len({run_id(config) for config in request.configs}) == 18  # no norm has no placement
    assert [config.seed for config in request.configs[:4]] == [0, 1, 2, 0]
    assert request.configs[3].lr == 0.01
    assert request.parts[0].swept == ("norm", "norm.placement", "lr", "seed")


def test_group_choice_brings_its_own_options() -> None:
    request = request_from_argv(["-m", "norm=batch,ghost", "norm.eps=1e-3"])
    assert [config.norm.option("ghost_size") for config in request.configs] == [None, 16]
    assert {config.norm.option("eps") for config in request.configs} == {1e-3}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sead=1"], "sead: .*did you mean 'seed'"),
        (["+sead=1"], "not added or deleted"),
        (["norm=btach"], r"norm: 'btach' is not one of .*did you mean 'batch'"),
        (["norm.placement=middle"], r"norm\.placement: 'middle' is not one of before, after"),
        (["lr=-1"], "lr: -1: expected a finite number above 0"),
        (["lr=nan"], "lr: nan"),
        (["lr="], "lr: ''"),
        (["batch_size=0"], "batch_size: 0"),
        (["lr=0.1,0.2"], "bnexp train -m lr=0.1,0.2"),
        (["lr=0.1", "lr=0.2"], "given twice"),
        (["norm.num_groups=4"], r"norm\.num_groups: .*no such key"),
        (["exec.precision=fp8"], r"exec\.precision: 'fp8'"),
        (["-m", "exec.slots=1,2"], "cannot be an axis"),
        (["study=placement"], "bnexp train -m study=placement"),
        (["-m", "study=typo"], "study: 'typo' is not one of .*lr-range, .*placement.*; all of them: study=all"),
        (["-m", "study=placment"], "did you mean 'placement'"),
        (["-m", "study=placement,typo"], "study: 'typo' is not one of"),
        (["-m", "study=placement", "tier=huge"], "tier: 'huge' is not one of small, medium, full"),
        (["-m", "study=placement", "study=noise"], "given twice; several studies are study=A,B"),
        (["--fork", "lr=0.1"], "it is a study that is forked: add study=NAME and -m"),
        (["tier=small"], "a tier belongs to a study"),
        (["model=3"], "model: '3' is not one of cnn"),
        (["model.name={a:1}"], r"model\.name"),
        (["norm=[a"], "norm=\\[a"),
        (["nonsense"], "expected KEY=VALUE"),
        (["--multirn"], "did you mean '--multirun'"),
        (["--config-dir", "/nowhere/at/all"], "not a folder"),
    ],
)
def test_bad_input_is_one_line_that_names_it(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        request_from_argv(argv)
    assert "\n" not in str(error.value)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Studies `norms` and `more` share the runs of two arms; `order` has a stratum and a medium tier."""
    write_study(tmp_path, "norms", tiers={"small": tier(probes=["statistics"])})
    arms = {"none": {"norm": "none"}, "batch": {"norm": "batch"}, "layer": {"norm": "layer"}}
    fixed = {"probes": ["shift"], "probes.shift.every": 20}
    write_study(tmp_path, "more", arms=arms, tiers={"small": tier(**fixed)})
    axes = {"model.activation": ["relu", "tanh"], "lr": [0.1, 0.2], "seed": [0, 1, 2, 3, 4, 5, 6]}
    write_study(
        tmp_path, "order",
        arms={"before": {"norm.placement": "before"}, "after": {"norm.placement": "after"}},
        comparisons=[{"treatment": "after", "control": "before", "shape": "difference", "direction": "higher"}],
        strata=["model.activation"],
        tiers={"small": tier(axes=axes, norm="batch"), "medium": tier(axes=axes, epochs=2)},
    )  # fmt: skip
    return tmp_path


def part_of(own: Path, study: str, *overrides: str) -> Part:
    (part,) = request_from_argv(["--config-dir", str(own), "-m", f"study={study}", *overrides]).parts
    return part


def grids(part: Part) -> dict[str, list[RunConfig]]:
    found: dict[str, list[RunConfig]] = {}
    for arm, config in zip(part.arms, part.configs, strict=True):
        found.setdefault(arm, []).append(config)
    return found


def test_study_expands_to_its_declared_grid(own: Path) -> None:
    part = part_of(own, "order")
    assert part.study is not None
    assert list(grids(part)) == ["before", "after"]
    for arm, grid in grids(part).items():
        assert {config.norm.placement for config in grid} == {arm}
        assert len(grid) == len({run_id(c) for c in grid}) == 2 * 2 * 7
    assert len({run_id(c) for c in part.configs}) == part.study.spec.num_runs("small") == 56
    assert part.swept == ("norm.placement", "model.activation", "lr", "seed")
    assert part.study.key == "order"
    assert not part.study.overrides
    medium = part_of(own, "order", "tier=medium")
    assert medium.study is not None
    assert medium.study.key == "order-medium"
    assert {config.epochs for config in medium.configs} == {2}


def test_study_with_an_axis_overridden_is_exploratory_and_lies_apart(own: Path) -> None:
    part = part_of(own, "order", "seed=0,1")
    assert part.study is not None
    assert {config.seed for config in part.configs} == {0, 1}
    assert part.study.key.startswith("order-exploratory-")
    assert part.study.overrides == ("seed=0,1",)


@pytest.mark.parametrize("override", ["norm.placement=after", "norm.placement=before,after"])
def test_what_the_arms_of_a_study_differ_in_cannot_be_overridden(override: str, own: Path) -> None:
    value = override.partition("=")[2]
    message = rf"^norm\.placement: '{value}': this is what the arms of order differ in"
    with pytest.raises(ConfigError, match=message):
        part_of(own, "order", override)
    assert request_from_argv(["-m", override]).configs


@pytest.mark.parametrize(
    "override",
    ["claim=x", "metric=val_accuracy", "margin=0.1", "comparisons=[]", "comparisons.0.margin=0.1", "study.margin=1",
     "arms.batch.norm=group", "choose.metric=val_loss", "strata=[]", "tiers.small.axes.seed=[0,1]", "target=0.9"],
)  # fmt: skip
@pytest.mark.parametrize("studies", ["order", "norms,more"])
def test_what_a_study_declares_is_frozen_and_never_overridden(override: str, studies: str, own: Path) -> None:
    who = "study order" if studies == "order" else "each study"
    key = re.escape(override.partition("=")[0])
    with pytest.raises(ConfigError, match=rf"^{key}: .*{who} declares this, and it is frozen: .* --config-dir$"):
        part_of(own, studies, override)


def test_what_a_study_declares_is_no_key_of_a_run() -> None:
    (config,) = request_from_argv([]).configs
    assert not DECLARED & {*config.to_dict(), "exec", "probes", "results", "study", "tier", "hydra"}


def test_every_arm_has_the_grid_of_the_overridden_axis(own: Path) -> None:
    part = part_of(own, "order", "lr=0.3,0.4", "seed=0")
    expected = [("relu", 0.3), ("relu", 0.4), ("tanh", 0.3), ("tanh", 0.4)]
    for grid in grids(part).values():
        assert [(c.model.activation, c.lr) for c in grid] == expected
    assert part.study is not None
    assert part.study.overrides == ("lr=0.3,0.4", "seed=0")


def test_an_override_that_makes_two_arms_the_same_runs_is_refused(own: Path) -> None:
    message = "study: 'order': with norm=none its arms before and after are the same runs: nothing to compare"
    with pytest.raises(ConfigError, match=message):
        part_of(own, "order", "norm=none")
    assert part_of(own, "order", "norm=group").configs
    same = {"one": {"norm": "batch"}, "other": {"norm": "batch"}}  # an A/A study: declared, so meant
    compared = [{"treatment": "other", "control": "one", "shape": "difference", "direction": "same"}]
    write_study(own, "same", arms=same, comparisons=compared)
    for overrides in ((), ("lr=0.3",)):
        both = grids(part_of(own, "same", *overrides))
        assert both["one"] == both["other"]
    spelled = {"one": {"norm": "batch"}, "other": {"norm": "batch", "norm.placement": "before"}}
    write_study(own, "spelled", arms=spelled, comparisons=compared)
    assert part_of(own, "spelled").configs


def test_without_a_study_there_is_one_part_without_arms() -> None:
    (part,) = request_from_argv(["-m", "norm=none,batch"]).parts
    assert (part.arms, part.study, part.swept) == ((), None, ("norm",))


def test_study_stays_declared_where_only_the_execution_differs(own: Path) -> None:
    request = request_from_argv(
        ["--config-dir", str(own), "-m", "study=order", f"results={own}/here", "exec.slots=1", "probes=[cost]"]
    )
    (study,) = request.studies
    assert study.key == "order"
    assert request.exec.results == own / "here"
    assert request.exec.slots == 1


def test_several_studies_are_parts_of_one_request(own: Path) -> None:
    argv = ["--config-dir", str(own), "-m", "study=norms,more", f"results={own}", "exec.slots=1", "probes=[cost]"]
    request = request_from_argv(argv)
    assert [part.study.key for part in request.parts if part.study] == ["norms", "more"]
    norms, more = request.parts
    assert len(norms.configs) == 12
    assert set(norms.configs) < set(more.configs)
    assert norms.probes == {"statistics": {}}
    assert more.probes == {"shift": {"every": 20}}
    assert request.exec.probes == {"cost": {}}
    assert (request.exec.results, request.exec.slots) == (own, 1)
    assert request.argv == tuple(argv)
    twice = request_from_argv(["--config-dir", str(own), "-m", "study=norms,norms"])
    assert len(twice.parts) == 1


def test_study_all_is_every_study_that_has_the_tier(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_own(group: str, folder: Path) -> dict[str, Path]:
        return {path.stem: path for path in sorted((folder / group).glob("*.yaml"))}

    monkeypatch.setattr("bnexp.compose.studies.choices", only_own)
    request = request_from_argv(["--config-dir", str(own), "-m", f"study={EVERY_STUDY}"])
    assert [part.study.spec.name for part in request.parts if part.study] == ["more", "norms", "order"]
    assert request.lacking == ()
    medium = request_from_argv(["--config-dir", str(own), "-m", f"study={EVERY_STUDY}", "tier=medium"])
    assert [study.key for study in medium.studies] == ["order-medium"]
    assert medium.lacking == ("more", "norms")
    with pytest.raises(ConfigError, match="tier: 'full': no study has it"):
        request_from_argv(["--config-dir", str(own), "-m", f"study={EVERY_STUDY}", "tier=full"])
    with pytest.raises(ConfigError, match="tier: 'medium' is not one of small; tiers of norms"):
        request_from_argv(["--config-dir", str(own), "-m", "study=norms,order", "tier=medium"])


@pytest.mark.parametrize("override", ["lr=0.1", "seed=0,1", "exec.precision=fp32", "norm=none", "epochs=1"])
def test_of_several_studies_no_grid_can_be_changed(override: str, own: Path) -> None:
    with pytest.raises(ConfigError, match="each study has a grid of its own: of several, only"):
        part_of(own, "norms,more", override)


def test_probes_of_the_user_come_in_addition_to_those_of_a_study(own: Path) -> None:
    argv = ["--config-dir", str(own), "-m", "study=more", "probes=[shift,gradients]", "probes.gradients.every=7"]
    request = request_from_argv(argv)
    assert request.parts[0].probes == {"shift": {"every": 20}}
    assert request.exec.probes == {"shift": {"every": 100}, "gradients": {"every": 7}}  # a study's options stand
    with pytest.raises(ConfigError, match=r"probes\.shift\.every: '2': study more declares what this probe measures"):
        request_from_argv([*argv, "probes.shift.every=2"])


def test_the_arms_of_a_study_have_the_same_probes(own: Path) -> None:
    arms = {"none": {"norm": "none", "probes.shift.every": 3}, "batch": {"norm": "batch"}}
    write_study(own, "odd", arms=arms, tiers={"small": tier(probes=["shift"])})
    with pytest.raises(ConfigError, match=r"study\.arms: 'odd': the arms have to have the same probes"):
        part_of(own, "odd")


def test_studies_that_fix_the_execution_in_different_ways_are_refused(own: Path) -> None:
    write_study(own, "here", tiers={"small": tier(**{"exec.slots": 2})})
    with pytest.raises(
        ConfigError, match=r"exec\.slots: 'None and 2': studies fix it in different ways: set exec\.slots"
    ):
        request_from_argv(["--config-dir", str(own), "-m", "study=norms,here"])
    assert request_from_argv(["--config-dir", str(own), "-m", "study=norms,here", "exec.slots=1"]).exec.slots == 1


def test_embedded_data_take_the_folder_of_the_others() -> None:
    for names in ("digits,mnist", "mnist,digits"):
        request = request_from_argv(["-m", f"data={names}", "data.root=here"])
        assert request.exec.data_root == Path("here")
    assert request_from_argv(["-m", "data=mnist,digits"]).exec.data_root is not None


def test_hydra_composes_each_combination_of_groups_once(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnexp.compose import composing

    calls = []
    real = composing.hydra_compose
    monkeypatch.setattr(
        composing, "hydra_compose", lambda *a, **k: (calls.append(k["overrides"][1:]), real(*a, **k))[1]
    )
    request = request_from_argv(["--config-dir", str(own), "-m", "study=norms,more,order"])
    assert len(request.configs) == 12 + 18 + 56
    assert sorted(calls) == [
        [], ["norm=batch"], ["norm=layer"], ["norm=none"], ["probes=[shift]"], ["probes=[statistics]"]
    ]  # fmt: skip


def test_a_study_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    wrong = write_study(tmp_path, "wrong", metric="speed")
    other = write_study(tmp_path, "yours").rename(tmp_path / "mine.yaml")
    every = write_study(tmp_path, EVERY_STUDY)
    for path, message in (
        (wrong, "study.metric: 'speed' is not one of"),
        (other, "study.name: 'yours': has to be the name of its file"),
        (every, "study.name: 'all': stands for all studies"),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"study: '{path.stem}': {path}: {message}")) as error:
            load_study(path)
        assert "\n" not in str(error.value)


def test_user_study_and_norm_from_config_dir(tmp_path: Path) -> None:
    write_study(
        tmp_path,
        "mine",
        arms={"before": {"norm.placement": "before"}, "after": {"norm.placement": "after"}},
        comparisons=[{"treatment": "after", "control": "before", "shape": "difference", "direction": "same"}],
    )
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "slow.yaml").write_text("defaults: [batch]\nmomentum: 0.01\n")
    request = request_from_argv(["--config-dir", str(tmp_path), "-m", "study=mine", "norm=slow", "model=cnn"])
    assert {config.norm.option("momentum") for config in request.configs} == {0.01}


def test_probes_are_chosen_as_a_list_and_are_no_part_of_the_run() -> None:
    plain = request_from_argv([])
    request = request_from_argv(["probes=[gradients,shift]", "probes.shift.every=7"])
    assert request.exec.probes == {"gradients": {"every": 100}, "shift": {"every": 7}}
    assert request_from_argv(["probes=statistics"]).exec.probes == {"statistics": {}}
    assert plain.exec.probes == {}
    assert run_id(request.configs[0]) == run_id(plain.configs[0])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["probes=[gradients,shfit]"], "probes: 'shfit' is not one of .*did you mean 'shift'"),
        (["probes=shift", "probes.shift.evry=2"], r"probes\.shift\.evry.*did you mean 'probes\.shift\.every'"),
        (["probes=shift", "probes.shift.every=0"], r"probes\.shift\.every: 0: expected a whole number of at least 1"),
        (["-m", "probes=shift,gradients"], r"several probes are a list: probes=\[shift,gradients\]"),
        (["probes=gradients,shift"], r"several probes are a list: probes=\[gradients,shift\]"),
        (["probes=[shift],[gradients]"], "cannot be an axis of a grid"),
        (["probes=none"], r"probes: 'none' is not one of .*none of them probes=\[\]"),
        (["probes=null"], r"probes: 'null' is not one of .*none of them probes=\[\]"),
        (["probes=shift", "probes.shift=null"], r"probes\.shift: None: .*set one of them: probes\.shift\.every"),
        (["probes=shift", "probes.shift={every:3}"], r"probes\.shift: .*set one of them: probes\.shift\.every"),
        (["probes.gradients.every=5"], r"gradients\.every: 5: choose this probe first: probes=\[gradients\]"),
        (["probes.gradients=null"], r"gradients: None: choose this probe first: probes=\[gradients\]"),
        (["probes=[shift]", "probes.gradients.every=3"], r"probes\.gradients\.every: 3: .*probes=\[shift,gradients\]"),
        (["probes.statistics.every=3"], r"this probe has no options; probes=\[statistics\] chooses it"),
        (["probes=statistics", "probes.statistics.every=3"], "this probe has no options"),
        (["probes=statistics", "probes.statistics=null"], "this has no keys to set"),
        (["norm=[batch,group]"], "norm: .*one at a time, or a grid: -m norm=batch,group"),
    ],
)
def test_probes_and_lists_that_cannot_be_used_are_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        request_from_argv(argv)


def test_where_may_be_a_list() -> None:
    (config,) = request_from_argv(["norm.where=[0,2]"]).configs
    assert config.norm.where == "0+2"


@pytest.mark.parametrize("value", ["[]", "null"])
def test_where_must_say_something(value: str) -> None:
    with pytest.raises(ConfigError, match=r"norm\.where: (\[\]|None): .*none of them: norm\.where=none"):
        request_from_argv([f"norm.where={value}"])


@pytest.mark.parametrize("argv", [["norm=mine"], ["-m", "norm=mine,batch"], ["-m", "study=mine"]])
def test_yaml_file_that_holds_no_mapping_is_named(argv: list[str], tmp_path: Path) -> None:
    for group in ("norm", "study"):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text("[kind, batch]\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml.*expected a mapping of keys, KEY: VALUE; it holds \['kind'"):
        request_from_argv(["--config-dir", str(tmp_path), *argv])


@pytest.mark.parametrize("name", ["norm/batch.yaml", "train.yaml"])
def test_users_file_named_as_one_of_ours_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("eps: 1\n")
    for argv in ([], ["norm=layer"]):
        with pytest.raises(ConfigError, match=f"--config-dir: .*holds {name}, and bnexp has a file of that name"):
            request_from_argv(["--config-dir", str(tmp_path), *argv])
    assert request_from_argv(["--config-dir", str(config_root())]).configs


def test_yaml_syntax_error_is_one_line_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "broken.yaml").write_text("kind: batch\n  eps: [1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml.* line \d+.*syntax error") as error:
        request_from_argv(["--config-dir", str(tmp_path), "norm=broken"])
    assert "\n" not in str(error.value)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "bad.yaml").write_text("name: [x\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml line \d"):
        request_from_argv(["--config-dir", str(tmp_path), "-m", "study=bad"])


@pytest.mark.parametrize(
    ("group", "choices"),
    [
        ("data", tables.DATASETS), ("model", tables.MODEL_OPTIONS), ("norm", tables.NORM_OPTIONS),
        ("optim", tables.OPTIM_OPTIONS), ("schedule", tables.SCHEDULE_OPTIONS),
        ("probes", tables.PROBE_OPTIONS),
    ],
)  # fmt: skip
def test_every_choice_has_a_config_file_that_composes(group: str, choices: tuple[str, ...]) -> None:
    files = {path.stem for path in (config_root() / group).glob("*.yaml")}
    assert files == set(choices)
    for name in files:
        request_from_argv([f"{group}={name}"])
        first = (config_root() / group / f"{name}.yaml").read_text().splitlines()[0]
        assert first.startswith("# ")


def test_hydra_takes_its_own_flags_launchers_and_sweepers() -> None:
    assert wants_hydra(["--hydra-help"])
    assert wants_hydra(["--cfg", "job"])
    assert wants_hydra(["-m", "hydra/launcher=joblib", "lr=0.1,0.2"])
    assert not wants_hydra(["-m", "lr=0.1,0.2"])
