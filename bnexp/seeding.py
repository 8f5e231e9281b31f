"""Every purpose gets a seed of its own, so that drawing more for one never moves another."""

from __future__ import annotations

import hashlib


def seed_for(seed: int, purpose: str, *keys: str | int) -> int:
    """A 63-bit seed for one purpose of one run.

    Args:
        seed: the run's seed.
        purpose: what is drawn: "init", "order", "augment", ...
        keys: what tells the draws of one purpose apart: a parameter's name, an epoch.
    """
    text = "\0".join([str(seed), purpose, *map(str, keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
