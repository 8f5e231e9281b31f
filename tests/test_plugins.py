"""Norms, models and data sets from a user's package: a wheel that pip installs, found by its entry points."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bnexp import plugins
from bnexp.cli import main

CODE = '''
import numpy as np
import torch
from torch import nn


class RmsNorm:
    """Divides by the root mean square over channels."""

    def __init__(self, eps: float = 1e-5, scale: bool = True) -> None:
        self.eps, self.scale = eps, scale

    def make(self, num_features, *, ndim):
        return _Rms(num_features, ndim, self.eps)


class _Rms(nn.Module):
    def __init__(self, num_features, ndim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(num_features, *[1] * (ndim - 2))), eps

    def forward(self, x):
        if float(x.abs().max()) < 0:  # a look at the data, which the meta device does not have
            raise AssertionError
        return self.weight * x / (x.square().mean(1, keepdim=True) + self.eps).sqrt()


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


class WrongLogits(Linear):
    def forward(self, x):
        return super().forward(x)[:, :3]


def wrong_images(root):
    images, labels, *test = stripes(root)
    return images.astype(np.float32), labels, *test
'''
ENTRY_POINTS = """
[bnexp.norms]
rms = user_norms:RmsNorm
no_make = user_norms:NoMake
wrong_signature = user_norms:WrongSignature
wrong_shape = user_norms:WrongShape
needs_option = user_norms:NeedsOption
missing = user_norms:Missing
[bnexp.models]
linear = user_norms:Linear
wrong_logits = user_norms:WrongLogits
[bnexp.data]
stripes = user_norms:stripes
wrong_images = user_norms:wrong_images
"""
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


def test_users_model_takes_its_option_and_our_norm(user: User) -> None:
    done = user("train", "model=linear", "model.bias=false", "norm.where=input", "norm.affine=none", "epochs=3")
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout


def test_users_choices_are_listed(user: User) -> None:
    shown = user("train", "--help").stdout
    for name in ("rms", "linear", "stripes"):
        assert any(line.split()[:1] == [name] for line in shown.splitlines())


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
        ("data=wrong_images", "gave train images of float32 (200, 1, 8, 8); expected uint8 (N, C, H, H)"),
    ],
)
def test_what_misbehaves_is_named_in_one_line(
    installed: Path,
    tmp_path: Path,
    override: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(installed)
    plugins._entries.cache_clear()
    try:
        assert main(["train", override]) == 2
    finally:
        plugins._entries.cache_clear()
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert message in shown
    assert not (tmp_path / "results").exists()
