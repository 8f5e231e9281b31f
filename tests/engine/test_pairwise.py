"""Every choice in every table trains two steps, and every pair of choices that may stand together meets in some run."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.data import ImageSet, channel_statistics, split_train_val
from bnexp.engine.build import DeviceData, HostData, check_network, settle_where, to_device
from bnexp.engine.loop import train_run
from bnexp.errors import ConfigError
from bnexp.options import (
    ACTIVATIONS,
    AFFINES,
    AUGMENTS,
    BRANCHES,
    DATASETS,
    DROPOUT_PLACEMENTS,
    INITS,
    MODEL_OPTIONS,
    NORM_OPTIONS,
    OPTIM_OPTIONS,
    PLACEMENTS,
    PRECISIONS,
    SCHEDULE_OPTIONS,
    SEQUENCES,
    STEP_STATISTICS,
    TRAINABLE,
)

CPU = torch.device("cpu")
BATCH = 8
SHAPES = {"digits": (1, 8), "mnist": (1, 28), "fashion_mnist": (1, 28), "kmnist": (1, 28), "folder": (3, 20)}
RECURRENT = ("lstm", "gru")
Case = dict[str, str]

# factor -> its values, each with the overrides that choose it
FACTORS: dict[str, dict[str, tuple[str, ...]]] = {
    "data": dict.fromkeys(DATASETS, ()),
    "model": {
        "cnn": ("model.depth=2",),
        "vgg": ("model.depth=11",),
        "resnet": ("model.depth=8",),
        "resnet pre": ("model.depth=8", "model.preactivation=true"),
        "resnet skipinit": ("model.depth=8", "model.branch=skipinit"),
        "resnet fixup": ("model.depth=8", "model.branch=fixup"),
        "mlp": ("model.depth=2",),
        "lstm": ("model.sequence=rows", "model.step_statistics=per_step"),
        "lstm pixels": ("model.sequence=pixels", "model.train_steps=9", "model.step_statistics=shared"),
        "gru": ("model.sequence=rows", "model.step_statistics=shared", "model.permute=true"),
    },
    "norm": {
        "none": (),
        "batch": (),
        "batch frozen": ("norm.freeze_at=0",),
        "batch cumulative": ("norm.momentum=null",),
        "group": ("norm.num_groups=2",),
        "layer": (),
        "instance": (),
        "ghost": ("norm.ghost_size=4",),
        "batch_renorm": ("norm.ramp_steps=1",),
        "noisy_batch": (),
        "group_ws": ("norm.num_groups=2",),
        "filter_response": (),
    },
    "affine": dict.fromkeys(AFFINES, ()),
    "where": dict.fromkeys(("all", "input", "first", "last", "input+all-0", "0+1"), ()),
    "placement": dict.fromkeys(PLACEMENTS, ()),
    "activation": dict.fromkeys(ACTIVATIONS, ()),
    "init": dict.fromkeys(INITS, ()),
    "dropout": dict.fromkeys(("none", *DROPOUT_PLACEMENTS), ()),
    "optim": dict.fromkeys(OPTIM_OPTIONS, ()),
    "trainable": dict.fromkeys(TRAINABLE, ()),
    "schedule": dict.fromkeys(SCHEDULE_OPTIONS, ()),
    "augment": dict.fromkeys(AUGMENTS, ()),
    "precision": dict.fromkeys(PRECISIONS, ()),
}


def refusal(case: Case) -> str | None:
    """The key that bnexp refuses in this case, partial or whole, or None. Each rule is one of the product's."""
    model, norm = case.get("model", "").split(" ")[0], case.get("norm", "").split(" ")[0]
    _, size = SHAPES.get(case.get("data", "cifar10"), (3, 32))
    trains_norms = case.get("trainable") == "norm"
    if case.get("model", "").endswith("fixup") and (norm not in ("", "none") or trains_norms):
        return "model.branch"
    if case.get("model", "").endswith("fixup") and case.get("init") == "lsuv":
        return "model.init"
    if model in RECURRENT:
        if case.get("activation", "tanh") != "tanh":
            return "model.activation"
        if case.get("placement", "before") != "before" and norm != "none":
            return "norm.placement"
        if case.get("dropout", "none") not in ("none", "head"):
            return "model.dropout_placement"
        if norm == "group_ws":
            return "norm.kind"
    where = case.get("where", "input")
    has_flat_layer = model in ("mlp", *RECURRENT) or (model == "vgg" and size < 32)
    if norm in ("instance", "filter_response") and has_flat_layer and where != "input":
        return "norm.kind"
    if norm in ("group", "group_ws") and where.startswith("input") and "where" in case:
        return "norm.num_groups"  # an image has one channel, or three
    without_affine = case.get("affine") == "none" or (
        # a recurrent transform's beta is the bias of its gates
        case.get("affine") == "shift" and model in RECURRENT and case.get("where") in ("first", "0+1")
    )
    if trains_norms and (norm == "none" or (without_affine and "affine" in NORM_OPTIONS.get(norm, ()))):
        return "optim.trainable"
    return None


def covering_cases() -> list[Case]:
    """Cases that hold every allowed pair of values, found greedily."""
    names = list(FACTORS)
    left = {
        frozenset(((a, x), (b, y)))
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(FACTORS[a], FACTORS[b])
        if refusal({a: x, b: y}) is None
    }
    cases = []
    while left:
        seed = min(left, key=sorted)
        case = completed(dict(sorted(seed)), left)
        assert case is not None, f"{dict(seed)}: no case can have both; it belongs among the refusals"
        left -= {frozenset(pair) for pair in itertools.combinations(case.items(), 2)}
        cases.append({name: case[name] for name in FACTORS})
    return cases


def completed(case: Case, left: set[frozenset[tuple[str, str]]]) -> Case | None:
    """The case with a value for each factor, those first that meet most of what is left; None where there is none."""
    name = next((name for name in FACTORS if name not in case), None)
    if name is None:
        return case
    fitting = [value for value in FACTORS[name] if refusal(case | {name: value}) is None]
    gains = {value: sum(frozenset(((name, value), pair)) in left for pair in case.items()) for value in fitting}
    for value in sorted(fitting, key=lambda value: -gains[value]):
        whole = completed(case | {name: value}, left)
        if whole is not None:
            return whole
    return None


@cache
def host_data(name: str) -> HostData:
    channels, size = SHAPES.get(name, (3, 32))
    num_classes = 100 if name == "cifar100" else 10
    labels = np.tile(np.arange(num_classes), 4)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), channels, size, size), dtype=np.uint8)
    classes = tuple(map(str, range(num_classes)))
    image_set = ImageSet(images, labels, images[:10], labels[:10], classes)
    split = split_train_val(labels, val_fraction=0.5, seed=0, train_limit=None)
    mean, std = channel_statistics(images, split.train)
    return HostData(image_set, split, mean, std)


@cache
def device_data(name: str) -> DeviceData:
    return to_device(host_data(name), CPU)


def overrides(case: Case) -> list[str]:
    model, norm = case["model"].split(" ")[0], case["norm"].split(" ")[0]
    chosen = [f"data={case['data']}", f"model={model}", f"norm={norm}", f"optim={case['optim']}"]
    chosen += [f"schedule={case['schedule']}", f"data.augment={case['augment']}", f"model.init={case['init']}"]
    chosen += [*FACTORS["model"][case["model"]], *FACTORS["norm"][case["norm"]]]
    if "affine" in NORM_OPTIONS[norm]:
        chosen.append(f"norm.affine={case['affine']}")
    if norm != "none":
        chosen += [f"norm.placement={case['placement']}", f"norm.where={case['where']}"]
    chosen.append(f"model.activation={case['activation']}")
    if case["dropout"] != "none":
        chosen += ["model.dropout=0.3", f"model.dropout_placement={case['dropout']}"]
    chosen += [f"optim.trainable={case['trainable']}", f"exec.precision={case['precision']}"]
    chosen += ["model.width=4", f"batch_size={BATCH}", "epochs=1", "lr=0.001"]
    return chosen


def id_of(case: Case) -> str:
    return ",".join(case.values())


def test_tables_are_covered() -> None:
    assert {name.split(" ")[0] for name in FACTORS["model"]} == set(MODEL_OPTIONS)
    assert {name.split(" ")[0] for name in FACTORS["norm"]} == set(NORM_OPTIONS)
    spelled = " ".join(itertools.chain(*FACTORS["model"].values()))
    assert all(f"model.sequence={name}" in spelled for name in SEQUENCES)
    assert all(f"model.step_statistics={name}" in spelled for name in STEP_STATISTICS)
    assert all(f"model.branch={name}" in spelled for name in BRANCHES if name != "plain")


def composed_and_checked(case: Case) -> RunConfig:
    (config,) = request_from_argv(overrides(case)).configs
    host = host_data(case["data"])
    config = settle_where(config, host.images)
    check_network(config, host.images, len(host.split.train))
    return config


@pytest.mark.parametrize("case", covering_cases(), ids=id_of)
def test_two_steps(case: Case) -> None:
    torch.set_num_threads(1)
    config = composed_and_checked(case)
    data = device_data(case["data"])
    steps = replace(data, train_x=data.train_x[: 2 * BATCH], train_y=data.train_y[: 2 * BATCH])
    outcome = train_run(config, steps, CPU)
    assert outcome.history[-1]["step"] == 2
    assert math.isfinite(outcome.history[-1]["train_loss"])
    assert outcome.weights is not None
    assert all(value.isfinite().all() for value in outcome.weights.values())


REFUSED = {
    f"{a}={x} {b}={y}": {a: x, b: y}
    for a, b in itertools.combinations(FACTORS, 2)
    for x, y in itertools.product(FACTORS[a], FACTORS[b])
    if refusal({a: x, b: y}) is not None
}


@pytest.mark.parametrize("pair", REFUSED.values(), ids=REFUSED.keys())
def test_pairs_that_cannot_stand_together_are_refused_by_their_key(pair: Case) -> None:
    key = refusal(pair)
    plain = {name: next(iter(values)) for name, values in FACTORS.items()}
    activation = "tanh" if pair.get("model", "").split(" ")[0] in RECURRENT else "relu"
    norm = "none" if "init" in pair else "batch"  # fixup would be refused for its norm first
    case = plain | {"activation": activation, "norm": norm} | pair
    with pytest.raises(ConfigError, match=rf"^{key}: "):
        composed_and_checked(case)
