"""The unit that every network is built from: the one place that knows the order of weight, norm and activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from bnexp.errors import ConfigError
from bnexp.nn.norms import Norm

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

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
}


class Unit(nn.Module):
    """Weight, norm and activation, applied in `order`; a part that the order lacks is absent.

    Children are always named `weight`, `norm` and `act`, whatever the order: parameters keep their names, and so
    their initial values, across placements and norms.
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


@dataclass(frozen=True)
class UnitFactory:
    """Makes units of one norm, one placement and one activation.

    Raises:
        ConfigError: an unknown placement or activation.
    """

    norm: Norm
    placement: str
    activation: str

    def __post_init__(self) -> None:
        if self.placement not in ORDERS:
            raise ConfigError("norm.placement", got=self.placement, choices=ORDERS)
        if self.activation not in ACTIVATIONS:
            raise ConfigError("model.activation", got=self.activation, choices=ACTIVATIONS)

    def conv(self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1) -> Unit:
        """Convolution with "same" padding, norm and activation: before, weight-norm-act; after, weight-act-norm."""
        return self._conv(ORDERS[self.placement], in_channels, out_channels, kernel_size, stride)

    def linear(self, in_features: int, out_features: int) -> Unit:
        """Fully connected layer, norm and activation, in the same orders."""
        order = ORDERS[self.placement]
        weight = nn.Linear(in_features, out_features, bias=self._needs_bias(order))
        return Unit(order, weight=weight, norm=self.norm.make(out_features, ndim=2), act=self._act(order))

    def preactivation_conv(self, in_channels: int, out_channels: int, *, stride: int = 1) -> Unit:
        """Norm and activation of the input, then a 3×3 convolution: before, norm-act-weight; after, act-norm-weight."""
        return self._conv(PREACTIVATION_ORDERS[self.placement], in_channels, out_channels, 3, stride)

    def branch_conv(self, in_channels: int, out_channels: int) -> Unit:
        """The last convolution of a residual branch, whose activation waits for the addition.

        Before: weight-norm, so that the norm acts on the branch. After: the weight alone; the norm follows the
        activation in `tail`.
        """
        order = ("weight", "norm") if self.placement == "before" else ("weight",)
        return self._conv(order, in_channels, out_channels, 3, 1)

    def tail(self, num_channels: int) -> Unit:
        """What follows the addition of a residual block: before, the activation; after, activation-norm."""
        order = ("act",) if self.placement == "before" else ("act", "norm")
        return self._parts(order, num_channels)

    def closing(self, num_channels: int) -> Unit:
        """Norm and activation of the last sum of a pre-activation network: before, norm-act; after, act-norm."""
        order = PREACTIVATION_ORDERS[self.placement][:2]
        return self._parts(order, num_channels)

    def _conv(self, order: Order, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> Unit:
        weight = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=self._needs_bias(order)
        )
        # in a pre-activation order the norm sees what comes in
        features = in_channels if order.index("weight") == len(order) - 1 else out_channels
        return self._parts(order, features, weight=weight)

    def _parts(self, order: Order, num_channels: int, **parts: nn.Module) -> Unit:
        if "norm" in order:
            parts["norm"] = self.norm.make(num_channels, ndim=4)
        if "act" in order:
            parts["act"] = self._act(order)
        return Unit(order, **parts)

    def _act(self, order: Order) -> nn.Module:
        # In place saves a pass over memory; only behind a weight of its own, for an input may be a shortcut as well.
        if self.activation == "relu" and "weight" in order[: order.index("act")]:
            return nn.ReLU(inplace=True)
        return ACTIVATIONS[self.activation]()

    def _needs_bias(self, order: Order) -> bool:
        """A weight whose output goes straight into a norm needs none: in its own unit, or the next pre-activation one."""
        following = order[order.index("weight") + 1 :] or (order[0] if len(order) == 3 else "sum",)
        return not (following[0] == "norm" and self.norm.replaces_bias)
