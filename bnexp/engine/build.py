"""From a RunConfig to tensors, a network and an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bnexp.config import NO_NORM, DataConfig, NormConfig, OptimConfig, Options, RunConfig
from bnexp.data import ImageSet, Split, channel_statistics, load_images, split_pool, split_train_val
from bnexp.errors import ConfigError
from bnexp.nn import MODELS, NORMS, build_model, count_norm_positions
from bnexp.nn.init import init_parameters, scale_to_unit_variance
from bnexp.nn.layers import norm_layers
from bnexp.nn.norms import Norm, UserNorm, make_norm_factory
from bnexp.nn.where import canonical_where
from bnexp.plugins import code_of, plugin_error, plugin_errors, plugin_options
from bnexp.seeding import seed_for

LSUV_IMAGES = 256
MADE_BY_PLUGIN = "bnexp_made_by_plugin"  # an attribute of each layer that a user's norm made


@dataclass(frozen=True)
class HostData:
    """A data set in the host's memory, split, as numpy arrays: made once, shared by forked workers.

    Attributes:
        images: every image, training ones first as `split` indexes them, (N, C, H, W) uint8.
        split: under `data.split=per_seed` that of seed 0, whose sizes are those of every seed; so are mean and std.
    """

    images: ImageSet
    split: Split
    mean: np.ndarray
    std: np.ndarray


class Normalization(Protocol):
    """What normalizes raw pixels."""

    @property
    def scale(self) -> Tensor: ...
    @property
    def shift(self) -> Tensor: ...


class SplitFacts(Protocol):
    """What is known of a run's splits besides their images; `DeviceData` says what each is."""

    @property
    def num_classes(self) -> int: ...
    @property
    def chance(self) -> dict[str, float]: ...
    @property
    def majority(self) -> int: ...
    @property
    def test_image(self) -> np.ndarray: ...
    @property
    def sizes(self) -> dict[str, int]: ...


@dataclass(frozen=True)
class DeviceData:
    """A data set on the device.

    Attributes:
        train_x, val_x, test_x: (N, C, H, W) uint8; train_y, val_y, test_y: (N,) int64.
        scale, shift: (1, C, 1, 1) float32; x * scale + shift normalizes raw pixels by the training set's statistics.
        chance: split -> what always answering the largest training class, `majority`, scores on it.
        test_image: (N,) int32, which image each of test is, as `Predictions.image` has it; on the host.
    """

    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    test_y: Tensor
    scale: Tensor
    shift: Tensor
    num_classes: int
    chance: dict[str, float]
    majority: int
    test_image: np.ndarray

    @property
    def sizes(self) -> dict[str, int]:
        """Split -> its images."""
        return {split: len(y) for split, (_, y) in self.splits().items()}

    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Split -> images and labels."""
        return {
            "train": (self.train_x, self.train_y),
            "val": (self.val_x, self.val_y),
            "test": (self.test_x, self.test_y),
        }


def load_host_data(config: DataConfig, root: Path | None) -> HostData:
    """Read, split and measure a data set.

    Raises:
        DataError, ConfigError: it is missing, broken, or does not fit the config.
    """
    images = load_images(config.name, root=root, image_size=config.image_size)
    if config.split == "per_seed":
        split = split_of_seed(pool_labels(images), len(images.test_labels), config, seed=0)
        mean, std = channel_statistics(np.concatenate([images.train_images, images.test_images]), split.train)
        return HostData(images, split, mean, std)
    split = split_train_val(
        images.train_labels, val_fraction=config.val_fraction, seed=config.split_seed, train_limit=config.train_limit
    )
    mean, std = channel_statistics(images.train_images, split.train)
    return HostData(images, split, mean, std)


def pool_labels(images: ImageSet) -> np.ndarray:
    """The labels of all images, training ones first."""
    return np.concatenate([images.train_labels, images.test_labels])


def split_of_seed(labels: np.ndarray, num_test: int, config: DataConfig, *, seed: int) -> Split:
    """The split that a run's seed draws from the pool: the same for every arm."""
    return split_pool(
        labels,
        num_test=num_test,
        val_fraction=config.val_fraction,
        seed=seed_for(seed, "split", config.split_seed),
        train_limit=config.train_limit,
    )


def is_of_a_package(config: RunConfig) -> bool:
    """Whether the model or the norm is a user's own, of which it is not known what it does in a step."""
    return config.model.name not in MODELS or config.norm.kind not in NORMS


def to_device(host: HostData, device: torch.device) -> DeviceData:
    """Put the splits on the device, once a worker."""
    images, split = host.images, host.split
    assert split.test is None, "a pool has no splits of its own: see `engine.pool`"

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    train_y, val_y = images.train_labels[split.train], images.train_labels[split.val]
    majority, chance = majority_and_chance(train_y, val_y, images.test_labels)
    scale, shift = normalization(host.mean, host.std, device)
    return DeviceData(
        train_x=tensor(images.train_images[split.train]),
        train_y=tensor(train_y),
        val_x=tensor(images.train_images[split.val]),
        val_y=tensor(val_y),
        test_x=tensor(np.array(images.test_images)),
        test_y=tensor(images.test_labels),
        scale=scale,
        shift=shift,
        num_classes=images.num_classes,
        chance=chance,
        majority=majority,
        test_image=np.arange(len(images.test_labels), dtype=np.int32),
    )


def majority_and_chance(train_y: np.ndarray, val_y: np.ndarray, test_y: np.ndarray) -> tuple[int, dict[str, float]]:
    """The largest class of train, and split -> what always answering it scores."""
    majority = int(np.bincount(train_y).argmax())
    splits = {"train": train_y, "val": val_y, "test": test_y}
    return majority, {split: float((y == majority).mean()) for split, y in splits.items()}


def normalization(mean: np.ndarray, std: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift, (1, C, 1, 1) float32, of raw pixels to mean 0 and std 1.

    Args:
        mean, std: of pixels scaled to [0, 1].
    """
    scale, shift = 1.0 / (255.0 * std), -mean / std
    on_device = (torch.from_numpy(each.astype(np.float32)).to(device).view(1, -1, 1, 1) for each in (scale, shift))
    return next(on_device), next(on_device)


def build_network(config: RunConfig, *, in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """The network with torch's own initial values, on the current default device.

    What a user's package draws from PyTorch's global generator depends on the run's seed alone, and the caller's
    generator stands afterwards where it stood.

    Raises:
        ConfigError: depth, width or norm do not fit together, or nothing is left to train.
    """
    if config.model.init == "lsuv" and dict(config.model.options).get("branch") == "fixup":
        hint = "would undo what model.branch=fixup does; choose one of them"
        raise ConfigError("model.init", got=config.model.init, hint=hint)
    with _building(config):
        arguments = _network_arguments(config, in_channels, image_size, num_classes)
        model = build_model(config.model.name, where=config.norm.where or "all", **arguments)
    if config.optim.trainable == "norm":
        _train_only_norms(model)
    return model


def _network_arguments(config: RunConfig, in_channels: int, image_size: int, num_classes: int) -> dict[str, Any]:
    return {
        "in_channels": in_channels,
        "image_size": image_size,
        "num_classes": num_classes,
        "depth": config.model.depth,
        "width": config.model.width,
        "activation": config.model.activation,
        "norm": _norm(config.norm),
        "placement": config.norm.placement or "before",
        "dropout": config.model.dropout,
        "dropout_placement": config.model.dropout_placement or "after",
        **_constructor_options(config.model.options),
    }


def _constructor_options(options: Options) -> dict[str, Any]:
    """All but `code`, which says what a user's package was and is no option of it."""
    return {name: value for name, value in options if name != "code"}


def _norm(config: NormConfig) -> Norm:
    options = _constructor_options(config.options)
    if config.kind in NORMS:
        return make_norm_factory(config.kind, **options)
    given = ", ".join(f"{name}={value}" for name, value in options.items())
    with plugin_errors("norm", config.kind, f"could not be made with {given or 'no options'}"):
        norm = make_norm_factory(config.kind, **options)
    assert isinstance(norm, UserNorm)
    return _NamedNorm(norm.kind, norm.made)


class _NamedNorm(UserNorm):
    """A norm from a user's package that is named where its code raises."""

    @property
    def replaces_bias(self) -> bool:
        with plugin_errors("norm", self.kind, "failed in replaces_bias"):
            return super().replaces_bias

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        with plugin_errors("norm", self.kind, f"failed in make({num_features}, ndim={ndim})"):
            layer = super().make(num_features, ndim=ndim)
            setattr(layer, MADE_BY_PLUGIN, True)
        return layer


@contextmanager
def _building(config: RunConfig) -> Iterator[None]:
    """Random numbers from the run's seed, and the name of a user's model where its code raises."""
    name = config.model.name
    with torch.random.fork_rng(devices=[]), (
        nullcontext() if name in MODELS else plugin_errors("model", name, "could not be built")
    ):  # fmt: skip
        torch.default_generator.manual_seed(seed_for(config.seed, "build"))
        yield


def _train_only_norms(model: nn.Module) -> None:
    """Everything but gamma and beta stays at its initial value. Source: Frankle, Schwab & Morcos 2020."""
    norms = {id(p) for _, norm in norm_layers(model) for p in norm.parameters()}
    if not norms:
        hint = "there is no gamma or beta to train: choose a norm with norm.affine=both, and norm.where"
        raise ConfigError("optim.trainable", got="norm", hint=hint)
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in norms)


def settle_where(config: RunConfig, images: ImageSet) -> RunConfig:
    """The config with one spelling for each selection of norm layers; one that selects none has no norm.

    Raises:
        ConfigError: it names a layer that the network does not have.
    """
    if config.norm.where in (None, "all"):
        return config
    with _building(config):
        arguments = _network_arguments(config, images.in_channels, images.image_size, images.num_classes)
        count = count_norm_positions(config.model.name, **arguments)
    where = canonical_where(config.norm.where or "", count)
    if where == "none":
        return replace(config, norm=NO_NORM)
    placement = "before" if where == "input" else config.norm.placement  # no activation is near: one run, not two
    return replace(config, norm=replace(config.norm, where=where, placement=placement))


def settle_plugins(config: RunConfig) -> RunConfig:
    """The config with the code of what a user's package brought, and its numbers in one spelling.

    Edited code is another run; `norm.gain=1` and `norm.gain=1.0` are one.
    """
    model, norm = config.model, config.norm
    if model.name not in MODELS:
        model = replace(model, options=_settled_options("model", model.name, model.options))
    if norm.kind not in NORMS:
        norm = replace(norm, options=_settled_options("norm", norm.kind, norm.options))
    return replace(config, model=model, norm=norm)


def _settled_options(axis: str, name: str, options: Options) -> Options:
    defaults = plugin_options(axis, name)
    settled = {key: _as_type_of(defaults.get(key), value) for key, value in options}
    return tuple(sorted((settled | {"code": code_of(axis, name)}).items()))


def _as_type_of(default: Any, value: Any) -> Any:
    """A number as the kind of number that its default is, where that loses nothing."""
    if type(default) is float and type(value) is int:
        return float(value)
    return int(value) if type(default) is int and type(value) is float and value.is_integer() else value


def init_network(model: nn.Module, config: RunConfig, data: DeviceData) -> None:
    """Draw every parameter from a seed keyed by its name: arms share what they share."""
    init_parameters(
        model,
        scheme=config.model.init,
        gain=config.model.init_gain if config.model.init != "lsuv" else 1.0,
        activation=config.model.activation,
        seed_of=partial(seed_for, config.seed, "init"),
    )
    if config.model.init == "lsuv":
        generator = torch.Generator().manual_seed(seed_for(config.seed, "lsuv"))
        num = max(1, LSUV_IMAGES // config.batch_size) * config.batch_size  # whole batches: ghost norm needs them
        index = torch.randperm(len(data.train_y), generator=generator)[:num].to(data.train_x.device)
        model.to(data.train_x.device)
        scale_to_unit_variance(model, normalize(data.train_x[index], data), gain=config.model.init_gain)


def normalize(x: Tensor, data: Normalization) -> Tensor:
    """Raw pixels to float32 with the training set's mean 0 and std 1 per channel, channels last."""
    return (x.float() * data.scale + data.shift).contiguous(memory_format=torch.channels_last)


def check_network(config: RunConfig, images: ImageSet, num_train: int) -> None:
    """Run one training step's shapes on the meta device, which costs no memory and no arithmetic.

    What a user's package brought runs on two examples on the CPU instead: it may not know the meta device.

    Raises:
        ConfigError: the batch does not fit the data, or the network does not fit the images or the norm.
    """
    if config.batch_size > num_train:
        raise ConfigError("batch_size", got=config.batch_size, hint=f"there are only {num_train} training examples")
    foreign = config.norm.kind not in NORMS or config.model.name not in MODELS
    whole = not foreign or config.norm.kind == "ghost"
    num = config.batch_size if whole else min(2, config.batch_size)
    with torch.device("cpu" if foreign else "meta"), torch.random.fork_rng(devices=[]):
        model = build_network(
            config, in_channels=images.in_channels, image_size=images.image_size, num_classes=images.num_classes
        )
        for module in model.modules():
            # a cumulative average reads its count on the host, which meta has none of; shapes do not depend on it
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.momentum is None:
                module.momentum = 0.0
        _check_forward(
            model, config, torch.zeros(num, images.in_channels, images.image_size, images.image_size), images
        )


def _check_forward(model: nn.Module, config: RunConfig, x: Tensor, images: ImageSet) -> None:
    foreign = config.model.name not in MODELS
    _name_norm_errors(model, config.norm.kind)
    try:
        with plugin_errors("model", config.model.name, _in_forward(x)) if foreign else nullcontext():
            logits = model(x)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        hint = f"norm={config.norm.kind} needs more than one value per channel: use a larger batch, or norm=layer"
        raise ConfigError("batch_size", got=config.batch_size, hint=hint) from error
    if not isinstance(logits, Tensor) or logits.shape != (len(x), images.num_classes):
        assert foreign
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        due = f"returned {got} where logits ({len(x)}, {images.num_classes}) are due"
        raise plugin_error("model", config.model.name, due)


def _name_norm_errors(model: nn.Module, kind: str) -> None:
    """Let every layer that a user's norm made say so where it raises. For a network that is thrown away."""

    def named(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, *rest: Any) -> Any:
            with plugin_errors("norm", kind, _in_forward(x)):
                y = forward(x, *rest)
            if isinstance(y, Tensor) and y.dtype != x.dtype:
                raise plugin_error("norm", kind, f"returned {y.dtype} for an input of {x.dtype}")
            return y

        return call

    for layer in model.modules():
        if getattr(layer, MADE_BY_PLUGIN, False):
            layer.forward = named(layer.forward)


def _in_forward(x: Tensor) -> str:
    return f"failed in forward on {tuple(x.shape)}"


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """What is trained: weights, which decay, and all else, which does with `optim.decay=all`."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]


def build_optimizer(model: nn.Module, optim: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """The optimizer, fused where PyTorch has it; weight decay on weights only, unless `optim.decay=all`."""
    weights, others = decay_groups(model)
    groups = [
        {"params": weights, "weight_decay": optim.weight_decay},
        {"params": others, "weight_decay": optim.weight_decay if optim.decay == "all" else 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optim.name == "sgd":
        assert optim.momentum is not None
        assert optim.nesterov is not None
        return torch.optim.SGD(groups, lr=lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=True)
    assert optim.eps is not None
    if optim.name == "rmsprop":
        assert optim.alpha is not None
        assert optim.momentum is not None
        return torch.optim.RMSprop(groups, lr=lr, alpha=optim.alpha, eps=optim.eps, momentum=optim.momentum)
    assert optim.beta1 is not None
    assert optim.beta2 is not None
    kind = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)
