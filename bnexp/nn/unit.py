"""The unit that every network is built from: the one place that knows the order of weight, norm and activation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from bnexp.errors import ConfigError
from bnexp.nn.layers import Dropout
from bnexp.nn.norm_layers import StandardizedConv2d, StandardizedLinear
from bnexp.nn.norms import NoNorm, Norm

Order = tuple[str, ...]

# placement -> order. "before" and "after" always say where the norm stands relative to the activation.
ORDERS: dict[str, Order] = {
    "before": ("weight", "norm", "act"),
    "after": ("weight", "act", "norm"),
}
PREACTIVATION_ORDERS: dict[str, Order] = {
    "before": ("norm", "act", "weight"),
    "after": ("act", "norm", "weight"),
}

# a residual branch ends without its activation, which waits for the addition: `UnitFactory.tail` has what is missing
BRANCH_ORDERS: dict[str, Order] = {
    "before": ("weight", "norm"),
    "after": ("weight",),
}

# None works in place: that would rewrite what a hook on the layer before has stored, and full backward hooks refuse it.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
}

# before: right before the norm; after: behind norm and activation; head: once, in front of the network's last layer
DROPOUT_PLACEMENTS = ("before", "after", "head")


class Unit(nn.Module):
    """Weight, norm, activation and dropout, applied in `order`; a part that the order lacks is absent.

    Children are always named `weight`, `norm`, `act` and `drop`, whatever the order: parameters keep their names, and
    so their initial values, across placements and norms.
    """

    def __init__(self, order: Order, **parts: nn.Module) -> None:
        super().__init__()
        assert set(order) == set(parts)
        self.order = order
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x)
        return x


@dataclass
class NormPositions:
    """Numbers a network's norm positions in the order of construction and says which have their norm.

    Attributes:
        chosen: the positions that have it; None: all.
        on_input: whether the network's input has one.
        count: positions given out so far.
    """

    chosen: frozenset[int] | None = None
    on_input: bool = False
    count: int = 0

    def take(self) -> bool:
        """Whether the next position has its norm."""
        self.count += 1
        return self.chosen is None or self.count - 1 in self.chosen


@dataclass(frozen=True)
class UnitFactory:
    """Makes units of one norm, one placement and one activation; one factory makes one network.

    Attributes:
        dropout: probability of a value to be zeroed in training; 0: no dropout layers.
        dropout_placement: relative to the norm, in every unit that has a weight and an activation; or `head`.

    Raises:
        ConfigError: an unknown placement or activation.
    """

    norm: Norm
    placement: str
    activation: str
    positions: NormPositions = field(default_factory=NormPositions)
    dropout: float = 0.0
    dropout_placement: str = "after"

    def __post_init__(self) -> None:
        if self.placement not in ORDERS:
            raise ConfigError("norm.placement", got=self.placement, choices=ORDERS)
        if self.activation not in ACTIVATIONS:
            raise ConfigError("model.activation", got=self.activation, choices=ACTIVATIONS)
        if self.dropout_placement not in DROPOUT_PLACEMENTS:
            raise ConfigError("model.dropout_placement", got=self.dropout_placement, choices=DROPOUT_PLACEMENTS)

    def conv(self, in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, act: bool = True) -> Unit:
        """Convolution with "same" padding, norm and activation: before, weight-norm-act; after, weight-act-norm.

        Args:
            kernel: an odd number.
            act: False for the last convolution of a residual branch, whose activation waits for the addition. Before:
                weight-norm, so that the norm acts on the branch. After: the weight alone; the norm follows the
                activation in `tail`.
        """
        order = (ORDERS if act else BRANCH_ORDERS)[self.placement]
        norm = self.next_norm() if "norm" in order else NoNorm()
        bias = not (_follow(order, "weight", "norm") and norm.replaces_bias)
        weight = self._conv(in_channels, out_channels, kernel, stride, norm, bias=bias)
        return self._unit(order, out_channels, norm, weight=weight)

    def linear(self, in_features: int, out_features: int) -> Unit:
        """Fully connected layer, norm and activation, in the same orders."""
        order, norm = ORDERS[self.placement], self.next_norm()
        kind = StandardizedLinear if self._standardizes(norm) else nn.Linear
        weight = kind(in_features, out_features, bias=not (_follow(order, "weight", "norm") and norm.replaces_bias))
        return self._unit(order, out_features, norm, ndim=2, weight=weight)

    def preactivation_conv(self, in_channels: int, out_channels: int, *, stride: int = 1) -> Unit:
        """Norm and activation of the input, then a 3×3 convolution: before, norm-act-weight; after, act-norm-weight."""
        order = PREACTIVATION_ORDERS[self.placement]
        norm = self.next_norm()
        weight = self._conv(in_channels, out_channels, 3, stride, norm, bias=self._preactivation_bias())
        return self._unit(order, in_channels, norm, weight=weight)

    def preactivation_stem(self, in_channels: int, out_channels: int) -> Unit:
        """The bare 3×3 convolution that a pre-activation network starts with."""
        weight = self._conv(in_channels, out_channels, 3, 1, NoNorm(), bias=self._preactivation_bias())
        return Unit(("weight",), weight=weight)

    def tail(self, num_channels: int) -> Unit:
        """What follows the addition of a residual block: before, the activation; after, activation-norm."""
        order = ("act",) if self.placement == "before" else ("act", "norm")
        return self._unit(order, num_channels, self.next_norm() if "norm" in order else NoNorm())

    def closing(self, num_channels: int) -> Unit:
        """Norm and activation of the last sum of a pre-activation network: before, norm-act; after, act-norm."""
        return self._unit(PREACTIVATION_ORDERS[self.placement][:2], num_channels, self.next_norm())

    def input_norm(self, in_channels: int) -> nn.Module:
        """The norm on the network's input, or the identity."""
        return _without_activation(self.norm).make(in_channels, ndim=4) if self.positions.on_input else nn.Identity()

    def head_dropout(self) -> nn.Module:
        """Dropout in front of the network's last layer, or the identity."""
        return Dropout(self.dropout) if self.dropout and self.dropout_placement == "head" else nn.Identity()

    def next_norm(self) -> Norm:
        """The norm of the next position, or none where `norm.where` leaves it out."""
        return self.norm if self.positions.take() else NoNorm()

    def _unit(self, order: Order, num_features: int, norm: Norm, *, ndim: int = 4, **parts: nn.Module) -> Unit:
        drops = self.dropout > 0 and self.dropout_placement != "head" and {"weight", "norm", "act"} <= set(order)
        plain = _without_activation(norm)
        if norm != plain and _follow(order, "norm", "act"):
            order = tuple(part for part in order if part != "act")
        else:
            norm = plain
        if "norm" in order:
            parts["norm"] = norm.make(num_features, ndim=ndim)
        if "act" in order:
            parts["act"] = ACTIVATIONS[self.activation]()
        if drops:
            order = with_dropout(order, self.dropout_placement)
            parts["drop"] = Dropout(self.dropout)
        return Unit(order, **parts)

    def _conv(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, norm: Norm, *, bias: bool
    ) -> nn.Conv2d:
        kind = StandardizedConv2d if self._standardizes(norm) else nn.Conv2d
        return kind(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)

    def _preactivation_bias(self) -> bool:
        """Whether a weight read by the next unit, and from the sum by every later one, has work for a bias.

        Norms that replace it must stand at all positions, and first in their units.
        """
        everywhere = self.positions.chosen is None
        return not (everywhere and self.placement == "before" and self.norm.replaces_bias)

    def _standardizes(self, norm: Norm) -> bool:
        """Whether a weight is standardized: where its own norm stands; one that has no position, where all stand."""
        own = norm if self.positions.chosen is not None else self.norm
        return bool(getattr(own, "standardizes_weights", False))


def _without_activation(norm: Norm) -> Norm:
    plain = getattr(norm, "without_activation", None)
    return norm if plain is None else plain()


def _follow(order: Order, first: str, second: str) -> bool:
    """Whether `second` comes right behind `first`."""
    return (first, second) in itertools.pairwise(order)


def with_dropout(order: Order, placement: str) -> Order:
    """The order with `drop` right before the norm, or right behind norm and activation."""
    at = order.index("norm")
    if placement == "after":
        at = 1 + max(order.index(part) for part in ("norm", "act") if part in order)
    return (*order[:at], "drop", *order[at:])
