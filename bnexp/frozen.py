"""study.json: what a study declares and which runs are its own, written before the first of them."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bnexp.analysis.sequential import default_looks, frozen_looks
from bnexp.analysis.widening import Ladder, frozen_ladders, ladders_of
from bnexp.engine.device import git_commit
from bnexp.errors import ConfigError, StoreError
from bnexp.folders import remember_folder
from bnexp.identity import canonical_json
from bnexp.ledger import now
from bnexp.planned import Plan, PlannedPart
from bnexp.request import Request, StudyRequest
from bnexp.store import Store
from bnexp.study import declaration_hash, study_from_dict

STACKING = {"auto": "where timed to be faster", "stacked": "wherever shapes allow"}  # executor -> side by side
_ABSENT = object()


def freeze_studies(plan: Plan, request: Request) -> list[str]:
    """Check every study of a request, then write each one's study.json; the names that they go by on disk.

    Raises:
        ConfigError: one was started here under another declaration or with other runs, or there is nothing to fork.
        StoreError: a study.json was changed by other hands since it was frozen.
    """
    frozen = check_studies(plan, request)
    for key, content in frozen.items():
        plan.store.write_study(key, content, attempt=_attempt(request, str(content["command"])))
    if frozen:
        remember_folder(plan.store.root)
    return list(frozen)


def _attempt(request: Request, command: str) -> dict[str, Any]:
    """When and with what a train command was given."""
    executor = request.exec.executor
    return {
        "time": now(),
        "commit": git_commit(),
        "executor": executor,
        "stacking": STACKING.get(executor, "never"),
        "command": command,
    }


def check_studies(plan: Plan, request: Request) -> dict[str, dict[str, Any]]:
    """What `freeze_studies` would write: the name on disk of each study, and its study.json."""
    frozen: dict[str, dict[str, Any]] = {}
    for planned in plan.parts:
        if planned.part.study is not None:
            key, content = _freeze(planned, planned.part.study, request, plan.store)
            frozen[key] = content
    if request.fork and not any("fork_of" in content for content in frozen.values()):
        raise _nothing_to_fork(request, plan.store)
    return frozen


def changed_keys(before: Any, after: Any, prefix: str = "") -> list[str]:
    """The dotted keys in which two plain values differ; of lists of other lengths, the key of the list."""
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = [(key, before.get(key, _ABSENT), after.get(key, _ABSENT)) for key in sorted({*before, *after})]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(before, after, strict=True))]
    else:
        return [] if before == after else [prefix]
    return [found for key, old, new in pairs for found in changed_keys(old, new, f"{prefix}.{key}" if prefix else key)]


def _freeze(planned: PlannedPart, study: StudyRequest, request: Request, store: Store) -> tuple[str, dict[str, Any]]:
    declaration = json.loads(canonical_json(study.spec.declaration(study.tier)))
    digest, key, fork = declaration_hash(declaration), study.key, {}
    before = _started(store, key)
    refusal = _refusal(study, declaration, digest, before, store)
    if refusal is not None:
        error, changed = refusal
        if not request.fork:
            raise error
        key, fork = f"{key}-fork-{digest[:6]}", {"fork_of": study.spec.name, "changed": changed}
        before = _started(store, key)
    ladders = _ladders(planned, study)
    # the same overrides in another order ask for the same runs in another order
    asked = _all_runs(planned.run_ids, ladders)
    if before is not None and _all_runs(before["run_ids"], ladders_of(before)) != asked:
        hint = (
            f"was started in {str(store.root)!r} with other runs: the data, the precision or a default has "
            "changed since; use another results folder"
        )
        raise ConfigError("study", got=study.spec.name, hint=hint)
    return key, {
        "name": key,
        "tier": study.tier,
        "declaration": declaration,
        "hash": digest,
        "exploratory": bool(study.overrides),
        "overrides": list(study.overrides),
        "command": shlex.join(["bnexp", "train", *request.argv]),
        "run_ids": planned.run_ids,
        "arms": planned.arms,
        **({"widening": frozen_ladders(ladders)} if ladders else {}),
        **(_looks(study, before) if study.stop_decided else {}),
        **fork,
    }


def _all_runs(run_ids: Iterable[str], ladders: Sequence[Ladder]) -> set[str]:
    """The runs that a study declares, and those that widening its ladders may add."""
    return {*run_ids, *(name for ladder in ladders for name in ladder.further_ids)}


def _ladders(planned: PlannedPart, study: StudyRequest) -> list[Ladder]:
    """Of each stratum, the runs at the declared rates and at those it may be widened by; none where it may not."""
    if not study.further_rates:
        return []
    tier = study.spec.tiers[study.tier]
    axes = {**tier.axes, "lr": (*tier.axes["lr"], *tier.widen)}
    names, configs = iter(planned.names), iter(planned.part.configs)
    found: dict[str, tuple[dict[str, dict[float, list[str]]], dict[str, dict[float, list[str]]]]] = {}
    for arm in study.spec.arms:
        for point in itertools.product(*axes.values()):  # in the order in which the grid was composed
            place, name, config = dict(zip(axes, point, strict=True)), next(names), next(configs)
            rate, seed = float(place.pop("lr")), place.pop("seed")
            assert (config.lr, config.seed) == (rate, seed), "the grid was composed in another order"
            words = ", ".join(_word(key, value) for key, value in place.items() if len(axes[key]) > 1)
            found.setdefault(words, ({}, {}))[rate in tier.widen].setdefault(arm, {}).setdefault(rate, []).append(name)
    return [Ladder(words, declared, further) for words, (declared, further) in found.items()]


def _word(key: str, value: Any) -> str:
    """`relu` speaks for itself; anything else needs its key."""
    if isinstance(value, str):
        return value
    shown = "none" if value is None else f"{value:g}" if isinstance(value, float) else f"{value}"
    return f"{key.rpartition('.')[2].replace('_', ' ')} {shown}"


def _started(store: Store, key: str) -> dict[str, Any] | None:
    """study.json as it was frozen; None where the study was not started."""
    before = store.study(key)
    if before is not None and not {"hash", "declaration", "run_ids"} <= set(before):
        raise StoreError(f"{str(store.study_path(key))!r} is no frozen study: remove it, or use another results folder")
    return before


def _refusal(
    study: StudyRequest, declaration: Mapping[str, Any], digest: str, before: Mapping[str, Any] | None, store: Store
) -> tuple[ConfigError, list[str]] | None:
    """Why a study cannot go by its own name here, and what is not as it was started; None where it can."""
    if before is not None:
        if before["hash"] == digest or _means_the_same(before["declaration"], study):
            return None
        changed = changed_keys(before["declaration"], declaration)
        return _changed_since(study, changed, store), changed
    otherwise = replace(study, stop_decided=not study.stop_decided)
    other = _started(store, otherwise.key)
    if other is None:
        return None
    return _started_otherwise(otherwise, store), ["stop", *changed_keys(other["declaration"], declaration)]


def _means_the_same(before: Mapping[str, Any], study: StudyRequest) -> bool:
    """Whether a frozen declaration differs in its spelling alone, as one of a version that had fewer fields does."""
    try:
        return study_from_dict(before) == study.spec.at(study.tier)
    except ConfigError:
        return False


def _looks(study: StudyRequest, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """When a study that stops when it is decided is judged, and how strictly: as it was started, if it was."""
    planned = frozen_looks(default_looks(len(study.spec.seeds(study.tier))))
    return planned if before is None else {key: before[key] for key in planned if key in before}


def _started_otherwise(other: StudyRequest, store: Store) -> ConfigError:
    how = "with stop=decided" if other.stop_decided else "without stop=decided"
    hint = (
        f"was started in {str(store.root)!r} {how}, and judging its claim a second time would err more often: "
        f"bnexp report {other.key}, or use another results folder, or set this one apart with --fork"
    )
    return ConfigError("study", got=other.spec.name, hint=hint)


def _changed_since(study: StudyRequest, changed: list[str], store: Store) -> ConfigError:
    shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    hint = (
        f"was started in {str(store.root)!r} under another declaration ({shown} changed since); give the changed "
        "study a name of its own, or start it anew beside the old one with --fork"
    )
    return ConfigError("study", got=study.spec.name, hint=hint)


def _nothing_to_fork(request: Request, store: Store) -> ConfigError:
    names = ", ".join(study.spec.name for study in request.studies)
    if any(study.overrides for study in request.studies):
        hint = "overrides make this study exploratory, which goes by a name of its own already: leave out --fork"
    elif any(store.study(study.key) for study in request.studies):
        hint = "no declaration has changed since it was started: leave out --fork"
    else:
        hint = f"was not started in {str(store.root)!r}: leave out --fork"
    return ConfigError("--fork", got=names, hint=hint)
