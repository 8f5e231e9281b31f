"""What Hydra does itself: `--cfg`, its help, a launcher or sweeper of the user's choice, and completion of keys."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra import main as hydra_main
from omegaconf import DictConfig, OmegaConf

from bnexp.choices import config_root
from bnexp.compose.arguments import key_of, parse_arguments
from bnexp.compose.choosing import check_plain_choices, search_path, write_plugin_choices
from bnexp.compose.grammar import one_line_errors
from bnexp.compose.studies import asked_for, own_probes
from bnexp.compose.validation import validate_exec, validate_run
from bnexp.config import ExecConfig, RunConfig
from bnexp.errors import ConfigError

PLUGIN_GROUPS = ("hydra/launcher", "hydra/sweeper")


def wants_hydra(argv: Sequence[str]) -> bool:
    """Whether Hydra itself must handle these arguments: its own flags, a launcher, or a sweeper."""
    parsed = parse_arguments(argv)
    return bool(parsed.flags) or any(key_of(o) in PLUGIN_GROUPS for o in parsed.overrides)


def run_under_hydra(argv: Sequence[str], task: Callable[[RunConfig, ExecConfig], float | None]) -> None:
    """Hand the command line to Hydra; each job that it starts calls `task`, whose value an optimizing sweeper reads.

    Raises:
        ConfigError: anything the user wrote that cannot be used.
    """
    parsed = parse_arguments(argv)
    (first, *others), _ = asked_for(parsed)
    if first.study is not None and any(key_of(o) in PLUGIN_GROUPS for o in parsed.overrides):
        hint = "a study is frozen and executed by bnexp itself: leave out the launcher or sweeper"
        raise ConfigError("study", got=first.study.spec.name, hint=hint)
    if others:
        raise ConfigError("option", got=parsed.flags[0], hint="shows one study at a time")
    own = own_probes(parsed)
    probes = [*(o for o in first.probes if key_of(o) not in map(key_of, own)), *own]
    overrides = [*next(iter(first.arms.values())), *probes]  # of a study, what its first arm is
    with one_line_errors():
        check_plain_choices(overrides, parsed.config_dir)

    def job(raw: DictConfig) -> float | None:
        plain = OmegaConf.to_container(raw, resolve=True)
        assert isinstance(plain, dict)
        composed = {str(key): value for key, value in plain.items()}
        return task(validate_run(composed), validate_exec(composed))

    flags = [*parsed.flags, *(["--multirun"] if parsed.multirun else [])]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come back to us, who say them in one line
    with one_line_errors(), tempfile.TemporaryDirectory(prefix="bnexp-") as folder:
        write_plugin_choices(Path(folder), overrides)
        sys.argv = ["bnexp train", *flags, *overrides, search_path(parsed.config_dir, Path(folder))]
        hydra_main(config_path=str(config_root()), config_name="train", version_base="1.3")(job)()


def ask_hydra_to_complete(argument: str) -> None:
    """Answer `query=SHELL` about the line in COMP_LINE, or `install=SHELL`, by Hydra's own completion."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # it would print what it raises
    sys.argv = ["bnexp", "-sc", argument]
    hydra_main(config_path=str(config_root()), config_name="train", version_base="1.3")(lambda config: None)()
