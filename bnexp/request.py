"""What one command line asks for, composed and validated."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from bnexp.config import ExecConfig, RunConfig
from bnexp.study import StudySpec


@dataclass(frozen=True)
class StudyRequest:
    """A study asked for on the command line.

    Attributes:
        overrides: the user's own overrides of what the study declares; any makes it exploratory.
    """

    spec: StudySpec
    tier: str
    overrides: tuple[str, ...]

    @property
    def key(self) -> str:
        """The name it goes by on disk: a tier or an exploration never mixes with the declared small tier."""
        tier = "" if self.tier == "small" else f"-{self.tier}"
        if not self.overrides:
            return f"{self.spec.name}{tier}"
        digest = hashlib.sha256(" ".join(sorted(self.overrides)).encode()).hexdigest()[:6]
        return f"{self.spec.name}{tier}-exploratory-{digest}"


@dataclass(frozen=True)
class Request:
    """What one command line asks for.

    Attributes:
        configs: the composed runs in sweep order, before identity merges equal ones.
        arms: of a study, the arm of each; else empty.
        swept: the keys that vary in the grid.
    """

    configs: tuple[RunConfig, ...]
    exec: ExecConfig
    study: StudyRequest | None
    swept: tuple[str, ...]
    multirun: bool
    argv: tuple[str, ...]
    arms: tuple[str, ...] = ()
