"""What is settled of a process that trains."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

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
