"""What the network scores with running statistics, with exact ones and with each test batch's own."""

from __future__ import annotations

from dataclasses import dataclass

from bnexp.nn.layers import running_norms
from bnexp.nn.statistics import kept_statistics, measure_statistics
from bnexp.probes.base import Ending, Row
from bnexp.probes.evaluation import evaluate, mixed_test_chunks, train_inputs


@dataclass(frozen=True)
class StatisticsProbe:
    """Test accuracy and loss under three kinds of statistics, in fp32 whatever the run's own precision.

    Column `statistics`:
        running: those that training left behind.
        precise: mean and biased variance over all training images, without augmentation, recomputed layer by layer.
        batch: those of each batch of about 256 test images, drawn from all classes.

    A network without running statistics has one result, which stands for all three.

    Quantities:
        test_accuracy: a fraction.
        test_loss: mean cross-entropy in nats.

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3 (precise); Schneider et al. 2020 (batch).

    Cost: 0.9 of a training epoch (4-layer cnn of width 16 with batch norm, 54,000 training and 10,000 test images of
    28×28, batch 128, one CPU thread). Nearly all of it is for `precise`: half a forward pass over the training set for
    each norm, so that it grows with depth squared. Without running statistics 0.05.
    """

    def measure(self, ending: Ending) -> list[Row]:
        """Two rows for each kind of statistics."""
        running = evaluate(ending, mixed_test_chunks(ending))
        found = {"running": running, "precise": running, "batch": running}
        if running_norms(ending.model):
            found["precise"] = _evaluate_precise(ending)
            found["batch"] = evaluate(ending, mixed_test_chunks(ending), statistics="batch")
        return [
            ending.row("statistics", quantity, value, statistics=statistics)
            for statistics, (accuracy, loss) in found.items()
            for quantity, value in (("test_accuracy", accuracy), ("test_loss", loss))
        ]


def _evaluate_precise(ending: Ending) -> tuple[float, float]:
    with kept_statistics(ending.model):
        measure_statistics(ending.model, lambda: train_inputs(ending))
        return evaluate(ending, mixed_test_chunks(ending))
