"""Which runs are trained side by side, and how many at once."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

from bnexp.config import RunConfig
from bnexp.engine.stacked import stack_key
from bnexp.engine.worker import Job

MOST_RUNS = 32
# values in the largest activation of a stack: beyond, it no longer fits a CPU's caches and runs alone are as fast; a
# GPU wants more at once (how many is not measured: `auto` times whether a stack is faster)
MOST_VALUES, MOST_VALUES_ON_GPU = 2**19, 2**24

Batch = tuple[Job, ...]


def batched(
    jobs: Sequence[Job],
    *,
    slots: int,
    image_sizes: Sequence[int],
    device_type: str = "cpu",
    alone: Collection[Hashable] = (),
) -> list[Batch]:
    """The jobs in batches of runs that can be trained side by side, in order of the first of each; most are alone.

    Args:
        slots: batches in hand at once: a group is parted among them.
        image_sizes: of each job.
        alone: `stack_key` of runs that are not to be.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, job in enumerate(jobs):
        key = stack_key(job.config, job.probes)
        groups.setdefault(("alone", index) if key is None or key in alone else key, []).append(index)
    batches: list[list[int]] = []
    for group in groups.values():
        most = stack_width(jobs[group[0]].config, image_sizes[group[0]], device_type)
        num = max(1, -(-len(group) // most))
        num = max(num, min(slots, len(group) // 2)) if most > 1 else len(group)
        batches += [group[start::num] for start in range(num)]
    return [tuple(jobs[index] for index in batch) for batch in sorted(batches)]


def stack_width(config: RunConfig, image_size: int, device_type: str = "cpu") -> int:
    """How many runs of this shape one stack should have: 1 where the gain of the stack is lost to memory."""
    side = 1 if config.model.name == "mlp" else image_size
    most = MOST_VALUES_ON_GPU if device_type == "cuda" else MOST_VALUES
    return max(1, min(MOST_RUNS, most // (config.batch_size * config.model.width * side * side)))
