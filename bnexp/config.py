"""What a run is (`RunConfig`) and where it runs (`ExecConfig`): frozen, validated, and nothing of torch or Hydra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bnexp.errors import ConfigError, did_you_mean

# The options that exist for each choice. A test holds these tables against nn, data and engine, and against configs/.
NORM_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "batch": ("eps", "momentum", "affine"),
    "group": ("eps", "affine", "num_groups"),
    "layer": ("eps", "affine"),
    "instance": ("eps", "affine"),
    "ghost": ("eps", "momentum", "affine", "ghost_size"),
}
MODEL_OPTIONS: dict[str, tuple[str, ...]] = {"cnn": (), "vgg": (), "resnet": ("preactivation",), "mlp": ()}
OPTIM_OPTIONS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "nesterov"),
    "adam": ("beta1", "beta2", "eps"),
    "adamw": ("beta1", "beta2", "eps"),
    "rmsprop": ("alpha", "eps", "momentum"),
}
SCHEDULE_OPTIONS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "step": ("milestones", "factor"),
    "cosine": (),
    "onecycle": ("peak_at", "start_factor", "end_factor"),
}
DATASETS = ("digits", "mnist", "fashion_mnist", "kmnist", "svhn", "cifar10", "cifar100", "folder")
AUGMENTS = ("none", "flip", "crop", "crop_flip")
PLACEMENTS = ("before", "after")
ACTIVATIONS = ("relu", "tanh", "sigmoid", "gelu", "leaky_relu")
INITS = ("he", "xavier", "default", "normal")
PRECISIONS = ("fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda", "mps")
EXECUTORS = ("auto", "serial", "process")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are split and augmented."""

    name: str
    image_size: int | None
    train_limit: int | None
    val_fraction: float
    split_seed: int
    augment: str
    fingerprint: str = ""


@dataclass(frozen=True)
class ModelConfig:
    """The network without its norm layers."""

    name: str
    depth: int
    width: int
    activation: str
    init: str
    init_gain: float
    preactivation: bool | None = None


@dataclass(frozen=True)
class NormConfig:
    """The norm layers; an option that the kind does not have is None, and so is the placement of no norm at all."""

    kind: str
    placement: str | None
    eps: float | None = None
    momentum: float | None = None
    affine: bool | None = None
    num_groups: int | None = None
    ghost_size: int | None = None

    def options(self) -> dict[str, Any]:
        """Keyword arguments for the norm of this kind."""
        return {name: getattr(self, name) for name in NORM_OPTIONS[self.kind]}


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and what acts on its gradients."""

    name: str
    weight_decay: float
    decay: str
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
        raw = asdict(self)
        for section, table, label in (
            ("norm", NORM_OPTIONS, "kind"),
            ("model", MODEL_OPTIONS, "name"),
            ("optim", OPTIM_OPTIONS, "name"),
            ("schedule", SCHEDULE_OPTIONS, "name"),
        ):
            optional = {option for options in table.values() for option in options}
            applies = set(table[raw[section][label]])
            raw[section] = {k: v for k, v in raw[section].items() if k not in optional or k in applies}
        if self.norm.placement is None:
            del raw["norm"]["placement"]
        if raw["schedule"].get("milestones") is not None:
            raw["schedule"]["milestones"] = list(raw["schedule"]["milestones"])
        return raw


@dataclass(frozen=True)
class ExecConfig:
    """Where and how a run is executed: recorded, and no part of what the run is.

    Attributes:
        slots: worker processes at once; None: one for each core, or one for each GPU.
        threads: torch threads in each worker; None: one in a sweep, all cores for a single run.
        checkpoint_seconds: least seconds between two checkpoints, which are taken at the end of an epoch.
    """

    device: str
    executor: str
    slots: int | None
    threads: int | None
    checkpoint_seconds: float
    data_root: Path | None
    results: Path

    def to_dict(self) -> dict[str, Any]:
        """A plain, JSON-ready dict."""
        return asdict(self) | {
            "data_root": None if self.data_root is None else str(self.data_root),
            "results": str(self.results),
        }


class _Section:
    """Reads the keys of one mapping with their types and ranges, then refuses what is left over."""

    def __init__(self, prefix: str, raw: Any) -> None:
        if not isinstance(raw, Mapping):
            raise ConfigError(prefix or "config", got=raw, hint="expected a mapping of keys")
        self.prefix, self.raw, self.read = prefix, dict(raw), set[str]()

    def key(self, name: str) -> str:
        return f"{self.prefix}.{name}" if self.prefix else name

    def take(self, name: str) -> Any:
        if name not in self.raw:
            raise ConfigError(self.key(name), got=None, hint="this key is missing")
        self.read.add(name)
        return self.raw[name]

    def choice(self, name: str, choices: Sequence[str]) -> str:
        value = self.take(name)
        value = "none" if value is None and "none" in choices else value
        if value not in choices:
            raise ConfigError(self.key(name), got=value, choices=choices)
        return str(value)

    def boolean(self, name: str) -> bool:
        value = self.take(name)
        if not isinstance(value, bool):
            raise ConfigError(self.key(name), got=value, choices=("true", "false"))
        return value

    def integer(self, name: str, *, at_least: int) -> int:
        value = self.take(name)
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or value < at_least:
            raise ConfigError(self.key(name), got=value, hint=f"expected a whole number of at least {at_least}")
        return int(value)

    def number(
        self, name: str, *, above: float = -math.inf, at_least: float = -math.inf, at_most: float = math.inf,
        below: float = math.inf,
    ) -> float:  # fmt: skip
        value = self.take(name)
        bounds = [
            text
            for bound, text in (
                (above, f"above {above:g}"),
                (at_least, f"at least {at_least:g}"),
                (at_most, f"at most {at_most:g}"),
                (below, f"below {below:g}"),
            )
            if math.isfinite(bound)
        ]
        hint = f"expected a finite number {' and '.join(bounds)}".rstrip()
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(self.key(name), got=value, hint=hint)
        if not (above < value < below and at_least <= value <= at_most):
            raise ConfigError(self.key(name), got=value, hint=hint)
        return float(value)

    def optional_integer(self, name: str, *, at_least: int) -> int | None:
        return None if self.take(name) is None else self.integer(name, at_least=at_least)

    def optional_number(self, name: str, **bounds: float) -> float | None:
        return None if self.take(name) is None else self.number(name, **bounds)

    def close(self) -> None:
        unknown = sorted(set(self.raw) - self.read)
        if unknown:
            raise unknown_key(self.key(unknown[0]), [self.key(name) for name in sorted(self.read)])


def unknown_key(key: str, known: Sequence[str]) -> ConfigError:
    """The error for a key that does not exist, with the nearest one that does."""
    stem, _, leaf = key.rpartition(".")
    siblings = [name for name in sorted(set(known)) if name.rpartition(".")[0] == stem]
    shown = ", ".join(siblings or (name for name in sorted(set(known)) if "." not in name))
    return ConfigError(key, got=leaf, hint=f"no such key; keys here: {shown}{did_you_mean(key, known)}")


def run_config_from_dict(raw: Mapping[str, Any]) -> RunConfig:
    """Validate a plain mapping, composed or read back from config.json.

    Raises:
        ConfigError: a key that is unknown or missing, or a value of the wrong type or out of range.
    """
    root = _Section("", raw)
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
    if config.norm.ghost_size is not None and config.batch_size % config.norm.ghost_size:
        hint = f"does not divide batch_size {config.batch_size}"
        raise ConfigError("norm.ghost_size", got=config.norm.ghost_size, hint=hint)
    if config.schedule.warmup_epochs >= config.epochs:
        hint = f"the warm-up must end before the last of {config.epochs} epochs does"
        raise ConfigError("schedule.warmup_epochs", got=config.schedule.warmup_epochs, hint=hint)
    return config


def exec_config_from_dict(raw: Mapping[str, Any]) -> ExecConfig:
    """Validate the `exec` section, which also carries `data_root` and `results`."""
    section = _Section("exec", raw)
    folders = {name: section.take(name) for name in ("data_root", "results")}
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
    )
    section.close()
    return config


def _data(raw: Any) -> DataConfig:
    section = _Section("data", {"fingerprint": "", **raw} if isinstance(raw, Mapping) else raw)
    config = DataConfig(
        name=section.choice("name", DATASETS),
        image_size=section.optional_integer("image_size", at_least=4),
        train_limit=section.optional_integer("train_limit", at_least=2),
        val_fraction=section.number("val_fraction", above=0, below=1),
        split_seed=section.integer("split_seed", at_least=0),
        augment=section.choice("augment", AUGMENTS),
        fingerprint=str(section.take("fingerprint")),
    )
    section.close()
    return config


def _model(raw: Any) -> ModelConfig:
    section = _Section("model", raw)
    name = section.choice("name", tuple(MODEL_OPTIONS))
    config = ModelConfig(
        name=name,
        depth=section.integer("depth", at_least=1),
        width=section.integer("width", at_least=1),
        activation=section.choice("activation", ACTIVATIONS),
        init=section.choice("init", INITS),
        init_gain=section.number("init_gain", above=0),
        preactivation=section.boolean("preactivation") if "preactivation" in MODEL_OPTIONS[name] else None,
    )
    section.close()
    return config


def _norm(raw: Any) -> NormConfig:
    section = _Section("norm", raw)
    kind = section.choice("kind", tuple(NORM_OPTIONS))
    has = set(NORM_OPTIONS[kind])
    placement = section.choice("placement", PLACEMENTS) if kind != "none" or "placement" in section.raw else None
    config = NormConfig(
        kind=kind,
        # without a norm both placements are the same network: one run, not two
        placement=None if kind == "none" else placement,
        eps=section.number("eps", above=0) if "eps" in has else None,
        momentum=section.optional_number("momentum", above=0, at_most=1) if "momentum" in has else None,
        affine=section.boolean("affine") if "affine" in has else None,
        num_groups=section.integer("num_groups", at_least=1) if "num_groups" in has else None,
        ghost_size=section.integer("ghost_size", at_least=1) if "ghost_size" in has else None,
    )
    section.close()
    return config


def _optim(raw: Any) -> OptimConfig:
    section = _Section("optim", raw)
    name = section.choice("name", tuple(OPTIM_OPTIONS))
    has = set(OPTIM_OPTIONS[name])
    config = OptimConfig(
        name=name,
        weight_decay=section.number("weight_decay", at_least=0),
        decay=section.choice("decay", ("weights", "all")),
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
    section = _Section("schedule", raw)
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
