"""The command line: help at once, mistakes in one line, exit codes."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bnexp.choices import HELP, config_root
from bnexp.cli import COMMANDS, USAGE, main

Bnexp = Callable[..., subprocess.CompletedProcess[str]]


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from bnexp.cli import main; main(['--help']); "
        "heavy = {'torch', 'hydra', 'omegaconf', 'pandas', 'numpy', 'matplotlib', 'scipy', 'sklearn', 'tqdm', 'yaml'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == USAGE
    assert all(f"bnexp {command}" in USAGE for command in COMMANDS)


def test_version_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "bnexp 0.1.0\n"
    assert main(["trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sead=1"], "did you mean 'seed'"),
        (["norm=btach"], "did you mean 'batch'"),
        (["norm.placement=middle"], "before, after"),
        (["lr=-1"], "lr: -1"),
        (["lr=nan"], "lr: nan"),
        (["batch_size=0"], "batch_size: 0"),
        (["batch_size=5000"], "batch_size: 5000: there are only 1293 training examples"),
        (["batch_size=1", "model=mlp"], "batch_size: 1: norm=batch needs more than one value per channel"),
        (["norm=group", "norm.num_groups=3"], "norm.num_groups: 3: does not divide the 16 channels"),
        (["model=resnet", "model.depth=21"], "6n+2"),
        (["data.train_limit=5000"], "data.train_limit: 5000"),
        (["data=folder"], "data.root"),
        (["data=folder", "data.root=nowhere"], "is not a folder"),
        (["-m", "study=typo"], "study: 'typo'"),
        (["study=placement"], "bnexp train -m study=placement"),
        (["results=/dev/null/here"], "cannot write to"),
        (["exec.device=cuda"], "exec.device"),
        (["data.image_size=16"], "data.image_size"),
        (["results=2024"], "results: 2024: expected a folder"),
        (["results=null"], "results: None: expected a folder"),
        (["data.root=5"], "data.root: 5: expected a folder"),
        (["schedule=step", "schedule.milestones=[0.5,a]"], "schedule.milestones"),
        (["schedule=onecycle", "schedule.warmup_epochs=1"], "one cycle is its own warm-up"),
        (["-m", "lr=interval(0.1,1)"], "lr: 'interval(0.1,1)'"),
        (["-m", "study=placement", "hydra/launcher=basic"], "leave out the launcher"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    if argv == ["exec.device=cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    assert main(["train", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bnexp: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("results/runs/*"))


def test_no_traceback_reaches_the_user(bnexp: Bnexp) -> None:
    for argv in (
        ["train", "norm=btach"],
        ["train", "batch_size=5000"],
        ["report"],
        ["report", "nosuch"],
        ["status", "x"],
    ):
        done = bnexp(*argv)
        assert done.returncode == 2, argv
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("bnexp: ")


def test_train_help_lists_every_choice_with_a_line_of_its_own(bnexp: Bnexp) -> None:
    shown = bnexp("train", "--help")
    assert shown.returncode == 0
    for folder in ("data", "model", "norm", "optim", "schedule", "probes", "study"):
        section = shown.stdout.partition(f"\n  {folder}\n")[2].splitlines()
        lines = list(itertools.takewhile(lambda line: line.startswith("    "), section))
        assert {line.split()[0] for line in lines} >= {path.stem for path in (config_root() / folder).glob("*.yaml")}
        assert all(len(line.split()) > 2 for line in lines), folder
    assert all(f"  {key}: " in shown.stdout for key in ("lr", "batch_size", "epochs", "seed", "probes", "results"))


def test_train_help_lists_the_users_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "mine.yaml").write_text("# Batch norm with a slow average.\ndefaults: [batch]\n")
    assert main(["train", "--config-dir", str(tmp_path), "--help"]) == 0
    assert re.search("mine +Batch norm with a slow average.", capsys.readouterr().out)


def test_examples_of_the_help_can_be_pasted_into_a_shell() -> None:
    for text in (USAGE, HELP):
        assert "'seed=range(5)'" in text
        assert not re.search(r" \w+=\S*[(\[]", text.replace("$(", ""))


@pytest.fixture
def complete(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], set[str]]:
    def ask(line: str) -> set[str]:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", sys.argv)
        assert main(["-sc", "query=bash"]) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        return set(shown.out.split())

    return ask


def test_shell_asks_a_process_of_its_own(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "complete " in bnexp("-sc", "install=bash").stdout
    monkeypatch.setenv("COMP_LINE", "bnexp train norm.pl")
    assert bnexp("-sc", "query=bash").stdout == "norm.placement=\n"
    monkeypatch.setenv("COMP_LINE", "bnexp train norm=gr")
    assert bnexp("-sc", "query=fish").stdout == "norm=group\nnorm=group_ws\n"


def test_shell_completes_commands_choices_and_keys(complete: Callable[[str], set[str]]) -> None:
    assert {"train", "plan", "status", "report"} <= complete("bnexp ")
    assert complete("bnexp train -m lr=0.1 norm=batch") == {"norm=batch", "norm=batch_renorm"}
    assert complete("bnexp train -m lr=0.1 norm=batch,gh") == {"norm=batch,ghost"}
    assert complete("bnexp plan probes=s") == {"probes=sampling", "probes=shift", "probes=statistics"}
    assert complete("bnexp plan probes=[s") == {"probes=[sampling", "probes=[shift", "probes=[statistics"}
    assert complete("bnexp plan 'probes=[shift,s") == {"probes=[shift,sampling", "probes=[shift,statistics"}
    assert complete("bnexp train -m study=pl") == {"study=placement"}
    assert complete("bnexp train -m study=placement tier=") == {"tier=small", "tier=medium", "tier=full"}
    assert complete("bnexp train -m study=al") == {"study=alternatives", "study=all"}
    assert complete("bnexp train -m study=placement,lr-") == {"study=placement,lr-range"}
    assert complete("bnexp train -m study=all tier=m") == {"tier=medium"}
    assert complete("bnexp train -m st") == {"study=", "stop="}
    assert complete("bnexp train -m study=placement ti") == {"tier="}
    assert complete("bnexp train -m study=placement stop=") == {"stop=decided"}
    assert complete("bnexp train norm.pl") == {"norm.placement="}
    assert complete("bnexp train -m study=placement --cfg job 'seed=range(3)' norm=batch,ghost norm.gh") == {
        "norm.ghost_size="
    }
    assert complete("bnexp status norm=b") == set()


def test_shell_completes_the_users_files(complete: Callable[[str], set[str]], tmp_path: Path) -> None:
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "mine.yaml").write_text("defaults: [batch]\nmomentum: 0.01\n")
    assert complete(f"bnexp train --config-dir {tmp_path} norm=m") == {"norm=mine"}
    assert complete(f"bnexp train --config-dir={tmp_path} norm=mine norm.mo") == {"norm.momentum="}


def test_a_tab_behind_nonsense_says_nothing(complete: Callable[[str], set[str]], tmp_path: Path) -> None:
    for line in ("norm=btach norm.pl", "norm.eps.x.", "--config-dir", "--config-dir ", "-m study=x tier=",
                 f"--config-dir {tmp_path}/none norm=b"):  # fmt: skip
        assert complete(f"bnexp train {line}") == set()


@pytest.mark.parametrize("argument", ["install=foo", "query=foo", "bogus", "install"])
def test_an_unknown_shell_is_one_line(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-sc", argument]) == 2
    shown = capsys.readouterr().err
    assert "install=bash, install=fish, install=zsh" in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("probes=gradients,shift", "several probes are a list: probes=[gradients,shift]"),
        ("probes=none", "none of them probes=[]"),
        ("norm=btach", "did you mean 'batch'"),
        ("norm=[a", "argument: 'norm=[a': no viable alternative"),
    ],
)
def test_a_wrong_choice_is_explained_where_hydra_composes(
    override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--cfg", "job", override]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_cfg_comes_from_hydra(bnexp: Bnexp) -> None:
    config = bnexp("train", "--cfg", "job", "norm=ghost")
    assert "ghost_size: 16" in config.stdout


def test_image_folder_end_to_end(bnexp: Bnexp, image_folder: Path) -> None:
    argv = ("train", "data=folder", f"data.root={image_folder}", "data.image_size=8", "batch_size=8", "epochs=3",
            "data.val_fraction=0.2", "exec.precision=fp32")  # fmt: skip
    done = bnexp(*argv)
    assert done.returncode == 0, done.stderr
    assert "finished  test 100.00 %" in done.stdout
    (image_folder / "train" / "dark" / "0.png").write_bytes(b"not an image")
    broken = bnexp(*argv)
    assert broken.returncode == 2
    assert "broken image" in broken.stderr
    assert "0.png" in broken.stderr


def test_studies_lists_every_study_file(bnexp: Bnexp) -> None:
    import json

    rows = json.loads(bnexp("studies", "--json").stdout)["studies"]
    assert {row["name"] for row in rows} >= {"placement", "lr-range"}
    assert all(row["num_runs"]["small"] > 0 for row in rows)
    (dropout,) = (row for row in rows if row["name"] == "dropout")
    assert (dropout["sources"], dropout["against"]) == (["003_b90cbfe2d783082f"], ["000_38d31ce5589bc0f3"])
    shown = bnexp("studies").stdout
    assert "says so: Meaning for Businesses\n" in shown
    assert "says the opposite: Role and Importance\n" in shown
    assert "003_b90cbfe2d783082f" not in shown


def test_user_launcher_trains_each_job_and_bad_input_stays_one_line(bnexp: Bnexp, tmp_path: Path) -> None:
    argv = ("train", "-m", "hydra/launcher=basic", "seed=0,1", "epochs=1", "data.train_limit=100")
    done = bnexp(*argv)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("results/runs/*/record.json"))) == 2
    bad = bnexp(*argv, "lr=-1")
    assert bad.returncode == 2
    assert "bnexp: lr: -1" in bad.stderr
