"""argv -> RunConfigs: what users type, and what they mistype."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnexp import options as tables
from bnexp.choices import config_root
from bnexp.compose import list_studies, request_from_argv, wants_hydra
from bnexp.errors import ConfigError
from bnexp.identity import run_id
from bnexp.study import study_from_dict


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
    assert request.swept == ("norm", "norm.placement", "lr", "seed")


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
        (["-m", "study=typo"], "study: 'typo' is not one of lr-range, placement"),
        (["-m", "study=placment"], "did you mean 'placement'"),
        (["-m", "study=placement,lr-range"], "one study at a time"),
        (["-m", "study=placement", "tier=huge"], "tier: 'huge' is not one of small, medium"),
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


def test_study_expands_to_its_declared_grid() -> None:
    request = request_from_argv(["-m", "study=placement"])
    assert request.study is not None
    axes = request.study.spec.tiers["small"].axes
    assert set(request.arms) == {"before", "after"}
    for arm in ("before", "after"):
        grid = [c for c, name in zip(request.configs, request.arms, strict=True) if name == arm]
        assert {config.norm.placement for config in grid} == {arm}
        assert len(grid) == len({run_id(c) for c in grid}) == _product(axes)
    assert len({run_id(c) for c in request.configs}) == request.study.spec.num_runs("small") == 2 * _product(axes)
    assert request.swept[0] == "norm.placement"
    assert request.study.key == "placement"
    assert not request.study.overrides


def test_study_with_an_axis_overridden_is_exploratory_and_lies_apart() -> None:
    request = request_from_argv(["-m", "study=placement", "seed=0,1"])
    assert request.study is not None
    assert {config.seed for config in request.configs} == {0, 1}
    assert request.study.key.startswith("placement-exploratory-")
    assert request.study.overrides == ("seed=0,1",)


@pytest.mark.parametrize("override", ["norm.placement=after", "norm.placement=before,after"])
def test_what_the_arms_of_a_study_differ_in_cannot_be_overridden(override: str) -> None:
    value = override.partition("=")[2]
    message = rf"^norm\.placement: '{value}': this is what the arms of placement differ in"
    with pytest.raises(ConfigError, match=message):
        request_from_argv(["-m", "study=placement", override])
    assert request_from_argv(["-m", override]).configs


@pytest.mark.parametrize(
    "override", ["claim=x", "metric=val_accuracy", "margin=0.1", "comparisons=[]", "study.margin=1"]
)
def test_what_a_study_claims_cannot_be_overridden(override: str) -> None:
    with pytest.raises(ConfigError, match="no such key"):
        request_from_argv(["-m", "study=placement", override])


def test_every_arm_has_the_grid_of_the_overridden_axis() -> None:
    request = request_from_argv(["-m", "study=lr-range", "lr=0.1,0.2", "seed=0"])
    grids = {
        arm: [(c.model.init, c.lr) for c, name in zip(request.configs, request.arms, strict=True) if name == arm]
        for arm in ("no norm", "batch")
    }
    assert grids["no norm"] == grids["batch"] == [("he", 0.1), ("he", 0.2), ("default", 0.1), ("default", 0.2)]
    kinds = {(name, c.norm.kind) for c, name in zip(request.configs, request.arms, strict=True)}
    assert kinds == {("no norm", "none"), ("batch", "batch")}
    assert request.study is not None
    assert request.study.overrides == ("lr=0.1,0.2", "seed=0")


def test_without_a_study_there_are_no_arms() -> None:
    assert request_from_argv(["-m", "norm=none,batch"]).arms == ()


def test_study_stays_declared_where_only_the_execution_differs(tmp_path: Path) -> None:
    request = request_from_argv(["-m", "study=placement", f"results={tmp_path}", "exec.slots=1"])
    assert request.study is not None
    assert request.study.key == "placement"
    assert request.exec.results == tmp_path


def test_user_study_and_norm_from_config_dir(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    text = (config_root() / "study" / "placement.yaml").read_text().replace("name: placement", "name: mine")
    (tmp_path / "study" / "mine.yaml").write_text(text)
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "slow.yaml").write_text("defaults: [batch]\nmomentum: 0.01\n")
    assert "mine" in list_studies(tmp_path)
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


@pytest.mark.parametrize("change", [{"claims": 1}, {"metric": "test_acuracy"}, {"tiers": {"tiny": {}}}])
def test_study_file_with_a_wrong_key_is_refused(change: dict[str, object]) -> None:
    raw = list_studies()["placement"].declaration("small") | change
    with pytest.raises(ConfigError, match="study"):
        study_from_dict(raw)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("treatment", "aftr", "'aftr' is not one of before, after .did you mean 'after'"),
        ("treatment", ["after"], r"\['after'\] is not one of before, after"),
        ("treatment", "before", "before': is the treatment too"),
        ("control", "after", "'after': is the treatment too"),
        ("control", None, "None is not one of before, after"),
        ("shape", "diference", "'diference' is not one of difference, healthy_lr"),
        ("direction", "up", "'up' is not one of higher, lower, same"),
        ("margin", 0, "0: expected a number above 0"),
        ("margin", -0.01, "-0.01: expected a number above 0"),
        ("margin", "0.01", "'0.01': expected a number above 0"),
        ("margin", True, "True: expected a number above 0"),
        ("margin", float("nan"), "nan: expected a number above 0"),
        ("margin", float("inf"), "inf: expected a number above 0"),
        ("metric", "test_loss", "no such key; keys here: .*margin"),
    ],
)
def test_a_wrong_comparison_is_one_line_that_names_it(key: str, value: object, message: str) -> None:
    raw = list_studies()["placement"].declaration("small")
    raw["comparisons"] = [{**raw["comparisons"][0], key: value}]
    named = "control" if "is the treatment too" in message else key
    with pytest.raises(ConfigError, match=rf"^study\.comparisons\.0\.{named}: .*{message}") as error:
        study_from_dict(raw)
    assert "\n" not in str(error.value)


def test_the_second_comparison_is_named_by_its_place_and_a_missing_key_by_its_name() -> None:
    raw = list_studies()["lr-range"].declaration("small")
    (first,) = raw["comparisons"]
    raw["comparisons"] = [first, first | {"margin": 1}]  # a ratio
    with pytest.raises(ConfigError, match=r"^study\.comparisons\.1\.margin: 1: expected a number above 1$"):
        study_from_dict(raw)
    raw["comparisons"] = [{key: value for key, value in first.items() if key != "shape"}]
    with pytest.raises(ConfigError, match=r"^study\.comparisons\.0\.shape: None: this key is missing$"):
        study_from_dict(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"comparisons": []}, r"study\.comparisons: \[\]: expected a list"),
        ({"comparisons": "after"}, r"study\.comparisons: 'after': expected a list"),
        ({"comparisons": [3]}, r"study\.comparisons\.0: 3: expected the keys"),
        ({"arms": {"before": {"norm.placement": "before"}}}, r"study\.arms: .*two arms at least"),
        ({"arms": ["before", "after"]}, r"study\.arms: .*two arms at least"),
        ({"arms": {"before": {"lr": 1}, "after": {"lr": 2}}}, r"study\.tiers\.small: 'lr': .*what the arms differ in"),
        ({"choose": {"factor": "lr", "metric": "val_accuracy", "seeds": []}}, r"study\.choose\.seeds: \[\]"),
        ({"choose": {"factor": "lr", "metric": "val_accuracy", "seeds": [0, 99]}}, r"study\.choose\.seeds: \[0, 99\]"),
        (
            {"choose": {"factor": "lr", "metric": "val_accuracy", "seeds": 0}},
            r"study\.choose\.seeds: 0: expected a list",
        ),
        ({"tiers": {"small": {"fixed": {}, "axes": {"seed": [0, 1, 2, 1]}}}}, r"axes\.seed: .*a value is given twice"),
        ({"tiers": {"small": {"fixed": {}, "axes": {"seed": ["a"]}}}}, r"axes\.seed: .*expected a list of seeds"),
        ({"tiers": {"small": {"fixed": {}, "axes": {"lr": [0.1]}}}}, r"axes\.seed: None: expected a list of seeds"),
    ],
)
def test_wrong_arms_comparisons_and_seeds_are_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        study_from_dict(list_studies()["placement"].declaration("small") | change)
    assert "\n" not in str(error.value)


def test_a_tuning_seed_is_never_a_reported_one_and_some_are_left() -> None:
    raw = list_studies()["placement"].declaration("small")
    assert not set(study_from_dict(raw).seeds("small")) & set(raw["choose"]["seeds"])
    raw["choose"]["seeds"] = list(raw["tiers"]["small"]["axes"]["seed"])
    with pytest.raises(ConfigError, match="some but not all of the seeds of tier small"):
        study_from_dict(raw)


def test_study_cannot_choose_by_test() -> None:
    raw = list_studies()["placement"].declaration("small")
    raw["choose"]["metric"] = "test_accuracy"
    with pytest.raises(ConfigError, match="never looks at test"):
        study_from_dict(raw)


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


def _product(axes: dict[str, tuple[object, ...]]) -> int:
    count = 1
    for values in axes.values():
        count *= len(values)
    return count
