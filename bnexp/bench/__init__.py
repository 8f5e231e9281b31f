"""`bnexp bench`: the loop that tutorials teach, the best one by hand, and bnexp, in turn on this machine."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bnexp.bench.measure import Timing, matmul_peak, time_loop, time_runs, time_textbook, training_flops
from bnexp.bench.sizes import ON_A_CPU, SIZES, Size
from bnexp.bench.written import convolutions_alone, hand_written
from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.engine.batches import stack_width
from bnexp.engine.build import HostData
from bnexp.engine.device import environment, num_cores, resolve_device, resolve_precision
from bnexp.engine.lanes import IN_FLIGHT
from bnexp.errors import ConfigError

NUM_RUNS, NUM_RUNS_ON_GPU = 16, 64  # of a sweep
EPOCHS, COMMAND_ROUNDS = 40, 3  # of each run where whole commands are timed, and how often they are
TEXTBOOK, WRITTEN, CONVOLUTIONS = "textbook loop", "hand-written loop", "convolutions alone"


def main(
    argv: Sequence[str],
    others: Mapping[str, Callable[..., float]] | None = None,
    other_commands: Mapping[str, Sequence[str]] | None = None,
) -> int:
    """Run the command; `others` and `other_commands` are further contenders, as in `bench_size`."""
    parser = argparse.ArgumentParser("bnexp bench", description=__doc__)
    parser.add_argument(
        "size", nargs="*", help=f"of {', '.join(SIZES)}; without any, all of them, on a CPU {', '.join(ON_A_CPU)}"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median counts (default 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of steady training in each (default 3)")
    parser.add_argument(
        "--command",
        action="store_true",
        help="time whole sweeps of the tiny size too, start-up and evaluation included",
    )
    parser.add_argument("--json", action="store_true", help="every number, for a program to read")
    options = parser.parse_args(argv)
    for name in options.size:
        if name not in SIZES:
            raise ConfigError("bench", got=name, choices=SIZES)
    for option, value in (("--repeats", options.repeats), ("--seconds", options.seconds)):
        if value <= 0:
            raise ConfigError(option, got=value, hint="expected a number above 0")
    device = resolve_device("auto")
    found = [
        bench_size(
            SIZES[name],
            device,
            repeats=options.repeats,
            seconds=options.seconds,
            command=options.command,
            others=others,
            other_commands=other_commands,
        )
        for name in options.size or (SIZES if device.type == "cuda" else ON_A_CPU)
    ]
    peak = matmul_peak(device, seconds=options.seconds)
    for table in found:
        for row in table["rows"]:
            row["peak_fraction"] = row["rate"] * table["flops_per_image"] / peak
    machine = {**environment(device, "auto"), "cores": num_cores(), "matmul_peak": peak}
    if options.json:
        print(json.dumps({"machine": machine, "sizes": found}))
        return 0
    print(f"{machine['device']}, torch {machine['torch']}, matrix products at {peak / 1e9:.0f} GFLOP/s at the most")
    for table in found:
        _print(table)
    return 0


def bench_size(
    size: Size,
    device: torch.device,
    *,
    repeats: int,
    seconds: float,
    command: bool = False,
    others: Mapping[str, Callable[..., float]] | None = None,
    other_commands: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """All contenders of one size, one after the other, `repeats` times over; each number is a median.

    A ratio is the median of those of each round, to the textbook loop of the same round.

    Args:
        command: time the whole command of a sweep too, in `COMMAND_ROUNDS` rounds at the most: it is long.
        others: name -> a further loop, as `time_loop` takes it.
        other_commands: name -> a further command, to which size, runs and epochs are added.
    """
    host, configs = size.host(), sweep_configs(size, device)
    contenders = contenders_of(size, host, configs, device)
    for name, loop in (others or {}).items():
        contenders[name] = partial(time_loop, loop, size, host, device)
    timings: dict[str, list[Timing]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contend in contenders.items():
            timings[name].append(contend(seconds=seconds))
    rows = [_row(name, timings[name], timings[TEXTBOOK]) for name in contenders]
    found = {
        "size": size.name, "what": size.what, "batch_size": size.batch_size, "precision": configs[0].precision,
        "flops_per_image": training_flops(configs[0], size), "rows": rows,
    }  # fmt: skip
    if command and not size.num_train:  # `bnexp train` has no data set of random pixels
        found["command"] = _commands(
            size, other_commands or {}, num_runs=len(configs), rounds=min(repeats, COMMAND_ROUNDS)
        )
    return found


def sweep_configs(size: Size, device: torch.device) -> list[RunConfig]:
    """The runs of a sweep, as `bnexp train` composes them."""
    num_runs = NUM_RUNS_ON_GPU if device.type == "cuda" else NUM_RUNS
    request = request_from_argv(["-m", *size.arguments(), f"seed=range({num_runs})"])
    return [replace(one, precision=resolve_precision(one, device, size.side)) for one in request.configs]


def contenders_of(
    size: Size, host: HostData, configs: Sequence[RunConfig], device: torch.device
) -> dict[str, Callable[..., Timing]]:
    """Name -> a function of `seconds` that times it."""
    on_gpu = device.type == "cuda"
    at_once = IN_FLIGHT if on_gpu else min(len(configs), num_cores())
    width = min(stack_width(configs[0], size.side, device.type), len(configs) // at_once)
    bf16 = configs[0].precision == "bf16"

    def ours(batches: Sequence[Sequence[RunConfig]], threads: int) -> Callable[..., Timing]:
        return partial(time_runs, batches, host, device, threads=threads)

    contenders: dict[str, Callable[..., Timing]] = {
        TEXTBOOK: partial(time_textbook, size, host, device),
        WRITTEN: partial(time_loop, partial(hand_written, bf16=bf16), size, host, device),
        CONVOLUTIONS: partial(time_loop, partial(convolutions_alone, bf16=bf16), size, host, device),
        "one run": ours([configs[:1]], num_cores()),
        f"sweep of {len(configs)}, {at_once} at a time": ours([[config] for config in configs[:at_once]], 1),
    }
    if width > 1:
        stacks = [configs[i * width : (i + 1) * width] for i in range(at_once)]
        contenders[f"sweep of {len(configs)}, {at_once} stacks of {width} at a time"] = ours(stacks, 1)
    return contenders


def _row(name: str, timings: Sequence[Timing], textbook: Sequence[Timing]) -> dict[str, Any]:
    ratios = [one.rate / other.rate for one, other in zip(timings, textbook, strict=True)]
    told = [one.utilization for one in timings if not math.isnan(one.utilization)]
    return {
        "name": name, "rate": statistics.median(one.rate for one in timings),
        "ratio": statistics.median(ratios), "ratios": ratios, "memory": max(one.memory for one in timings),
        "utilization": statistics.median(told) if told else None,
    }  # fmt: skip


def _commands(size: Size, others: Mapping[str, Sequence[str]], *, num_runs: int, rounds: int) -> dict[str, Any]:
    """Seconds of a whole sweep, each command from its start to its end, in turn."""
    sweep = [size.name, str(num_runs), str(EPOCHS)]
    ours = ["-m", "bnexp", "train", "-m", *size.arguments(), f"seed=range({num_runs})", f"epochs={EPOCHS}"]
    commands = {
        TEXTBOOK: [sys.executable, "-m", "bnexp.bench.textbook", *sweep],
        **{name: [*command, *sweep] for name, command in others.items()},
        "bnexp": [sys.executable, *ours],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as results:
                place = [f"results={results}"] if name == "bnexp" else []
                seconds[name].append(_seconds([*command, *place]))
    return {"runs": num_runs, "epochs": EPOCHS, "seconds": seconds}


def _seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def _print(table: dict[str, Any]) -> None:
    print(f"\n{table['size']}: {table['what']}, batch {table['batch_size']}, bnexp in {table['precision']}")
    print(f"  {'':36} {'images/s':>10} {'ratio':>7} {'memory':>10} {'of the peak':>12}")
    for row in table["rows"]:
        used = "" if row["utilization"] is None else f"   GPU busy {row['utilization']:.0f} %"
        print(
            f"  {row['name']:36} {row['rate']:10,.0f} {row['ratio']:6.2f}x {row['memory'] / 2**20:6.0f} MiB "
            f"{100 * row['peak_fraction']:10.1f} %{used}"
        )
    if "command" in table:
        whole = table["command"]
        told = "; ".join(f"{name} {seconds:.1f} s{times}" for name, seconds, times in compared_commands(whole))
        print(f"  whole command, {whole['runs']} runs of {whole['epochs']} epochs: {told}")


def compared_commands(whole: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Name, median seconds, and how many times bnexp's of the same round those are, in words."""
    seconds = whole["seconds"]
    compared = []
    for name, spent in seconds.items():
        times = statistics.median(one / ours for one, ours in zip(spent, seconds["bnexp"], strict=True))
        compared.append((name, statistics.median(spent), "" if name == "bnexp" else f" ({times:.1f} times bnexp's)"))
    return compared
