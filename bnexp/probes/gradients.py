"""How large gradients, weights and updates are, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from bnexp.nn.layers import hooked, weight_layers
from bnexp.probes.base import Moment, Row
from bnexp.probes.common import Found, Periodic, copies, wide


@dataclass(frozen=True)
class GradientProbe(Periodic):
    """Sizes of the weight of each convolution and linear layer in the update to come.

    Biases are left out, and so are weights that are not trained.

    Quantities, per weight layer:
        gradient_norm: L2 norm of the gradient of the loss, before clipping and without weight decay.
        weight_norm: L2 norm of the weight, before the update.
        update_ratio: L2 norm of what the optimizer then adds, with momentum, clipping and decay, over weight_norm.

    Cost: at every=100, 1.0 % of an epoch of the 4-convolution CNN on 28×28 images, batch 128, one CPU
    thread, fp32; about twice that of a bf16 epoch, for probes stay in fp32.
    """

    def measure(self, moment: Moment) -> list[Row]:
        """Do the update, and look at the gradients as they arrive."""
        layers = [(name, layer.get_parameter("weight")) for name, layer in weight_layers(moment.model)]
        layers = [(name, weight) for name, weight in layers if weight.requires_grad]
        weights = [weight for _, weight in layers]
        before = copies(weights)
        sizes = [weight.new_zeros(()) for weight in weights]

        def measure_into(index: int, gradient: Tensor) -> None:
            sizes[index] = wide(gradient).norm()

        # on a leaf such a hook gets the whole gradient, once, however often the forward pass used the weight
        handles = [
            weight.register_hook(partial(measure_into, index))  # type: ignore[no-untyped-call]
            for index, weight in enumerate(weights)
        ]
        with hooked(handles):
            moment.update()
        found = Found(moment, "gradients")
        for (name, after), start, size in zip(layers, before, sizes, strict=True):
            norm = wide(start).norm()
            moved = (wide(after.detach()) - wide(start)).norm()
            found.add(name, gradient_norm=size, weight_norm=norm, update_ratio=moved / norm)
        return found.rows()
