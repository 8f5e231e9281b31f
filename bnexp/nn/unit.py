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

    def conv(self, in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, act: bool = True) -> Unit:
        """Convolution with "same" padding, norm and activation: before, weight-norm-act; after, weight-act-norm.

        Args:
            kernel: an odd number.
            act: False for the last convolution of a residual branch, whose activation waits for the addition. Before:
                weight-norm, so that the norm acts on the branch. After: the weight alone; the norm follows the
                activation in `tail`.
        """
        order = (ORDERS if act else BRANCH_ORDERS)[self.placement]
        weight = self._weight(in_channels, out_channels, kernel, stride, reader=order[1] if len(order) > 1 else "sum")
        return self._parts(order, out_channels, weight=weight)

    def linear(self, in_features: int, out_features: int) -> Unit:
        """Fully connected layer, norm and activation, in the same orders."""
        order = ORDERS[self.placement]
        weight = nn.Linear(in_features, out_features, bias=self._needs_bias(order[1]))
        return self._parts(order, out_features, ndim=2, weight=weight)

    def preactivation_conv(self, in_channels: int, out_channels: int, *, stride: int = 1) -> Unit:
        """Norm and activation of the input, then a 3×3 convolution: before, norm-act-weight; after, act-norm-weight."""
        order = PREACTIVATION_ORDERS[self.placement]
        # the output is read by the next unit, or from the sum by every later block and `closing`, in the same order
        weight = self._weight(in_channels, out_channels, 3, stride, reader=order[0])
        return self._parts(order, in_channels, weight=weight)

    def preactivation_stem(self, in_channels: int, out_channels: int) -> Unit:
        """The bare 3×3 convolution that a pre-activation network starts with."""
        weight = self._weight(in_channels, out_channels, 3, 1, reader=PREACTIVATION_ORDERS[self.placement][0])
        return Unit(("weight",), weight=weight)

    def tail(self, num_channels: int) -> Unit:
        """What follows the addition of a residual block: before, the activation; after, activation-norm."""
        order = ("act",) if self.placement == "before" else ("act", "norm")
        return self._parts(order, num_channels)

    def closing(self, num_channels: int) -> Unit:
        """Norm and activation of the last sum of a pre-activation network: before, norm-act; after, act-norm."""
        order = PREACTIVATION_ORDERS[self.placement][:2]
        return self._parts(order, num_channels)

    def _parts(self, order: Order, num_features: int, *, ndim: int = 4, **parts: nn.Module) -> Unit:
        if "norm" in order:
            parts["norm"] = self.norm.make(num_features, ndim=ndim)
        if "act" in order:
            parts["act"] = ACTIVATIONS[self.activation]()
        return Unit(order, **parts)

    def _weight(self, in_channels: int, out_channels: int, kernel: int, stride: int, *, reader: str) -> nn.Conv2d:
        bias = self._needs_bias(reader)
        return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)

    def _needs_bias(self, reader: str) -> bool:
        """Whether what reads a weight's output ("norm", "act" or "sum") leaves a bias any work."""
        return not (reader == "norm" and self.norm.replaces_bias)
