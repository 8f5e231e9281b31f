"""What a run leaves behind when it has ended: one record, written when all that training gave is on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from bnexp.config import Status

if TYPE_CHECKING:
    import numpy as np

RECORD_VERSION = 1
STATUSES: tuple[Status, ...] = ("finished", "diverged", "collapsed", "failed")


@dataclass(frozen=True)
class Predictions:
    """What a trained network predicted of every test image.

    Attributes:
        predicted, label: (N,) uint8, or uint16 where there are more than 256 classes.
        image: (N,) int32, which image each is: its place among the test images of the data set or, where each seed
            draws its own split, among all its images, training ones first.
        chance_class: the largest class of the training images; always answering it scores `chance_test_accuracy`.
        num_train: training images that the run had.
    """

    predicted: np.ndarray
    label: np.ndarray
    image: np.ndarray
    chance_class: int
    num_train: int


@dataclass(frozen=True)
class RunRecord:
    """The end of a run.

    Attributes:
        status: finished; diverged (a loss that was not finite); collapsed (finite loss, accuracy at chance);
            failed (an exception or a killed worker: retried on the next call, never scored).
        final: metric name to number. A diverged run has null for what could not be measured.
        seconds: train, eval and probes seconds; cpu: those of training in which the process had a core.
        error: the last line of the traceback of a failed run; the whole of it lies in error.txt beside the record.
    """

    run_id: str
    cell_id: str
    status: Status
    config: dict[str, Any]
    exec: dict[str, Any]
    final: dict[str, float | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    num_params: int = 0
    epochs_done: int = 0
    error: str | None = None
    version: int = RECORD_VERSION

    def has_ended_with(self, probes: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether nothing is left to do: the run did not crash, and it measured these probes with these options."""
        return self.status != "failed" and not self.unmeasured(probes)

    def unmeasured(self, probes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Those of these probes, with these options, that the run does not have."""
        measured = self.exec.get("probes", {})
        return {name: dict(options) for name, options in probes.items() if measured.get(name) != dict(options)}

    def to_dict(self) -> dict[str, Any]:
        """A plain, JSON-ready dict."""
        return asdict(self)

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> RunRecord:
        """Read a record back.

        Raises:
            KeyError, TypeError: it is not a record.
        """
        if raw["version"] != RECORD_VERSION:
            raise KeyError(f"record version {raw['version']}, this bnexp reads {RECORD_VERSION}")
        return RunRecord(**raw)
