"""The learning rate of every step, as pure functions of the step."""

from __future__ import annotations

import math

from bnexp.config import ScheduleConfig


def lr_factor(schedule: ScheduleConfig, *, step: int, num_steps: int, steps_per_epoch: int) -> float:
    """The factor on the peak learning rate at one step.

    Args:
        step: from 0 to num_steps − 1.
        num_steps: of the whole training, warm-up included.

    Source: cosine as in Loshchilov & Hutter 2017 without restarts; one-cycle as in Smith 2018, with cosine arms.
    """
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "step":
        assert schedule.milestones is not None
        assert schedule.factor is not None
        passed = sum(step >= milestone * num_steps for milestone in schedule.milestones)
        return schedule.factor**passed
    if schedule.name == "cosine":
        return _cosine(1.0, 0.0, (step - warmup) / max(1, num_steps - warmup))
    assert schedule.peak_at is not None
    assert schedule.start_factor is not None
    assert schedule.end_factor is not None
    peak = schedule.peak_at * num_steps - 1
    if peak > 0 and step <= peak:
        return _cosine(schedule.start_factor, 1.0, step / peak)
    peak = max(0.0, peak)
    return _cosine(1.0, schedule.end_factor, (step - peak) / max(1.0, num_steps - 1 - peak))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2
