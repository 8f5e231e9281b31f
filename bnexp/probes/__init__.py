"""What is measured beside the training, without changing it."""

from __future__ import annotations

from typing import Any

from bnexp.probes.activations import ActivationProbe
from bnexp.probes.affine import AffineProbe
from bnexp.probes.base import Ending, EndProbe, Moment, Row, StepProbe, undisturbed
from bnexp.probes.cost import CostProbe
from bnexp.probes.gradients import GradientProbe
from bnexp.probes.landscape import LandscapeProbe
from bnexp.probes.robustness import RobustnessProbe
from bnexp.probes.running import RunningProbe
from bnexp.probes.sampling import SamplingProbe
from bnexp.probes.shift import ShiftProbe
from bnexp.probes.statistics import StatisticsProbe

__all__ = ["END_PROBES", "STEP_PROBES", "EndProbe", "Ending", "Moment", "Row", "StepProbe", "undisturbed"]

STEP_PROBES: dict[str, type[Any]] = {
    "gradients": GradientProbe,
    "activations": ActivationProbe,
    "shift": ShiftProbe,
    "landscape": LandscapeProbe,
    "affine": AffineProbe,
    "running": RunningProbe,
}
END_PROBES: dict[str, type[Any]] = {
    "statistics": StatisticsProbe,
    "sampling": SamplingProbe,
    "robustness": RobustnessProbe,
    "cost": CostProbe,
}
