"""What a run is (`RunConfig`) and where it runs (`ExecConfig`): frozen, validated, and nothing of torch or Hydra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bnexp.errors import ConfigError
from bnexp.options import (
    ACTIVATIONS,
    AUGMENTS,
    CHECKS,
    DATASETS,
    DEVICES,
    DROPOUT_PLACEMENTS,
    EXECUTORS,
    INITS,
    MODEL_OPTIONS,
    NORM_OPTIONS,
    OPTIM_OPTIONS,
    PLACEMENTS,
    PRECISIONS,
    PROBE_OPTIONS,
    SCHEDULE_OPTIONS,
    SPLITS,
    TRAINABLE,
)
from bnexp.plugins import plugin_names
from bnexp.section import Section

Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are split and augmented.

    Attributes:
        split: fixed: the data set's own test images, and one validation set for all runs; per_seed: each run's seed
            draws train, validation and test images anew from all of them.
    """

    name: str
    image_size: int | None
    train_limit: int | None
    val_fraction: float
    split_seed: int
    augment: str
    fingerprint: str = ""
    split: str = "fixed"


@dataclass(frozen=True)
class ModelConfig:
    """The network without its norm layers.

    Attributes:
        dropout_placement: None where there is no dropout.
        options: name and value of what only this model has.
    """

    name: str
    depth: int
    width: int
    activation: str
    init: str
    init_gain: float
    dropout: float
    dropout_placement: str | None
    options: Options = ()


@dataclass(frozen=True)
class NormConfig:
    """The norm layers.

    Attributes:
        placement, where: None for no norm at all, which has neither.
        options: name and value of what only this kind has.
    """

    kind: str
    placement: str | None
    where: str | None
    options: Options = ()

    def option(self, name: str) -> Any:
        """The value of an option; None where this kind does not have it."""
        return dict(self.options).get(name)


NO_NORM = NormConfig("none", None, None)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and what acts on its gradients."""

    name: str
    weight_decay: float
    decay: str
    trainable: str
    clip_norm: float | None
    label_smoothing: float
    momentum: float | None = None
    nesterov: bool | None = None
    beta1: float | None = None
    beta2: float | None = None
    alpha: float | None = None
    eps: float | None = None


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves from step to step."""

    name: str
    warmup_epochs: float
    milestones: tuple[float, ...] | None = None
    factor: float | None = None
    peak_at: float | None = None
    start_factor: float | None = None
    end_factor: float | None = None


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the numbers of a run. `precision` is "auto" until the runner has resolved it."""

    data: DataConfig
    model: ModelConfig
    norm: NormConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    lr: float
    batch_size: int
    epochs: int
    seed: int
    precision: str = "auto"

    def to_dict(self) -> dict[str, Any]:
        """A plain, JSON-ready dict that `run_config_from_dict` reads back; options that do not apply are left out."""
        # by hand: `dataclasses.asdict` copies deeply, which is most of the time of naming thousands of runs
        raw = dict(vars(self))
        for section in ("data", "model", "norm", "optim", "schedule"):
            raw[section] = dict(vars(raw[section]))
        if raw["data"]["split"] == "fixed":  # runs of versions that had no other keep their names
            del raw["data"]["split"]
        for section in ("model", "norm"):
            raw[section] |= dict(raw[section].pop("options"))
        for section, table in (("optim", OPTIM_OPTIONS), ("schedule", SCHEDULE_OPTIONS)):
            optional = {option for options in table.values() for option in options}
            applies = set(table[raw[section]["name"]])
            raw[section] = {k: v for k, v in raw[section].items() if k not in optional or k in applies}
        for section, key in (("norm", "placement"), ("norm", "where"), ("model", "dropout_placement")):
            if raw[section][key] is None:
                del raw[section][key]
        if raw["schedule"].get("milestones") is not None:
            raw["schedule"]["milestones"] = list(raw["schedule"]["milestones"])
        return raw


@dataclass(frozen=True)
class ExecConfig:
    """Where and how a run is executed: recorded, and no part of what the run is.

    Attributes:
        slots: runs, or stacks of them, at once: processes; on CUDA under auto and graph streams of one process a GPU,
            in equal numbers. None: one a core, one a GPU, or `IN_FLIGHT` streams a GPU.
        threads: torch threads in each worker; None: one in a sweep, all cores for a single run.
        checkpoint_seconds: least seconds between two checkpoints, which are taken at the end of an epoch.
        probes: probe -> its options: what is measured beside the training, which it does not change.
    """

    device: str
    executor: str
    slots: int | None
    threads: int | None
    checkpoint_seconds: float
    data_root: Path | None
    results: Path
    probes: Mapping[str, Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """A plain, JSON-ready dict."""
        return asdict(self) | {
            "data_root": None if self.data_root is None else str(self.data_root),
            "results": str(self.results),
            "probes": {name: dict(options) for name, options in self.probes.items()},
        }


def run_config_from_dict(raw: Mapping[str, Any]) -> RunConfig:
    """Validate a plain mapping, composed or read back from config.json.

    Raises:
        ConfigError: a key that is unknown or missing, or a value of the wrong type or out of range.
    """
    root = Section("", raw)
    config = RunConfig(
        data=_data(root.take("data")),
        model=_model(root.take("model")),
        norm=_norm(root.take("norm")),
        optim=_optim(root.take("optim")),
        schedule=_schedule(root.take("schedule")),
        lr=root.number("lr", above=0),
        batch_size=root.integer("batch_size", at_least=1),
        epochs=root.integer("epochs", at_least=1),
        seed=root.integer("seed", at_least=0),
        precision=root.choice("precision", ("auto", *PRECISIONS)),
    )
    root.close()
    ghost_size, freeze_at = config.norm.option("ghost_size"), config.norm.option("freeze_at")
    if ghost_size is not None and config.norm.kind == "ghost" and config.batch_size % ghost_size:
        hint = f"does not divide batch_size {config.batch_size}"
        raise ConfigError("norm.ghost_size", got=ghost_size, hint=hint)
    if freeze_at is not None and config.norm.kind == "batch" and freeze_at >= config.epochs:
        hint = f"statistics freeze at the start of an epoch from 0 to {config.epochs - 1}, or never: null"
        raise ConfigError("norm.freeze_at", got=freeze_at, hint=hint)
    if config.schedule.warmup_epochs >= config.epochs:
        hint = f"the warm-up must end before the last of {config.epochs} epochs does"
        raise ConfigError("schedule.warmup_epochs", got=config.schedule.warmup_epochs, hint=hint)
    return config


def exec_config_from_dict(raw: Mapping[str, Any]) -> ExecConfig:
    """Validate the `exec` section, which also carries `data_root` and `results`."""
    section = Section("exec", raw)
    folders = {name: section.take(name) for name in ("data_root", "results")}
    probes = _probes(section.take("probes"))
    for name, key in (("data_root", "data.root"), ("results", "results")):
        if not isinstance(folders[name], str) and not (name == "data_root" and folders[name] is None):
            raise ConfigError(key, got=folders[name], hint=f"expected a folder; quote a bare number: {key}='\"2024\"'")
    config = ExecConfig(
        device=section.choice("device", DEVICES),
        executor=section.choice("executor", EXECUTORS),
        slots=section.optional_integer("slots", at_least=1),
        threads=section.optional_integer("threads", at_least=1),
        checkpoint_seconds=section.number("checkpoint_seconds", at_least=0),
        data_root=None if folders["data_root"] is None else Path(folders["data_root"]),
        results=Path(folders["results"]),
        probes=probes,
    )
    section.close()
    return config


def _data(raw: Any) -> DataConfig:
    section = Section("data", {"fingerprint": "", "split": "fixed", **raw} if isinstance(raw, Mapping) else raw)
    config = DataConfig(
        name=section.choice("name", (*DATASETS, *plugin_names("data"))),
        image_size=section.optional_integer("image_size", at_least=4),
        train_limit=section.optional_integer("train_limit", at_least=2),
        val_fraction=section.number("val_fraction", above=0, below=1),
        split_seed=section.integer("split_seed", at_least=0),
        augment=section.choice("augment", AUGMENTS),
        fingerprint=str(section.take("fingerprint")),
        split=section.choice("split", SPLITS),
    )
    section.close()
    return config


def _model(raw: Any) -> ModelConfig:
    section = Section("model", raw)
    name = section.choice("name", (*MODEL_OPTIONS, *plugin_names("model")))
    dropout = section.number("dropout", at_least=0, below=1)
    placement = section.raw.get("dropout_placement")
    if dropout or placement is not None:
        placement = section.choice("dropout_placement", DROPOUT_PLACEMENTS)
    section.read.add("dropout_placement")
    config = ModelConfig(
        name=name,
        depth=section.integer("depth", at_least=1),
        width=section.integer("width", at_least=1),
        activation=section.choice("activation", ACTIVATIONS),
        init=section.choice("init", INITS),
        init_gain=section.number("init_gain", above=0),
        dropout=dropout,
        # without dropout all placements are the same network: one run, not three
        dropout_placement=placement if dropout else None,
        options=_options(section, MODEL_OPTIONS.get(name)),
    )
    section.close()
    return config


def _norm(raw: Any) -> NormConfig:
    section = Section("norm", raw)
    kind = section.choice("kind", (*NORM_OPTIONS, *plugin_names("norm")))
    if kind == "none":  # without a norm every placement and place is the same network: one run, not several
        if "placement" in section.raw:
            section.choice("placement", PLACEMENTS)
        section.read |= {"placement", "where"}
        section.close()
        return NO_NORM
    config = NormConfig(
        kind, section.choice("placement", PLACEMENTS), _where(section), _options(section, NORM_OPTIONS.get(kind))
    )
    section.close()
    return config


def _where(section: Section) -> str:
    """A list of layers is their sum; which layers there are is known once the network is built."""
    value = section.take("where")
    if value is None or value in ([], ()):
        hint = "expected layers, such as all, first or all-2; none of them: norm.where=none"
        raise ConfigError("norm.where", got=value, hint=hint)
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _options(section: Section, names: Sequence[str] | None) -> Options:
    """The options of a choice; of one that a user's package added (None), whatever keys are left."""
    if names is None:
        left = sorted(set(section.raw) - section.read)
        return tuple((name, section.plain(name)) for name in left)
    return tuple((name, section.checked(name, *CHECKS[section.prefix, name])) for name in names)


def _probes(raw: Any) -> dict[str, dict[str, Any]]:
    section = Section("probes", {} if raw is None else raw)
    probes: dict[str, dict[str, Any]] = {}
    for name in sorted(section.raw):
        if name not in PROBE_OPTIONS:
            raise ConfigError("probes", got=name, choices=sorted(PROBE_OPTIONS))
        own = Section(f"probes.{name}", section.take(name) or {})
        probes[name] = {option: own.checked(option, *CHECKS["probes", option]) for option in PROBE_OPTIONS[name]}
        own.close()
    return probes


def _optim(raw: Any) -> OptimConfig:
    section = Section("optim", raw)
    name = section.choice("name", tuple(OPTIM_OPTIONS))
    has = set(OPTIM_OPTIONS[name])
    config = OptimConfig(
        name=name,
        weight_decay=section.number("weight_decay", at_least=0),
        decay=section.choice("decay", ("weights", "all")),
        trainable=section.choice("trainable", TRAINABLE),
        clip_norm=section.optional_number("clip_norm", above=0),
        label_smoothing=section.number("label_smoothing", at_least=0, below=1),
        momentum=section.number("momentum", at_least=0, below=1) if "momentum" in has else None,
        nesterov=section.boolean("nesterov") if "nesterov" in has else None,
        beta1=section.number("beta1", at_least=0, below=1) if "beta1" in has else None,
        beta2=section.number("beta2", at_least=0, below=1) if "beta2" in has else None,
        alpha=section.number("alpha", at_least=0, below=1) if "alpha" in has else None,
        eps=section.number("eps", above=0) if "eps" in has else None,
    )
    section.close()
    if config.nesterov and not config.momentum:
        raise ConfigError("optim.nesterov", got=True, hint="needs optim.momentum above 0")
    return config


def _schedule(raw: Any) -> ScheduleConfig:
    section = Section("schedule", raw)
    name = section.choice("name", tuple(SCHEDULE_OPTIONS))
    has = set(SCHEDULE_OPTIONS[name])
    milestones: tuple[float, ...] | None = None
    if "milestones" in has:
        given = section.take("milestones")
        fractions = isinstance(given, list | tuple) and all(isinstance(m, int | float) and 0 < m < 1 for m in given)
        if not fractions or list(given) != sorted(given):
            hint = "expected ascending fractions of the training between 0 and 1, such as [0.5,0.75]"
            raise ConfigError("schedule.milestones", got=given, hint=hint)
        milestones = tuple(float(m) for m in given)
    config = ScheduleConfig(
        name=name,
        warmup_epochs=section.number("warmup_epochs", at_least=0),
        milestones=milestones,
        factor=section.number("factor", above=0, at_most=1) if "factor" in has else None,
        peak_at=section.number("peak_at", above=0, below=1) if "peak_at" in has else None,
        start_factor=section.number("start_factor", above=0, at_most=1) if "start_factor" in has else None,
        end_factor=section.number("end_factor", at_least=0, at_most=1) if "end_factor" in has else None,
    )
    section.close()
    if name == "onecycle" and config.warmup_epochs:
        hint = "one cycle is its own warm-up: leave it at 0"
        raise ConfigError("schedule.warmup_epochs", got=config.warmup_epochs, hint=hint)
    return config


Status = Literal["finished", "diverged", "collapsed", "failed"]
