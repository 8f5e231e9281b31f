"""Executes runs one after another in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from bnexp.config import RunConfig
from bnexp.engine.execute import execute_run
from bnexp.engine.worker import Job, Worker
from bnexp.records import RunRecord
from bnexp.store import Store


def execute_serial(
    jobs: Sequence[Job],
    worker: Worker,
    store: Store,
    *,
    on_epoch: Callable[[RunConfig], None],
    on_record: Callable[[RunConfig, RunRecord | None], None],
) -> None:
    """Execute in order; `on_record` gets each run's record, or None where another process trains it."""
    worker.start()
    for job in jobs:
        measuring = worker.measuring(job.probes)
        on_record(job.config, execute_run(job.config, measuring, store, on_epoch=partial(on_epoch, job.config)))
