"""What a process trains (jobs), and what it trains them with (a worker)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bnexp.config import DataConfig, ExecConfig, RunConfig
from bnexp.engine.build import DeviceData, HostData, is_of_a_package, load_host_data, to_device
from bnexp.engine.device import settle_process
from bnexp.engine.lanes import IN_FLIGHT
from bnexp.engine.pool import Draw, Pool, to_pool

# the executors that capture steps on CUDA, and have several runs in flight in a process
CAPTURING = ("auto", "graph")


@dataclass(frozen=True)
class Job:
    """A run and what to measure of it: probe -> its options.

    Attributes:
        timed: its seconds will be compared.
    """

    config: RunConfig
    probes: Mapping[str, Mapping[str, Any]]
    timed: bool = False

    @property
    def apart(self) -> bool:
        """Whether nothing may be in flight beside it: it is timed, or may draw from torch's own generator."""
        return self.timed or "cost" in self.probes or is_of_a_package(self.config)


@dataclass
class Worker:
    """What executes runs in one process, and keeps their data on the device between them.

    Attributes:
        exec: its probes are what is measured of a run.
        hosts: data sets that the parent has read already.
        lanes: runs, or stacks of them, that it has in flight at once.
        sharing: processes on its GPU.
    """

    exec: ExecConfig
    device: torch.device
    threads: int
    hosts: dict[DataConfig, HostData]
    lanes: int = 1
    sharing: int = 1
    _on_device: dict[DataConfig, DeviceData] = field(default_factory=dict)
    _pools: dict[DataConfig, Pool] = field(default_factory=dict)
    _of_seed: dict[tuple[DataConfig, int], DeviceData] = field(default_factory=dict)

    def start(self) -> None:
        """Settle what belongs to the whole process."""
        settle_process(self.threads, self.device)

    @property
    def captures(self) -> bool:
        """Whether steps are captured and replayed, where they can be."""
        return self.device.type == "cuda" and self.exec.executor in CAPTURING

    def data(self, config: DataConfig, seed: int | None = None) -> DeviceData:
        """The splits that a run of this seed has; under `data.split=fixed` those of every seed."""
        if config.split == "per_seed":
            assert seed is not None, "each seed has a split of its own"
            return self._data_of_seed(config, seed)
        if config not in self._on_device:
            self._make_room(self._on_device)
            self._on_device[config] = to_device(self._host(config), self.device)
            self._settle()
        return self._on_device[config]

    def stack_data(self, config: DataConfig, seeds: Sequence[int]) -> DeviceData | list[Draw]:
        """What runs of these seeds see side by side: one data set or, of one pool, a draw for each."""
        if config.split == "per_seed":
            return [self._pool(config).draw(config, seed) for seed in seeds]
        return self.data(config)

    def _data_of_seed(self, config: DataConfig, seed: int) -> DeviceData:
        """The last is kept for what is measured of a run; those in flight hold their own."""
        if (config, seed) not in self._of_seed:
            self._of_seed.clear()
            self._of_seed[config, seed] = self._pool(config).draw(config, seed).gathered()
            self._settle()
        return self._of_seed[config, seed]

    def _pool(self, config: DataConfig) -> Pool:
        """One for all configs that part or augment the same images in different ways."""
        images = replace(config, train_limit=None, val_fraction=0.5, split_seed=0, augment="none")
        if images not in self._pools:
            self._make_room(self._pools)
            self._pools[images] = to_pool(self._host(config).images, self.device)
            self._settle()
        return self._pools[images]

    def _host(self, config: DataConfig) -> HostData:
        return self.hosts.get(config) or load_host_data(config, self.exec.data_root)

    def _make_room(self, kept: dict[DataConfig, Any]) -> None:
        """Sweeps go through data sets in turn; those of what else is in flight stay."""
        while len(kept) >= (max(self.lanes, IN_FLIGHT) if self.device.type == "cuda" else 1):
            del kept[next(iter(kept))]

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # other streams will read it

    def of_slot(self, index: int) -> Worker:
        """The same worker as one process of several, on the GPU whose turn it is."""
        if self.device.type != "cuda":
            return self
        return replace(self, device=torch.device("cuda", index % torch.cuda.device_count()))

    def measuring(self, probes: Mapping[str, Mapping[str, Any]]) -> Worker:
        """The same worker, with the same data, for a run of which these probes are wanted."""
        return replace(self, exec=replace(self.exec, probes=probes))
