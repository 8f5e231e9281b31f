"""The command line of `train` and `plan`, taken apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bnexp.choices import split_config_dir
from bnexp.errors import ConfigError

OPTIONS = ("-m", "--multirun", "--fork", "--config-dir", "--cfg", "--info", "--resolve", "--help")


@dataclass
class Arguments:
    """The command line, taken apart.

    Attributes:
        overrides: KEY=VALUE, in order.
        flags: those that Hydra answers itself.
        fork: start a study whose declaration has changed under a name of its own.
    """

    overrides: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    multirun: bool = False
    fork: bool = False
    config_dir: Path | None = None


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Sort the words of a command line.

    Raises:
        ConfigError: an option that there is not, or a word that is no KEY=VALUE.
    """
    config_dir, words = split_config_dir(argv)
    parsed = Arguments(config_dir=config_dir)
    rest = iter(words)
    for word in rest:
        if word in ("-m", "--multirun"):
            parsed.multirun = True
        elif word == "--fork":
            parsed.fork = True
        elif word in ("--cfg", "-c", "--package", "-p"):
            parsed.flags += [word, *itertools.islice(rest, 1)]
        elif word in ("--info", "-i"):
            parsed.flags.append(word)
            parsed.flags += list(itertools.islice(rest, 1))
        elif word in ("--hydra-help", "--resolve"):
            parsed.flags.append(word)
        elif word.startswith("-"):
            raise ConfigError("option", got=word, choices=OPTIONS)
        elif "=" not in word:
            raise ConfigError("argument", got=word, hint="expected KEY=VALUE, such as norm=batch or lr=0.1")
        else:
            parsed.overrides.append(word)
    return parsed


def key_of(override: str) -> str:
    """The key of KEY=VALUE."""
    return override.partition("=")[0]
