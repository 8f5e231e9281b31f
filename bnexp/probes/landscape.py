"""How rough the loss is along its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bnexp.probes.base import Moment, Row
from bnexp.probes.common import Found, Periodic, copies, joined, loss_and_gradients, rewinder, write

# step sizes as multiples of the learning rate: the paper's range, in geometric progression
SHORTEST, LONGEST, NUM_STEPS = 0.5, 4.0, 8


@dataclass(frozen=True)
class LandscapeProbe(Periodic):
    """Loss and gradient on a line from the weights W along the negative gradient g of all parameters, on one batch.

    The points are W − ηg for 8 step sizes η in geometric progression from 1/2 to 4 times the learning rate; W itself
    is not one of them. The optimizer's momentum, scaling, clipping and weight decay play no part.

    Quantities, of the whole network:
        loss: at W.
        loss_min, loss_max: over the points.
        gradient_distance_min, gradient_distance_max: of ||g(W) − g(W − ηg)|| over the points; gradient predictiveness.
        smoothness: the largest ||g(W) − g(W − ηg)|| / ||ηg||; the "effective" β-smoothness.

    Source: Santurkar, Tsipras, Ilyas & Mądry 2018, "How does batch normalization help optimization?", figure 4.

    Cost: at every=100, 9 % of an epoch of the 4-convolution CNN on 28×28 images, batch 128, one CPU
    thread, fp32; about twice that of a bf16 epoch, for probes stay in fp32.
    """

    def measure(self, moment: Moment) -> list[Row]:
        """Nine forward and backward passes."""
        parameters = [parameter for parameter in moment.model.parameters() if parameter.requires_grad]
        rewind = rewinder(moment.model)
        loss, direction = loss_and_gradients(moment, parameters)
        start, g = copies(parameters), joined(direction)
        losses, distances, slopes = [], [], []
        for k in range(NUM_STEPS):
            eta = moment.lr * SHORTEST * (LONGEST / SHORTEST) ** (k / (NUM_STEPS - 1))
            write((p, w - eta * d) for p, w, d in zip(parameters, start, direction, strict=True))
            rewind()
            loss_there, there = loss_and_gradients(moment, parameters)
            distance = (g - joined(there)).norm()
            losses.append(loss_there)
            distances.append(distance)
            slopes.append(distance / (eta * g.norm()))
        line, distance = torch.stack(losses), torch.stack(distances)
        found = Found(moment, "landscape")
        found.add(
            "",
            loss=loss,
            loss_min=line.min(),
            loss_max=line.max(),
            gradient_distance_min=distance.min(),
            gradient_distance_max=distance.max(),
            smoothness=torch.stack(slopes).max(),
        )
        return found.rows()
