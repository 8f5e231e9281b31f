"""Splits, training statistics and augmentation, each against an independent computation."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from bnexp import config as tables
from bnexp.data import channel_statistics, channel_sums, split_pool, split_train_val, statistics_of
from bnexp.data.augment import AUGMENTS, apply_augmentation, draw_augmentation, pad_for
from bnexp.errors import ConfigError, DataError

LABELS = np.random.default_rng(0).choice(5, size=503, p=[0.4, 0.3, 0.2, 0.07, 0.03])


def split(limit: int | None = None, seed: int = 0, fraction: float = 0.1):  # type: ignore[no-untyped-def]
    return split_train_val(LABELS, val_fraction=fraction, seed=seed, train_limit=limit)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_split_is_disjoint_whole_and_stratified(fraction: float) -> None:
    parts = split(fraction=fraction)
    assert sorted([*parts.train, *parts.val]) == list(range(503))
    assert len(parts.val) == round(503 * fraction)
    for label in range(5):
        share = (LABELS[parts.val] == label).sum()
        assert abs(share - fraction * (label == LABELS).sum()) <= 1


def test_split_is_fixed_by_its_seed() -> None:
    assert split().val.tolist() == split().val.tolist()
    assert split().val.tolist() != split(seed=1).val.tolist()
    # pinned: another split would silently re-mean every run on disk
    assert hashlib.sha256(split().val.tobytes()).hexdigest()[:16] == "8b9b4435e054327f"


def test_limits_nest_stay_stratified_and_leave_validation_alone() -> None:
    whole = split()
    previous: set[int] = set()
    for limit in (5, 20, 100, 300, len(whole.train)):
        limited = split(limit)
        kept = set(limited.train.tolist())
        assert len(kept) == limit
        assert previous <= kept <= set(whole.train.tolist())
        assert limited.val.tolist() == whole.val.tolist()
        for label in range(5):
            share = (LABELS[limited.train] == label).sum()
            assert share >= 1
            if limit >= 100:
                assert abs(share - limit * (LABELS[whole.train] == label).mean()) <= 2
        previous = kept


def test_split_refusals() -> None:
    with pytest.raises(ConfigError, match=r"data\.train_limit: 4: expected 5 .* to 453"):
        split(4)
    with pytest.raises(ConfigError, match=r"data\.train_limit: 454"):
        split(454)
    with pytest.raises(DataError, match="class 1 has 1 training images"):
        split_train_val(np.array([0, 0, 0, 1]), val_fraction=0.5, seed=0, train_limit=None)


def drawn(seed: int = 0, limit: int | None = None, fraction: float = 0.1, num_test: int = 100):  # type: ignore[no-untyped-def]
    return split_pool(LABELS, num_test=num_test, val_fraction=fraction, seed=seed, train_limit=limit)


def test_a_pool_is_parted_whole_and_stratified_with_the_same_counts_for_every_seed() -> None:
    counts = set()
    for seed in range(5):
        parts = drawn(seed)
        assert sorted([*parts.train, *parts.val, *parts.test]) == list(range(503))
        assert (len(parts.test), len(parts.val), len(parts.train)) == (100, 40, 363)
        for each in (parts.train, parts.val, parts.test):
            assert (np.diff(each) > 0).all()
            of_classes = np.bincount(LABELS[each], minlength=5)
            assert np.abs(of_classes - len(each) * np.bincount(LABELS) / 503).max() <= 2
        counts.add(tuple(np.bincount(LABELS[each]).tobytes() for each in (parts.train, parts.val, parts.test)))
    assert len(counts) == 1


def test_a_draw_is_fixed_by_its_seed_and_test_by_nothing_else() -> None:
    test = drawn().test.tolist()
    assert drawn().train.tolist() == drawn().train.tolist()
    assert drawn(1).test.tolist() != test
    assert drawn(limit=50).test.tolist() == drawn(fraction=0.4).test.tolist() == test
    assert drawn(limit=50).val.tolist() == drawn().val.tolist()
    assert set(drawn(limit=50).train) < set(drawn(limit=90).train) < set(drawn().train)
    # pinned: another draw would silently re-mean every run on disk
    assert hashlib.sha256(drawn().test.tobytes()).hexdigest()[:16] == "c3e0f16d57d1e914"


def test_seeds_draw_every_image_for_test_equally_often() -> None:
    times = np.bincount(np.concatenate([drawn(seed).test for seed in range(400)]), minlength=503)
    for label, share in enumerate(np.bincount(LABELS[drawn().test]) / np.bincount(LABELS)):
        mine = times[label == LABELS] / 400
        assert mine.mean() == pytest.approx(share)
        assert np.abs(mine - share).max() < 5 * np.sqrt(share * (1 - share) / 400)


def test_a_pool_refuses_what_it_cannot_give() -> None:
    with pytest.raises(ConfigError, match=r"data\.train_limit: 364: expected 5 .* to 363"):
        drawn(limit=364)
    with pytest.raises(DataError, match=r"class 4 has [01] training images"):
        drawn(num_test=480)


def test_sums_give_the_same_statistics_to_the_bit() -> None:
    images = np.random.default_rng(1).integers(0, 256, (5000, 3, 4, 4)).astype(np.uint8)
    images[:, 2] = 7
    indices = np.random.default_rng(2).permutation(5000)[:4500]
    found = statistics_of(channel_sums(images), indices, num_pixels=16)
    for a, b in zip(found, channel_statistics(images, indices), strict=True):
        assert a.tolist() == b.tolist()


def test_statistics_are_those_of_the_training_images_alone() -> None:
    images = np.random.default_rng(1).integers(0, 256, (9000, 3, 4, 4)).astype(np.uint8)
    images[:, 2] = 7
    indices = np.arange(0, 9000, 2)
    mean, std = channel_statistics(images, indices)
    scaled = images[indices].astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std[:2], scaled[:, :2].std((0, 2, 3)), rtol=1e-12)
    assert std[2] == 1  # a constant channel normalizes to 0
    other = images.copy()
    other[1::2] = 0
    np.testing.assert_array_equal(channel_statistics(other, indices)[0], mean)


def by_hand(image: np.ndarray, pad: int, dy: int, dx: int, flip: bool) -> np.ndarray:
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    cropped = padded[:, dy : dy + image.shape[1], dx : dx + image.shape[2]]
    return cropped[:, :, ::-1] if flip else cropped


@pytest.mark.parametrize("kind", [kind for kind in AUGMENTS if kind != "none"])
@pytest.mark.parametrize(("size", "pad"), [(8, 1), (32, 4)])
def test_augmentation_is_pad_crop_and_flip_one_by_one(kind: str, size: int, pad: int) -> None:
    x = torch.randint(0, 256, (40, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    drawn = draw_augmentation(kind, 40, pad=pad, generator=torch.Generator().manual_seed(1))
    assert drawn is not None
    assert (drawn.dy is None, drawn.flip is None) == (kind == "flip", kind == "crop")
    out = apply_augmentation(x, drawn)
    assert out.dtype == torch.uint8
    for k in range(40):
        dy, dx = (0, 0) if drawn.dy is None or drawn.dx is None else (int(drawn.dy[k]), int(drawn.dx[k]))
        expected = by_hand(
            x[k].numpy(), 0 if drawn.dy is None else pad, dy, dx, bool(drawn.flip is not None and drawn.flip[k])
        )
        np.testing.assert_array_equal(out[k].numpy(), expected)
    if drawn.dy is not None:
        assert set(drawn.dy.tolist()) == set(range(2 * pad + 1))
    if drawn.flip is not None:
        assert 5 < int(drawn.flip.sum()) < 35


def test_augmentation_of_an_example_does_not_depend_on_the_batch_size() -> None:
    x = torch.randint(0, 256, (24, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    drawn = draw_augmentation("crop_flip", 24, pad=1, generator=torch.Generator().manual_seed(1))
    assert drawn is not None
    whole = apply_augmentation(x, drawn)
    parts = [apply_augmentation(x[s : s + 8], drawn.part(s, s + 8)) for s in (0, 8, 16)]
    assert torch.equal(whole, torch.cat(parts))


def test_augmentation_none_and_unknown() -> None:
    assert draw_augmentation("none", 4, pad=1, generator=torch.Generator()) is None
    with pytest.raises(ConfigError, match=r"data\.augment"):
        draw_augmentation("mixup", 4, pad=1, generator=torch.Generator())
    assert (pad_for(8), pad_for(28), pad_for(32)) == (1, 4, 4)
    assert set(AUGMENTS) == set(tables.AUGMENTS)
