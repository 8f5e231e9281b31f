"""The runs of a request, merged by identity: how far each is, which of its parts want it, and what executes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from bnexp.config import DataConfig, ExecConfig, RunConfig
from bnexp.engine.batches import batched
from bnexp.engine.build import HostData, check_network, load_host_data, settle_plugins, settle_where
from bnexp.engine.choosing import Choice, choose_batches, why_alone
from bnexp.engine.device import num_cores, resolve_device, resolve_precision
from bnexp.engine.execute import MEASURED_AFTERWARDS, lacks_predictions
from bnexp.engine.lanes import IN_FLIGHT
from bnexp.engine.worker import CAPTURING, Job, Worker
from bnexp.errors import ConfigError, RunError
from bnexp.identity import run_id
from bnexp.request import Part, Request
from bnexp.store import Store

State = Literal["done", "measure", "resume", "retry", "todo"]
Probes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class PlannedRun:
    """One distinct run and how far it is.

    Attributes:
        probes: what to measure of it: what any part that wants it declares, and what the user asks for.
        part: the first part that wants it.
        timed: a study that wants it compares seconds.
    """

    run_id: str
    config: RunConfig
    probes: Probes
    state: State
    part: Part
    timed: bool


@dataclass(frozen=True)
class PlannedPart:
    """One part of the request and its distinct runs.

    Attributes:
        names: the run id of each config of the part, in their order.
        run_ids: the distinct runs; of a study, those of its ladder of learning rates as declared.
        arms: of a study, the same of each of its arms.
        further: of a study, the runs that only widening its ladder may add.
        num_shared: runs that another part wants as well.
    """

    part: Part
    names: list[str]
    run_ids: list[str]
    arms: dict[str, list[str]]
    further: list[str]
    num_shared: int


@dataclass(frozen=True)
class Plan:
    """The distinct runs of a request, in sweep order, and what executes them.

    Attributes:
        further: the runs that only widening the ladder of a study may add, see `analysis.widening`.
        num_composed: grid points before equal runs were merged (no norm has no placement, for one).
        slots: processes.
    """

    runs: tuple[PlannedRun, ...]
    further: tuple[PlannedRun, ...]
    parts: tuple[PlannedPart, ...]
    num_composed: int
    worker: Worker
    slots: int
    store: Store

    @property
    def todo(self) -> list[PlannedRun]:
        """What is not done, in order."""
        return [run for run in self.runs if run.state != "done"]

    @property
    def at_once(self) -> int:
        """Runs, or stacks of them, that are trained at once."""
        return self.slots * self.worker.lanes

    @property
    def num_merged(self) -> int:
        """Grid points that are the same run as an earlier one."""
        return self.num_composed - len(self.runs)

    def batches(self, runs: Sequence[PlannedRun], *, executor: str) -> Choice:
        """These runs as an executor takes them: each alone, or those that can side by side."""
        if executor in ("stacked", "auto") and any(run.state == "measure" for run in runs):
            # what is only measured is not trained side by side: each alone, and no time is spent on timing it
            batches, reason = self.batches([run for run in runs if run.state != "measure"], executor=executor)
            measured = [(Job(run.config, run.probes, run.timed),) for run in runs if run.state == "measure"]
            return Choice([*batches, *measured], reason)
        jobs = [Job(run.config, run.probes, run.timed) for run in runs]
        sizes = [self.worker.hosts[run.config.data].images.image_size for run in runs]
        if executor == "stacked":
            device_type = self.worker.device.type
            stacks = batched(jobs, slots=self.at_once, image_sizes=sizes, device_type=device_type)
            return Choice(stacks, "; ".join(why_alone(jobs)))
        if executor == "auto":
            return choose_batches(jobs, self.worker, slots=self.slots, image_sizes=sizes)
        return Choice([(job,) for job in jobs], "")

    def count(self, state: State) -> int:
        return sum(run.state == state for run in self.runs)


def make_plan(request: Request) -> Plan:
    """Resolve, check and look up every run; nothing is trained or written.

    Raises:
        ConfigError, DataError, RunError: a run could not be executed here as asked.
    """
    store = Store(request.exec.results)
    device = resolve_device(request.exec.device)
    if request.exec.executor == "graph" and device.type != "cuda":
        raise RunError(f"exec.executor: 'graph': captures what CUDA launches, and this is {device.type}; use auto")
    hosts: dict[DataConfig, HostData] = {}
    resolved = resolve_runs(request.configs, request.exec, hosts)
    parts = _planned_parts(request, resolved)
    declared = {name for part in parts for name in part.run_ids}
    merged = _merge(request, resolved, store)
    runs, further = (tuple(run for run in merged if (run.run_id in declared) == among) for among in (True, False))
    num_composed = sum(not _is_further(part, config) for part in request.parts for config in part.configs)
    sweep = len(request.configs) > 1
    slots, lanes = _slots_and_lanes(request.exec, device.type) if sweep else (1, 1)
    threads = request.exec.threads or (1 if sweep else num_cores())
    worker = Worker(request.exec, device, threads, hosts, lanes)
    return Plan(runs, further, parts, num_composed, worker, slots, store)


def resolve_runs(
    configs: Sequence[RunConfig], exec_config: ExecConfig, hosts: dict[DataConfig, HostData]
) -> list[tuple[str, RunConfig]]:
    """The id of each, and the config with precision, the data's fingerprint and plug-ins' code settled.

    Args:
        hosts: filled with the data sets that had to be read.
    """
    device = resolve_device(exec_config.device)
    raw_hosts: dict[DataConfig, HostData] = {}
    checked: set[RunConfig] = set()
    resolved: dict[RunConfig, tuple[str, RunConfig]] = {}
    for given in dict.fromkeys(configs):
        if given.data not in raw_hosts:
            raw_hosts[given.data] = load_host_data(given.data, exec_config.data_root)
        host = raw_hosts[given.data]
        config = settle_plugins(settle_where(given, host.images))
        shape = replace(config, seed=0, lr=1.0, epochs=10**9)  # what shapes do not depend on
        if shape not in checked:
            check_network(config, host.images, len(host.split.train))
            checked.add(shape)
        config = replace(
            config,
            precision=resolve_precision(config, device, host.images.image_size),
            data=replace(config.data, fingerprint=host.images.fingerprint),
        )
        hosts[config.data] = host
        resolved[given] = (run_id(config), config)
    return [resolved[config] for config in configs]


def _merge(request: Request, resolved: Sequence[tuple[str, RunConfig]], store: Store) -> tuple[PlannedRun, ...]:
    wanted: dict[str, dict[str, tuple[Mapping[str, Any], Part]]] = {}  # run id -> probe -> its options, and whose
    first: dict[str, Part] = {}
    timed: set[str] = set()
    for (name, _), part in zip(resolved, _part_of_each(request), strict=True):
        first.setdefault(name, part)
        timed.update([name] if part.study is not None and part.study.spec.compares_times else [])
        probes = wanted.setdefault(name, {})
        for probe, options in part.probes.items():
            other, whose = probes.setdefault(probe, (options, part))
            if other != options:
                raise _disagreement(probe, {_name(whose): other, _name(part): options})
    runs = []
    for name, config in dict(resolved).items():
        declared = {probe: options for probe, (options, _) in wanted[name].items()}
        probes_of_run = {**request.exec.probes, **declared}
        state = _state(store, name, probes_of_run)
        runs.append(PlannedRun(name, config, probes_of_run, state, first[name], name in timed))
    return tuple(runs)


def _disagreement(probe: str, options: Mapping[str, Mapping[str, Any]]) -> ConfigError:
    told = [f"{name} ({', '.join(f'{key}={value}' for key, value in own.items())})" for name, own in options.items()]
    hint = f"studies {' and '.join(told)} share runs and want it with different options: ask for them one at a time, "
    return ConfigError(
        f"probes.{probe}", got=" and ".join(options), hint=f"{hint}each with a results folder of its own"
    )


def _name(part: Part) -> str:
    return part.study.spec.name if part.study else ""


def _part_of_each(request: Request) -> list[Part]:
    """The part of every composed run."""
    return [part for part in request.parts for _ in part.configs]


def _planned_parts(request: Request, resolved: Sequence[tuple[str, RunConfig]]) -> tuple[PlannedPart, ...]:
    ids = iter(name for name, _ in resolved)
    of_parts = [[next(ids) for _ in part.configs] for part in request.parts]
    declared = [
        [name for name, config in zip(names, part.configs, strict=True) if not _is_further(part, config)]
        for part, names in zip(request.parts, of_parts, strict=True)
    ]
    num_wanting: dict[str, int] = {}
    for name in (name for names in declared for name in dict.fromkeys(names)):
        num_wanting[name] = num_wanting.get(name, 0) + 1
    planned = []
    for part, names, own in zip(request.parts, of_parts, declared, strict=True):
        arms: dict[str, dict[str, None]] = {arm: {} for arm in part.arms}
        distinct = dict.fromkeys(own)
        for arm, name in zip(part.arms, names, strict=bool(part.arms)):
            if name in distinct:
                arms[arm][name] = None  # a dict, for equal grid points of one arm are one run
        further = [name for name in dict.fromkeys(names) if name not in distinct]
        num_shared = sum(num_wanting[name] > 1 for name in distinct)
        ids_of_arms = {arm: list(own_ids) for arm, own_ids in arms.items()}
        planned.append(PlannedPart(part, names, list(distinct), ids_of_arms, further, num_shared))
    return tuple(planned)


def _is_further(part: Part, config: RunConfig) -> bool:
    """Whether a run has a learning rate that only widening the ladder of its study adds."""
    return part.study is not None and config.lr in part.study.further_rates


def _state(store: Store, name: str, probes: Probes) -> State:
    record = store.record(name)
    if record is not None and record.has_ended_with(probes):
        return "measure" if lacks_predictions(record, store) else "done"
    if record is not None and record.status != "failed":
        has_weights = record.status == "diverged" or store.weights_path(name).exists()
        if has_weights and set(record.unmeasured(probes)) <= MEASURED_AFTERWARDS:
            return "measure"
    if store.checkpoint_path(name).exists():
        return "resume"
    return "retry" if record is not None and record.status == "failed" else "todo"


def processes_on_a_gpu(slots: int, device_type: str) -> int:
    """How many of so many processes are on one GPU, at the most; 1 on a CPU."""
    if device_type != "cuda":
        return 1
    return -(-slots // torch.cuda.device_count())


def _slots_and_lanes(config: ExecConfig, device_type: str) -> tuple[int, int]:
    """Processes, and the runs or stacks that each has in flight."""
    if config.executor == "serial":
        return 1, 1
    if device_type != "cuda":
        return config.slots or num_cores(), 1
    num_devices = torch.cuda.device_count()
    if config.executor not in CAPTURING:
        return config.slots or num_devices, 1
    if config.slots is None:
        return num_devices, IN_FLIGHT
    slots = min(config.slots, num_devices)
    return slots, config.slots // slots
