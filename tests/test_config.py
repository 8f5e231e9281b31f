"""RunConfig: validation, canonical form, and identity."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from bnexp.config import run_config_from_dict
from bnexp.errors import ConfigError
from bnexp.identity import cell_id, run_id

RAW: dict[str, Any] = {
    "data": {
        "name": "digits", "image_size": None, "train_limit": None, "val_fraction": 0.1, "split_seed": 0,
        "augment": "none",
    },
    "model": {"name": "cnn", "depth": 4, "width": 16, "activation": "relu", "init": "he", "init_gain": 1.0,
              "dropout": 0.0, "dropout_placement": "after"},
    "norm": {"kind": "batch", "placement": "before", "where": "all", "eps": 1e-5, "momentum": 0.1, "affine": "both",
             "freeze_at": None},
    "optim": {
        "name": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4, "decay": "weights",
        "trainable": "all", "clip_norm": None, "label_smoothing": 0.0,
    },
    "schedule": {"name": "cosine", "warmup_epochs": 0},
    "lr": 0.05, "batch_size": 64, "epochs": 10, "seed": 0, "precision": "fp32",
}  # fmt: skip


def changed(key: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(RAW)
    *parents, leaf = key.split(".")
    node = raw
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    return raw


def test_config_round_trips_through_its_dict() -> None:
    config = run_config_from_dict(RAW)
    assert run_config_from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", -1), ("lr", 0), ("lr", math.nan), ("lr", math.inf), ("lr", "fast"), ("lr", True), ("lr", None),
        ("batch_size", 0), ("batch_size", 2.5), ("epochs", 0), ("seed", -1), ("precision", "fp8"),
        ("norm.kind", "btach"), ("norm.placement", "middle"), ("norm.eps", 0), ("norm.momentum", 1.5),
        ("norm.affine", "yes"), ("norm.affine", True), ("norm.freeze_at", 10), ("model.dropout", 1),
        ("model.dropout_placement", "middle"), ("optim.trainable", "head"), ("model.name", "alexnet"),
        ("model.depth", 0), ("model.init", "lsvu"), ("model.init_gain", 0), ("data.name", "cifar"),
        ("data.augment", "mixup"), ("data.split", "random"), ("data.val_fraction", 0),
        ("data.val_fraction", 1), ("optim.momentum", 1), ("optim.weight_decay", -1e-4), ("optim.decay", "some"),
        ("optim.clip_norm", 0), ("optim.label_smoothing", 1), ("schedule.warmup_epochs", -1),
        ("schedule.warmup_epochs", 10),
    ],
)  # fmt: skip
def test_config_refuses_a_bad_value_and_names_the_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        run_config_from_dict(changed(key, value))
    assert error.value.key == key
    assert str(error.value).startswith(f"{key}: {value!r}")
    assert "\n" not in str(error.value)


def test_config_refuses_an_unknown_key_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"norm\.momentun: .*did you mean 'norm\.momentum'"):
        run_config_from_dict(changed("norm.momentun", 0.1))


def test_config_refuses_nesterov_without_momentum() -> None:
    raw = changed("optim.nesterov", True)
    raw["optim"]["momentum"] = 0
    with pytest.raises(ConfigError, match=r"optim\.nesterov"):
        run_config_from_dict(raw)


def test_config_ghost_size_must_divide_the_batch() -> None:
    raw = changed(
        "norm", {"kind": "ghost", "placement": "before", "where": "all", "eps": 1e-5, "momentum": 0.1, "affine": "both"}
    )
    raw["norm"]["ghost_size"] = 48
    with pytest.raises(ConfigError, match=r"norm\.ghost_size: 48: does not divide batch_size 64"):
        run_config_from_dict(raw)


def test_no_norm_has_no_placement_so_both_are_one_run() -> None:
    before = run_config_from_dict(changed("norm", {"kind": "none", "placement": "before"}))
    after = run_config_from_dict(changed("norm", {"kind": "none", "placement": "after"}))
    assert before == after
    assert run_id(before) == run_id(after)


@pytest.mark.parametrize(
    "norm",
    [
        {"kind": "none", "placement": "after"},
        {"kind": "layer", "placement": "after", "where": "all-2", "eps": 1e-5, "affine": "none"},
    ],
)
def test_every_kind_of_norm_round_trips(norm: dict[str, Any]) -> None:
    config = run_config_from_dict(changed("norm", norm))
    assert run_config_from_dict(config.to_dict()) == config


def test_run_id_sees_every_key_and_cell_id_all_but_the_seed() -> None:
    base = run_config_from_dict(RAW)
    others = {
        "lr": 0.1, "batch_size": 32, "epochs": 11, "precision": "bf16", "norm.placement": "after", "norm.eps": 1e-3,
        "norm.momentum": 0.2, "norm.affine": "scale", "norm.where": "first", "model.width": 8, "model.init_gain": 2.0,
        "data.split_seed": 1, "data.train_limit": 100, "optim.weight_decay": 0.0, "schedule.warmup_epochs": 1,
        "data.fingerprint": "ab",
        "data.split": "per_seed",
    }  # fmt: skip
    ids = {run_id(run_config_from_dict(changed(key, value))) for key, value in others.items()}
    assert len(ids | {run_id(base)}) == len(others) + 1
    seeded = run_config_from_dict(changed("seed", 1))
    assert run_id(seeded) != run_id(base)
    assert cell_id(seeded) == cell_id(base)


def test_run_id_does_not_depend_on_how_a_number_is_spelled() -> None:
    assert run_id(run_config_from_dict(changed("lr", 1))) == run_id(run_config_from_dict(changed("lr", 1.0)))
    assert run_id(run_config_from_dict(changed("epochs", 10.0))) == run_id(run_config_from_dict(RAW))


def test_a_config_without_a_split_is_of_the_fixed_one() -> None:
    old = run_config_from_dict(RAW)
    assert old.data.split == "fixed"
    assert run_config_from_dict(changed("data.split", "fixed")) == old
    assert old.to_dict()["data"] == {**RAW["data"], "fingerprint": ""}
    own = run_config_from_dict(changed("data.split", "per_seed"))
    assert run_config_from_dict(own.to_dict()) == own


def test_run_id_is_pinned() -> None:
    # A change here re-means every run on disk: raise identity.SCHEMA_VERSION when the numbers change, or undo it.
    assert run_id(run_config_from_dict(RAW)) == "d75bf1208fcb5167"
