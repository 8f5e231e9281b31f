"""Runs that were never trained: records, histories and probe rows as a run leaves them, with results made to order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bnexp.catalog import list_studies
from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.identity import canonical_json, cell_id, run_id
from bnexp.records import Predictions, RunRecord
from bnexp.store import Store
from bnexp.study import StudySpec, declaration_hash, study_from_dict

CHANCE = 0.1
Outcome = Callable[[RunConfig], tuple[str, float]]
ENVIRONMENT = {"bnexp": "0.1.0", "torch": "2.15", "python": "3.11", "device": "cpu (test)", "threads": 1,
               "git_commit": "abc", "precision": "fp32"}  # fmt: skip
PLACEMENT = ("norm.placement=before,after", "model=cnn,resnet", "model.depth=8", "model.activation=relu,tanh",
             "lr=0.03,0.3", "seed=range(8)")  # fmt: skip


def write_run(
    store: Store,
    config: RunConfig,
    status: str,
    accuracy: float,
    probes: list[dict[str, Any]] | None = None,
    *,
    images: int | None = None,
) -> str:
    """A run that ended with this status and accuracy; returns its id.

    Args:
        images: how many test images there are, of which the run leaves its predictions. Its accuracy is rounded to the
            share of them that it is right about.
    """
    name = run_id(config)
    if images is not None and status != "diverged":
        predictions = predictions_of(config, accuracy, images)
        accuracy = float((predictions.predicted == predictions.label).mean())
        store.write_config(name, config.to_dict())
        store.write_predictions(name, predictions)
    measured = None if status == "diverged" else accuracy
    final = {f"{split}_accuracy": measured for split in ("train", "val", "test")}
    final |= {f"{split}_loss": None if measured is None else 1 - accuracy for split in ("train", "val", "test")}
    final |= {f"chance_{split}_accuracy": CHANCE for split in ("train", "val", "test")}
    record = RunRecord(
        name, cell_id(config), status, config.to_dict(), {}, final,  # type: ignore[arg-type]
        {"train": 1.0, "eval": 0.1}, ENVIRONMENT, 1234, 3, "ValueError: <b>boom</b>" if status == "failed" else None,
    )  # fmt: skip
    store.write_config(name, config.to_dict())
    rows = [
        {"epoch": e, "step": e, "train_loss": 1.0, "val_accuracy": accuracy * e / 3, "val_loss": 1.0, "lr": config.lr}
        for e in range(1, 2 if status == "diverged" else 4)
    ]
    store.write_history(name, rows)
    if probes is not None:
        store.write_probes(name, probes)
    store.write_record(record)
    return name


def predictions_of(config: RunConfig, accuracy: float, images: int) -> Predictions:
    """Right about the share of images that the accuracy says: those that are easy for the arm, and luck.

    What is easy is in part the same for all runs and in part the same for the runs of an arm, so that arms differ on
    the same images whatever the seed.
    """
    arm = [*map(ord, f"{config.norm.kind} {config.norm.placement}")]
    easy = [np.random.default_rng(key).normal(size=images) for key in ([0], [1, *arm])]
    luck = np.random.default_rng([2, *arm, config.seed, int(config.lr * 1e6)]).normal(size=images)
    right = np.argsort(np.argsort(easy[0] + easy[1] + 0.5 * luck)) >= images - round(accuracy * images)
    label = np.arange(images) % 10  # so that always answering one class is right about a tenth
    predicted = np.where(right, label, (label + 1) % 10)
    return Predictions(predicted.astype(np.uint8), label.astype(np.uint8), np.arange(images, dtype=np.int32), 0, 1_000)


def write_all(store: Store, configs: Iterable[RunConfig], outcome: Outcome, *, images: int | None = None) -> None:
    for config in configs:
        write_run(store, config, *outcome(config), images=images)


def grid(*argv: str) -> list[RunConfig]:
    """The configs of a sweep over these overrides, in its order."""
    return list(_grid(argv))


@cache
def _grid(argv: tuple[str, ...]) -> tuple[RunConfig, ...]:
    configs = request_from_argv(["-m", "exec.precision=fp32", "epochs=3", *argv]).configs
    return tuple({run_id(config): config for config in configs}.values())


def noise(config: RunConfig, spread: float = 0.004) -> float:
    """Shared by the arms of a seed, as in a paired experiment, and a little of their own."""
    own = np.random.default_rng([config.seed, int(config.lr * 1e6), config.norm.placement == "after"]).normal()
    return float(spread * (np.random.default_rng(config.seed).normal() + 0.3 * own))


def write_study(store: Store, configs: list[RunConfig], *, exploratory: bool = False) -> None:
    """Freeze the placement study over these runs, as if it had declared just them, or been overridden to be these."""
    raw = list_studies()["placement"].declaration("small")
    seeds = sorted({config.seed for config in configs})
    raw["tiers"]["small"].pop("widen", None)  # what was run is all that was to be run
    if not exploratory:
        raw["tiers"]["small"]["axes"] = {
            "model": list(dict.fromkeys(config.model.name for config in configs)),
            "model.activation": list(dict.fromkeys(config.model.activation for config in configs)),
            "lr": sorted({config.lr for config in configs}), "seed": seeds,
        }  # fmt: skip
        raw["tiers"]["small"]["fixed"].pop("probes")
    arms = {arm: [c for c in configs if c.norm.placement == arm] for arm in ("before", "after")}
    freeze(store, "placement", study_from_dict(raw), arms, overrides=["seed=0,1"] if exploratory else [])


def freeze(
    store: Store,
    key: str,
    spec: StudySpec,
    arms: Mapping[str, Sequence[RunConfig]],
    *,
    tier: str = "small",
    overrides: Sequence[str] = (),
    **more: object,
) -> None:
    """study.json as `train` writes it."""
    declaration = json.loads(canonical_json(spec.declaration(tier)))
    ids = {arm: list(dict.fromkeys(run_id(config) for config in configs)) for arm, configs in arms.items()}
    store.write_study(key, {
        "name": key, "tier": tier, "declaration": declaration, "hash": declaration_hash(declaration),
        "exploratory": bool(overrides), "overrides": list(overrides), "command": f"bnexp train -m study={spec.name}",
        "run_ids": list(dict.fromkeys(name for names in ids.values() for name in names)), "arms": ids, **more,
    })  # fmt: skip


def placement_outcome(config: RunConfig) -> tuple[str, float]:
    """After is 3 points better under relu and 2 worse under tanh; 0.3 is the better rate; one seed always diverges."""
    if config.seed == 5 and config.model.name == "resnet" and config.norm.placement == "after":
        return "diverged", CHANCE
    sign = {"relu": 0.03, "tanh": -0.02}[config.model.activation] * (config.norm.placement == "after")
    return "finished", 0.9 + sign + 0.02 * (config.lr == 0.3) + noise(config)


def placement_store(root: Path) -> Store:
    store, configs = Store(root), grid(*PLACEMENT)
    write_all(store, configs, placement_outcome)
    write_study(store, configs)
    return store
