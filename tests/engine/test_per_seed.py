"""`data.split=per_seed`: every seed has its own train, validation and test images, alone and in a stack."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import compose
from test_stacked import CPU, SMALL, assert_alike, mixed, stop_after_two_epochs

from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.data import ImageSet, load_images
from bnexp.engine.build import load_host_data, to_device
from bnexp.engine.loop import train_run
from bnexp.engine.pool import Draw, Pool, to_pool
from bnexp.engine.stacked import train_stack
from bnexp.engine.worker import Worker
from bnexp.errors import BnexpError, ConfigError
from bnexp.identity import run_id
from bnexp.planned import make_plan
from bnexp.runner import train
from bnexp.store import Store

PER_SEED = "data.split=per_seed"
IMAGES = load_images("digits", root=None, image_size=None)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return to_pool(IMAGES, CPU)


@pytest.fixture
def exact() -> Iterator[None]:
    """Networks that are made, and computed, in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def draws(configs: list[RunConfig], pool: Pool, *, double: bool = False) -> list[Draw]:
    found = [pool.draw(config.data, config.seed) for config in configs]
    if not double:
        return found
    return [dataclasses.replace(each, scale=each.scale.double(), shift=each.shift.double()) for each in found]


def worker_of(*overrides: str) -> tuple[Worker, RunConfig]:
    request = request_from_argv(["data.train_limit=200", "epochs=2", "model.width=4", "exec.threads=1", *overrides])
    plan = make_plan(request)
    return plan.worker, plan.runs[0].config


def test_a_draw_parts_the_pool_and_normalizes_by_its_own_training_images(pool: Pool) -> None:
    config = compose(PER_SEED, "data.train_limit=null").data
    everything = np.concatenate([IMAGES.train_images, IMAGES.test_images])
    labels = np.concatenate([IMAGES.train_labels, IMAGES.test_labels])
    for seed in (0, 5):
        draw = pool.draw(config, seed)
        places = {split: each.numpy() for split, each in draw.places.items()}
        assert sorted(np.concatenate(list(places.values()))) == list(range(1797))
        assert {split: len(each) for split, each in places.items()} == draw.sizes
        assert draw.sizes == {"train": 1293, "val": 144, "test": 360}
        data = draw.gathered()
        for split, (x, y) in data.splits().items():
            assert (x.numpy() == everything[places[split]]).all()
            assert (y.numpy() == labels[places[split]]).all()
        assert data.test_image.tolist() == places["test"].tolist()
        train = everything[places["train"]].astype(np.float64) / 255
        np.testing.assert_allclose(data.scale.item(), 1 / (255 * train.std()), rtol=1e-6)
        np.testing.assert_allclose(data.shift.item(), -train.mean() / train.std(), rtol=1e-6)
        largest = np.bincount(labels[places["train"]]).argmax()
        assert data.majority == largest
        assert data.chance == {split: (labels[each] == largest).mean() for split, each in places.items()}


def test_a_draw_depends_on_the_two_seeds_alone(pool: Pool) -> None:
    base = compose(PER_SEED).data
    test = pool.draw(base, 3).test_image.tolist()
    assert pool.draw(base, 3).test_image.tolist() == test
    for same in ({"augment": "crop"}, {"train_limit": 100}, {"val_fraction": 0.3}):
        assert pool.draw(dataclasses.replace(base, **same), 3).test_image.tolist() == test  # type: ignore[arg-type]
    assert pool.draw(base, 4).test_image.tolist() != test
    assert pool.draw(dataclasses.replace(base, split_seed=1), 3).test_image.tolist() != test


def test_the_host_has_the_sizes_and_statistics_of_seed_0(pool: Pool) -> None:
    config = compose(PER_SEED).data
    host = load_host_data(config, None)
    draw = pool.draw(config, 0)
    assert host.split.train.tolist() == draw.places["train"].tolist()
    assert draw.scale.item() == np.float32(1 / (255 * host.std)).item()
    assert draw.shift.item() == np.float32(-host.mean / host.std).item()


CASES = {
    "batch": ("norm=batch",),
    "noisy, frozen": ("norm=batch", "norm.freeze_at=1", "model.dropout=0.2"),
    "cumulative, lsuv": ("norm.momentum=null", "model.init=lsuv"),
    "augmented": ("data.augment=crop_flip", "norm=group"),
    "mlp": ("model=mlp", "norm=none"),
}


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES.keys())
@pytest.mark.usefixtures("exact")
def test_a_stack_is_its_runs_one_by_one_in_float64(pool: Pool, overrides: tuple[str, ...]) -> None:
    configs = mixed(compose("lr=0.02", PER_SEED, *SMALL, *overrides))
    own = draws(configs, pool, double=True)
    for stacked, config, draw in zip(train_stack(configs, own, CPU), configs, own, strict=True):
        alone = train_run(config, draw.gathered(), CPU)
        assert_alike(stacked, alone, weights=1e-12, losses=1e-12)
        assert {k: v for k, v in stacked.final.items() if k != "train_seconds"} == pytest.approx(
            {k: v for k, v in alone.final.items() if k != "train_seconds"}, abs=1e-12
        )
        assert stacked.predictions is not None
        assert alone.predictions is not None
        for name in ("predicted", "label", "image", "chance_class"):
            assert np.array_equal(getattr(stacked.predictions, name), getattr(alone.predictions, name))
        assert stacked.final["test_accuracy"] == np.mean(stacked.predictions.predicted == stacked.predictions.label)


def test_a_stack_with_its_own_splits_goes_on_from_checkpoints(pool: Pool, tmp_path: Path) -> None:
    configs = mixed(compose("lr=0.02", PER_SEED, *SMALL))
    own = draws(configs, pool)
    whole = train_stack(configs, own, CPU)
    checkpointing = stop_after_two_epochs(configs, own, tmp_path)
    epochs: list[int] = []
    resumed = train_stack(
        configs, own, CPU, checkpointing=checkpointing, on_epoch=lambda index, row: epochs.append(row["epoch"])
    )
    assert epochs == [3] * len(configs)
    for one, other in zip(resumed, whole, strict=True):
        assert_alike(one, other, weights=0, losses=0)


def test_splits_of_one_pool_are_not_mixed_with_others(pool: Pool) -> None:
    configs = mixed(compose(PER_SEED, *SMALL))[:2]
    other = to_pool(IMAGES, CPU)
    with pytest.raises(AssertionError, match="different pools"):
        train_stack(configs, [pool.draw(configs[0].data, 0), other.draw(configs[1].data, 1)], CPU)


def test_a_worker_has_one_pool_for_a_data_set_and_one_gathered_split() -> None:
    worker, config = worker_of(PER_SEED)
    augmented = dataclasses.replace(config.data, augment="flip", train_limit=100)
    worker.hosts[augmented] = worker.hosts[config.data]
    first, again = worker.data(config.data, 1), worker.measuring({}).data(config.data, 1)
    assert first is again
    stack = [*worker.stack_data(config.data, [1, 2]), *worker.stack_data(augmented, [1])]  # type: ignore[misc]
    assert {id(draw.pool) for draw in stack} == {id(stack[0].pool)}
    for seed in range(5):
        worker.data(config.data, seed)
        worker.data(augmented, seed)
    assert len(worker._pools) == 1
    assert len(worker._of_seed) == 1
    assert not worker._on_device
    with pytest.raises(AssertionError, match="each seed"):
        worker.data(config.data)


@pytest.mark.parametrize("executor", ["serial", "process", "stacked"])
def test_arms_of_one_seed_share_their_split_under_every_executor(tmp_path: Path, executor: str) -> None:
    common = ("data.train_limit=200", "epochs=2", "model.width=4", "model.depth=2", "exec.precision=fp32", PER_SEED)
    argv = ["-m", *common, "norm=none,batch", "seed=0,1", f"exec.executor={executor}", "exec.slots=1"]
    request = request_from_argv([*argv, f"results={tmp_path}"])
    assert train(request) == 0
    store = Store(tmp_path)
    images: dict[int, list[list[int]]] = {0: [], 1: []}
    for record in store.records():
        assert record.config["data"]["split"] == "per_seed"
        assert ("stack" in record.exec) == (executor == "stacked")
        kept = store.predictions(record.run_id)
        assert kept is not None
        assert record.final["test_accuracy"] == np.mean(kept.predicted == kept.label)
        images[record.config["seed"]].append(kept.image.tolist())
        everything = np.concatenate([IMAGES.train_labels, IMAGES.test_labels])
        assert kept.label.tolist() == everything[kept.image].tolist()
        store.predictions_path(record.run_id).unlink()
    assert images[0][0] == images[0][1]
    assert images[1][0] == images[1][1]
    assert images[0][0] != images[1][0]
    again = make_plan(request)
    assert {run.state for run in again.runs} == {"measure"}
    assert train(request) == 0
    for run in again.runs:
        kept = store.predictions(run.run_id)
        assert kept is not None
        assert kept.image.tolist() == images[run.config.seed][0]


def test_probes_and_precise_statistics_see_the_runs_own_splits(tmp_path: Path) -> None:
    common = ("data.train_limit=200", "epochs=2", "model.width=4", "exec.precision=fp32", "exec.threads=1")
    for split in ("fixed", "per_seed"):
        argv = [*common, f"data.split={split}", "seed=2", "probes=[statistics]", f"results={tmp_path / split}"]
        assert train(request_from_argv(argv)) == 0
        store = Store(tmp_path / split)
        (record,) = store.records()
        rows = {
            row["statistics"]: row["value"]
            for row in store.probes(record.run_id, "statistics")
            if row["quantity"] == "test_accuracy"
        }
        assert rows["running"] == pytest.approx(record.final["test_accuracy"], abs=1 / 360)


@pytest.mark.parametrize("config", [{}, {"split_seed": 1}])
def test_a_fixed_split_leaves_the_identity_as_it_was(config: dict[str, Any]) -> None:
    fixed, per_seed = compose("seed=1"), compose("seed=1", PER_SEED)
    fixed, per_seed = (dataclasses.replace(c, data=dataclasses.replace(c.data, **config)) for c in (fixed, per_seed))
    assert "split" not in fixed.to_dict()["data"]
    assert per_seed.to_dict()["data"]["split"] == "per_seed"
    assert run_id(fixed) != run_id(per_seed)


def test_what_a_pool_cannot_give_is_refused_in_one_line() -> None:
    images = ImageSet(
        IMAGES.train_images[:9], np.array([0, 0, 0, 0, 1, 1, 1, 1, 2]), IMAGES.test_images[:3], np.array([0, 1, 2]),
        ("a", "b", "c"),
    )  # fmt: skip
    base = compose(PER_SEED, "data.train_limit=null").data
    with pytest.raises(BnexpError, match="class 2 has 1 training images"):
        to_pool(images, CPU).draw(base, 0)
    with pytest.raises(ConfigError, match=r"data\.train_limit: 1294"):
        to_pool(IMAGES, CPU).draw(dataclasses.replace(base, train_limit=1294), 0)


def test_a_host_of_a_pool_is_not_put_on_a_device_as_splits() -> None:
    host = load_host_data(compose(PER_SEED).data, None)
    with pytest.raises(AssertionError, match="pool"):
        to_device(host, CPU)
