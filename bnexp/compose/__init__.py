"""argv -> validated RunConfigs. The only package that imports Hydra, in `grammar`, `composing` and `jobs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bnexp.catalog import list_studies
from bnexp.compose.arguments import parse_arguments
from bnexp.compose.completion import complete
from bnexp.compose.composing import Composer, agreed, composer
from bnexp.compose.jobs import run_under_hydra, wants_hydra
from bnexp.compose.studies import Asked, asked_for, own_probes
from bnexp.config import ExecConfig, RunConfig
from bnexp.errors import ConfigError
from bnexp.request import Part, Request

__all__ = ["complete", "list_studies", "request_from_argv", "run_under_hydra", "wants_hydra"]


def request_from_argv(argv: Sequence[str]) -> Request:
    """Compose and validate every run that the arguments of `train` or `plan` ask for.

    Raises:
        ConfigError: anything the user wrote that cannot be used.
    """
    arguments = parse_arguments(argv)
    asked, lacking = asked_for(arguments)
    with composer(arguments.config_dir, multirun=arguments.multirun) as composing:
        probes = composing.probes(own_probes(arguments))
        composed = [_compose(part, composing) for part in asked]
    exec_config = replace(agreed([found for _, found in composed]), probes=probes)
    return Request(tuple(part for part, _ in composed), exec_config, tuple(argv), lacking=lacking, fork=arguments.fork)


def _compose(asked: Asked, composing: Composer) -> tuple[Part, ExecConfig]:
    grids = {arm: composing.grid(overrides) for arm, overrides in asked.arms.items()}
    configs = tuple(config for grid in grids.values() for config in grid.configs)
    exec_config = agreed([grid.exec for grid in grids.values()])
    swept = dict.fromkeys(key for grid in grids.values() for key in grid.swept)
    if asked.study is None:
        return Part(configs, swept=tuple(swept)), exec_config
    _refuse_equal_arms(asked, {arm: frozenset(grid.configs) for arm, grid in grids.items()})
    keys = dict.fromkeys(key for arm in asked.study.spec.arms.values() for key in arm) | swept
    arms = tuple(arm for arm, grid in grids.items() for _ in grid.configs)
    return Part(configs, asked.study, arms, tuple(keys), composing.probes(asked.probes)), exec_config


def _refuse_equal_arms(asked: Asked, runs: dict[str, frozenset[RunConfig]]) -> None:
    """Raises ConfigError where the user's overrides have left two arms that were declared apart the same runs."""
    study = asked.study
    if study is None or not study.overrides:  # a study may compare an arm with itself; that is what it declares
        return
    seen: dict[frozenset[RunConfig], str] = {}
    for arm, configs in runs.items():
        other = seen.setdefault(configs, arm)
        if other != arm and study.spec.arms[arm] != study.spec.arms[other]:
            hint = f"with {' '.join(study.overrides)} its arms {other} and {arm} are the same runs: nothing to compare"
            raise ConfigError("study", got=study.spec.name, hint=hint)
