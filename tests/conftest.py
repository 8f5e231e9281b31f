"""What tests share: the command line in a folder of its own, and tiny image folders."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

# ahead of torch: the tests share the cores among themselves
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

Bnexp = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(autouse=True)
def state_folder(states: Path) -> Iterator[Path]:
    """Where each test's bnexp remembers results folders: never the user's own."""
    folder = states / str(uuid.uuid4())
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo its patches half way
        patch.setenv("BNEXP_STATE", str(folder))
        yield folder


@pytest.fixture
def bnexp(tmp_path: Path) -> Bnexp:
    """Run the command line as a user does: a process of its own, in an empty folder."""

    def run(*argv: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BNEXP_")}
        environment |= {"BNEXP_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        environment["BNEXP_STATE"] = os.environ["BNEXP_STATE"]
        command = [sys.executable, "-m", "bnexp", *argv]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout)

    return run


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes, bright and dark, of twelve training and four test images, 12×10 pixels."""
    from PIL import Image

    root = tmp_path / "images"
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, level in (("bright", 200), ("dark", 40)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(level - 30, level + 30, (10, 12, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root
