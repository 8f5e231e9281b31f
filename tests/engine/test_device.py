"""What is settled of a process that trains."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from bnexp.engine.device import _git_commit

# page faults of a step that asks for eight blocks of 16 MiB and frees them, 19 times after the first
FAULTS = """
import resource, sys, torch
from bnexp.engine.device import settle_process
torch.set_num_threads(1)
if sys.argv[1] == "settled":
    settle_process(1, torch.device("cpu"))
for step in range(20):
    if step == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**22) for _ in range(8)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc: memory is kept as the system has it")
def test_what_a_step_frees_is_kept_for_the_next() -> None:
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True).stdout)
        for how in ("settled", "not settled")
    )
    assert given_back > 19 * 8  # at the least a fault for each block, where pages are huge
    assert kept < given_back / 5


def test_a_commit_is_dirty_where_what_decides_numbers_was_changed(tmp_path: Path) -> None:
    def commit_now() -> str | None:
        _git_commit.cache_clear()
        return _git_commit(tmp_path)

    assert commit_now() is None
    for name in ("bnexp", "configs", "results"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    clean = commit_now()
    assert clean is not None
    assert len(clean) == 12
    (tmp_path / "results" / "file").write_text("2")
    assert commit_now() == clean
    (tmp_path / "configs" / "file").write_text("2")
    assert commit_now() == f"{clean}-dirty"
    _git_commit.cache_clear()
