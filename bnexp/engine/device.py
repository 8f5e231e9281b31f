"""What this machine computes on, and how precisely."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import warnings
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from bnexp import __version__
from bnexp.config import RunConfig
from bnexp.errors import RunError

BF16_LEAST_IMAGE_SIZE = 28  # below that, overhead and not arithmetic is the cost
# of malloc.h, for mallopt
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 2**25  # bytes of a block; more than glibc allows is refused
MOST_KEPT = 2**31 - 1  # bytes in all


def resolve_device(name: str) -> torch.device:
    """The device that `exec.device` asks for.

    Raises:
        RunError: it asks for one that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("exec.device: 'cuda': PyTorch finds no CUDA device here; use exec.device=auto or cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise RunError("exec.device: 'mps': PyTorch finds no Apple GPU here; use exec.device=auto or cpu")
    return torch.device(name)


def resolve_precision(config: RunConfig, device: torch.device, image_size: int) -> str:
    """fp32 or bf16: "auto" takes bf16 where this hardware multiplies it fast and the images are worth it."""
    if config.precision != "auto":
        return config.precision
    # a recurrent net has no convolution to speed up, and rounding builds up over its steps
    if image_size < BF16_LEAST_IMAGE_SIZE or config.model.name in ("mlp", "lstm", "gru"):
        return "fp32"
    return "bf16" if _fast_bf16(device.type) else "fp32"


def settle_process(threads: int, device: torch.device) -> None:
    """Settle what belongs to a process that trains: its threads, its GPU, what fp32 means, and that memory is kept."""
    torch.set_num_threads(threads)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    # fp32 means fp32: without this, convolutions on CUDA would silently round to TF32
    torch.backends.cudnn.allow_tf32 = False
    # the few steps ahead of a capture are meant to be launched one by one
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
    torch.backends.cuda.matmul.allow_tf32 = False
    # a step frees what the next one asks for: given back to the system in between, it comes as page faults
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


def num_cores() -> int:
    """The cores that this process may use, which in a container or a job are not all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """The CPU's instruction-set flags, where the system tells them."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """What a reader needs to judge or repeat a run: versions, hardware, commit."""
    return {
        "bnexp": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit of this bnexp, "-dirty" where it was changed since; None where it is no checkout."""
    return _git_commit(Path(__file__).resolve().parents[2])


def _fast_bf16(device_type: str) -> bool:
    if device_type == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    return device_type == "cpu" and bool(cpu_flags() & {"amx_bf16", "avx512_bf16"})


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({_cpu_name()}, {os.cpu_count()} cores)"


@lru_cache(maxsize=1)
def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def _git_commit(root: Path) -> str | None:
    """The commit of the checkout at `root`; None where there is none, as for a package installed from a wheel.

    "-dirty" where the package or the configs differ from it: nothing else decides a number.
    """
    if not (root / ".git").exists():
        return None
    git = partial(subprocess.run, capture_output=True, text=True, timeout=10)
    at = ["git", "-C", str(root)]
    try:
        commit = git([*at, "rev-parse", "--short=12", "HEAD"], check=True).stdout.strip()
        changed = git([*at, "diff", "--quiet", "HEAD", "--", "bnexp", "configs"]).returncode
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + "-dirty" * bool(changed)
