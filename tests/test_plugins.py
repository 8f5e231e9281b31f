"""Norms, models and data sets from a user's package: a wheel that pip installs, found by its entry points."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bnexp import plugins
from bnexp.cli import main
from bnexp.compose import request_from_argv
from bnexp.config import RunConfig, run_config_from_dict
from bnexp.engine.build import build_network
from bnexp.errors import ConfigError
from bnexp.planned import resolve_runs
from bnexp.store import Store

CODE = '''
import functools

import numpy as np
import torch
from torch import nn


class RmsNorm:
    """Divides by the root mean square over channels."""

    def __init__(self, eps: float = 1e-5, scale: bool = True, gain: float = 1.0) -> None:
        if eps <= 0:
            raise ValueError("eps must be above 0\\nand more of it")
        self.eps, self.scale = eps, scale

    def make(self, num_features, *, ndim):
        return _Rms(num_features, ndim, self.eps)


class _Rms(nn.Module):
    def __init__(self, num_features, ndim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(num_features, *[1] * (ndim - 2))), eps

    def forward(self, x):
        if float(x.detach().abs().max()) < 0:  # a look at the data, which the meta device does not have
            raise AssertionError
        return self.weight * x / (x.square().mean(1, keepdim=True) + self.eps).sqrt()


class HandWritten(nn.Module):
    """Batch norm with statistics shaped as maps are."""

    def __init__(self, num_features):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(1, num_features, 1, 1))
        self.register_buffer("running_var", torch.ones(1, num_features, 1, 1))

    def forward(self, x):
        if self.training:
            self.running_mean = 0.9 * self.running_mean + 0.1 * x.detach().mean((0, 2, 3), keepdim=True)
        return x - self.running_mean


class Maps:
    def make(self, num_features, *, ndim):
        return HandWritten(num_features)


small_rms = functools.partial(RmsNorm, eps=1e-3)


class Linear(nn.Module):
    """One linear layer on the pixels."""

    def __init__(self, in_channels, image_size, num_classes, *, depth, width, units, bias: bool = True):
        super().__init__()
        self.input_norm = units.input_norm(in_channels)
        self.head = nn.Linear(in_channels * image_size**2, num_classes, bias=bias)

    def forward(self, x):
        return self.head(self.input_norm(x).flatten(1))


def stripes(root):
    """Horizontal against vertical stripes."""
    rng = np.random.default_rng(0)
    def draw(count):
        labels = rng.integers(0, 2, count)
        bars = (np.arange(8) // 2 % 2 * 200)[None, None, :, None] * np.ones((count, 1, 1, 8))
        images = np.where(labels[:, None, None, None] == 1, bars, bars.transpose(0, 1, 3, 2))
        return (images + rng.integers(0, 50, images.shape)).astype(np.uint8), labels
    return *draw(200), *draw(50)


class NoMake:
    pass


class WrongSignature:
    def make(self, num_features):
        return nn.Identity()


class WrongShape:
    def make(self, num_features, *, ndim):
        return nn.AdaptiveAvgPool2d(1)


class NeedsOption:
    def __init__(self, strength):
        pass


class RaisesInMake:
    def make(self, num_features, *, ndim):
        raise KeyError(num_features)


class _Raises(nn.Identity):
    def forward(self, x):
        raise ArithmeticError("no number")


class RaisesInForward:
    def make(self, num_features, *, ndim):
        return _Raises()


class _Double(nn.Identity):
    def forward(self, x):
        return x.double()


class WrongType:
    def make(self, num_features, *, ndim):
        return _Double()


class Wide(RmsNorm):
    def __init__(self, width: int = 3, init: str = "ones"):
        super().__init__()
        assert (width, init) == (5, "zeros")


class Reserved:
    def __init__(self, where: str = "here"):
        pass


class Scaled(Linear):
    """One linear layer, scaled."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return super().forward(x) * self.scale.mean()


class RaisesInInit(Linear):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        raise ArithmeticError("no number")


class Mismatch(Linear):
    def forward(self, x):
        return self.head(self.input_norm(x).flatten(1)[:, 1:])


class WrongLogits(Linear):
    def forward(self, x):
        return super().forward(x)[:, :3]


def wrong_images(root):
    images, labels, *test = stripes(root)
    return images.astype(np.float32), labels, *test


def no_files(root):
    return open(f"{root}/nowhere/at/all")


def ragged(root):
    return [[1, 2], [3]], *stripes(root)[1:]


constant = 3
'''
ENTRY_POINTS = """
[bnexp.norms]
rms = user_norms:RmsNorm
small_rms = user_norms:small_rms
maps = user_norms:Maps
no_make = user_norms:NoMake
wrong_signature = user_norms:WrongSignature
wrong_shape = user_norms:WrongShape
needs_option = user_norms:NeedsOption
missing = user_norms:Missing
raises_in_make = user_norms:RaisesInMake
raises_in_forward = user_norms:RaisesInForward
wrong_type = user_norms:WrongType
wide = user_norms:Wide
reserved = user_norms:Reserved
constant = user_norms:constant
[bnexp.models]
linear = user_norms:Linear
wrong_logits = user_norms:WrongLogits
scaled = user_norms:Scaled
raises_in_init = user_norms:RaisesInInit
mismatch = user_norms:Mismatch
[bnexp.data]
stripes = user_norms:stripes
wrong_images = user_norms:wrong_images
no_files = user_norms:no_files
ragged = user_norms:ragged
"""
SMALL = ("epochs=1", "data.train_limit=100", "exec.executor=serial")
User = Callable[..., subprocess.CompletedProcess[str]]


def write_wheel(folder: Path) -> Path:
    """A wheel of one module, as a build tool would make it."""
    info = "user_norms-1.0.dist-info"
    files = {
        "user_norms.py": CODE,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: user-norms\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": ENTRY_POINTS,
    }
    lines = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(text.encode())}")
    path = folder / "user_norms-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]) + "\n")
    return path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, str(write_wheel(folder))], check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture
def user(installed: Path, tmp_path: Path) -> User:
    """bnexp where that package is installed."""

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BNEXP_")}
        environment |= {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
        environment["BNEXP_STATE"] = os.environ["BNEXP_STATE"]
        command = [sys.executable, "-m", "bnexp", *argv]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    return run


def test_users_norm_model_and_data_train_in_a_grid_and_are_reported(user: User, tmp_path: Path) -> None:
    argv = ("train", "-m", "data=stripes", "norm=rms,batch", "seed=0,1", "epochs=2", "batch_size=32")
    done = user(*argv, "norm.placement=after", "probes=[gradients,affine]")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished") == 5  # four runs and the summary
    assert "nothing left to train" in user(*argv, "norm.placement=after").stdout
    report = user("report")
    assert report.returncode == 0, report.stderr
    assert "rms" in report.stdout
    # the user's option is a key, and part of the run's identity
    assert "nothing left" not in user(*argv, "norm.placement=after", "norm.eps=1e-3").stdout


@pytest.fixture
def site(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of that package, importable in this process, which runs in an empty folder."""
    folder = tmp_path / "site"
    shutil.copytree(installed, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "argv", sys.argv)  # which Hydra's own path sets
    reload()
    yield folder
    reload()


def reload() -> None:
    """As a new process would find it."""
    sys.modules.pop("user_norms", None)
    importlib.invalidate_caches()
    plugins._entries.cache_clear()


def edit(site: Path, old: str, new: str) -> None:
    path = site / "user_norms.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    reload()


def resolve(*argv: str) -> dict[str, RunConfig]:
    request = request_from_argv(argv)
    return dict(resolve_runs(request.configs, request.exec, {}))


@pytest.mark.usefixtures("site")
def test_users_model_takes_its_option_and_our_norm(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "model=linear", "model.bias=false", "norm.where=input", "norm.affine=none", "epochs=3"]
    assert main(argv) == 0
    assert "finished" in capsys.readouterr().out


def test_users_choices_are_listed_with_docstring_and_package(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "user_norms-1.0.dist-info" / "entry_points.txt").write_text(
        ENTRY_POINTS + "[bnexp.models]\ncnn = user_norms:Linear\n"
    )
    reload()
    assert main(["train", "--help"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "rms Divides by the root mean square over channels. (package user-norms)" in lines
    assert "linear One linear layer on the pixels. (package user-norms)" in lines
    assert "stripes Horizontal against vertical stripes. (package user-norms)" in lines
    assert "no_make from package user-norms" in lines
    (missing,) = [line for line in lines if line.startswith("missing ")]
    assert missing.startswith("missing cannot be imported: AttributeError: ")
    assert missing.endswith("(package user-norms)")
    assert len([line for line in lines if line.startswith("cnn ")]) == 1


def test_users_choices_and_options_are_completed(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for line, expected in (
        ("bnexp train norm=rm", {"norm=rms"}),
        ("bnexp train -m norm=batch,rm", {"norm=batch,rms"}),
        ("bnexp train data=str", {"data=stripes"}),
        ("bnexp train norm=rms norm.ga", {"norm.gain="}),
        ("bnexp train norm=missing norm.ga", set()),
    ):
        monkeypatch.setenv("COMP_LINE", line)
        assert main(["-sc", "query=bash"]) == 0
        shown = capsys.readouterr()
        assert set(shown.out.split()) == expected
        assert shown.err == ""


@pytest.mark.usefixtures("site")
def test_what_a_users_model_draws_depends_on_the_seed_alone() -> None:
    def build(seed: int) -> list[float]:
        (config,) = request_from_argv(["model=scaled", f"seed={seed}"]).configs
        model = build_network(config, in_channels=1, image_size=8, num_classes=10)
        return [float(value) for value in model.state_dict()["scale"]]

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert build(0) == first
    assert build(1) != first


def test_edited_code_is_another_run(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "norm=rms", "model=linear", "norm.where=input", *SMALL]
    assert main(argv) == 0
    assert main(argv) == 0
    assert "already done" in capsys.readouterr().out
    edit(site, "return self.weight * x", "return 2 * self.weight * x")
    assert main(argv) == 0
    assert "already done" not in capsys.readouterr().out
    digest = hashlib.sha256((site / "user_norms.py").read_bytes()).hexdigest()[:12]
    configs = [json.loads(path.read_text()) for path in Path().glob("results/runs/*/config.json")]
    codes = {(raw["norm"]["code"], raw["model"]["code"]) for raw in configs}
    assert len(codes) == 2
    assert (f"user-norms 1.0 {digest}",) * 2 in codes
    for raw in configs:
        assert run_config_from_dict(raw).to_dict() == raw


@pytest.mark.usefixtures("site")
def test_an_option_has_one_spelling_and_ours_have_no_code() -> None:
    assert len(resolve("-m", "norm=rms", "norm.gain=1,1.0")) == 1
    assert len(resolve("-m", "norm=rms", "norm.gain=1,2")) == 2
    (config,) = resolve("norm=batch").values()
    assert config.norm.option("code") is None
    with pytest.raises(ConfigError, match=r"norm\.code: 'code': no such key"):
        request_from_argv(["norm=batch", "norm.code=1"])
    with pytest.raises(ConfigError, match=r"norm\.code: 'code': no such key"):
        request_from_argv(["norm=rms", "norm.code=1"])


@pytest.mark.usefixtures("site")
def test_a_launcher_finds_plugins_in_every_spelling_of_a_grid(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "-m", "hydra/launcher=basic", "norm=choice(rms,batch)", "model=mlp", *SMALL]
    assert main(argv) == 0, capsys.readouterr().err
    assert len(list(Path().glob("results/runs/*/record.json"))) == 2
    assert main(["train", "-m", "hydra/launcher=basic", "norm=rms", "norm.gain=1,1.0", "model=mlp", *SMALL]) == 0
    assert len(list(Path().glob("results/runs/*/record.json"))) == 2


@pytest.mark.usefixtures("site")
def test_an_option_of_a_norm_may_be_named_as_a_key_of_models() -> None:
    assert len(resolve("norm=wide", "norm.width=5", "norm.init=zeros")) == 1


def test_a_choice_named_as_one_of_ours_is_refused_with_its_package(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = site / "user_norms-1.0.dist-info" / "entry_points.txt"
    path.write_text(ENTRY_POINTS.replace("[bnexp.norms]", "[bnexp.norms]\nbatch = user_norms:RmsNorm"))
    reload()
    for argv in (["norm=batch"], ["norm=batch", "-m", "hydra/launcher=basic"], []):
        assert main(["train", *argv]) == 2
        shown = capsys.readouterr().err
        assert "norm.kind: 'batch': user_norms:RmsNorm of package 'user-norms' has the name of bnexp's own" in shown
        assert shown.count("\n") == 1
    assert len(resolve("norm=none")) == 1


@pytest.mark.usefixtures("site")
def test_a_bug_of_ours_stays_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, x: object) -> None:
        raise ArithmeticError("ours")

    monkeypatch.setattr("bnexp.nn.unit.Unit.forward", broken)
    with pytest.raises(ArithmeticError, match="ours"):
        main(["train", "norm=rms"])
    monkeypatch.setattr("bnexp.nn.norms.BatchNorm.make", broken)
    with pytest.raises(TypeError):
        main(["train", "norm=batch"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("norm=no_make", "norm.kind: 'no_make': user_norms:NoMake of package 'user-norms' has no method make("),
        ("norm=wrong_signature", "must accept make(num_features, *, ndim)"),
        ("norm=wrong_shape", "'user-norms' returned (2, 16, 1, 1) for an input of (2, 16, 8, 8)"),
        ("norm=needs_option", "option 'strength' has no default"),
        ("norm=missing", "cannot be imported"),
        ("norm=rsm", "norm: 'rsm' is not one of"),
        ("model=wrong_logits", "returned (2, 3) where logits (2, 10) are due"),
        ("norm=rms norm.eps=-1", "norm.kind: 'rms': user_norms:RmsNorm of package 'user-norms' could not be made with "
         "eps=-1.0, gain=1.0, scale=True: ValueError: eps must be above 0\n"),
        ("norm=rms norm.eps=abc", "could not be made with eps=abc, gain=1.0, scale=True: TypeError: "),
        ("norm=rms norm.gain=nan", "norm.gain: nan: expected"),
        ("norm=raises_in_make", "'user-norms' failed in make(16, ndim=4): KeyError: 16"),
        ("norm=raises_in_forward", "'user-norms' failed in forward on (2, 16, 8, 8): ArithmeticError: no number"),
        ("norm=wrong_type", "'user-norms' returned torch.float64 for an input of torch.float32"),
        ("norm=reserved", "'user-norms' option 'where' bears a name that bnexp uses itself"),
        ("norm=constant", "'user-norms' cannot be called: TypeError: "),
        ("norm=raises_in_forward model=linear norm.where=input", "norm.kind: 'raises_in_forward': "),
        ("model=raises_in_init", "model.name: 'raises_in_init': user_norms:RaisesInInit of package 'user-norms' could "
         "not be built: ArithmeticError: no number"),
        ("model=raises_in_init norm.where=input", "could not be built: ArithmeticError: no number"),
        ("model=mismatch", "'user-norms' failed in forward on (2, 1, 8, 8): RuntimeError: "),
        ("data=no_files data.root=/x", "data.name: 'no_files': user_norms:no_files of package 'user-norms' failed on "
         "data.root=/x: FileNotFoundError: "),
        ("data=ragged", "'user-norms' gave what is no array: ValueError: "),
        ("data=wrong_images", "gave train images of float32 (200, 1, 8, 8); expected uint8 (N, C, H, H)"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("site")
def test_what_misbehaves_is_named_in_one_line(override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *override.split()]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert message in shown
    assert not Path("results").exists()


def test_edited_code_is_another_run_where_the_entry_point_is_no_class(site: Path) -> None:
    (before,) = resolve("norm=small_rms")
    assert list(resolve("norm=small_rms")) == [before]
    edit(site, "self.weight * x /", "2 * self.weight * x /")
    assert list(resolve("norm=small_rms")) != [before]


@pytest.mark.usefixtures("site")
def test_a_norm_whose_statistics_have_another_shape_is_left_as_it_is_by_probes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["train", "norm=maps", "epochs=1", "data.train_limit=200", "probes=[statistics,running]"]
    assert main(argv) == 0
    assert "FAILED" not in capsys.readouterr().out
    store = Store(Path("results"))
    (name,) = store.run_ids()
    accuracies = [row["value"] for row in store.probes(name) if row["quantity"] == "test_accuracy"]
    assert len(accuracies) == 3
    assert len(set(accuracies)) == 1


@pytest.mark.usefixtures("site")
def test_a_users_model_takes_ghost_norm() -> None:
    argv = ["norm=ghost", "norm.ghost_size=16", "norm.where=input", "batch_size=32"]
    assert len(resolve("model=linear", *argv)) == 1
