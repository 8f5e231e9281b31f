"""Measure how fast bnexp is, and make the tables of docs/performance.md again.

    python scripts/update_performance.py                     all that this machine can; it should do nothing else
    python scripts/update_performance.py startup neighbour   these parts; the others stay as they were measured
    python scripts/update_performance.py gpu gpu_commands    the bench on a GPU: the parts of a machine that has one
    python scripts/update_performance.py --tables            measure nothing, write the tables again

Where `lightning` is installed, its Trainer is timed too. Commit first: the tables say which commit was measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnexp.bench import CONVOLUTIONS, WRITTEN, compared_commands, contenders_of, sweep_configs
from bnexp.bench.sizes import ON_A_CPU, SIZES
from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.engine.build import build_optimizer, to_device
from bnexp.engine.checkpoint import save_checkpoint
from bnexp.engine.device import environment, num_cores, settle_process
from bnexp.engine.loop import initial_network, train_run
from bnexp.identity import cell_id
from bnexp.planned import resolve_runs
from bnexp.records import RunRecord
from bnexp.store import Store

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
FOLDER = ROOT / "results" / "reference" / "performance"
BEGIN, END = "<!-- {}: made by scripts/update_performance.py -->", "<!-- end of {} -->"
ARMS = ("norm=none,batch,group,layer,instance", "lr=0.001,0.003,0.01,0.03,0.1,0.3,1.0,3.0", "epochs=10")
THOUSAND = (*ARMS, "seed=range(25)")
TEN_THOUSAND = (*ARMS, "batch_size=16,32,64,128,256", "seed=range(50)")
# seconds of finding out what of a request is done, behind the imports and the composing
DECIDE = """
import sys, time
from bnexp.compose import request_from_argv
from bnexp.planned import make_plan
request = request_from_argv(sys.argv[1:])
started = time.perf_counter()
plan = make_plan(request)
assert plan.count("done") == len(plan.runs)
print(time.perf_counter() - started)
"""
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; without any, all for this machine")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    parser.add_argument("--repeats", type=int, default=5, help="of each pair, of which the median counts (default 5)")
    options = parser.parse_args()
    unknown = set(options.part) - set(PARTS)
    if unknown:
        parser.error(f"unknown part: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    here = [name for name in PARTS if name.startswith("gpu") == torch.cuda.is_available()]
    elsewhere = set(options.part) - set(here)
    if elsewhere and not options.tables:
        parser.error(f"{', '.join(sorted(elsewhere))}: to be measured on a machine with{'out' * ('gpu' in here)} a GPU")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in [] if options.tables else options.part or here:
        found = PARTS[name][0](options.repeats)
        machine = {**environment(CPU, "auto"), "cores": num_cores()}
        text = json.dumps({"machine": machine, **found}, indent=1)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    for name, (_, table) in PARTS.items():
        measured = FOLDER / f"{name}.json"
        if measured.exists():
            page = _with_table(page, name, table(json.loads(measured.read_text(encoding="utf-8"))))
    PAGE.write_text(page, encoding="utf-8")


def _with_table(page: str, name: str, table: Sequence[str]) -> str:
    begin, end = BEGIN.format(name), END.format(name)
    before, found, rest = page.partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"{PAGE}: no place for the table of {name}")
    return before + begin + "\n" + "\n".join(table) + "\n" + end + rest.partition(end)[2]


def _made_by(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    return f"{machine['device']}, {machine['cores']} in use, torch {machine['torch']}; commit {machine['git_commit']}."


def measure_bench(repeats: int) -> dict[str, Any]:
    """`bnexp bench` at all sizes."""
    return _bench("--repeats", str(repeats)) | {"repeats": repeats}


def measure_commands(repeats: int) -> dict[str, Any]:
    """Whole sweeps of the tiny size."""
    found = _bench("tiny", "--command", "--seconds", "0.2", "--repeats", str(repeats))
    return {"machine": found["machine"], "size": "tiny", **found["sizes"][0]["command"]}


def _bench(*options: str) -> dict[str, Any]:
    script = ["scripts/bench_lightning.py"] if find_spec("lightning") else ["-m", "bnexp", "bench"]
    asked = subprocess.run(
        [sys.executable, *script, "--json", *options], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    return found


def table_bench(found: Mapping[str, Any]) -> list[str]:
    peak = found["machine"]["matmul_peak"]
    busy = any(row["utilization"] is not None for table in found["sizes"] for row in table["rows"])
    lines = [
        f"{_made_by(found)} Medians of {found['repeats']} rounds; matrix products reach {peak / 1e9:,.0f} GFLOP/s.",
        "",
        "| size | | images/s | over the textbook loop | memory | of the peak |" + busy * " GPU busy |",
        "|---|---|---|---|---|---|" + busy * "---|",
    ]
    for table in found["sizes"]:
        for place, row in enumerate(table["rows"]):
            size = "" if place else f"{table['size']} ({table['what']}, batch {table['batch_size']}, "
            size += "" if place else f"bnexp in {table['precision']})"
            lines.append(
                f"| {size} | {row['name']} | {row['rate']:,.0f} | {row['ratio']:.2f}x "
                f"({min(row['ratios']):.2f} to {max(row['ratios']):.2f}) | {row['memory'] / 2**20:,.0f} MiB "
                f"| {100 * row['peak_fraction']:.1f} % |" + busy * _percent(row["utilization"])
            )
    held = [
        f"{table['size']} {_against(table, WRITTEN)} and {_against(table, CONVOLUTIONS)}" for table in found["sizes"]
    ]
    lines += [
        "",
        f"One run against the hand-written loop and the convolutions alone, in the same rounds: {'; '.join(held)}.",
    ]
    return lines


def table_commands(found: Mapping[str, Any]) -> list[str]:
    told = "; ".join(f"{name} {seconds:.1f} s{times}" for name, seconds, times in compared_commands(found))
    rounds = len(found["seconds"]["bnexp"])
    return [
        _made_by(found),
        "",
        f"Whole commands, start-up and evaluation included, {found['runs']} runs of {found['epochs']} epochs of "
        f"{found['size']}, medians of {rounds} rounds: {told}.",
    ]


def _percent(value: float | None) -> str:
    return " |" if value is None else f" {value:.0f} % |"


def _against(table: Mapping[str, Any], other: str) -> str:
    rates = {row["name"]: row["ratios"] for row in table["rows"]}
    return f"{statistics.median(a / b for a, b in zip(rates['one run'], rates[other], strict=True)):.2f}x"


def measure_startup(repeats: int) -> dict[str, Any]:
    """What a sweep costs beside its training: 1,000 runs composed, 10,000 on disk looked up and reported."""
    compose = "import sys; from bnexp.compose import request_from_argv; request_from_argv(sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        num = _fabricate(Store(results))
        commands = {
            "start": ["-c", "import bnexp.cli; bnexp.cli.main(['--help'])"],
            "compose": ["-c", compose, "-m", *THOUSAND],
            "status": ["-m", "bnexp", "status", "--results", str(results)],
            "skip": ["-m", "bnexp", "train", "-m", *TEN_THOUSAND, f"results={results}"],
            "report": ["-m", "bnexp", "report", "--results", str(results)],
        }
        timed = {name: [_timed(command) for _ in range(repeats)] for name, command in commands.items()}
        decide = [sys.executable, "-c", DECIDE, "-m", *TEN_THOUSAND, f"results={results}"]
        decided = [float(subprocess.check_output(decide, cwd=ROOT, text=True)) for _ in range(repeats)]
    seconds = {name: statistics.median(second for second, _ in each) for name, each in timed.items()}
    seconds["decide"] = statistics.median(decided)
    memory = {name: max(memory for _, memory in each) for name, each in timed.items()}
    return {"runs": num, "seconds": seconds, "memory": memory}


def _fabricate(store: Store) -> int:
    """Write runs of the grid as if they had been trained, with made-up accuracies; how many."""
    request = request_from_argv(["-m", *TEN_THOUSAND])
    rng = np.random.default_rng(0)
    for name, config in resolve_runs(request.configs, request.exec, {}):
        accuracy = float(rng.normal(0.9, 0.02))
        scores = {"accuracy": accuracy, "loss": 1 - accuracy}
        final: dict[str, float | None] = {
            f"{split}_{key}": value for split in ("train", "val", "test") for key, value in scores.items()
        }
        final |= {f"chance_{split}_accuracy": 0.1 for split in ("train", "val", "test")}
        rows = [
            {"epoch": epoch + 1, "step": 10 * epoch, "lr": config.lr, "train_seconds": 0.1, "images_per_second": 1e4}
            | {f"{split}_{key}": value for split in ("train", "val") for key, value in scores.items()}
            for epoch in range(config.epochs)
        ]
        store.write_config(name, config.to_dict())
        store.write_history(name, rows)
        done = {"probes": {}, "device": "cpu", "threads": 1}
        where = environment(CPU, config.precision)
        seconds = {"train": 1.0, "eval": 0.1, "probes": 0.0}
        record = RunRecord(name, cell_id(config), "finished", config.to_dict(), done, final, seconds, where)
        store.write_record(record)
    return len(request.configs)


def _timed(command: Sequence[str]) -> tuple[float, int]:
    """Seconds of a Python command and, on Linux, the most memory of its process, in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    memory, status = 0, Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        # what the kernel tells at the end counts this process too, which it was forked from
        found = (
            [line for line in status.read_text().splitlines() if line.startswith("VmHWM")] if status.exists() else []
        )
        memory = int(found[0].split()[1]) * 1024 if found else memory
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, memory


def table_startup(found: Mapping[str, Any]) -> list[str]:
    seconds, memory = found["seconds"], found["memory"]
    told = {
        "start": "`bnexp --help`",
        "compose": "composing a grid of 1,000 runs, imports included",
        "status": f"`bnexp status` over {found['runs']:,} runs",
        "skip": f"`bnexp train -m` of {found['runs']:,} runs that are all done, composing them included",
        "report": f"`bnexp report` over {found['runs']:,} runs",
    }
    decide = f"| naming {found['runs']:,} runs, checking their networks, and finding all of them done on disk |"
    return [
        _made_by(found),
        "",
        "| | seconds | memory |",
        "|---|---|---|",
        *(f"| {words} | {seconds[name]:.2f} | {memory[name] / 2**20:,.0f} MiB |" for name, words in told.items()),
        f"{decide} {seconds['decide']:.2f} | |",
    ]


def measure_neighbour(repeats: int) -> dict[str, Any]:
    """The rate of a sweep alone, and beside a foreign process that keeps one core busy."""
    found: dict[str, Any] = {}
    for size in (SIZES[name] for name in ON_A_CPU):
        host, configs = size.host(), sweep_configs(size, CPU)
        name, sweep = list(contenders_of(size, host, configs, CPU).items())[-1]
        pairs = []
        for _ in range(repeats):
            alone = sweep(seconds=3.0).rate
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                beside = sweep(seconds=3.0).rate
            finally:
                busy.kill()
                busy.wait()
            pairs.append((alone, beside))
        found[size.name] = {"what": name, "slowdown": statistics.median(a / b for a, b in pairs), "pairs": pairs}
    return {"sizes": found}


def table_neighbour(found: Mapping[str, Any]) -> list[str]:
    lines = [_made_by(found), "", "| size | | times slower beside one busy process |", "|---|---|---|"]
    return lines + [f"| {name} | {row['what']} | {row['slowdown']:.2f} |" for name, row in found["sizes"].items()]


def measure_bookkeeping(repeats: int) -> dict[str, Any]:
    """What an epoch's row and a checkpoint cost, beside an epoch of the medium size."""
    size = SIZES["medium"]
    config: RunConfig = replace(sweep_configs(size, CPU)[0], epochs=2)
    settle_process(1, CPU)
    data = to_device(size.host(), CPU)
    model = initial_network(config, data)
    optimizer = build_optimizer(model, config.optim, config.lr)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    seconds: dict[str, list[float]] = {"epoch": [], "row": [], "checkpoint": []}
    folder = Path(tempfile.mkdtemp(dir=ROOT))  # on the disk that the checkout is on, not in memory
    try:
        store = Store(folder)
        store.write_config("run", config.to_dict())
        for _ in range(repeats):
            history = train_run(config, data, CPU).history
            ended = time.perf_counter()
            store.append_history("run", history[-1])
            logged = time.perf_counter()
            save_checkpoint(store.checkpoint_path("run"), model, optimizer, history=history, probes=[], wanted={})
            seconds["epoch"].append(history[-1]["train_seconds"])
            seconds["row"].append(logged - ended)
            seconds["checkpoint"].append(time.perf_counter() - logged)
    finally:
        shutil.rmtree(folder)
    images = len(data.train_y) // config.batch_size * config.batch_size
    return {"images": images, "seconds": {name: statistics.median(each) for name, each in seconds.items()}}


def table_bookkeeping(found: Mapping[str, Any]) -> list[str]:
    seconds = found["seconds"]
    kept = seconds["row"] + seconds["checkpoint"]
    return [
        _made_by(found),
        "",
        f"An epoch of {found['images']:,} images of the medium size takes {seconds['epoch']:.2f} s on one core. Its "
        f"row in the history takes {1e3 * seconds['row']:.2f} ms and a checkpoint, synced to the disk, "
        f"{1e3 * seconds['checkpoint']:.1f} ms: {100 * kept / seconds['epoch']:.2f} % with a checkpoint every epoch. "
        "Checkpoints are written every `exec.checkpoint_seconds` at most.",
    ]


PARTS: dict[str, tuple[Callable[[int], dict[str, Any]], Callable[[Mapping[str, Any]], list[str]]]] = {
    "bench": (measure_bench, table_bench),
    "commands": (measure_commands, table_commands),
    "gpu": (measure_bench, table_bench),
    "gpu_commands": (measure_commands, table_commands),
    "startup": (measure_startup, table_startup),
    "neighbour": (measure_neighbour, table_neighbour),
    "bookkeeping": (measure_bookkeeping, table_bookkeeping),
}


if __name__ == "__main__":
    main()
