"""What one command line asks for, composed and validated."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bnexp.config import ExecConfig, RunConfig
from bnexp.study import StudySpec


@dataclass(frozen=True)
class StudyRequest:
    """A study asked for on the command line.

    Attributes:
        overrides: the user's own overrides of what the study declares; any makes it exploratory.
        stop_decided: add seeds in rounds, and stop when its verdicts are in.
    """

    spec: StudySpec
    tier: str
    overrides: tuple[str, ...]
    stop_decided: bool = False

    @property
    def further_rates(self) -> tuple[float, ...]:
        """The learning rates that may be added to its ladder; none to that of an exploratory study."""
        return () if self.overrides else self.spec.tiers[self.tier].widen

    @property
    def key(self) -> str:
        """The name it goes by on disk: a tier, rounds or an exploration never mix with the declared small tier."""
        tier = "" if self.tier == "small" else f"-{self.tier}"
        tier += "-decided" if self.stop_decided else ""
        if not self.overrides:
            return f"{self.spec.name}{tier}"
        digest = hashlib.sha256(" ".join(sorted(self.overrides)).encode()).hexdigest()[:6]
        return f"{self.spec.name}{tier}-exploratory-{digest}"


@dataclass(frozen=True)
class Part:
    """One study of a request, or its grid where no study is asked for.

    Attributes:
        configs: the composed runs in sweep order, before identity merges equal ones.
        arms: of a study, the arm of each; else empty.
        swept: the keys that vary in the grid.
        probes: probe -> its options, as the study declares them.
    """

    configs: tuple[RunConfig, ...]
    study: StudyRequest | None = None
    arms: tuple[str, ...] = ()
    swept: tuple[str, ...] = ()
    probes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What one command line asks for.

    Attributes:
        exec: its probes are those that the user asks for, in addition to those of the parts.
        lacking: of all studies, those left out because they lack the tier.
        fork: start studies whose declaration has changed under names of their own.
    """

    parts: tuple[Part, ...]
    exec: ExecConfig
    argv: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    fork: bool = False

    @property
    def configs(self) -> tuple[RunConfig, ...]:
        """The composed runs of all parts, in sweep order."""
        return tuple(config for part in self.parts for config in part.configs)

    @property
    def studies(self) -> tuple[StudyRequest, ...]:
        return tuple(part.study for part in self.parts if part.study is not None)
